"""A producer in virtual time: the real driver and jobs of ``multihost``, and a connection as the remote engine has it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from multihost.engines.driver import Driver
from multihost.engines.loop import Loop
from multihost.engines.remote import SETTLING
from multihost_common import messages as m
from multihost_common.session import SILENT

from .parties import Client
from .world import ViolationError

if TYPE_CHECKING:
    from .network import Connection
    from .users import User
    from .world import World

#: Seconds between two signs of life.
HEARTBEAT = 1.0

#: Seconds to be welcomed.
HANDSHAKE = 5.0


class Still(Loop):
    """A loop that nobody runs: what is asked for is done at once. It has no thread, pipe or clock."""

    def __init__(self) -> None:
        self._inbox: deque[Callable[[], None]] = deque()
        self._calls: deque[Callable[[], object]] = deque()
        self._failure: BaseException | None = None
        self._closing = False

    def _do(self, command: Callable[[], None], kick: bool = True) -> None:
        command()

    def _kick(self) -> None:
        """Nobody sleeps."""


class Engine(Driver, Still):
    """The driver of pools and jobs. ``say`` sends to the broker."""

    keeps = True

    def __init__(self, say: Callable[[m.Message], None]) -> None:
        super().__init__()
        self._say = say

    def _send(self, message: m.Message) -> None:
        self._say(message)

    def _describe(self) -> str:
        return "the broker"

    def welcome(self, slots: int) -> None:
        """There are so many slots."""
        self.capacity = slots

    def restate(self, slots: int) -> None:
        """The broker is back, or another one is there."""
        self._restate()
        self._resize(slots, 1)

    def take(self, message: m.Message) -> None:
        """A message from the broker."""
        self._take(message)

    def turn(self) -> None:
        """Send what is to be sent, and make the calls that are due."""
        while self._produce():
            pass
        while self._calls:
            self._calls.popleft()()


class Producer(Client):
    """One process that uses a pool: ``user`` says what for."""

    role = m.PRODUCER

    def __init__(self, world: World, name: str, latency: float, user: User) -> None:
        super().__init__(world, name, latency)
        self.user = user
        self.engine = Engine(self._say)
        self._workers = self._told = 0
        self._settled_at = 0.0
        self.welcomed = False
        self._heard = self._greeted = 0.0
        self._beat_at = 0.0

    def begin(self, delay: float) -> None:
        """The process starts."""
        self.world.network.dial(self, delay)

    # -- the broker ----------------------------------------------------------------------------------

    def connected(self, connection: Connection) -> None:
        self.connection = connection
        self._heard = self._greeted = self.clock()
        self._beat_at = self.clock() + HEARTBEAT
        self.send(self.hello(0))
        self.wake_by(self._beat_at)

    def take(self, connection: Connection, message: m.Message) -> None:
        if connection is not self.connection:
            return
        self._heard = self.clock()
        if not self.welcomed:
            if type(message) is m.Welcome:
                self._welcome(message)
        elif type(message) is m.Refused:
            self._refused(message)
        elif type(message) is not m.Beat:
            if type(message) is m.Capacity:
                self._count(message.workers)
            elif type(message) is m.Hold:
                self.world.counts["producer waits" if message.hold else "producer goes on"] += 1
                self.world.counts["input is stated anew"] += bool(message.frames)
            self.user.hears(message)
            self.engine.take(message)
            self.engine.turn()
            self.user.look()

    def _welcome(self, welcome: m.Welcome) -> None:
        again = self.session != 0
        self.welcomed, self.session, self.told_era = True, welcome.session, welcome.era
        if again:
            self._settled_at = self.clock() + SETTLING
        self._count(welcome.workers)
        if again:
            self.world.counts["producer has come again"] += 1
            self.engine.restate(welcome.slots)
        else:
            self.engine.welcome(welcome.slots)
            self.user.begin(self)
        self.engine.turn()

    def _count(self, workers: int) -> None:
        # As the remote engine counts them.
        self._told = workers
        settled = self.clock() >= self._settled_at
        self._workers = workers if settled else max(workers, self._workers)

    def _say(self, message: m.Message) -> None:
        # What is said while there is no session is stated anew in the next one.
        if self.welcomed:
            self.send(message)

    def hello(self, slots: int) -> m.Hello:
        """As any client's, and how many workers it knew of."""
        hello = super().hello(slots)
        hello.workers = self._workers
        return hello

    def _refused(self, refused: m.Refused) -> None:
        if refused.reason != "E_HELLO":
            raise ViolationError(f"the broker refused what {self.name} said: {refused}")
        self.world.counts["producer is not known any more"] += 1
        self.welcomed = False
        self.send(self.hello(0))

    def ended(self, connection: Connection) -> None:
        if connection is not self.connection:
            return
        self.connection = None
        self.welcomed = False
        self.world.network.dial(self, self.world.random.uniform(0.1, 2.0))

    # -- time ----------------------------------------------------------------------------------------

    def due(self) -> float | None:
        return self._beat_at if self.connection is not None else None

    def on_time(self, now: float) -> None:
        self._beat_at = now + HEARTBEAT
        if self.welcomed:
            self._count(self._told)
        if not self.welcomed:
            if now - self._greeted > HANDSHAKE:
                # Whoever started it starts it again.
                self.hang_up(flush=False)
                self.world.network.dial(self, 1.0)
        elif now - self._heard > SILENT:
            self.world.counts["producer dials anew: silence"] += 1
            self.welcomed = False
            self.hang_up(flush=False)
            self.world.network.dial(self, 0.0)
        else:
            self.send(m.Beat())

    # -- the end -------------------------------------------------------------------------------------

    def leave(self) -> None:
        """It ends in good order."""
        self.send(m.Bye())
        self.hang_up()
        self.alive = False

    def crash(self, power: bool = False) -> None:
        super().crash(power)
        self.user.finish()
