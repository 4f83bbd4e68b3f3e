"""How much memory the items of all queues have together.

It is shared as the input of jobs is (see :mod:`multihost_broker.memory`): a queue may have as much here as is free. One
alone gets half of it, of many each gets about the same, and there is always some left for the next one; so queues of which
one waits for the other do not block each other.
"""

from __future__ import annotations

from typing import Protocol

#: Bytes that a queue may have however full it is.
SHARE = 1 << 20

#: Who waits is looked at again each time that this part of the room has become free.
STEP = 64


class Waiting(Protocol):
    """A queue into which more would be put."""

    def resume(self) -> None:
        """There may be room now."""


class Room:
    """Room for ``limit`` bytes of items; 0: not bounded. ``share``: what a queue may have in any case."""

    def __init__(self, limit: int = 0, share: int = SHARE) -> None:
        self.limit = limit
        self.share = share
        self.used = 0
        #: ``used`` when those that wait were looked at last, or more.
        self._seen = 0
        self._waiting: dict[Waiting, None] = {}

    def has(self, held: int) -> bool:
        """Whether a queue that has ``held`` bytes here may have more."""
        return not self.limit or held < self.share or held <= self.limit - self.used

    def wait(self, queue: Waiting) -> None:
        """Tell this queue, once, when there is more room."""
        self._waiting[queue] = None
        self._seen = max(self._seen, self.used)

    def leave(self, queue: Waiting, held: int) -> None:
        """This queue, which has ``held`` bytes here, is no more."""
        self.used -= held
        self._waiting.pop(queue, None)

    def settle(self) -> None:
        """To be called when something has changed: tell those that wait, if there is more room."""
        if not self._waiting or self.used > self._seen:
            self._seen = self.used
        elif self.used <= self._seen - self.limit // STEP:
            self._seen = self.used
            waiting, self._waiting = self._waiting, {}
            for queue in waiting:
                queue.resume()


__all__ = ["SHARE", "Room", "Waiting"]
