"""The core's end of the journal: what is to be done once a change is durable, or could not be made."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from multihost_broker.events import Action, Read, Records, Synced, Write
from multihost_broker.journal.records import Change, Record


def nothing() -> None:
    """What follows from a change that nobody waits for."""


class Scribe:
    """Numbers changes and reads; ``emit`` takes the actions. Changes are numbered on from ``ticket``."""

    def __init__(self, emit: Callable[[Action], None], ticket: int = 0) -> None:
        self._emit = emit
        #: Of the last change.
        self.ticket = ticket
        self._unsynced: deque[tuple[int, Callable[[], None], Callable[[], None]]] = deque()
        self._synced = ticket
        self._refused: set[int] = set()
        self._token = 0
        self._reads: dict[int, Callable[[dict[int, Record]], None]] = {}

    @property
    def next(self) -> int:
        """The ticket of the change that will be written next."""
        return self.ticket + 1

    def write(
        self,
        change: Change,
        done: Callable[[], None] = nothing,
        refused: Callable[[], None] = nothing,
        *,
        essential: bool = False,
    ) -> int:
        """Have a change made: ``done`` is called when it is durable, ``refused`` if there was no room, both in the
        order of the tickets. The ticket."""
        self.ticket = self.next
        self._unsynced.append((self.ticket, done, refused))
        self._emit(Write(self.ticket, change, essential))
        return self.ticket

    def follow(self, done: Callable[[], None]) -> None:
        """Call ``done`` once all that was written before is durable."""
        if self._unsynced:
            self._unsynced.append((self.ticket, done, done))
        else:
            done()

    def read(self, numbers: tuple[int, ...], then: Callable[[dict[int, Record]], None]) -> int:
        """Have records read; ``then`` is called with those that there are. A number for it, never 0."""
        self._token += 1
        self._reads[self._token] = then
        self._emit(Read(self._token, numbers))
        return self._token

    def synced(self, event: Synced) -> None:
        """The journal has got so far."""
        self._synced = max(self._synced, event.ticket)
        self._refused.update(event.refused)
        unsynced = self._unsynced
        while unsynced and (unsynced[0][0] <= self._synced or unsynced[0][0] in self._refused):
            ticket, done, refused = unsynced.popleft()
            (refused if ticket in self._refused else done)()
        if self._refused:
            # Several may follow from one change.
            first = unsynced[0][0] if unsynced else self.next
            self._refused = {ticket for ticket in self._refused if ticket >= first}

    def records(self, event: Records) -> None:
        """What was asked for has been read."""
        then = self._reads.pop(event.token, None)
        if then is not None:
            then(event.records)

    def idle(self) -> bool:
        """Is nothing under way?"""
        return not self._unsynced and not self._reads
