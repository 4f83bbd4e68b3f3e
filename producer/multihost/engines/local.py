"""The local engine: broker core and agent core back to back, children over pipes, no socket.

What one core says is an event of the other. It is the shape of :class:`multiprocessing.Pool`, and it
needs no set-up: children are started on first use and end with the script, however that ends.
"""

from __future__ import annotations

import atexit
import socket
import time
from collections import deque

from multihost.engines.driver import Driver
from multihost.engines.loop import LINGER, SHORTLY
from multihost_broker import core as broker
from multihost_broker.events import Received, Send
from multihost_common import messages as m
from multihost_common.cpus import available_cpus
from multihost_worker import core as agent
from multihost_worker import events as e
from multihost_worker.children import Children
from multihost_worker.server import Server

PRODUCER, WORKER = "producer", "worker"


class LocalEngine(Driver):
    """See the module."""

    eager = True
    local = True

    def __init__(self, server: Server | None = None) -> None:
        super().__init__()
        self.capacity = available_cpus()
        self._events: deque[e.Event] = deque()
        self._children = Children(
            self._events.append, watch=self._waiter.watch, server=server, hint=self._kick
        )
        self._broker = broker.Core(broker.CoreConfig(numbers=False, journal=False))
        host = socket.gethostname()
        self._agent = agent.Core(agent.CoreConfig(host=host, heartbeat=0.0))
        self._children.start()
        self._pool_numbers: dict[int, int] = {}
        now = time.monotonic()
        for peer, kind in ((PRODUCER, m.PRODUCER), (WORKER, m.WORKER)):
            hello = m.Hello(kind, m.PROTOCOL_VERSION, host=host, name="local")
            self._ask_broker(peer, hello, now)
        self._agent.handle(e.Connected(), now)
        atexit.register(self.close)

    def _limit(self, limit: int) -> int:
        return limit or self.capacity

    def _capacity_of(self, job: object) -> int:
        return self._limits.get(getattr(job, "pool", 0), self.capacity)

    def _describe(self) -> str:
        return "this machine"

    def _linger(self) -> float:
        # This loop is also the broker of the children that use it.
        return SHORTLY if self._broker.nested.any_here() else LINGER

    # -- the cores, back to back -------------------------------------------------------------------

    def _send(self, message: m.Message) -> None:
        self._ask_broker(PRODUCER, message, time.monotonic())
        if self._events:
            self._settle()

    def _ask_broker(self, peer: str, message: m.Message, now: float) -> None:
        for action in self._broker.handle(Received(peer, peer, message), now):
            if type(action) is not Send:
                continue
            if action.peer == PRODUCER:
                self._take(action.message)
            else:
                self._events.append(e.Received(action.message))

    def _settle(self) -> None:
        """Let the agent core take every event there is, and carry out what it answers."""
        events = self._events
        now = time.monotonic()
        while events:
            for action in self._agent.handle(events.popleft(), now):
                if type(action) is e.Send:
                    self._ask_broker(WORKER, action.message, now)
                else:
                    self._children.do(action)

    def _poll(self, timeout: float | None) -> None:
        if self._children.untidy:
            self._children.tidy()
        for fd, mask in self._ready(timeout):
            if fd == self._wake_reader:
                self.drain_wakeups()
            else:
                self._children.process(fd, mask)
        if self._events:
            self._settle()

    def _pending(self, done: bool) -> bool:
        return super()._pending(done) or self._children.untidy

    def _next_deadline(self) -> float | None:
        due, look = self._agent.deadline(), self._children.deadline()
        if due is None or look is None:
            return look if due is None else due
        return min(due, look)

    def _housekeeping(self, now: float) -> None:
        self._events.append(e.Tick())
        self._settle()
        self._children.tick()

    # -- the rest ----------------------------------------------------------------------------------

    def pids(self, pool: int) -> list[int]:
        """Process ids of the pool's children."""
        found = [each for number, each in list(self._agent.pools.items()) if number & 0xFFFF_FFFF == pool]
        pids = self._children.pids()
        return [pids[child] for each in found for child in list(each.children) if child in pids]

    def _shut(self) -> None:
        self._children.close()
