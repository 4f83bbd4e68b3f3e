"""What all processes have in common: they live, stand still for a while, and have a clock of their own."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from multihost_common import messages as m

if TYPE_CHECKING:
    from .network import Connection
    from .world import World


#: Seconds that are lost when an offset is added to a time and taken off again.
_ROUNDING = 1e-9


class Party:
    """One process."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.alive = True
        #: It was stopped (SIGSTOP, a virtual machine that is not scheduled): what comes waits.
        self.frozen = False
        #: How far its clock is ahead of the world's.
        self.offset = 0.0
        self._backlog: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self._wake_at: float | None = None

    def clock(self) -> float:
        """Its monotonic clock."""
        return self.world.now + self.offset

    def deliver(self, call: Callable[..., None], *args: Any) -> None:
        """Something has come for it: it takes it now, or once it runs again."""
        if self.frozen:
            self._backlog.append((call, args))
        elif self.alive:
            call(*args)

    # -- standing still, jumping ---------------------------------------------------------------------

    def freeze(self, seconds: float) -> None:
        """It stands still for so long."""
        if not self.frozen:
            self.frozen = True
            self.world.after(seconds, self.thaw)

    def thaw(self) -> None:
        """It runs again, and finds what has come meanwhile before it looks at the clock."""
        if not self.frozen:
            return
        self.frozen = False
        backlog, self._backlog = self.read(self._backlog), deque()
        for call, args in backlog:
            self.deliver(call, *args)
        self._wake()

    def read(self, backlog: deque[tuple[Callable[..., None], tuple[Any, ...]]]) -> deque[Any]:
        """In which order it finds what has come while it stood still."""
        return backlog

    def jump(self, seconds: float) -> None:
        """Its clock goes forward at once."""
        self.offset += seconds
        self.wake_by(self.clock())

    # -- the alarm -----------------------------------------------------------------------------------

    def due(self) -> float | None:
        """When, by its own clock, it wants to look at the time."""
        raise NotImplementedError

    def on_time(self, now: float) -> None:
        """The time that :meth:`due` told has come."""
        raise NotImplementedError

    def wake_by(self, when: float | None) -> None:
        """See to it that it looks at the time by then."""
        if when is None:
            return
        when -= self.offset
        if self._wake_at is None or when < self._wake_at:
            self._wake_at = when
            self.world.at(when, self._woken, when)

    def _woken(self, when: float) -> None:
        if self._wake_at == when:
            self._wake()

    def _wake(self) -> None:
        self._wake_at = None
        if not self.alive or self.frozen:
            return
        due = self.due()
        if due is not None and due <= self.clock() + _ROUNDING:
            self.on_time(max(due, self.clock()))
            due = self.due()
        self.wake_by(due)


class Client(Party):
    """A process that dials the broker: it has one connection at a time, and perhaps earlier ones that have not
    quite ended."""

    role = ""

    def __init__(self, world: World, name: str, latency: float) -> None:
        super().__init__(world, name)
        #: Seconds a message takes at least, one way.
        self.latency = latency
        self.cut_up = self.cut_down = False
        self.dials = 0
        #: The number of its session, 0: it has had none.
        self.session = 0
        #: What its Welcome said.
        self.told_era = 0
        self.connection: Connection | None = None
        self.connections: list[Connection] = []

    def hello(self, slots: int) -> m.Hello:
        """How it registers, with what it was called before."""
        client = self.name.encode()[:16].ljust(16)
        return m.Hello(
            self.role, m.PROTOCOL_VERSION, "3.11", 5, self.name, 1, slots, self.name, client, self.session,
            era=self.told_era,
        )  # fmt: skip

    def connected(self, connection: Connection) -> None:
        """A connection was made."""
        raise NotImplementedError

    def ended(self, connection: Connection) -> None:
        """The connection has ended."""
        raise NotImplementedError

    def take(self, connection: Connection, message: m.Message) -> None:
        """A message came over this connection."""
        raise NotImplementedError

    def send(self, message: m.Message) -> None:
        """Say this to the broker. Without a connection there is nobody who would hear it."""
        if self.connection is not None:
            self.connection.send_up(message)

    def hang_up(self, flush: bool = True) -> None:
        """Close the connection."""
        if self.connection is not None:
            self.connection.close(flush)
            self.connection = None

    def crash(self, power: bool = False) -> None:
        """The process ends at once (SIGKILL); with ``power``, so does its host, and nobody is told."""
        self.alive = False
        for connection in self.connections:
            if power:
                connection.vanish()
            else:
                connection.close(flush=False)
        self.connection = None
