"""Queues that have a name: they outlive who uses them, and the broker."""
