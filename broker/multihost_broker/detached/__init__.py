"""Jobs that outlive who submits them, and the broker: part of the core, without I/O."""
