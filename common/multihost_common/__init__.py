"""What producer, broker and worker say to each other: messages, blocks of work, errors, keys."""

__version__ = "0.1.0"
