"""The log of this library. Few scripts ever write to it, and all would wait for the import: so it is fetched for each line."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from logging import Logger


def log() -> Logger:
    """The logger ``multihost``."""
    import logging

    return logging.getLogger("multihost")
