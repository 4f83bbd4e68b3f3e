"""Shared objects: queues, pipes, locks, events, barriers, bytes of values. A small machine each, a file each."""
