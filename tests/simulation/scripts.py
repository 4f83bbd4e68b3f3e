"""Scripts that share objects and launch processes: a session with the broker as :mod:`multihost_common.session` has it, and
what the remote engine does with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from multihost.engines.remote import SETTLING
from multihost_common import messages as m
from multihost_common.session import SILENT

from .partners import Partner
from .producers import HANDSHAKE, HEARTBEAT
from .streaming import Streaming
from .world import ViolationError

if TYPE_CHECKING:
    from .network import Connection
    from .scene import Scene


class Idler:
    """A script that has no pools."""

    done = True
    pools: tuple[Any, ...] = ()

    def works(self) -> tuple[Any, ...]:
        """It has none."""
        return ()

    def finish(self) -> None:
        """Nothing is to be done."""


class Script(Streaming, Partner):
    """See the module. ``goes_on``: what it does once it is welcomed by a broker that knows nothing of it."""

    role = m.PRODUCER

    def __init__(
        self, scene: Scene, name: str, latency: float, goes_on: Callable[[Script], None], stays: bool
    ) -> None:
        super().__init__(scene.world, name, latency)
        self.begin_sharing(scene)
        self.user = Idler()
        self._goes_on = goes_on
        self._stays = stays
        self.over = False
        self._heard = self._greeted = self._beat_at = self._settled_at = 0.0
        self._workers = self._told = 0
        self.world.unfinished += 1

    def begin(self, delay: float) -> None:
        """The process starts."""
        self.world.network.dial(self, delay)

    def tell_broker(self, message: m.Message) -> None:
        self.say(message)

    # -- the broker ----------------------------------------------------------------------------------

    def connected(self, connection: Connection) -> None:
        self.connection = connection
        self._greet()
        self._beat_at = self.clock() + HEARTBEAT
        self.wake_by(self._beat_at)

    def _greet(self) -> None:
        self.registered = False
        self._heard = self._greeted = self.clock()
        self.send(self.hello(0))

    def take(self, connection: Connection, message: m.Message) -> None:
        self._heard = self.clock()
        if type(message) is m.Welcome and self.crosses(message):
            self._greet()
        elif type(message) is m.Welcome:
            self._welcome(message)
        elif type(message) is m.Refused:
            self._refused(message)
        elif self.is_news(message):
            if type(message) is m.Capacity:
                self._count(message.workers)
            else:
                self.hears(message)
        if self.alive:
            self.acknowledge()

    def _welcome(self, welcome: m.Welcome) -> None:
        again, epoch = self.usable, self.epoch
        fresh = self.welcomes(welcome)
        if again:
            self._settled_at = self.clock() + SETTLING
        self._count(welcome.workers)
        if fresh:
            self.usable, self.heard = True, 0
            self.era = self.scene.era_of(welcome)
            self.forgotten()
        if again:
            self.world.counts["producer has come again"] += 1
            self._restate(fresh, welcome.epoch == epoch)
        if fresh and not self.over:
            self._goes_on(self)

    def _restate(self, fresh: bool, given_up: bool) -> None:
        # As the remote engine does it.
        for launched in list(self.launches.values()):
            if fresh and given_up and launched.sent:
                del self.launches[launched.number]
                launched.exitcode = -9
                continue
            launched.sent = True
            if fresh:
                launched.plan.doubtful = launched.plan.doubtful or not launched.pid
                self.say(launched.message())
                if launched.signal:
                    self.say(m.Signal(launched.number, launched.signal))
        self.say(m.Restated())

    def reaches(self) -> bool:
        return self.registered

    def _count(self, workers: int) -> None:
        # As the remote engine counts them.
        self._told = workers
        settled = self.clock() >= self._settled_at
        self._workers = workers if settled else max(workers, self._workers)

    def hello(self, slots: int) -> m.Hello:
        """As any client's, and how many workers it knew of."""
        hello = super().hello(slots)
        hello.workers = self._workers
        return hello

    def _refused(self, refused: m.Refused) -> None:
        if refused.reason != "E_HELLO":
            raise ViolationError(f"the broker refused what {self.name} said: {refused}")
        if self.registered:
            self.world.counts["producer is not known any more"] += 1
            self._greet()

    def ended(self, connection: Connection) -> None:
        if connection is not self.connection:
            return
        self.connection = None
        self.registered = False
        self.world.network.dial(self, self.world.random.uniform(0.1, 2.0))

    # -- time ----------------------------------------------------------------------------------------

    def due(self) -> float | None:
        return self._beat_at if self.connection is not None else None

    def on_time(self, now: float) -> None:
        self._beat_at = now + HEARTBEAT
        if self.registered:
            self._count(self._told)
        if not self.registered:
            if now - self._greeted > HANDSHAKE:
                self._redial()
        elif now - self._heard > SILENT:
            self.world.counts["producer dials anew: silence"] += 1
            self._redial()
        else:
            self.acknowledge(now=True)
            self.send(m.Beat())

    def _redial(self) -> None:
        self.registered = False
        self.hang_up(flush=False)
        self.world.network.dial(self, 0.0)

    # -- the end -------------------------------------------------------------------------------------

    def rests(self) -> None:
        if not self.over:
            self.over = True
            self.world.unfinished -= 1
        if not self._stays:
            self.leave()

    def leave(self) -> None:
        """It ends in good order."""
        self.send(m.Bye())
        self.hang_up()
        self.alive = False

    def crash(self, power: bool = False) -> None:
        super().crash(power)
        self.perish()
        if not self.over:
            self.over = True
            self.world.unfinished -= 1
