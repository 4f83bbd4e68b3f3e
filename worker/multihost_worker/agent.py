"""The agent's shell: one DEALER socket, the children's pipes, the clock. Decisions are the core's."""

from __future__ import annotations

import logging
import os
import pickle
import signal
import socket as sockets
import sys
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from multihost_common.allocator import keep_freed_memory
from multihost_common.cpus import available_cpus, thread_limits
from multihost_common.errors import BrokerLostError, ConfigError, HandshakeError, ProtocolError
from multihost_common.keys import Token
from multihost_common.messages import PROTOCOL_VERSION, WORKER, Hello, Message, Refused, Welcome
from multihost_common.waiter import Alarm, Waiter
from multihost_common.wire import CONNECTED, Dealer
from multihost_worker.children import Children
from multihost_worker.core import Core, CoreConfig
from multihost_worker.events import (
    Action,
    Connected,
    Disconnected,
    Event,
    Exit,
    Received,
    Send,
    Stop,
    Tick,
)
from multihost_worker.output import Printer
from multihost_worker.privatedir import PrivateDir

log = logging.getLogger("multihost.worker")

#: Seconds without a word from the broker, which beats every second, after which the agent dials anew.
SILENT = 10.0

#: Seconds without a broker after which the log says so, and again and again.
PATIENCE = 5.0
REMIND = 60.0

#: Seconds between two looks at what answers in place of the broker.
LOOK = 10.0

#: Seconds between two looks at the children's memory, and two notes for ``multihost health``.
PULSE = 1.0

#: Messages taken before the children get their turn.
BATCH = 200


@dataclass(slots=True)
class Config:
    """Settings of one agent."""

    address: str
    token: Token
    #: Child processes at once; 0: as many as there are CPUs for this process.
    concurrency: int = 0
    name: str = ""
    #: Resident bytes a child may have; 0: no limit.
    max_memory: int = 0
    #: Seconds a drain may take before everything is handed back.
    drain_timeout: float = 25.0


class Agent:
    """A worker: registers with the broker and runs what it is given. ``run`` answers the exit status."""

    def __init__(self, config: Config) -> None:
        self.config = config
        cpus = available_cpus()
        self.slots = config.concurrency or cpus
        self.host = sockets.gethostname()
        self.core = Core(
            CoreConfig(
                slots=self.slots,
                host=self.host,
                max_memory=config.max_memory,
                drain_timeout=config.drain_timeout,
            )
        )
        self._registered = False
        self._exit: int | None = None
        self._stops = 0
        self._events: deque[Event] = deque()
        self._heard = time.monotonic()
        #: When Hello was said over the present connection; 0.0: it was not.
        self._greeted = 0.0
        self._pulse_at = 0.0
        self._alarm = Alarm(self.core.deadline)
        self._wake_read, self._wake_write = sockets.socketpair()
        self._wake_read.setblocking(False)
        self._wake_write.setblocking(False)
        self._waiter = Waiter()
        self._wake_fd = self._wake_read.fileno()
        self._waiter.watch(self._wake_fd)
        self._remind_at = self._heard + PATIENCE
        self._look_at = self._heard
        # First what may be refused: an address that cannot be used leaves no directory.
        self._dial()
        self._private = PrivateDir()
        self._printer = Printer(self._send, self.host, time.monotonic)
        self._children = Children(
            self._events.append,
            capture=self._printer,
            private_dir=self._private.path,
            env=thread_limits(max(1, cpus // self.slots)),
            watch=self._waiter.watch,
            hint=self._wake,
        )

    def _dial(self) -> None:
        self._dealer = Dealer(self.config.address, self.config.token)
        self._messages_fd, self._signals_fd = self._dealer.fds
        for fd in self._dealer.fds:
            self._waiter.watch(fd)
        # A socket tells of news only once it has been found empty.
        self._read_signals()

    # -- the loop ------------------------------------------------------------------------------------

    def run(self, ready: Callable[[Agent], None] | None = None) -> int:
        """Work until told to stop; ``ready`` is called each time the broker has welcomed this agent."""
        self._ready = ready
        log.info("connecting to the broker at %s", self._dealer.address)
        try:
            while self._exit is None:
                self._turn()
            return self._exit
        finally:
            self.close()

    def _turn(self) -> None:
        # What comes while a descriptor is handled is found here, or wakes the next wait.
        pending = self._dealer.pending()
        limit = BATCH if pending else 0
        waiter = self._waiter
        for fd, mask in waiter.wait(0) if pending else waiter.wait_awake_first(self._patience):
            if fd == self._messages_fd:
                limit = limit or 1
            elif fd == self._wake_fd:
                self._read_wake()
            elif fd == self._signals_fd:
                self._read_signals()
            else:
                self._children.process(fd, mask)
        if limit:
            self._read_messages(limit)
        now = time.monotonic()
        if self._alarm.rings(now):
            self._events.append(Tick())
        if now >= self._pulse_at:
            self._pulse(now)
        if self._events:
            self._handle_all()
        self._children.tick()
        if self._children.untidy:
            self._children.tidy()

    def _patience(self) -> float:
        now = time.monotonic()
        left = self._pulse_at - now
        look_at = self._children.deadline()
        for each in (self._alarm.patience(now), None if look_at is None else look_at - now):
            if each is not None and each < left:
                left = each
        return left

    def _pulse(self, now: float) -> None:
        self._pulse_at = now + PULSE
        self._private.note(
            {
                "pid": os.getpid(),
                "name": self.config.name,
                "registered": self._registered,
                "slots": self.slots,
            }
        )
        self._printer.sweep()
        if self.config.max_memory:
            self._children.sample()
        if not self._registered:
            self._unregistered(now)
        elif now - self._heard > SILENT:
            log.warning("the broker has been silent for %d s; connecting anew", SILENT)
            self._redial()

    def _unregistered(self, now: float) -> None:
        """Nobody has welcomed this agent yet, or any more: it tries on, unless that is in vain."""
        if now >= self._remind_at:
            self._remind_at = now + REMIND
            log.warning("no broker answers at %s; still trying", self._dealer.address)
        if self._dealer.doubtful and now >= self._look_at:
            self._look_at = now + LOOK
            self._dealer.diagnose()
            if self._dealer.given_up:
                self._redial()
        elif self._greeted and now - self._greeted > SILENT:
            # The broker has this agent's Hello, or not; it does not answer over this connection.
            self._redial()

    def _handle_all(self) -> None:
        """Tell the core everything, and do what it says, until there is nothing more."""
        events = self._events
        while events:
            for action in self.core.handle(events.popleft(), time.monotonic()):
                self._do(action)

    def _do(self, action: Action) -> None:
        if type(action) is Send:
            self._send(action.message)
        elif type(action) is Exit:
            self._exit = action.code
        else:
            self._children.do(action)

    # -- the broker ----------------------------------------------------------------------------------

    def _send(self, message: Message) -> None:
        # Without a connection there is nobody who would miss it: the broker's books bring it back.
        try:
            self._dealer.send(message)
        except BrokerLostError:
            return

    def _read_signals(self) -> None:
        for each in self._dealer.signals():
            if each == CONNECTED:
                self._greet()
            else:
                self._greeted = 0.0
                self._lost("the connection to the broker is lost; trying again")

    def _greet(self) -> None:
        self._heard = self._greeted = time.monotonic()
        self._send(self._hello())

    def _read_messages(self, limit: int) -> None:
        try:
            messages = self._dealer.receive(limit)
        except ProtocolError as error:
            log.error("the broker sent what is not of protocol %d: %s", PROTOCOL_VERSION, error)
            self._redial()
            return
        if messages:
            self._heard = time.monotonic()
            for message in messages:
                self._take(message)

    def _take(self, message: Message) -> None:
        if type(message) is Welcome:
            self._dealer.welcomed(message)
            self._registered = True
            self._pulse_at = 0.0
            log.info("registered with the broker at %s: %d slots", self._dealer.address, self.slots)
            self._events.append(Connected())
            if self._ready is not None:
                self._ready(self)
        elif type(message) is Refused:
            self._refused(message)
        elif self._registered:
            self._events.append(Received(message))

    def _refused(self, refused: Refused) -> None:
        if refused.reason == "E_HELLO":
            # Each message on its way is refused; the first refusal is answered.
            if self._registered:
                self._lost("the broker does not know this worker any more; registering again")
                self._greet()
        elif not self._registered:
            raise HandshakeError(refused.text)
        else:
            log.warning("the broker refused a message: %s", refused.text)

    def _hello(self) -> Hello:
        return Hello(
            WORKER,
            PROTOCOL_VERSION,
            f"{sys.version_info.major}.{sys.version_info.minor}",
            pickle.HIGHEST_PROTOCOL,
            self.host,
            os.getpid(),
            self.slots,
            self.config.name,
        )

    def _lost(self, text: str) -> None:
        if self._registered:
            self._registered = False
            self._pulse_at = 0.0
            self._remind_at = time.monotonic() + PATIENCE
            log.warning("%s", text)
            self._events.append(Disconnected())

    def _redial(self) -> None:
        self._lost("the session with the broker is over")
        for fd in self._dealer.fds:
            self._waiter.watch(fd, 0)
        self._dealer.close(0)
        self._greeted = 0.0
        self._dial()

    # -- ending --------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Drain and end; the second time, hand everything back at once. Safe in a signal handler."""
        self._stops += 1
        self._wake()

    def _wake(self) -> None:
        with suppress(OSError):
            self._wake_write.send(b"w")

    def wakeup_fd(self) -> int:
        """For :func:`signal.set_wakeup_fd`: a signal must end the wait."""
        return self._wake_write.fileno()

    def _read_wake(self) -> None:
        with suppress(BlockingIOError):
            while len(self._wake_read.recv(4096)) == 4096:
                pass
        while self._stops:
            self._stops -= 1
            self._events.append(Stop())

    def close(self) -> None:
        """End the children, the connection and the private directory."""
        self._children.close()
        self._dealer.close()
        self._private.close()
        self._wake_read.close()
        self._wake_write.close()


def work(config: Config) -> int:
    """Run an agent in this process until SIGTERM or SIGINT; answers its exit status."""
    keep_freed_memory()
    try:
        agent = Agent(config)
    except OSError as error:
        raise ConfigError(f"a worker cannot start here: {error}") from None
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    wakeup = signal.set_wakeup_fd(agent.wakeup_fd(), warn_on_full_buffer=False)
    for number in before:
        signal.signal(number, lambda *_: agent.stop())
    try:
        return agent.run()
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)


__all__ = ["Agent", "Config", "work"]
