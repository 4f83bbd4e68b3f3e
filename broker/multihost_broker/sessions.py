"""Who is connected: one session per peer, alive while it beats."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from multihost_broker.events import Peer
from multihost_common.messages import PRODUCER, U32, WORKER, Hello
from multihost_common.stream import Stream

if TYPE_CHECKING:
    from multihost_broker.leases import Leases
    from multihost_broker.pools import Share

#: Seconds between beats, both ways.
HEARTBEAT = 1.0

#: A worker that has been silent this long gets no new work; after LOST its leases return.
SUSPECT = 5.0
LOST = 10.0

#: A producer may hold its interpreter lock for long in a C extension, so silence alone ends it late;
#: a closed connection that is not dialled again ends it soon.
PRODUCER_LOST = 60.0
GONE = 3.0

#: The part of a pool's or job's number that its producer has chosen; above it is its producer's session.
NUMBER = 0xFFFF_FFFF

#: The session whose pools are those of detached jobs; nobody connects as it.
HOUSE = 0

#: Slots of a worker that has no number of them: as many as the pools ask for.
UNLIMITED = 1 << 30


class Claims:
    """What a worker that comes back says it has: children of pools, items of jobs."""

    __slots__ = ("items", "pools")

    def __init__(self) -> None:
        #: Pool number -> children.
        self.pools: dict[int, int] = {}
        #: Job number -> (start, stop, attempt).
        self.items: dict[int, list[tuple[int, int, int]]] = {}


class Session:
    """What is known of one peer."""

    __slots__ = (
        "claims", "claims_until", "client", "digests", "draining", "era", "former", "free", "gone_at", "heard", "host", "kind",
        "leases", "name", "nested", "number", "peer", "pid", "pools", "returning", "role", "shares", "slots", "stated", "stream", "workers",
    )  # fmt: skip

    def __init__(self, number: int, era: int, peer: Peer, hello: Hello, now: float) -> None:
        self.number = number
        #: No other one of this broker's has the same.
        self.era = era
        self.peer = peer
        self.kind = hello.kind
        #: What its token allows.
        self.role = hello.kind
        self.host = hello.host
        self.name = hello.name
        self.pid = hello.pid
        self.client = hello.client
        #: The number it had when it was here before; 0: it was not.
        self.former = hello.session
        #: What must arrive once and in order, both ways.
        self.stream = Stream()
        self.heard = now
        #: When its connection ended; None while it lasts.
        self.gone_at: float | None = None
        #: It is a producer that is a child of a worker.
        self.nested = False
        # -- of a producer: its pools' numbers
        self.pools: set[int] = set()
        #: Pools and jobs it has stated anew so far, while it does so after a lost connection.
        self.stated: set[int] | None = None
        #: Workers it knew of before that.
        self.workers = hello.workers
        # -- of a worker
        #: Child processes it may run; 0: as many as pools ask for (the local worker).
        self.slots = hello.slots
        self.free = hello.slots or UNLIMITED
        #: Pool number -> what it does for that pool.
        self.shares: dict[int, Share] = {}
        #: Job number -> what it holds of that job.
        self.leases: dict[int, Leases] = {}
        #: Blobs it has been sent.
        self.digests: set[bytes] = set()
        self.draining = False
        #: What it still has from before its connection was lost and has not been leased to it anew.
        self.claims = Claims()
        #: When it is told to drop that; None: it has not said what it has.
        self.claims_until: float | None = None
        #: It has been here before and has not said yet what it has.
        self.returning = False

    def is_known_to(self, hello: Hello) -> bool:
        """Has whoever says this Hello been welcomed to this session, or to one before it?"""
        return hello.session > 0 and hello.era in (0, self.era)

    def lost_at(self) -> float:
        """When this session ends if nothing more is heard."""
        if self.nested:
            return math.inf
        limit = self.heard + (LOST if self.kind == WORKER else PRODUCER_LOST)
        return limit if self.gone_at is None else min(limit, self.gone_at + GONE)

    def suspect(self, now: float) -> bool:
        """Has this worker been silent for so long, or its connection ended, that it gets no new work?"""
        return self.gone_at is not None or (self.slots > 0 and now - self.heard > SUSPECT)

    def usable(self, now: float) -> bool:
        """May this worker be given new work?"""
        return not self.draining and not self.suspect(now)


class Sessions:
    """All sessions, by peer and by number. Numbers begin at ``first``: higher than those of earlier starts of
    the broker, since peers come back with theirs; eras are higher than ``era``."""

    def __init__(self, first: int = 1, era: int = 0) -> None:
        self.by_peer: dict[Peer, Session] = {}
        self.by_number: dict[int, Session] = {}
        self._gone: dict[int, Session] = {}
        self._next = first
        self._era = era
        #: Numbers of sessions that are over, whose pools are being closed still.
        self.reserved: set[int] = set()

    def open(self, peer: Peer, hello: Hello, now: float) -> Session:
        """A new session for this peer. A producer that comes back gets the number it had if that is free:
        workers know its jobs by that."""
        number = hello.session if hello.kind == PRODUCER else 0
        while not number or number in self.by_number or number in self.reserved:
            number = self._next
            self._next = self._next % U32[1] + 1
        self._era += 1
        session = Session(number, self._era, peer, hello, now)
        self.by_peer[peer] = session
        self.by_number[session.number] = session
        return session

    def find(self, hello: Hello) -> Session | None:
        """The session of a peer that has dialled again."""
        if hello.client:
            for session in self.by_number.values():
                if session.client == hello.client and session.kind == hello.kind:
                    return session
        return None

    def move(self, session: Session, peer: Peer) -> None:
        """The session goes on under this peer."""
        if self.by_peer.get(session.peer) is session:
            del self.by_peer[session.peer]
        self.by_peer[peer] = session
        session.peer = peer

    def heard(self, session: Session, now: float) -> bool:
        """A message has come. True: the peer had been thought lost."""
        if session.gone_at is None and now - session.heard <= SUSPECT:
            session.heard = now
            return False
        doubtful = session.suspect(now)
        session.heard = now
        if session.gone_at is not None:
            session.gone_at = None
            self._gone.pop(session.number, None)
        return doubtful

    def gone(self, session: Session, now: float) -> None:
        """The session's connection has ended."""
        if session.gone_at is None:
            session.gone_at = now
            self._gone[session.number] = session

    def close(self, session: Session) -> None:
        """Forget the session."""
        self.by_number.pop(session.number, None)
        self._gone.pop(session.number, None)
        if self.by_peer.get(session.peer) is session:
            del self.by_peer[session.peer]

    def of_kind(self, kind: str) -> list[Session]:
        """All sessions of this kind."""
        return [session for session in self.by_number.values() if session.kind == kind]

    def lost(self, now: float) -> list[Session]:
        """Sessions that have been silent for too long."""
        return [session for session in self.by_number.values() if session.lost_at() <= now]

    def deadline(self) -> float | None:
        """When the first session whose connection has ended is lost."""
        return min((session.lost_at() for session in self._gone.values()), default=None)
