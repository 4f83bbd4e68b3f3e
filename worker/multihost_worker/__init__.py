"""The worker: one agent per host and its child processes."""
