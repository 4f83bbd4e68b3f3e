"""Which messages of a connection need not be answered one by one, judged by how they follow each other."""

from __future__ import annotations

import time
from typing import ClassVar

#: Who sends so many messages in a row, or in turns with receiving, need not wait for each.
STREAK = 4

#: Seconds that may lie between two of them. Whoever looked, waited for a process or did something else meanwhile
#: is to learn at once that the other end was closed.
PAUSE = 0.001

#: Of so many messages, and bytes, one is answered.
LOOSE = 32
LOOSE_BYTES = 65_536


class Pace:
    """Of one connection."""

    #: Connections that this process has closed: then the next message is answered in any case.
    closed: ClassVar[int] = 0

    __slots__ = ("_at", "_bytes", "_closed", "_count", "_loose", "_received", "_turns")

    def __init__(self) -> None:
        #: When something was sent or received last.
        self._at = 0.0
        #: Messages sent so closely, and those of them that followed one that was received.
        self._count = 0
        self._turns = 0
        self._received = False
        #: Sent since the last one that was answered.
        self._loose = 0
        self._bytes = 0
        self._closed = 0

    def loosely(self, size: int) -> bool:
        """A message of ``size`` bytes is sent: need it not be answered?"""
        now = time.perf_counter()
        if now - self._at < PAUSE and self._closed == Pace.closed:
            self._count += 1
            self._turns = self._turns + 1 if self._received else 0
        else:
            self._count = self._turns = 0
            self._closed = Pace.closed
        self._at = now
        self._received = False
        self._loose += 1
        self._bytes += size
        return self._count > STREAK and self._loose < LOOSE and self._bytes < LOOSE_BYTES

    def in_turns(self) -> bool:
        """Is each message followed by one to receive?"""
        return self._turns > STREAK

    def answered(self) -> None:
        """All that was sent so far has been taken in."""
        self._loose = self._bytes = 0
        self._at = time.perf_counter()

    def received(self) -> None:
        """A message has come."""
        self._received = True
        self._at = time.perf_counter()


__all__ = ["Pace"]
