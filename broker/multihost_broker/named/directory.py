"""The named queues of this broker: made when they are opened first, restored from the journal, deleted when somebody says so."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Any

from multihost_broker.detached.scribe import Scribe
from multihost_broker.events import WARNING
from multihost_broker.journal.records import Forget, Record
from multihost_broker.ledger import Ledger
from multihost_broker.named.books import CONSUMER, OPENED, QUEUE
from multihost_broker.named.queue import NamedQueue
from multihost_broker.named.shelf import Budget, Shelf
from multihost_broker.objects.machine import Machine, Request
from multihost_broker.objects.registry import Objects
from multihost_broker.sessions import Session
from multihost_common import messages as m
from multihost_common.named import check_name, object_of, unpack_pair

#: Seconds after a start in which those who got items before it come back.
GRACE = 10.0
#: Seconds for which it is remembered what an end has put that is gone, and how many of them a queue remembers at most.
KEPT = 86_400.0
MOST_SENDERS = 10_000
#: Seconds between two looks for such ends.
LOOK = 60.0
#: The most items that a queue can be bounded to.
MOST_ITEMS = (1 << 31) - 1
#: Queues told of in one answer.
MOST = 10_000

#: What who opens a queue where there is no journal is told.
NO_JOURNAL = "a named queue needs a broker: start one and set MULTIHOST_BROKER"


class Directory:
    """See the module. ``now`` tells the wall clock; ``journal``: there is one."""

    def __init__(
        self, ledger: Ledger, objects: Objects, scribe: Scribe, now: Callable[[], float], journal: bool
    ) -> None:
        self._ledger = ledger
        self._objects = objects
        self._scribe = scribe
        self._now = now
        self._journal = journal
        self._budget = Budget()
        self.queues: dict[bytes, NamedQueue] = {}
        #: When those of an earlier start are not waited for any more, and when to look for ends that are gone.
        self._grace_until: float | None = None
        self._look_at: float | None = None
        objects.opener = self.find
        #: What is asked -> who answers.
        self.verbs: dict[str, Callable[[Session, m.Ask], None]] = {
            "queues": self._tell,
            "purge": self._purge,
            "delete": self._delete,
        }

    # -- queues ------------------------------------------------------------------------------------

    def find(self, name: bytes, request: Request) -> Machine | None:
        """The queue that this OPEN or DELETE is about, made if need be; None: the request has been answered."""
        queue = self.queues.get(name)
        if request.op == m.DELETE:
            if queue is not None:
                self.drop(name)
                self._scribe.follow(request.done)
            return None
        if queue is None:
            try:
                queue = self._make(name, request)
            except (ValueError, IndexError, UnicodeError) as error:
                request.refuse(str(error))
        return queue

    def _make(self, name: bytes, request: Request) -> NamedQueue | None:
        if not self._journal:
            raise ValueError(NO_JOURNAL)
        title = check_name(bytes(request.frames[0]).decode())
        maxsize, ticket = unpack_pair(request.frames[2])
        if object_of(title) != name or maxsize > MOST_ITEMS or name in self._objects.machines:
            raise ValueError("this is no queue of that name")
        if ticket:
            request.done(status=m.UNKNOWN)
            return None
        header = QUEUE.pack(maxsize) + title.encode()
        written = self._scribe.write(
            Record(OPENED, name, header), refused=partial(self._not_made, name, self._scribe.next)
        )
        return self._add(name, title, maxsize, written)

    def _add(self, name: bytes, title: str, maxsize: int, ticket: int) -> NamedQueue:
        note = partial(self._ledger.note, WARNING)
        shelf = Shelf(name, self._scribe, self._budget, self._now, note)
        queue = self.queues[name] = NamedQueue(title, maxsize, ticket, shelf)
        self._objects.machines[name] = queue
        if self._look_at is None:
            self._look_at = self._ledger.scheduler.now + LOOK
        return queue

    def _not_made(self, name: bytes, ticket: int) -> None:
        """There was no room on the disk for a new queue."""
        queue = self.queues.get(name)
        if queue is not None and queue.ticket == ticket:
            self.drop(name)

    def drop(self, name: bytes) -> None:
        """The queue is no more, nor are its items; who waits is told so."""
        queue = self.queues.pop(name)
        queue.shelf.clear()
        self._objects.forget(name)
        self._scribe.write(Forget(name), essential=True)

    # -- an earlier start ----------------------------------------------------------------------------

    def restore(self, ticket: int, record: Record) -> bool:
        """A record that an earlier start has written. False: it is of no queue. Raises what decoding raises."""
        queue = self.queues.get(record.job)
        if record.kind == OPENED:
            (maxsize,) = QUEUE.unpack_from(record.header)
            self._add(record.job, record.header[QUEUE.size :].decode(), maxsize, ticket)
        elif queue is None:
            return False
        elif record.kind == CONSUMER:
            queue.expected[record.header] = ticket
        else:
            queue.shelf.restore(ticket, record)
        return True

    def restored(self) -> None:
        """All records are known."""
        for queue in self.queues.values():
            queue.shelf.restored()
            if queue.expected:
                self._grace_until = self._ledger.scheduler.now + GRACE

    # -- time ----------------------------------------------------------------------------------------

    def deadline(self) -> float | None:
        """When :meth:`tick` has something to do."""
        return min((at for at in (self._grace_until, self._look_at) if at is not None), default=None)

    def tick(self) -> None:
        """Wait for nobody for ever."""
        now = self._ledger.scheduler.now
        if self._grace_until is not None and now >= self._grace_until:
            self._grace_until = None
            for queue in list(self.queues.values()):
                queue.give_up()
        if self._look_at is not None and now >= self._look_at:
            self._look_at = now + LOOK if self.queues else None
            for queue in self.queues.values():
                queue.shelf.forget_senders(self._now() - KEPT, queue.clients(), MOST_SENDERS)

    # -- questions and orders ------------------------------------------------------------------------

    def _answer(self, session: Session, what: str, answer: dict[str, Any]) -> None:
        self._ledger.reach(session, m.Answer(what, (json.dumps(answer).encode(),)))

    def _named(self, session: Session, about: str) -> bytes | None:
        name = object_of(about)
        if name in self.queues:
            return name
        text = f"there is no queue {about!r} here; multihost queue list names those there are"
        self._ledger.refuse(session.peer, "E_JOB", text)
        return None

    def _tell(self, session: Session, ask: m.Ask) -> None:
        queues = list(self.queues.values())
        if ask.about:
            name = self._named(session, ask.about)
            if name is None:
                return
            queues = [self.queues[name]]
        told = [self._facts(queue) for queue in sorted(queues[:MOST], key=lambda queue: queue.title)]
        self._answer(session, ask.what, {"queues": told})

    def _facts(self, queue: NamedQueue) -> dict[str, Any]:
        shelf = queue.shelf
        return {
            "name": queue.title,
            "maxsize": queue.maxsize,
            "items": shelf.left,
            "waiting": shelf.count,
            "bytes": shelf.bytes,
            "in_memory": shelf.loaded,
            "expected": len(queue.expected),
            "users": [
                {
                    "session": party,
                    "host": session.host,
                    "pid": session.pid,
                    "name": session.name,
                    "gets": end.gets,
                    "holds": end.items,
                }
                for party, end in queue.ends.items()
                if (session := self._ledger.sessions.by_number.get(party)) is not None
            ],
        }

    def _purge(self, session: Session, ask: m.Ask) -> None:
        name = self._named(session, ask.about)
        if name is not None:
            answer = {"name": ask.about, "count": self.queues[name].purge()}
            self._scribe.follow(partial(self._answer, session, ask.what, answer))

    def _delete(self, session: Session, ask: m.Ask) -> None:
        name = self._named(session, ask.about)
        if name is not None:
            answer = {"name": ask.about, "count": self.queues[name].shelf.left}
            self.drop(name)
            self._scribe.follow(partial(self._answer, session, ask.what, answer))


__all__ = ["GRACE", "NO_JOURNAL", "Directory"]
