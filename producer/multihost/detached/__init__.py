"""Jobs that outlive who submits them: handed in, and got at."""
