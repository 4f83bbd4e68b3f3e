"""The broker's core: told messages and the time, it answers with messages to send.

It is composed of :mod:`sessions` (who is here), :mod:`pools` and :mod:`scheduler` (who works for whom),
:mod:`jobs` and :mod:`leases` (which item is where), :mod:`processes`, :mod:`blobs` (content by digest), all of it held by
:mod:`ledger`. What producers say is answered in :mod:`producers`, what workers say in :mod:`workers`,
what both say when they come back in :mod:`returns`, what becomes of jobs that outlive their submitter in
:mod:`detached`; this file is the door, who comes and goes, and the time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from multihost_broker.detached.archive import Archive
from multihost_broker.detached.deposits import Deposits
from multihost_broker.detached.fetches import Fetches
from multihost_broker.detached.orders import Orders
from multihost_broker.detached.recovery import Recovery
from multihost_broker.events import (
    INFO,
    Action,
    Drop,
    Event,
    Gone,
    Peer,
    Received,
    Records,
    Send,
    Synced,
    Tick,
)
from multihost_broker.journal.records import Record
from multihost_broker.ledger import Ledger
from multihost_broker.named.directory import Directory
from multihost_broker.nested import NestedProducers
from multihost_broker.objects.kinds import KINDS
from multihost_broker.objects.registry import Objects
from multihost_broker.processes import Processes
from multihost_broker.producers import Producers
from multihost_broker.returns import Returns
from multihost_broker.sessions import HEARTBEAT, Session
from multihost_broker.status import health, status
from multihost_broker.workers import Workers
from multihost_common import messages as m
from multihost_common.stream import STREAMED


@dataclass(slots=True)
class CoreConfig:
    """What the shell tells the core once."""

    #: Rises with every start of the broker.
    epoch: int = 1
    #: Largest frame the sockets take, bytes.
    max_frame: int = 1 << 32
    #: The journal's last ticket.
    last_ticket: int = 0
    #: Wall clock minus the core's time, seconds.
    wall: float = 0.0
    #: Python minor version that peers must have, "3.11"; the first peer's if empty.
    python: str = ""
    #: Bytes of producers' input that are here at once, and half as many of items of queues; 0: not bounded.
    max_memory: int = 0
    #: Connections may be lost, so what must arrive once is numbered.
    numbers: bool = True
    #: What is written is kept; without that there are no named queues.
    journal: bool = True


class Core:
    """See the module. All state changes go through :meth:`handle`, ever."""

    def __init__(self, config: CoreConfig | None = None) -> None:
        self.config = config or CoreConfig()
        self.python = self.config.python
        self.ledger = Ledger(self.config.epoch, self.config.max_memory)
        self.ledger.numbers = self.config.numbers
        self.sessions = self.ledger.sessions
        self.scheduler = self.ledger.scheduler
        self.blobs = self.ledger.blobs
        self.pools = self.ledger.pools
        self.owners = self.ledger.owners
        self._workers = Workers(self.ledger, self._announce)
        self.processes = Processes(self.ledger)
        self._returns = Returns(self.ledger, self.processes, self._joined)
        self._producers = Producers(self.ledger, self._returns)
        self.archive = Archive(self.ledger, self.config.last_ticket, self.config.wall)
        self._recovery = Recovery(self.archive, self._returns)
        self.nested = NestedProducers(self.ledger, self._hear_nested)
        self.objects = Objects(self.ledger, KINDS, self.config.max_memory // 2)
        self.named = Directory(
            self.ledger,
            self.objects,
            self.archive.scribe,
            lambda: self.archive.now,
            self.config.journal,
        )
        self._recovery.others = self.named.restore
        self._verbs = {**Orders(self.ledger, self.archive).verbs, **self.named.verbs}
        self._next_beat = 0.0
        self._reactions: dict[type, Callable[[Session, Any], None]] = {
            **self._producers.reactions,
            **self._workers.reactions,
            **self._returns.reactions,
            **self.objects.reactions,
            **self.nested.reactions,
            **self.processes.reactions,
            m.Restated: self._on_restated,
            m.Blob: self._on_blob,
            **Deposits(self.ledger, self.archive).reactions,
            **Fetches(self.ledger, self.archive).reactions,
            m.Beat: self._on_beat,
            m.Bye: self._on_bye,
            m.Ask: self._on_ask,
            m.Heard: self._on_heard,
        }

    # -- the door ----------------------------------------------------------------------------------

    def handle(self, event: Event, now: float) -> list[Action]:
        """Take one event; what is to be done about it."""
        self.scheduler.now = now
        if type(event) is Received:
            self._on_message(event.peer, event.role, event.message, now)
        elif type(event) is Gone:
            session = self.sessions.by_peer.get(event.peer)
            if session is not None:
                self.sessions.gone(session, now)
        elif type(event) is Tick:
            self._on_tick(now)
        elif type(event) is Synced:
            self.archive.scribe.synced(event)
        elif type(event) is Records:
            self.archive.scribe.records(event)
        if self.archive.stirred:
            self.archive.pump()
        return self.nested.flush()

    def restore(self, records: Iterable[tuple[int, Record]], now: float) -> list[Action]:
        """What the journal has, before anything else; what is to be done about it."""
        self.scheduler.now = now
        self._recovery.restore(records)
        self.named.restored()
        return self.ledger.flush()

    def deadline(self) -> float | None:
        """When :class:`Tick` is due."""
        times = [self.archive.deadline(), self.named.deadline()]
        if self.sessions.by_number:
            times += [
                self._next_beat,
                self.sessions.deadline(),
                self.scheduler.deadline(),
                self._returns.deadline(),
                self.ledger.memory.deadline(),
            ]
        return min((at for at in times if at is not None), default=None)

    def _hear_nested(self, peer: Peer, role: str, message: m.Message) -> None:
        self._on_message(peer, role, message, self.scheduler.now)

    def _on_message(self, peer: Peer, role: str, message: m.Message, now: float) -> None:
        kind = type(message)
        if role not in message.senders:
            self.ledger.refuse(peer, "E_ROLE", f"a {role} token may not send {kind.__name__}")
            return
        if type(message) is m.Hello:
            self._on_hello(peer, role, message, now)
            return
        session = self.sessions.by_peer.get(peer)
        if session is None:
            if kind is not m.Bye:
                self.ledger.refuse(peer, "E_HELLO", "say Hello first")
            return
        if session.kind not in message.senders:
            self.ledger.refuse(peer, "E_ROLE", f"this session is a {session.kind}'s: no {kind.__name__}")
            return
        doubtful = self.sessions.heard(session, now)
        if kind in STREAMED and not session.stream.take(message):
            # It was here before.
            return
        reaction = self._reactions.get(kind)
        if reaction is None:
            self.ledger.refuse(peer, "E_OP", f"the broker does not take {kind.__name__}")
            return
        reaction(session, message)
        if kind in STREAMED and session.stream.due():
            self.ledger.tell(session, m.Heard(session.stream.heard))
        if doubtful and session.kind == m.WORKER and session.number in self.sessions.by_number:
            self.scheduler.revive(session)

    # -- sessions ----------------------------------------------------------------------------------

    def _on_hello(self, peer: Peer, role: str, hello: m.Hello, now: float) -> None:
        refusal = self._misfit(role, hello)
        if refusal:
            self.ledger.refuse(peer, *refusal)
            return
        if not self.sessions.by_number:
            self._next_beat = now + HEARTBEAT
        session = self.sessions.find(hello)
        if session is not None and not session.is_known_to(hello):
            # It was never welcomed to this one, and knows nothing of it.
            self._end(session, "begins anew")
            session = None
        known = self.sessions.by_peer.get(peer)
        if known is not None and known is not session:
            self._end(known, "said Hello again")
        fresh = session is None
        if session is not None:
            self.sessions.move(session, peer)
            self.sessions.heard(session, now)
        else:
            session = self.sessions.open(peer, hello, now)
            session.role = role
            self.nested.opened(session)
            self._returns.began(session, hello, now)
            if hello.kind != m.ADMIN:
                self.ledger.note(INFO, f"{hello.kind} {session.number} is here: {_name(session)}")
        slots, workers = self._capacity()
        config = self.config
        self.ledger.tell(
            session,
            m.Welcome(
                config.epoch,
                session.number,
                HEARTBEAT,
                config.max_frame,
                slots,
                workers,
                fresh,
                session.stream.heard,
                session.era,
            ),
        )
        if not fresh:
            self.ledger.pack()
            for message in session.stream.again(hello.heard):
                self.ledger.out.append(Send(session.peer, message))
            self._returns.moved(session)
            self.ledger.memory.back(session)
        elif hello.kind == m.WORKER and not session.returning:
            self._joined(session)

    def _misfit(self, role: str, hello: m.Hello) -> tuple[str, str] | None:
        if hello.kind not in (m.PRODUCER, m.WORKER, m.ADMIN):
            return "E_FIELD", f"there is no kind of peer called {hello.kind!r}"
        if role != hello.kind and not (hello.kind == m.ADMIN and role in (m.PRODUCER, m.WORKER)):
            return "E_ROLE", f"a {role} token does not make a {hello.kind}; use a {hello.kind} token"
        if hello.protocol != m.PROTOCOL_VERSION:
            return "E_VERSION", (
                f"{hello.host} speaks protocol {hello.protocol}, the broker {m.PROTOCOL_VERSION}: "
                "install the same multihost version on both"
            )
        if hello.kind == m.ADMIN:
            return None
        if not self.python:
            self.python = hello.python
        if hello.python != self.python:
            return "E_PYTHON", (
                f"{hello.host} runs Python {hello.python}, this cluster runs {self.python}: "
                "code pickled by one minor version is not safe in another, so use the same on all hosts"
            )
        return None

    def _capacity(self) -> tuple[int, int]:
        workers = [each for each in self.sessions.of_kind(m.WORKER) if not each.draining]
        return min(sum(each.slots for each in workers), m.U32[1]), len(workers)

    def _announce(self) -> None:
        slots, workers = self._capacity()
        self.archive.slots = max(1, slots)
        if workers and not slots:
            # The local worker has as many as are asked for: there is nothing to tell.
            return
        for session in self.sessions.of_kind(m.PRODUCER):
            self.ledger.tell(session, m.Capacity(slots, workers))

    def _on_tick(self, now: float) -> None:
        for session in self.sessions.lost(now):
            self._end(session, f"has been silent for {now - session.heard:.0f} s")
        self.scheduler.call_back()
        self._returns.tick()
        self.archive.tick()
        self.named.tick()
        self.ledger.memory.tick(now)
        if now < self._next_beat:
            return
        self._next_beat = now + HEARTBEAT
        for session in self.sessions.by_number.values():
            if not session.nested:
                self.ledger.tell(session, m.Beat())
                if session.stream.due(now=True):
                    self.ledger.tell(session, m.Heard(session.stream.heard))
        self._recovery.note(self._capacity()[1])
        for pool in self.pools.values():
            if pool.closing:
                # What was said before may have been lost, or the answer to it.
                self.ledger.order_close(pool)
        self.scheduler.tick()
        self.processes.place()

    def _on_blob(self, producer: Session, blob: m.Blob) -> None:
        self._producers.on_blob(producer, blob)
        self.processes.place()

    def _on_restated(self, producer: Session, restated: m.Restated) -> None:
        self._returns.reactions[m.Restated](producer, restated)
        self.processes.restated(producer)

    def _joined(self, worker: Session) -> None:
        self._workers.joined(worker)
        self.processes.place()

    def _on_bye(self, session: Session, bye: m.Bye) -> None:
        self._end(session, bye.reason or "left", died=bye.reason == m.DIED)

    def _end(self, session: Session, why: str, died: bool = True) -> None:
        """The session is over: a producer's work is cancelled, a worker's returns. ``died``: not in good order."""
        self.sessions.close(session)
        if session.kind != m.ADMIN:
            self.ledger.note(INFO, f"{session.kind} {session.number} ({_name(session)}) {why}")
        self.ledger.out.append(Drop(session.peer, why))
        self._returns.ended(session)
        parent = self.nested.parent(session)
        self.nested.ended(session)
        if session.kind == m.PRODUCER:
            self.objects.ended(session, died, parent)
            self.processes.owner_ended(session, parent)
            self._producers.ended(session)
            if session.pools:
                self.sessions.reserved.add(session.number)
        elif session.kind == m.WORKER:
            for nested in self.nested.of(session):
                self._end(nested, "was a child of a worker that is gone")
            self.processes.worker_ended(session, why)
            self._workers.ended(session)

    def _on_heard(self, session: Session, heard: m.Heard) -> None:
        session.stream.acknowledged(heard.seq)

    def _on_beat(self, session: Session, beat: m.Beat) -> None:
        if session.kind == m.WORKER:
            self._workers.beat(session, beat)

    # -- questions ---------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """Workers, producers, pools, jobs and what is shared, as they are now."""
        known = {"epoch": self.config.epoch, "python": self.python}
        return known | status(self.ledger, self.processes, self.objects)

    def _on_ask(self, session: Session, ask: m.Ask) -> None:
        questions: dict[str, Callable[[], dict[str, Any]]] = {
            "status": self.status,
            "health": lambda: health(self.sessions),
        }
        verb = self._verbs.get(ask.what)
        if verb is not None:
            self._order(session, ask, verb)
            return
        if ask.what not in questions:
            known = " or ".join([*questions, *self._verbs])
            self.ledger.refuse(session.peer, "E_FIELD", f"there is no question {ask.what!r}: ask for {known}")
            return
        import json

        answer = json.dumps(questions[ask.what]()).encode()
        self.ledger.tell(session, m.Answer(ask.what, (answer,)))

    def _order(self, session: Session, ask: m.Ask, verb: Callable[[Session, m.Ask], None]) -> None:
        if session.role in (m.PRODUCER, m.ADMIN):
            verb(session, ask)
        else:
            self.ledger.refuse(session.peer, "E_ROLE", f"a {session.role} token may not ask for {ask.what}")


def _name(session: Session) -> str:
    slots = f", {session.slots} slots" if session.kind == m.WORKER else ""
    return f"{session.name or '?'} on {session.host or '?'}, pid {session.pid}{slots}"


__all__ = ["Core", "CoreConfig"]
