"""Sub-commands of the command line, a module each with a click command named ``command``."""
