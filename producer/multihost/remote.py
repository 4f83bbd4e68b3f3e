"""The remote engine: one connection to a broker, shared by all pools of this process that use it.

The connection is its session: when it ends, or the broker has been silent for
``MULTIHOST_BROKER_LOST_AFTER`` seconds, whatever was under way raises BrokerLostError, and the next
pool dials anew.
"""

from __future__ import annotations

import atexit
import os
import pickle
import platform
import sys
import time

from multihost.driver import Driver
from multihost_common import messages as m
from multihost_common.errors import BrokerLostError, ConfigError, MultihostError, ProtocolError
from multihost_common.keys import find_token
from multihost_common.wire import CONNECTED, Dealer

#: Seconds to connect and be welcomed.
HANDSHAKE_TIMEOUT = 5.0

#: Name of the variable with the seconds a broker may be silent, and their number without it.
LOST_VARIABLE = "MULTIHOST_BROKER_LOST_AFTER"
LOST_AFTER = 60.0

#: Messages taken in one turn, before jobs may send again.
BATCH = 256


class RemoteEngine(Driver):
    """An engine on the workers of the broker at ``address``.

    Raises AuthError, HandshakeError or BrokerLostError within five seconds if it cannot be used.
    """

    def __init__(self, address: str) -> None:
        self._lost_after = _patience()
        self._dealer = Dealer(address, find_token(m.PRODUCER, m.ADMIN))
        try:
            welcome = self._dealer.handshake(_hello(), HANDSHAKE_TIMEOUT)
        except BaseException:
            self._dealer.close(0)
            raise
        super().__init__()
        self.capacity = welcome.slots
        self._heartbeat = welcome.heartbeat or 1.0
        self._heard = time.monotonic()
        self._next_beat = self._heard + self._heartbeat
        for fd in self._dealer.fds:
            self._waiter.watch(fd)
        atexit.register(self.close)
        # Signs of life are due whether or not a caller waits.
        self._ensure_thread()

    def _describe(self) -> str:
        return self._dealer.address

    # -- messages ----------------------------------------------------------------------------------

    def _send(self, message: m.Message) -> None:
        try:
            self._dealer.send(message)
        except ProtocolError as error:
            self._unsendable(message, error)

    def _unsendable(self, message: m.Message, error: ProtocolError) -> None:
        """Only the job that this message is of cannot go on."""
        job = self._jobs.get(getattr(message, "job", 0))
        if job is None:
            raise error
        self._abort([job], MultihostError(f"the job cannot be sent to the broker: {error.text}"))
        self._dealer.send(m.Cancel(job.id))

    def _poll(self, timeout: float | None) -> None:
        pending = self._dealer.pending()
        limit = BATCH if pending else 0
        for fd, _ in self._ready(0.0 if pending else timeout):
            if fd == self._wake_reader:
                self.drain_wakeups()
            elif fd == self._dealer.fds[1]:
                self._read_signals()
            else:
                limit = limit or 1
        if limit:
            self._receive(limit)

    def _receive(self, limit: int) -> None:
        messages = self._dealer.receive(limit)
        if messages:
            self._heard = time.monotonic()
        for message in messages:
            if type(message) is m.Bye:
                raise BrokerLostError(f"the broker at {self._dealer.address} has ended: {message.reason}")
            if type(message) is m.Refused and message.reason == "E_HELLO":
                raise self._lost("the broker has closed this session")
            self._take(message)

    def _read_signals(self) -> None:
        for signal in self._dealer.signals():
            if signal != CONNECTED:
                raise self._lost("the connection has ended")

    def _lost(self, what: str) -> BrokerLostError:
        return BrokerLostError(f"lost the broker at {self._dealer.address}: {what}; run the work again")

    # -- time --------------------------------------------------------------------------------------

    def _next_deadline(self) -> float | None:
        return self._next_beat

    def _housekeeping(self, now: float) -> None:
        if now - self._heard > self._lost_after:
            raise self._lost(f"it has been silent for {self._lost_after:g} s")
        self._next_beat = now + self._heartbeat
        self._dealer.send(m.Beat())

    def _shut(self) -> None:
        if self._failure is None:
            try:
                self._dealer.send(m.Bye())
            except BrokerLostError:
                # Then it need not be told.
                self._failure = None
        self._dealer.close()


def _patience() -> float:
    text = os.environ.get(LOST_VARIABLE, "")
    try:
        seconds = float(text) if text else LOST_AFTER
    except ValueError:
        seconds = 0.0
    if not seconds > 0:
        raise ConfigError(f"{LOST_VARIABLE} is {text!r}; set it to a positive number of seconds")
    return seconds


def _hello() -> m.Hello:
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    name = os.path.basename(sys.argv[0] if sys.argv else "")[: m.NAME]
    return m.Hello(
        m.PRODUCER, m.PROTOCOL_VERSION, python, pickle.HIGHEST_PROTOCOL, platform.node(), os.getpid(), 0, name
    )
