"""Where the journal's records are kept: the interface, and the store that keeps them in memory.

:class:`Store` is all that :mod:`multihost_broker.journal.thread` knows. One thread uses a store at a time, but for
``get_blob``, which any thread may call at any time. The store of a broker on one host is
:class:`multihost_broker.journal.sqlitestore.SqliteStore`; a database server could take its place: what it has to hold is
said here and tested for every store by the same tests.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import count
from typing import Literal, Protocol, TypeAlias

from multihost_broker.journal.errors import StoreError
from multihost_broker.journal.records import Change, Erase, Forget, Record, Spooled
from multihost_common.blocks import Frame

log = logging.getLogger("multihost.broker")

#: ``full``: on disk before it is confirmed. ``relaxed``: handed to the operating system, so that a loss of power
#: may take the last seconds along, a killed broker nothing. ``none``: in memory.
Durability: TypeAlias = Literal["full", "relaxed", "none"]


class Store(Protocol):
    """Records by number. Whatever a method raises is a :class:`StoreError`."""

    #: Which opening of this store this is; on disk by the time the store is open, and never again the same.
    epoch: int
    #: The highest number that was ever in use.
    last: int

    def append_batch(self, changes: Sequence[tuple[int, Change]]) -> None:
        """Carry out all of these changes, numbered and in order, or none of them. On return they are durable.

        The numbers rise, and every record that an ``Erase`` names has a lower number than the ``Erase``; one
        that is not there is no error.
        """
        ...

    def load(self) -> Iterator[tuple[int, Record]]:
        """What is there, by rising number, large payloads as :class:`Spooled`. To be read before anything is
        appended."""
        ...

    def get(self, numbers: Sequence[int]) -> dict[int, Record]:
        """Those of these records that are there, by number, each with the frames of its payload.

        One whose payload is damaged or cannot be read is left out, and that is logged.
        """
        ...

    def compact(self) -> bool:
        """One step, of some milliseconds, of the work that can wait; True: there is more of it."""
        ...

    def put_blob(self, frames: Sequence[Frame]) -> Spooled:
        """Keep a large payload. It is durable once ``append_batch`` of a record that names it has returned.

        One that no record names is gone when the store is opened again.
        """
        ...

    def get_blob(self, blob: Spooled) -> tuple[Frame, ...]:
        """The frames of a large payload, exactly as they were; StoreError if they cannot be had as they were."""
        ...

    def drop_blob(self, blob: Spooled) -> None:
        """Undo a ``put_blob`` whose record was not appended."""
        ...

    def release_reserve(self) -> None:
        """Give the room that was held back to what has to be written although there is no more."""
        ...

    def regain_reserve(self) -> bool:
        """Hold room back (again); False: there is not enough for that and for new work."""
        ...

    def close(self) -> None:
        """Let go of everything."""
        ...

    def abandon(self) -> None:
        """Instead of ``close`` after an error: touch nothing more of what is on disk. The process has to end."""
        ...


class MemoryStore:
    """For ``--durability none``: as any store, and gone with the process."""

    def __init__(self, epoch: int = 1) -> None:
        self.epoch = epoch
        self.last = 0
        self._records: dict[int, Record] = {}
        self._jobs: dict[bytes, set[int]] = {}
        self._blobs: dict[str, tuple[Frame, ...]] = {}
        self._names = count(1)

    def append_batch(self, changes: Sequence[tuple[int, Change]]) -> None:
        """See :class:`Store`."""
        for number, change in changes:
            if type(change) is Record:
                self._records[number] = change
                self._jobs.setdefault(change.job, set()).add(number)
            elif type(change) is Erase:
                for each in change.numbers:
                    self._erase(each)
            elif type(change) is Forget:
                for each in list(self._jobs.get(change.job, ())):
                    self._erase(each)
            self.last = number

    def _erase(self, number: int) -> None:
        record = self._records.pop(number, None)
        if record is None:
            return
        if type(record.payload) is Spooled:
            self.drop_blob(record.payload)
        numbers = self._jobs[record.job]
        numbers.discard(number)
        if not numbers:
            del self._jobs[record.job]

    def load(self) -> Iterator[tuple[int, Record]]:
        """See :class:`Store`."""
        return iter(sorted(self._records.items()))

    def get(self, numbers: Sequence[int]) -> dict[int, Record]:
        """See :class:`Store`."""
        return with_frames(self, ((each, self._records[each]) for each in numbers if each in self._records))

    def compact(self) -> bool:
        """See :class:`Store`."""
        return False

    def put_blob(self, frames: Sequence[Frame]) -> Spooled:
        """See :class:`Store`; there is no digest, since nothing can happen to it."""
        blob = Spooled(f"{next(self._names):x}", tuple(map(len, frames)), b"")
        self._blobs[blob.name] = tuple(frames)
        return blob

    def get_blob(self, blob: Spooled) -> tuple[Frame, ...]:
        """See :class:`Store`."""
        try:
            return self._blobs[blob.name]
        except KeyError:
            raise StoreError(f"there is no payload {blob.name} (any more)") from None

    def drop_blob(self, blob: Spooled) -> None:
        """See :class:`Store`."""
        self._blobs.pop(blob.name, None)

    def release_reserve(self) -> None:
        """See :class:`Store`."""

    def regain_reserve(self) -> bool:
        """See :class:`Store`."""
        return True

    def close(self) -> None:
        """See :class:`Store`."""

    def abandon(self) -> None:
        """See :class:`Store`."""


def with_frames(store: Store, records: Iterable[tuple[int, Record]]) -> dict[int, Record]:
    """By number, with large payloads read; what cannot be read is logged and left out."""
    found = {}
    for number, record in records:
        if type(record.payload) is Spooled:
            try:
                record = replace(record, payload=store.get_blob(record.payload))
            except StoreError as error:
                log.error("record %d of the journal cannot be used: %s", number, error)
                continue
        found[number] = record
    return found
