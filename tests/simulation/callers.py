"""Clients of detached jobs in virtual time: the real exchanges of ``multihost``, and a connection as their client has it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from multihost.detached.exchange import Exchange
from multihost_common import messages as m
from multihost_common.errors import JobError
from multihost_common.session import SILENT

from .parties import Client
from .world import ViolationError

if TYPE_CHECKING:
    from .network import Connection
    from .world import World

#: Seconds between two signs of life.
HEARTBEAT = 1.0


class Caller(Client):
    """One process that wants one thing of the broker: ``exchange``. ``hears`` is told of each message before that,
    ``done`` once it is over, with why it failed, if it did."""

    role = m.ADMIN

    def __init__(
        self,
        world: World,
        name: str,
        latency: float,
        exchange: Exchange,
        done: Callable[[Caller, str], None],
        hears: Callable[[m.Message], None] = lambda message: None,
    ) -> None:
        super().__init__(world, name, latency)
        self.exchange = exchange
        self.up = False
        self._done = done
        self._hears = hears
        self._heard = self._greeted = 0.0
        self._beat_at = 0.0

    def begin(self, delay: float) -> None:
        """The process starts."""
        self.world.callers.append(self)
        self.world.network.dial(self, delay)

    # -- the broker ----------------------------------------------------------------------------------

    def connected(self, connection: Connection) -> None:
        self.connection = connection
        self._beat_at = self.clock() + HEARTBEAT
        self._greet()
        self.wake_by(self._beat_at)

    def _greet(self) -> None:
        self.up = False
        self._heard = self._greeted = self.clock()
        self.send(self.hello(0))

    def ended(self, connection: Connection) -> None:
        if connection is self.connection:
            self.connection, self.up = None, False
            self.world.network.dial(self, self.world.random.uniform(0.1, 2.0))

    def take(self, connection: Connection, message: m.Message) -> None:
        if connection is not self.connection:
            return
        self._heard = self.clock()
        kind = type(message)
        if kind is m.Welcome:
            self.session, self.up = message.session, True  # type: ignore[attr-defined]
            self.say(self.exchange.begin())
        elif kind is m.Refused and message.reason == "E_HELLO":  # type: ignore[attr-defined]
            if self.up:
                self._greet()
        elif self.up and kind is not m.Beat:
            self._hears(message)
            try:
                self.say(self.exchange.take(message, self.clock()))
            except JobError as error:
                self.finish(str(error))

    def say(self, messages: Sequence[m.Message]) -> None:
        """Send what the exchange says; what is lost on its way it says again over another connection."""
        for message in messages if self.up else ():
            self.send(message)
        if self.exchange.over:
            self.finish("")
        self.wake_by(self.due())

    def finish(self, why: str) -> None:
        """It has what it wanted, or will not get it."""
        if self.alive:
            self.send(m.Bye())
            self.hang_up()
            self.alive = False
            self._done(self, why)

    # -- time ----------------------------------------------------------------------------------------

    def due(self) -> float | None:
        if self.connection is None:
            return None
        due = self.exchange.due if self.up else None
        return self._beat_at if due is None else min(due, self._beat_at)

    def on_time(self, now: float) -> None:
        if now >= self._beat_at:
            self._beat_at = now + HEARTBEAT
            if now - (self._heard if self.up else self._greeted) > SILENT:
                self.world.counts["caller dials anew: silence"] += 1
                self.up = False
                self.hang_up(flush=False)
                self.world.network.dial(self, 0.0)
                return
            if self.up:
                self.send(m.Beat())
        if self.up:
            self.say(self.exchange.tick(now))


def must(condition: object, text: str) -> None:
    """Raise a violation unless the condition holds."""
    if not condition:
        raise ViolationError(text)
