"""The broker's core in virtual time, as ``multihost_broker.server`` runs it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from multihost_broker import events as be
from multihost_broker.core import Core, CoreConfig
from multihost_common import messages as m

from .invariants import audit, audit_lease
from .journaled import audit_archive, audit_promise, audit_restored
from .parties import Party
from .witness import Witness
from .world import ViolationError

if TYPE_CHECKING:
    from .network import Connection
    from .world import World

#: Bytes of input that a broker has room for: as much as comes, some Feeds, hardly any.
ROOM = (0, 10_000, 2500)

#: And of items of queues: as much as comes, some items, hardly one.
ITEMS = (0, 200, 20)


#: The wall clock when a schedule begins, minus the world's time.
WALL = 1.7e9


class Broker(Party):
    """One start of the broker."""

    def __init__(self, world: World, epoch: int = 1) -> None:
        super().__init__(world, "broker")
        self.epoch = epoch
        self.journal = world.journal
        self.journal.begin()
        wall = WALL + world.wall + world.now - self.clock()
        room = ROOM[world.seed % len(ROOM)]
        self.core = Core(CoreConfig(epoch=epoch, max_memory=room, last_ticket=self.journal.last, wall=wall))
        room = ITEMS[world.seed // len(ROOM) % len(ITEMS)]
        self.core.objects.room.limit = self.core.objects.room.share = room
        self.witness = Witness(world, world.scene, self.core) if world.scene is not None else None
        #: Whom it can send to, by peer.
        self.connections: dict[str, Connection] = {}
        self._ticks = 0
        self._subject: type[m.Message] | None = None
        self._carry_out(self.core.restore(self.journal.load(), self.clock()))
        audit_restored(self.core, self.journal)

    # -- events --------------------------------------------------------------------------------------

    def take(self, connection: Connection, message: m.Message) -> None:
        """A message came."""
        kind = type(message)
        if kind is m.Beat:
            self._beat(connection, message)
            return
        count = self._handle(be.Received(connection.peer, connection.client.role, message))
        if self.witness is not None:
            self.witness.audit()
        if count or (kind is not m.Beat and kind is not m.Output):
            audit(self.core)
        if kind is m.Result and not count:
            self.world.counts["result that nobody needed"] += 1
        elif kind is m.Died:
            self._audit_deaths(message)
        if self.core.archive.jobs:
            audit_archive(self.core, self.journal)

    def _audit_deaths(self, died: Any) -> None:
        """No item is charged with more deaths than it has seen."""
        found, work = self.core.ledger.find(died.job), None
        for deposit in self.world.deposits:
            job = self.core.archive.jobs.get(deposit.key)
            if job is not None and job.number == died.job:
                charged, seen = job.deaths.get(died.item, (0, ()))[0], deposit.plan.deaths[died.item]
                if deposit.plan.timeout:
                    continue
                if charged > seen:
                    raise ViolationError(
                        f"item {died.item} of {deposit} is charged with {charged} of {seen} deaths"
                    )
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
        if self.witness is not None:
            self.witness.audit()

    def due(self) -> float | None:
        return self.core.deadline()

    def on_time(self, now: float) -> None:
        self._handle(be.Tick(), now)
        audit(self.core)
        if self.witness is not None:
            self.witness.audit()
        self._ticks += 1
        if self._ticks % 4 == 0:
            # Somebody asks how it is.
            self.core.status()

    def _handle(self, event: be.Event, now: float = 0.0) -> int:
        """Tell the core, and do what it says; how many messages that was."""
        self._subject = type(event.message) if type(event) is be.Received else None
        return self._carry_out(self.core.handle(event, now or self.clock()))

    def tell(self, event: be.Event) -> None:
        """The journal has news."""
        self._handle(event)
        audit(self.core)
        audit_archive(self.core, self.journal)

    def _carry_out(self, actions: Sequence[be.Action]) -> int:
        count = 0
        for action in actions:
            if type(action) is be.Send:
                count += 1
                assert type(action.peer) is str, f"{action.peer} is nobody's address"
                self._send(action.peer, action.message)
            elif type(action) is be.Note and self.world.trace is not None:
                self.world.note("broker notes:", action.text)
            elif type(action) is be.Drop:
                self.world.counts["session ended"] += 1
            elif type(action) is be.Write or type(action) is be.Read:
                if self.world.trace is not None:
                    self.world.note("broker journals:", action)
                self.journal.do(self, action)
        self.wake_by(self.core.deadline())
        return count

    def _send(self, peer: str, message: m.Message) -> None:
        counts, kind = self.world.counts, type(message)
        counts[kind.__name__] += 1
        if type(message) is m.Stored:
            audit_promise(self.journal, message)
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
        self.journal.crash()
        if self.witness is not None:
            self.witness.crashed()
        for connection in self.connections.values():
            connection.reset(self.world.random.uniform(0.0, 0.1), None)

    def crash_and_return(self) -> None:
        """It is killed, and another one is started soon."""
        if self.alive and not self.world.calm:
            self.crash()
            seconds = self.world.random.choice((0.05, self.world.random.uniform(0.05, 3.0)))
            self.world.trouble_ends = max(self.world.trouble_ends, self.world.now + seconds)
            self.world.after(seconds, self.restart)

    def restart(self) -> None:
        """Another one starts in its place."""
        # The time of its start, as the real one has it, in milliseconds.
        self.world.broker = Broker(self.world, self.epoch + 1 + int(self.world.now * 1000))
