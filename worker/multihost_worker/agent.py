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
from multihost_common.errors import ConfigError, ProtocolError
from multihost_common.keys import Token
from multihost_common.messages import PROTOCOL_VERSION, WORKER, Hello, Leave, Message, Refused, Welcome
from multihost_common.session import Session
from multihost_common.waiter import Alarm, Waiter
from multihost_worker.children import Children
from multihost_worker.core import Core, CoreConfig
from multihost_worker.events import (
    Action,
    Connected,
    Disconnected,
    Event,
    Exit,
    NotSpooled,
    Received,
    Send,
    Spool,
    Stop,
    Tick,
    Unlink,
    Unspool,
    Unspooled,
)
from multihost_worker.output import Printer
from multihost_worker.privatedir import PrivateDir
from multihost_worker.spool import LOOK, Outflow
from multihost_worker.spool import Spool as Disk

log = logging.getLogger("multihost.worker")

#: Seconds without a broker after which the log says so, and again and again.
PATIENCE = 5.0
REMIND = 60.0

#: Seconds between two looks at the children's memory, and two notes for ``multihost health``.
PULSE = 1.0

#: Bytes of results on the disk at most while they cannot be sent, unless half of what is free there is less.
SPOOL_BYTES = 4 << 30

#: Numbers of the children of a pool that are one worker's.
NUMBERS = 1000

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
    #: Seconds without a broker after which the children are ended and what they did is dropped.
    orphan_timeout: float = 300.0
    #: Bytes of results that are put on the disk at most while they cannot be sent; 0: none, None: the default.
    spool_bytes: int | None = None


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
                orphan_timeout=config.orphan_timeout,
                spool_bytes=SPOOL_BYTES if config.spool_bytes is None else config.spool_bytes,
            )
        )
        self._exit: int | None = None
        self._stops = 0
        self._events: deque[Event] = deque()
        self._ready: Callable[[Agent], None] | None = None
        self._pulse_at = 0.0
        self._alarm = Alarm(self.core.deadline)
        self._wake_read, self._wake_write = sockets.socketpair()
        self._wake_read.setblocking(False)
        self._wake_write.setblocking(False)
        self._waiter = Waiter()
        self._wake_fd = self._wake_read.fileno()
        self._waiter.watch(self._wake_fd)
        self._remind_at = time.monotonic() + PATIENCE
        # First what may be refused: an address that cannot be used leaves no directory.
        self._session = Session(config.address, config.token, self._hello(), self, self._waiter.watch)
        self._private = PrivateDir()
        self._disk = Disk(self._private.path, config.spool_bytes)
        self._outflow = Outflow(self._disk)
        self._printer = Printer(self._session.send, self.host, time.monotonic, lambda: self._session.up)
        self._children = Children(
            self._events.append,
            capture=self._printer,
            private_dir=self._private.path,
            env=thread_limits(max(1, cpus // self.slots)),
            watch=self._waiter.watch,
            hint=self._wake,
        )

    # -- the loop ------------------------------------------------------------------------------------

    def run(self, ready: Callable[[Agent], None] | None = None) -> int:
        """Work until told to stop; ``ready`` is called each time the broker has welcomed this agent."""
        self._ready = ready
        log.info("connecting to the broker at %s", self.config.address)
        self._session.begin()
        try:
            while self._exit is None:
                self._turn()
            return self._exit
        finally:
            self.close()

    def _turn(self) -> None:
        # What comes while a descriptor is handled is found here, or wakes the next wait.
        session, waiter = self._session, self._waiter
        pending = session.dealer.pending()
        limit = BATCH if pending else 0
        for fd, mask in waiter.wait(0) if pending else waiter.wait_awake_first(self._patience):
            if fd == session.messages_fd:
                limit = limit or 1
            elif fd == self._wake_fd:
                self._read_wake()
            elif fd == session.signals_fd:
                session.read_signals()
            else:
                self._children.process(fd, mask)
        if limit:
            self._read_messages(limit)
        now = time.monotonic()
        if self._alarm.rings(now):
            self._events.append(Tick())
        if now >= self._pulse_at:
            self._pulse(now)
        if self._outflow.waits:
            self._read_spool()
        if self._events:
            self._handle_all()
        self._children.tick()
        if self._children.untidy:
            self._children.tidy()

    def _patience(self) -> float:
        now = time.monotonic()
        left = self._pulse_at - now
        if self._outflow.waits:
            left = min(left, LOOK)
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
                "registered": self._session.up,
                "slots": self.slots,
            }
        )
        self._printer.sweep()
        if self.config.max_memory:
            self._children.sample()
        if not self._session.up and now >= self._remind_at:
            self._remind_at = now + REMIND
            log.warning("no broker answers at %s; still trying", self.config.address)
        self._session.tend(now)

    def _handle_all(self) -> None:
        """Tell the core everything, and do what it says, until there is nothing more."""
        events = self._events
        while events:
            for action in self.core.handle(events.popleft(), time.monotonic()):
                self._do(action)

    def _do(self, action: Action) -> None:
        if type(action) is Send:
            self._session.send(action.message)
        elif type(action) is Exit:
            self._exit = action.code
        elif type(action) is Spool:
            if not self._disk.write(action.number, action.frames):
                self._events.append(NotSpooled(action.number, action.frames))
        elif type(action) is Unspool:
            self._outflow.want(action.number)
        elif type(action) is Unlink:
            self._disk.drop(action.number)
        else:
            self._children.do(action)

    def _read_spool(self) -> None:
        while (read := self._outflow.next()) is not None:
            self._events.append(Unspooled(*read))
            # Sent before the next one is read, if it is the same job's turn.
            self._handle_all()

    # -- the broker ----------------------------------------------------------------------------------

    def _read_messages(self, limit: int) -> None:
        try:
            self._session.receive(limit)
        except ProtocolError as error:
            log.error("the broker sent what is not of protocol %d: %s", PROTOCOL_VERSION, error)
            self._session.redial("it sent what is not of this protocol")

    def welcomed(self, welcome: Welcome) -> None:
        """The session is up."""
        log.info("registered with the broker at %s: %d slots", self.config.address, self.slots)
        self._pulse_at = 0.0
        if welcome.fresh:
            # So that children of several hosts are told apart by their numbers.
            self._children.first_number = NUMBERS * max(0, welcome.workers - 1) + 1
        self._events.append(Connected(welcome.fresh))
        if self._ready is not None:
            self._ready(self)

    def parted(self, why: str) -> None:
        """The session is down; the children go on."""
        log.warning("the connection to the broker is lost (%s); trying again", why)
        self._pulse_at = 0.0
        self._remind_at = time.monotonic() + PATIENCE
        # The welcome may have come together with the end.
        for each in [each for each in self._events if type(each) is Connected]:
            self._events.remove(each)
        self._outflow.parted()
        # Before what the children have said meanwhile: that cannot be sent any more.
        self._events.appendleft(Disconnected())

    def heard(self, message: Message) -> None:
        """A message of the broker's."""
        if type(message) is Refused:
            log.warning("the broker refused a message: %s", message.text)
        else:
            if type(message) is Leave:
                log.info("told to leave by an operator, through the broker at %s", self.config.address)
            self._events.append(Received(message))

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
        self._session.close()
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
