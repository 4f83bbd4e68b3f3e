"""The broker: one process that hands work out and results back. It never unpickles."""
