"""The remote engine: one connection to a broker, shared by all pools of this process that use it.

Its session outlives connections, and the broker itself: what was sent is kept until it has its answer, and
handed in again to whoever is the broker then. ``MULTIHOST_BROKER_LOST_AFTER`` seconds without a broker, if
that is set, raise BrokerLostError in whatever is under way, and the next pool dials anew.
"""

from __future__ import annotations

import atexit
import os
import pickle
import platform
import sys
import time

from multihost.engines.driver import Driver
from multihost.engines.patience import Patience
from multihost_common import messages as m
from multihost_common.errors import BrokerLostError, MultihostError, ProtocolError
from multihost_common.keys import find_token
from multihost_common.session import Session

#: Seconds to connect and be welcomed.
HANDSHAKE_TIMEOUT = 5.0

#: Seconds without a broker for which a pool whose work is done is joined, or an Executor shut down: its script
#: has all it wants, and need not wait for a broker that may have been ended for good.
JOIN_PATIENCE = 5.0

#: Seconds in which workers come back to a broker that was started anew.
SETTLING = 10.0

#: Messages taken in one turn, before jobs may send again.
BATCH = 256


class RemoteEngine(Driver):
    """An engine on the workers of the broker at ``address``.

    Raises AuthError, HandshakeError or BrokerLostError within five seconds if it cannot be used.
    """

    keeps = True

    def __init__(self, address: str) -> None:
        self._broker_patience = Patience()
        super().__init__()
        token = find_token(m.PRODUCER, m.ADMIN)
        self._session = Session(address, token, hello(m.PRODUCER), self, self._waiter.watch)
        try:
            welcome = self._session.handshake(HANDSHAKE_TIMEOUT)
        except BaseException:
            self._session.close(0)
            raise
        #: When all workers that come back to a broker have done so.
        self._settled_at = 0.0
        #: Of the broker that was here last.
        self._epoch = welcome.epoch
        self._note(welcome)
        self._next_beat = time.monotonic() + self._heartbeat
        atexit.register(self.close)
        # Signs of life are due whether or not a caller waits.
        self._ensure_thread()

    @property
    def reaches(self) -> bool:
        """What is said now may arrive."""
        return self._session.up

    def _describe(self) -> str:
        return self._session.dealer.address

    # -- the session -------------------------------------------------------------------------------

    def _note(self, welcome: m.Welcome) -> None:
        self.capacity = welcome.slots
        self._heartbeat = welcome.heartbeat or 1.0
        self._count(welcome.workers)

    def _count(self, workers: int) -> None:
        """So many workers are there. How many a broker has that was just started is no news: the others may be on
        their way back to it, and the next one has to know of them, too."""
        self._workers = workers
        hello = self._session.hello
        settled = time.monotonic() >= self._settled_at
        hello.workers = workers if settled else max(workers, hello.workers)

    def welcomed(self, welcome: m.Welcome) -> None:
        """The broker is back, or another one is there in its place: hand in what has no result."""
        self._broker_patience.welcomed(self._describe())
        self._settled_at = time.monotonic() + SETTLING
        self._note(welcome)
        if welcome.fresh:
            self.sharing.fail(
                BrokerLostError("the broker was started anew: what was shared through it is no more")
            )
            for message in self.launching.restate(given_up=welcome.epoch == self._epoch):
                self._send(message)
        else:
            self.launching.resumed()
        self._epoch = welcome.epoch
        self._restate()
        self._resize(welcome.slots, welcome.workers)

    def parted(self, why: str) -> None:
        """The connection is lost; the pools go on when there is another one."""
        self._broker_patience.parted(self._describe(), why, self._session.down_since)

    heard = Driver._take

    def _resize(self, slots: int, workers: int) -> None:
        self._count(workers)
        super()._resize(slots, workers)

    # -- messages ----------------------------------------------------------------------------------

    def _send(self, message: m.Message) -> None:
        # What is not sent is stated anew when the broker is back.
        try:
            self._session.send(message)
        except ProtocolError as error:
            self._unsendable(message, error)

    def _unsendable(self, message: m.Message, error: ProtocolError) -> None:
        """Only the job, process or request that this message is of cannot go on."""
        if isinstance(message, m.Launch):
            text = f"the process cannot be sent to the broker: {error.text}"
            self.launching.unsendable(message.process, text)
            return
        if isinstance(message, m.Act):
            self.sharing.take(m.Acted(message.number, m.FORBIDDEN, 0, error.text))
            return
        job = self._jobs.get(getattr(message, "job", 0))
        if job is None:
            raise error
        self._abort([job], MultihostError(f"the job cannot be sent to the broker: {error.text}"))
        self._session.send(m.Cancel(job.id))

    def _poll(self, timeout: float | None) -> None:
        session = self._session
        pending = session.dealer.pending()
        limit = BATCH if pending else 0
        for fd, _ in self._ready(0.0 if pending else timeout):
            if fd == self._wake_reader:
                self.drain_wakeups()
            elif fd == session.signals_fd:
                session.read_signals()
            else:
                limit = limit or 1
        if limit:
            session.receive(limit)

    # -- time --------------------------------------------------------------------------------------

    def _next_deadline(self) -> float | None:
        return self._next_beat

    def _housekeeping(self, now: float) -> None:
        session = self._session
        if not session.up:
            self._be_patient(now)
        elif now >= self._settled_at:
            self._count(self._workers)
        session.tend(now)
        self._next_beat = now + self._heartbeat
        session.send(m.Beat())

    def _be_patient(self, now: float) -> None:
        since = self._session.down_since
        self._broker_patience.check(self._describe(), since, now)
        if now - since > JOIN_PATIENCE:
            self._let_go()

    def _shut(self) -> None:
        if self._failure is None:
            self._session.send(m.Bye())
        self._session.close()


def hello(kind: str) -> m.Hello:
    """What this process says first to a broker, as a peer of this kind."""
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    name = os.path.basename(sys.argv[0] if sys.argv else "")[: m.NAME]
    return m.Hello(
        kind, m.PROTOCOL_VERSION, python, pickle.HIGHEST_PROTOCOL, platform.node(), os.getpid(), 0, name
    )
