"""Connections as TCP and ZeroMQ make them: in order and without a loss while they last, and when one ends,
any suffix of what was on its way is lost, and the two ends hear of it at different times, or never."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import fields
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from multihost_common import messages as m

if TYPE_CHECKING:
    from .parties import Client
    from .world import World

#: Seconds between two attempts to connect.
REDIAL = (0.1, 2.0)

#: What a dying connection may swallow between the broker and a worker, one by one, without either end hearing
#: of it: a ROUTER drops what it sends to a peer that is about to go, and a DEALER what it has not handed on.
LOSABLE = frozenset(
    {
        m.Lease, m.Result, m.Returned, m.Died, m.Beat, m.Revoke, m.ClosePool, m.PoolClosed, m.Drain, m.Bye
    }
)  # fmt: skip


#: What is said so often that some of it is dropped anyhow; of the rest it is every other message.
FREQUENT = frozenset({m.Lease, m.Result, m.Beat})


class _End:
    """Stands in a pipe for the end of the connection."""

    def __repr__(self) -> str:
        return "END"


END: Any = _End()

#: What the broker's core changes before it passes it on: whoever has sent it must keep its own.
CHANGED: dict[type[m.Message], Callable[[Any], Any]] = {
    kind: attrgetter(*(each.name for each in fields(kind)))
    for kind in (m.OpenPool, m.OpenJob, m.Result, m.Output, m.Submit, m.Launch)
}


def clone(message: m.Message) -> m.Message:
    """The same message, as another process has it."""
    kind = type(message)
    values = CHANGED.get(kind)
    return message if values is None else kind(*values(message))


class Pipe:
    """One direction of a connection: what is on its way, in order."""

    __slots__ = ("blocked", "dead", "due", "last", "queue")

    def __init__(self) -> None:
        self.queue: deque[Any] = deque()
        #: No packet passes; so many would have arrived meanwhile.
        self.blocked = False
        self.due = 0
        #: When what was sent last arrives.
        self.last = 0.0
        #: Nothing more goes in.
        self.dead = False


class Connection:
    """One connection of a client to the broker, which knows it as ``peer``."""

    def __init__(self, world: World, client: Client, peer: str) -> None:
        self.world = world
        self.client = client
        self.broker = world.broker
        self.peer = peer
        self.up, self.down = Pipe(), Pipe()
        #: The client has not closed it.
        self.open = True
        #: It passes nothing any more, ever, while new connections do.
        self.blackhole = False
        #: It swallows a message now and then, and will end soon.
        self.leaky = False
        self.up.blocked, self.down.blocked = client.cut_up, client.cut_down

    # -- sending -------------------------------------------------------------------------------------

    def send_up(self, message: m.Message) -> None:
        """The client says this."""
        if self.open and not self._drops(message):
            self._push(self.up, message)

    def send_down(self, message: m.Message) -> None:
        """The broker says this."""
        if not self._drops(message):
            self._push(self.down, message)

    def _drops(self, message: m.Message) -> bool:
        world, network = self.world, self.world.network
        if self.leaky and world.random.random() < 0.3:
            world.counts["swallowed"] += 1
            return True
        if not network.drop_rate or self.client.role != m.WORKER or type(message) not in LOSABLE:
            return False
        rate = network.drop_rate if type(message) in FREQUENT else max(network.drop_rate, 0.5)
        if world.random.random() >= rate:
            return False
        world.counts[f"dropped {type(message).__name__}"] += 1
        if world.trace is not None:
            world.note(f"{self.peer}: DROPPED", message)
        return True

    def _push(self, pipe: Pipe, message: Any) -> None:
        if pipe.dead:
            return
        world = self.world
        if world.trace is not None:
            world.note(f"{self.peer} {'->' if pipe is self.up else '<-'} broker", message)
        if message is not END:
            message = m.decode(m.encode(message)) if world.network.wire else clone(message)
        at = world.now + self.client.latency * (1.0 + world.random.random())
        pipe.last = at = max(at, pipe.last)
        pipe.queue.append(message)
        world.at(at, self._arrive, pipe)

    def _arrive(self, pipe: Pipe) -> None:
        if pipe.blocked or pipe.due:
            pipe.due += 1
        else:
            self._deliver(pipe)

    def _deliver(self, pipe: Pipe) -> None:
        if not pipe.queue:
            # It was lost.
            return
        message = pipe.queue.popleft()
        if pipe is self.up:
            broker = self.broker
            if message is END:
                broker.deliver(broker.gone, self)
            else:
                broker.deliver(broker.take, self, message)
        elif self.open:
            self.client.deliver(self.client.take, self, message)

    # -- cuts ----------------------------------------------------------------------------------------

    def block(self) -> None:
        """Packets pass as the client's host lets them."""
        self.up.blocked, self.down.blocked = self.client.cut_up, self.client.cut_down
        for pipe in (self.up, self.down):
            if pipe.due and not pipe.blocked:
                self.world.after(self.client.latency, self._release, pipe)

    def _release(self, pipe: Pipe) -> None:
        """What was held up arrives at once, in order."""
        while pipe.due and not pipe.blocked:
            pipe.due -= 1
            self._deliver(pipe)

    def swallow(self) -> None:
        """From now on it passes nothing, and nobody is told."""
        self.blackhole = self.up.blocked = self.down.blocked = True

    # -- ends ----------------------------------------------------------------------------------------

    def _lose(self, pipe: Pipe) -> None:
        """Any suffix of what is on its way is lost, and whatever follows."""
        pipe.dead = True
        for _ in range(self.world.random.randint(0, len(pipe.queue))):
            self.world.counts["lost on the way"] += 1
            if self.world.trace is not None:
                self.world.note(f"{self.peer}: LOST", pipe.queue[-1])
            pipe.queue.pop()

    def reset(self, near: float | None, far: float | None) -> None:
        """It ends; the client and the broker hear of it after so many seconds, or never."""
        self._lose(self.up)
        self._lose(self.down)
        if near is not None:
            self.world.after(near, self._tell_client)
        if far is not None:
            self.world.after(far, self._tell_broker)

    def _tell_client(self) -> None:
        if self.open:
            self.client.deliver(self.client.ended, self)

    def _tell_broker(self) -> None:
        self.up.dead = False
        self._push(self.up, END)
        self.up.dead = True

    def close(self, flush: bool) -> None:
        """The client closes it. ``flush``: what it has said is heard; else a suffix of that is lost."""
        if not self.open:
            return
        self.open = False
        self.down.dead = True
        self.down.queue.clear()
        if self.up.dead:
            return
        if not flush:
            self._lose(self.up)
        self._tell_broker()

    def vanish(self) -> None:
        """The client's host has lost its power."""
        self.open = False
        self._lose(self.up)
        self.down.dead = True
        self.down.queue.clear()


class Network:
    """Who is connected to the broker, and how well."""

    def __init__(self, world: World, wire: bool) -> None:
        self.world = world
        #: Messages are encoded and decoded on their way.
        self.wire = wire
        #: How likely a single message between the broker and a worker is lost.
        self.drop_rate = 0.0
        #: How likely a worker says again what answers a lease, in a moment, and over its next connection.
        self.repeat_rate = 0.0
        self._peers = 0

    def dial(self, client: Client, delay: float) -> None:
        """Connect after so many seconds, or as soon as possible then."""
        client.dials += 1
        self.world.after(delay, self._attempt, client, client.dials)

    def _attempt(self, client: Client, dial: int) -> None:
        if not client.alive or client.dials != dial:
            return
        broker = self.world.broker
        if client.cut_up or client.cut_down or client.frozen or not broker.alive or broker.frozen:
            self.world.after(self.world.random.uniform(*REDIAL), self._attempt, client, dial)
            return
        # Each connection has an address of its own, by which the broker does not know the client again.
        self._peers += 1
        connection = Connection(self.world, client, f"{client.name}#{self._peers}")
        client.connections.append(connection)
        broker.connections[connection.peer] = connection
        client.deliver(client.connected, connection)

    def cut(self, client: Client, up: bool, down: bool) -> None:
        """Packets of this client's host pass neither way, or one way only, or both again."""
        client.cut_up, client.cut_down = up, down
        for connection in client.connections:
            if not connection.blackhole:
                connection.block()
