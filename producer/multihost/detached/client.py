"""A connection of its own for exchanges about detached jobs, one at a time, run by the thread that wants them.

Each lasts as long as what it is for; nothing of it runs in the background. A broker that is away is waited for, as
by the :mod:`remote engine <multihost.engines.remote>`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any, Self

from multihost.detached.exchange import Exchange, Order
from multihost.engines.patience import Patience
from multihost.engines.remote import BATCH, HANDSHAKE_TIMEOUT, hello
from multihost.logs import log
from multihost_common.errors import JobError, ProtocolError
from multihost_common.keys import find_token
from multihost_common.messages import ADMIN, PRODUCER, Ask, Beat, Bye, Message, Welcome
from multihost_common.session import Session
from multihost_common.waiter import Waiter
from multihost_common.wire import LINGER

#: Seconds for what was sent last, where nobody wants to wait.
HURRY = 0.1


class Client:
    """See the module. ``address``: of the broker. ``known``: there was a broker before, so that it is waited for from
    the beginning; else one has to answer within 5 s.

    Raises AuthError, ConfigError, HandshakeError or BrokerLostError, as the remote engine does.
    """

    def __init__(
        self, address: str, known: bool = False, token_file: str | None = None, keys: str | None = None
    ) -> None:
        self._patience = Patience()
        self._waiter = Waiter()
        self._exchange: Exchange | None = None
        self._complaint = ""
        self._next_beat = time.monotonic() + 1.0
        token = find_token(ADMIN, PRODUCER, token_file=token_file, keys=keys)
        # Without a pool of its own it is no producer: there is nothing that the broker would keep for it.
        self._session = Session(address, token, hello(ADMIN), self, self._waiter.watch)
        try:
            if known:
                self._session.begin()
            else:
                self._session.handshake(HANDSHAKE_TIMEOUT)
        except BaseException:
            self._session.close(0)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._session.send(Bye())
        # Whoever pressed Ctrl-C waits for nothing.
        calm = kind is None or issubclass(kind, Exception)
        self._session.close(LINGER if calm and self._session.up else HURRY)

    @property
    def address(self) -> str:
        """Of the broker."""
        return self._session.dealer.address

    # -- exchanges -----------------------------------------------------------------------------------

    def begin(self, exchange: Exchange) -> None:
        """It is this one's turn from now on."""
        self._exchange = exchange
        if self._session.up:
            self.send(exchange.begin())

    def send(self, messages: Iterable[Message]) -> None:
        """Send what the exchange says; without a connection it begins anew anyway when there is one. Raises JobError
        for what the broker would not take."""
        for message in messages:
            try:
                self._session.send(message)
            except ProtocolError as error:
                raise JobError(f"the job cannot be sent to the broker: {error.text}") from None

    def until(self, condition: Callable[[], Any], deadline: float | None = None) -> bool:
        """Go on with the exchange until this is true. False: it is past ``deadline``, monotonic seconds."""
        while not condition():
            if deadline is not None and time.monotonic() >= deadline:
                return False
            self._turn(deadline)
        return True

    def order(self, what: str, about: str = "") -> dict[str, Any]:
        """The broker's answer. Raises JobError if it refuses."""
        order = Order(what, about)
        self.begin(order)
        self.until(lambda: order.over)
        return order.answer

    def tell(self, what: str, about: str) -> None:
        """Say this, without waiting for the answer."""
        self._session.send(Ask(what, about))

    # -- the loop ------------------------------------------------------------------------------------

    def _turn(self, deadline: float | None) -> None:
        session = self._session
        pending = session.dealer.pending()
        limit = BATCH if pending else 0
        for fd, _ in self._waiter.wait(0.0 if pending else self._rest(deadline)):
            if fd == session.signals_fd:
                session.read_signals()
            else:
                limit = limit or 1
        if limit:
            session.receive(limit)
        now = time.monotonic()
        if now >= self._next_beat:
            self._next_beat = now + 1.0
            if not session.up:
                self._patience.check(self.address, session.down_since, now)
            session.tend(now)
            session.send(Beat())
        if self._exchange is not None:
            self.send(self._exchange.tick(now))

    def _rest(self, deadline: float | None) -> float:
        """Seconds until there is something to do."""
        due = self._exchange.due if self._exchange is not None else None
        soonest = min(each for each in (self._next_beat, deadline, due) if each is not None)
        return max(0.0, soonest - time.monotonic())

    def welcomed(self, welcome: Welcome) -> None:
        """The session is up, perhaps with another broker than before."""
        self._patience.welcomed(self.address)
        if self._exchange is not None:
            self.send(self._exchange.begin())

    def parted(self, why: str) -> None:
        """The session is down."""
        self._patience.parted(self.address, why, self._session.down_since)

    def heard(self, message: Message) -> None:
        """A message of the broker's."""
        exchange = self._exchange
        if exchange is None:
            return
        self.send(exchange.take(message, time.monotonic()))
        if exchange.due is not None and exchange.complaint != self._complaint:
            self._complaint = exchange.complaint
            log().warning("the broker at %s: %s; trying again", self.address, exchange.complaint)
