"""Seeded schedules of faults against the real cores in virtual time. ``python -m tests.simulation --help``."""
