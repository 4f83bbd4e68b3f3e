"""The broker's core in virtual time, as ``multihost_broker.server`` runs it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from multihost_broker import events as be
from multihost_broker.core import Core, CoreConfig
from multihost_broker.status import status
from multihost_common import messages as m

from .invariants import audit, audit_lease
from .parties import Party
from .world import ViolationError

if TYPE_CHECKING:
    from .network import Connection
    from .world import World


class Broker(Party):
    """One start of the broker."""

    def __init__(self, world: World, epoch: int = 1) -> None:
        super().__init__(world, "broker")
        self.epoch = epoch
        self.core = Core(CoreConfig(epoch=epoch))
        #: Whom it can send to, by peer.
        self.connections: dict[str, Connection] = {}
        self._ticks = 0
        self._subject: type[m.Message] | None = None

    # -- events --------------------------------------------------------------------------------------

    def take(self, connection: Connection, message: m.Message) -> None:
        """A message came."""
        kind = type(message)
        if kind is m.Beat:
            self._beat(connection, message)
            return
        count = self._handle(be.Received(connection.peer, connection.client.role, message))
        if count or (kind is not m.Beat and kind is not m.Output):
            audit(self.core)
        if kind is m.Result and not count:
            self.world.counts["result that nobody needed"] += 1
        elif kind is m.Died:
            self._audit_deaths(message)

    def _audit_deaths(self, died: Any) -> None:
        """No item is charged with more deaths than it has seen."""
        found, work = self.core.ledger.find(died.job), None
        for producer in self.world.producers:
            if found and producer.session == died.job >> 32 and producer.engine.usable:
                work = producer.user.find(died.job & 0xFFFF_FFFF)
        if found and work is not None:
            charged, seen = found[1].deaths.get(died.item, 0), work.plan.deaths[died.item]
            if charged > seen:
                raise ViolationError(
                    f"item {died.item} of job {died.job} is charged with {charged} of {seen} deaths"
                )

    def _beat(self, connection: Connection, message: m.Message) -> None:
        """A lease that is not named any more was lost on its way, but only where things are."""
        session, world = self.core.sessions.by_peer.get(connection.peer), self.world
        before = sum(share.held for share in session.shares.values()) if session else 0
        if session and session.suspect(self.clock()):
            world.counts["silent peer is heard again"] += 1
        count = self._handle(be.Received(connection.peer, connection.client.role, message))
        if session and sum(share.held for share in session.shares.values()) < before:
            world.counts["lease was not named"] += 1
            if not world.violent:
                raise ViolationError(f"{connection.peer} does not name all that it holds")
        if before or count:
            audit(self.core)

    def gone(self, connection: Connection) -> None:
        """A connection has ended, and all that came over it before was heard."""
        self.connections.pop(connection.peer, None)
        self._handle(be.Gone(connection.peer))

    def due(self) -> float | None:
        return self.core.deadline()

    def on_time(self, now: float) -> None:
        self._handle(be.Tick(), now)
        audit(self.core)
        self._ticks += 1
        if self._ticks % 4 == 0:
            # Somebody asks how it is.
            status(self.core)

    def _handle(self, event: be.Event, now: float = 0.0) -> int:
        """Tell the core, and do what it says; how many messages that was."""
        count = 0
        self._subject = type(event.message) if type(event) is be.Received else None
        for action in self.core.handle(event, now or self.clock()):
            if type(action) is be.Send:
                count += 1
                self._send(str(action.peer), action.message)
            elif type(action) is be.Note and self.world.trace is not None:
                self.world.note("broker notes:", action.text)
            elif type(action) is be.Drop:
                self.world.counts["session ended"] += 1
        self.wake_by(self.core.deadline())
        return count

    def _send(self, peer: str, message: m.Message) -> None:
        counts, kind = self.world.counts, type(message)
        counts[kind.__name__] += 1
        if type(message) is m.Lease:
            audit_lease(self.core, message)
            if self._subject is None:
                counts["lease after a tick"] += 1
            if message.isolate:
                counts["lease of a suspect"] += 1
            if message.skip:
                counts["lease from within a chunk"] += 1
        elif type(message) is m.Failed:
            counts[f"failed: {message.reason}"] += 1
        elif type(message) is m.Refused:
            counts[f"refused: {message.reason}"] += 1
        elif type(message) is m.Grant and not message.slots:
            counts["all slots of a pool are taken"] += 1
        elif type(message) is m.Cancel and self._subject is m.Result:
            counts["another's lease ends with a late result"] += 1
        connection = self.connections.get(peer)
        if connection is not None:
            # To one that is gone the socket sends nothing; its end is told in a moment.
            connection.send_down(message)

    # -- the end -------------------------------------------------------------------------------------

    def crash(self) -> None:
        """It is killed: everybody's connection ends, and what it knew is forgotten."""
        self.alive = False
        for connection in self.connections.values():
            connection.reset(self.world.random.uniform(0.0, 0.1), None)

    def restart(self) -> None:
        """Another one starts in its place."""
        # The time of its start, as the real one has it, in milliseconds.
        self.world.broker = Broker(self.world, self.epoch + 1 + int(self.world.now * 1000))
