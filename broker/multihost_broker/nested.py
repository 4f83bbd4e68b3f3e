"""Producers that are children of a worker: their messages come and go through their worker's session.

Such a producer has a session of its own, under a peer that stands for the way to it. It is alive while its worker
is, and ends when its worker says so or is gone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from multihost_broker.events import Action, Drop, Send
from multihost_broker.ledger import Ledger
from multihost_broker.sessions import Session
from multihost_common import messages as m
from multihost_common.errors import ProtocolError


class Through(NamedTuple):
    """The peer that such a producer is: its worker's session, and which child it is there."""

    worker: int
    child: int


class NestedProducers:
    """See the module. ``hear(peer, role, message)`` takes what they say."""

    def __init__(self, ledger: Ledger, hear: Callable[[Through, str, m.Message], None]) -> None:
        self._ledger = ledger
        self._hear = hear
        #: By the worker's session: those that have said Hello.
        self._here: dict[int, set[Through]] = {}
        #: The pool or process that each belongs to.
        self._roots: dict[Through, int] = {}
        #: Something is said to one that may have no session, or none any more.
        self._asked = False
        #: So many of the actions that are to be done are as they go out.
        self._packed = 0
        ledger.pack = self.pack
        ledger.ancestry = self.ancestry
        self.reactions: dict[type, Callable[[Session, Any], None]] = {m.Via: self._on_via}

    def _on_via(self, worker: Session, via: m.Via) -> None:
        peer = Through(worker.number, via.child)
        self._asked = True
        try:
            message = m.decode(via.frames)
        except ProtocolError as error:
            self._ledger.refuse(worker.peer, error.code, f"through child {via.child}: {error.text}")
            return
        if type(message) is m.Hello:
            if not self._works(worker, via.root):
                self._ledger.refuse(peer, "E_ROLE", "this child does not work for a producer that is here")
                return
            self._roots[peer] = via.root
        self._hear(peer, m.PRODUCER, message)

    def _works(self, worker: Session, root: int) -> bool:
        # A pool that has nothing to do has no share of a worker again after a start of the broker.
        return root in self._ledger.pools or self._ledger.process_owner(root, worker) is not None

    def any_here(self) -> bool:
        """Is there one?"""
        return bool(self._here)

    def opened(self, session: Session) -> None:
        """A session has begun: is it one of these?"""
        session.nested = isinstance(session.peer, Through)
        if isinstance(session.peer, Through):
            self._here.setdefault(session.peer.worker, set()).add(session.peer)

    def of(self, worker: Session) -> list[Session]:
        """The sessions that end with this worker's."""
        by_peer = self._ledger.sessions.by_peer
        self._asked = True
        return [by_peer[peer] for peer in self._here.pop(worker.number, ()) if peer in by_peer]

    def ended(self, session: Session) -> None:
        """A session is over."""
        if isinstance(session.peer, Through):
            self._asked = True
            self._roots.pop(session.peer, None)
            here = self._here.get(session.peer.worker, set())
            here.discard(session.peer)
            if not here:
                self._here.pop(session.peer.worker, None)

    def parent(self, session: Session) -> Session | None:
        """Whose pool or process this one is a child of; None: it is none, or nobody's any more."""
        return self.ancestry(session)[1]

    def ancestry(self, session: Session) -> tuple[int, Session | None]:
        """The pool or process that this one belongs to (0: none), and its :meth:`parent`."""
        peer = session.peer
        worker = self._ledger.sessions.by_number.get(peer.worker) if isinstance(peer, Through) else None
        if worker is None or not isinstance(peer, Through):
            return 0, None
        root = self._roots.get(peer, 0)
        pool = self._ledger.pools.get(root)
        owner = self._ledger.process_owner(root, worker) if pool is None else pool.owner
        return root, owner if owner is not None and owner.number in self._ledger.sessions.by_number else None

    def pack(self) -> None:
        """Put what is said so far to these producers into messages to their workers: these are numbered in this order."""
        if self._here or self._asked:
            out = self._ledger.out
            out[self._packed :] = [
                each for action in out[self._packed :] if (each := self._wrap(action)) is not None
            ]
            self._packed = len(out)

    def flush(self) -> list[Action]:
        """What is to be done by now."""
        self.pack()
        self._asked = False
        self._packed = 0
        return self._ledger.flush()

    def _wrap(self, action: Action) -> Action | None:
        if type(action) is Drop:
            return None if type(action.peer) is Through else action
        if type(action) is not Send or type(action.peer) is not Through:
            return action
        worker = self._ledger.sessions.by_number.get(action.peer.worker)
        if worker is None:
            return None
        via = m.Via(action.peer.child, frames=m.encode(action.message))
        if self._ledger.numbers:
            worker.stream.stamp(via)
        return Send(worker.peer, via)


__all__ = ["NestedProducers", "Through"]
