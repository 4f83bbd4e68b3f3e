"""Keys of jobs that were collected: who says a Submit once more is told so, and the job is not run again."""

from __future__ import annotations

import struct

from multihost_broker.detached.books import COLLECTED
from multihost_broker.detached.scribe import Scribe
from multihost_broker.journal.records import Erase, Record

#: Wall clock, seconds; behind it the key.
_HEADER = struct.Struct("<d")

#: Seconds for which a key is remembered, and how many there are at most.
KEPT = 86_400.0
MOST = 10_000


class Tombstones:
    """See the module. Times are of the wall clock, seconds."""

    def __init__(self, scribe: Scribe) -> None:
        self._scribe = scribe
        #: Key -> (ticket, when), in that order.
        self._stones: dict[bytes, tuple[int, float]] = {}

    def __contains__(self, key: bytes) -> bool:
        return key in self._stones

    def __len__(self) -> int:
        return len(self._stones)

    def add(self, key: bytes, now: float) -> None:
        """The job has been collected."""
        ticket = self._scribe.write(Record(COLLECTED, b"", _HEADER.pack(now) + key), essential=True)
        self._stones[key] = ticket, now

    def restore(self, ticket: int, record: Record) -> None:
        """An earlier start of the broker has written it."""
        (when,) = _HEADER.unpack_from(record.header)
        self._stones[record.header[_HEADER.size :]] = ticket, when

    def expire(self, now: float) -> None:
        """Forget those that are old, and the oldest ones if there are too many."""
        spare = len(self._stones) - MOST
        over = [
            key
            for place, (key, (_, when)) in enumerate(self._stones.items())
            if place < spare or when + KEPT <= now
        ]
        if over:
            self._scribe.write(Erase(tuple(self._stones.pop(key)[0] for key in over)), essential=True)
