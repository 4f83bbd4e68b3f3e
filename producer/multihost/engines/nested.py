"""The engine of a process that is a child of a worker: what it asks for goes over its pipe, through its agent.

So a pool, a queue or a process made inside a task is one more user of the same broker. Once there is such an engine
it reads the pipe, also for the child's own loop (:meth:`ChildEngine.receive`), which gets what is not for the engine.
"""

from __future__ import annotations

import atexit
import select
import threading
from collections import deque
from typing import TYPE_CHECKING, Any

from multihost.engines.base import Completion
from multihost.engines.driver import Driver
from multihost.engines.remote import hello
from multihost_common import messages as m
from multihost_common.cpus import available_cpus
from multihost_common.errors import BrokerLostError, HandshakeError, ProtocolError
from multihost_worker import link as links

if TYPE_CHECKING:
    from multihost_worker.child import Child

#: Seconds until the broker has answered Hello: it may be on its way back.
HANDSHAKE_TIMEOUT = 30.0

#: Seconds between two looks of an engine that has ended, and reads, whether there is another one.
HANDED_OVER = 0.2

#: Seconds that a process waits at most until all it has said is with its agent.
SETTLE_TIMEOUT = 5.0


class ChildEngine(Driver):
    """See the module. Raises BrokerLostError if the broker does not answer."""

    def __init__(self, child: Child) -> None:
        super().__init__()
        self._child = child
        self._link = child.link
        #: What the agent has said to the child.
        self._backlog: deque[tuple[int, tuple[Any, ...], list[Any]]] = deque()
        #: Done when there is some.
        self._news = Completion()
        self._welcomed = Completion()
        self._elastic = False
        self._sending = False
        if self._link.guard is None:
            self._link.guard = threading.Lock()
        self._waiter.watch(self._link.fd)
        former = getattr(child.receive, "__self__", None)
        child.receive = self.receive
        if isinstance(former, ChildEngine):
            with former._mutex:
                # What comes from here on is for this one, and what came before is of the same child.
                self._backlog = former._backlog
        try:
            self._greet()
        except BaseException:
            self.close()
            raise
        atexit.register(self.settle)
        child.settle = self.settle

    def _greet(self) -> None:
        self._send(hello(m.PRODUCER))
        if not self.wait(self._welcomed, HANDSHAKE_TIMEOUT):
            raise BrokerLostError("the broker does not answer this process: its worker has lost it")
        self._check_alive()

    def _drain_inbox(self) -> bool:
        self._sending = True
        try:
            return super()._drain_inbox()
        finally:
            self._sending = False

    def settle(self) -> None:
        """See that what this process has said so far is with its agent, before a result is, and before it ends."""
        # In this order: what is taken from the inbox is being sent.
        if self._inbox or self._sending:
            said = Completion()

            def note() -> None:
                said.done = True

            self._do(note)
            self.wait(said, SETTLE_TIMEOUT)

    def _describe(self) -> str:
        return "the broker of this worker"

    def _limit(self, limit: int) -> int:
        return limit or (self.capacity if self._elastic else 0)

    def _capacity_of(self, job: object) -> int:
        return self._limits.get(getattr(job, "pool", 0), 0) or self.capacity

    # -- messages ----------------------------------------------------------------------------------

    def _send(self, message: m.Message) -> None:
        self._link.send(links.SAY, (), m.encode(message))

    def _poll(self, timeout: float | None) -> None:
        for fd, _ in self._ready(timeout):
            if fd == self._wake_reader:
                self.drain_wakeups()
            elif fd == self._link.fd:
                self._read()

    def _read(self) -> None:
        link = self._link
        link.fill()
        while (message := link.next()) is not None:
            if message[0] == links.SAID:
                self._hear(message[2])
            else:
                self._backlog.append(message)
                self._news.done = True
        if link.eof:
            self._waiter.watch(link.fd, 0)
            self._news.done = True
            self._fail(BrokerLostError("the worker of this process is gone"))

    def _hear(self, frames: list[Any]) -> None:
        try:
            message = m.decode(frames)
        except ProtocolError as error:
            self._fail(error)
            return
        if type(message) is m.Welcome:
            # A worker of no fixed size starts as many children as are asked for.
            self._elastic = not message.slots and message.workers > 0
            self.local = self._elastic
            self.capacity = available_cpus() if self._elastic else message.slots
            self._welcomed.done = True
        elif type(message) is m.Refused and message.reason in ("E_HELLO", "E_ROLE", "E_PYTHON", "E_VERSION"):
            self._welcomed.done = self._news.done = True
            self._fail(
                BrokerLostError("the broker was started anew, and knows nothing of this process")
                if message.reason == "E_HELLO"
                else HandshakeError(message.text)
            )
        else:
            self._take(message)

    # -- for the child's own loop --------------------------------------------------------------------

    def receive(self) -> tuple[int, tuple[Any, ...], list[Any]] | None:
        """The next thing that the agent says to the child; None: it is gone."""
        while not self._backlog:
            if self._link.eof:
                return None
            self._news = Completion()
            if not self._backlog and self.usable:
                self.wait(self._news)
            elif not self._backlog and not self._link.eof:
                # The engine has ended, and nobody else reads, unless there is another one.
                with self._mutex:
                    other = self._child.receive
                    if other == self.receive and select.select([self._link.fd], [], [], HANDED_OVER)[0]:
                        self._read()
                if other != self.receive:
                    return other()
        return self._backlog.popleft()

    # -- time --------------------------------------------------------------------------------------

    def _next_deadline(self) -> float | None:
        return None

    def _housekeeping(self, now: float) -> None:
        """There is nothing to do."""

    def _shut(self) -> None:
        """The agent tells the broker when this process has ended."""


__all__ = ["ChildEngine"]
