"""Stores, and records to be kept in them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from multihost_broker.journal.records import Change, Erase, Record
from multihost_broker.journal.sqlitestore import SqliteStore
from multihost_broker.journal.store import Store


def sqlite(directory: Path, relaxed: bool = False) -> SqliteStore:
    return SqliteStore(directory, relaxed=relaxed, ballast=0)


def plain(store: Store) -> dict[int, Record]:
    """What is there, with payloads as tuples of bytes."""
    found = {}
    for number, record in store.load():
        frames = record.payload if isinstance(record.payload, tuple) else store.get_blob(record.payload)
        found[number] = Record(record.kind, record.job, record.header, tuple(map(bytes, frames)))
    return found


def got(store: Store, numbers: Sequence[int]) -> dict[int, Record]:
    """What ``get`` answers, with payloads as tuples of bytes."""
    found = {}
    for number, each in store.get(numbers).items():
        assert isinstance(each.payload, tuple)
        found[number] = Record(each.kind, each.job, each.header, tuple(map(bytes, each.payload)))
    return found


def record(number: int, job: bytes = b"job", size: int = 100) -> Record:
    return Record(number % 7, job, b"header %d" % number, (b"%d" % number, bytes([number % 256]) * size))


def filled(store: Store, numbers: range, job: bytes = b"job", size: int = 100) -> dict[int, Record]:
    made = {number: record(number, job, size) for number in numbers}
    store.append_batch(list(made.items()))
    return made


def after(held: dict[int, Record], batch: list[tuple[int, Change]]) -> dict[int, Record]:
    """What a dict would hold after these changes."""
    held = dict(held)
    for number, change in batch:
        if isinstance(change, Record):
            held[number] = change
            continue
        for each, kept in list(held.items()):
            if each in change.numbers if isinstance(change, Erase) else kept.job == change.job:
                del held[each]
    return held


def compacted(store: Store) -> None:
    while store.compact():
        pass
