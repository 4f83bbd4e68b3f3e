"""Which store a broker has."""

from __future__ import annotations

from pathlib import Path

from multihost_broker.journal.sqlitestore import SqliteStore
from multihost_broker.journal.store import Durability, MemoryStore, Store


def open_store(directory: Path | None, durability: Durability = "full", *, oldest_epoch: int = 1) -> Store:
    """The store for ``--durability``; ``none`` leaves ``directory`` alone, as is having none.

    The epoch is one more than the last one, and at least ``oldest_epoch``: with the wall clock in milliseconds
    for it, epochs rise also when the journal was lost or none is kept. Raises StoreInUseError if another broker
    has the directory, ConfigError if it cannot be used, StoreError if what is in it is damaged or has no room.
    """
    if durability == "none" or directory is None:
        return MemoryStore(oldest_epoch)
    return SqliteStore(directory, relaxed=durability == "relaxed", oldest_epoch=oldest_epoch)
