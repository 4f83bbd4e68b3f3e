"""A broker whose core writes notes into its journal when it is asked to, as other cores do jobs and results.

    noting.py LIMIT OPTIONS...

OPTIONS are those of ``multihost broker``. With a LIMIT no file may grow beyond so many bytes once a note has been
written: to write more is an I/O error.

    Ask("note", N)   write a note of N bytes; the answer, once that is done: its number, whether there was room for it,
                     whether the disk is full
    Ask("read", N)   the answer: how many bytes the note with that number has (-1: it is not there), and how many notes
                     there were at the start
"""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Iterable

from multihost.cli import main
from multihost_broker import core, server
from multihost_broker.events import Action, Event, Peer, Read, Received, Records, Send, Synced, Write
from multihost_broker.journal.records import Record
from multihost_common import messages as m


class NotingCore(core.Core):
    """See the module."""

    limit = 0

    def __init__(self, config: core.CoreConfig | None = None) -> None:
        super().__init__(config)
        self.ticket = self.config.last_ticket
        self.token = 0
        self.found = 0
        self.writing: dict[int, Peer] = {}
        self.reading: dict[int, Peer] = {}

    def restore(self, records: Iterable[tuple[int, Record]], now: float) -> list[Action]:
        """Notes that earlier starts left."""
        self.found = sum(1 for _ in records)
        return []

    def handle(self, event: Event, now: float) -> list[Action]:
        """See the module."""
        if type(event) is Synced:
            return [*self._synced(event)]
        if type(event) is Records:
            size = -1
            for each in event.records.values():
                assert isinstance(each.payload, tuple)
                size = len(each.payload[0])
            return [_answer(self.reading.pop(event.token), {"size": size, "found": self.found})]
        if type(event) is Received and type(event.message) is m.Ask and event.message.about:
            number = int(event.message.about)
            if event.message.what == "note":
                self.ticket += 1
                self.writing[self.ticket] = event.peer
                return [Write(self.ticket, Record(1, b"notes", b"", (bytes(number),)))]
            self.token += 1
            self.reading[self.token] = event.peer
            return [Read(self.token, (number,))]
        return super().handle(event, now)

    def _synced(self, event: Synced) -> Iterable[Action]:
        if self.limit:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.limit, self.limit))
        for ticket in event.refused:
            yield _answer(self.writing.pop(ticket), {"number": ticket, "room": False, "full": event.full})
        for ticket in [each for each in self.writing if each <= event.ticket]:
            yield _answer(self.writing.pop(ticket), {"number": ticket, "room": True, "full": event.full})


def _answer(peer: Peer, facts: dict[str, object]) -> Action:
    return Send(peer, m.Answer("note", (json.dumps(facts).encode(),)))


if __name__ == "__main__":
    NotingCore.limit = int(sys.argv[1])
    vars(server)["Core"] = NotingCore
    main(["broker", *sys.argv[2:]])
