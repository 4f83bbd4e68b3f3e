"""A session with a broker that outlives its connections: dial, say Hello, notice the end, dial again.

The same for producers and workers. What is to be said anew after each Welcome is their own business:
they are told of it, and of each end, by callbacks.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Protocol

from multihost_common.errors import BrokerLostError, HandshakeError, ProtocolError
from multihost_common.keys import Token
from multihost_common.messages import Bye, Heard, Hello, Message, Refused, Welcome
from multihost_common.stream import STREAMED, Stream
from multihost_common.wire import CONNECTED, LINGER, Dealer

#: Seconds without a word from the broker, which beats every second, after which it is dialled anew.
SILENT = 10.0

#: Seconds between two looks at what answers in place of the broker.
LOOK = 10.0

#: And once a broker was found that may be another one.
LOOK_AGAIN = 1.0

#: Messages that are not for the owner alone.
OURS = frozenset({Welcome, Bye, Refused, Heard})


class Owner(Protocol):
    """Who has the session."""

    def welcomed(self, welcome: Welcome) -> None:
        """The session is up. It may be another broker than before, that knows nothing."""

    def parted(self, why: str) -> None:
        """The session is down: what was on its way is lost, and what is sent until ``welcomed`` is, too."""

    def heard(self, message: Message) -> None:
        """A message of the broker's."""


class Session:
    """See the module. For one thread at a time. ``watch(fd, events)`` is told which descriptors to wait
    for; when one is readable call :meth:`read_signals` (``signals_fd``) or :meth:`receive`."""

    def __init__(
        self, address: str, token: Token, hello: Hello, owner: Owner, watch: Callable[..., None]
    ) -> None:
        self._token = token
        self._owner = owner
        self._watch = watch
        #: Named in each Hello, so that the broker knows this process again.
        self.hello = hello
        hello.client = os.urandom(16)
        #: What must arrive once and in order.
        self.stream = Stream()
        self._epoch = 0
        self.up = False
        #: When it went down, or began to be set up; monotonic.
        self.down_since = self._heard = self._look_at = time.monotonic()
        #: When Hello was said over the present connection; 0.0: it was not.
        self._greeted = 0.0
        self._dial(address)

    def _dial(self, address: str) -> None:
        self.dealer = Dealer(address, self._token)
        self.messages_fd, self.signals_fd = self.dealer.fds

    def begin(self) -> None:
        """Watch the descriptors. A socket tells of news only once it has been found empty."""
        for fd in self.dealer.fds:
            self._watch(fd)
        self.read_signals()

    def handshake(self, timeout: float) -> Welcome:
        """Set the session up before anything else, instead of :meth:`begin`.

        Raises AuthError, HandshakeError, ConfigError or BrokerLostError, as :meth:`Dealer.handshake`.
        """
        welcome = self.dealer.handshake(self.hello, timeout)
        self._up(welcome)
        self.begin()
        return welcome

    # -- messages ------------------------------------------------------------------------------------

    def send(self, message: Message) -> None:
        """Send, if the session is up; what is numbered is sent when it is. Raises ProtocolError for what the broker
        would not take."""
        numbered = type(message) in STREAMED
        if numbered:
            self.stream.stamp(message)
        if self.up:
            try:
                self.dealer.send(message)
            except BrokerLostError:
                # The signal of it follows.
                return
            except ProtocolError:
                if numbered:
                    self.stream.take_back()
                raise

    def receive(self, limit: int) -> None:
        """Take in at most ``limit`` messages. Raises HandshakeError if the broker refuses this peer."""
        messages = self.dealer.receive(limit)
        if messages:
            self._heard = time.monotonic()
        for message in messages:
            if type(message) not in OURS:
                if self.up and (type(message) not in STREAMED or self.stream.take(message)):
                    self._owner.heard(message)
            elif not self._take(message):
                return
        self._acknowledge()

    def _acknowledge(self, now: bool = False) -> None:
        if self.up and self.stream.due(now):
            self.send(Heard(self.stream.heard))

    def _take(self, message: Message) -> bool:
        """What is about the session itself. False: nothing more comes over this connection."""
        if type(message) is Welcome:
            if self.up and message.era != self.hello.era:
                # The last one answered an earlier Hello, over a connection that has ended: what was said since then
                # the broker has taken for the beginning of this session.
                self._greet()
            else:
                self._up(message)
                self._owner.welcomed(message)
        elif type(message) is Heard:
            self.stream.acknowledged(message.seq)
        elif type(message) is Bye:
            self._down(f"it has ended: {message.reason}")
            # It waits for its peers to hang up. What was sent last has to get there.
            self._redial(LINGER)
            return False
        elif type(message) is Refused:
            if message.reason == "E_HELLO" or not self.up:
                self._refused(message)
            else:
                self._owner.heard(message)
        return True

    def _up(self, welcome: Welcome) -> None:
        self.dealer.welcomed(welcome)
        self.up = True
        self._heard = time.monotonic()
        self.hello.session, self.hello.era = welcome.session, welcome.era
        if welcome.fresh or welcome.epoch != self._epoch:
            welcome.fresh = True
            self._epoch = welcome.epoch
            self.stream.reset()
        for message in self.stream.again(welcome.heard):
            self.dealer.send(message)

    def _refused(self, refused: Refused) -> None:
        if refused.reason != "E_HELLO":
            raise HandshakeError(refused.text)
        # Each message on its way is refused; the first refusal is answered.
        if self.up:
            self._down("it does not know this session any more")
            self._greet()

    # -- connections ---------------------------------------------------------------------------------

    def read_signals(self) -> None:
        """Take in that connections were made or have ended. Raises AuthError once the broker has refused
        the token, ConfigError if it is no broker."""
        for each in self.dealer.signals():
            if each == CONNECTED:
                self._greet()
            else:
                self._greeted = 0.0
                self._down("the connection has ended")

    def _greet(self) -> None:
        self._down("the connection has ended")
        self._heard = self._greeted = time.monotonic()
        self.hello.heard = self.stream.heard
        try:
            self.dealer.send(self.hello)
        except BrokerLostError:
            # It has ended already; the next one follows.
            self._greeted = 0.0

    def _down(self, why: str) -> None:
        if self.up:
            self.up = False
            self.down_since = time.monotonic()
            self._owner.parted(why)

    def redial(self, why: str) -> None:
        """Give this connection up and make another."""
        self._down(why)
        self._redial()

    def _redial(self, linger: float = 0.0) -> None:
        for fd in self.dealer.fds:
            self._watch(fd, 0)
        self.dealer.close(linger)
        self._greeted = 0.0
        self._dial(self.dealer.address)
        self.begin()

    def tend(self, now: float) -> None:
        """To be called every second or so: dial again where nothing is heard, look at who answers there.

        Raises AuthError or ConfigError if that is not, and will not become, the broker of the token.
        """
        if self.up:
            self._acknowledge(now=True)
            if now - self._heard > SILENT:
                self._down(f"it has been silent for {SILENT:g} s")
                self._redial()
        elif self.dealer.doubtful and now >= self._look_at:
            self.dealer.diagnose(patient=True)
            self._look_at = now + (LOOK_AGAIN if self.dealer.suspicious else LOOK)
            if self.dealer.given_up:
                self._redial()
        elif self._greeted and now - self._greeted > SILENT:
            # The broker has the Hello, or not; it does not answer over this connection.
            self._redial()

    def close(self, linger: float = LINGER) -> None:
        """Let go of the connection; what was sent last gets ``linger`` seconds to leave."""
        self.dealer.close(linger)


__all__ = ["SILENT", "Owner", "Session"]
