"""Connections between processes that may be on any hosts: both ends of a pipe ask the broker.

What makes them cheap: who sends and receives in turns does both by one request, many messages in a row are answered
together (:mod:`multihost.pace`), and who alone can receive gets several at once.
"""

from __future__ import annotations

import errno
import io
import os
import pickle
import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from multihost.connection import Connection
from multihost.engines.base import Completion
from multihost.engines.choosing import get_sharing
from multihost.engines.sharing import Ask, Sharing
from multihost.pace import Pace
from multihost.watching import Watch
from multihost_common import messages as m
from multihost_common import shipments
from multihost_common.blocks import Frame
from multihost_common.shared import PIPE, Pipes

#: Messages that are asked for at once. They all come only where nobody else could receive them.
BATCH = 60

_TICKET_BYTES = 16

#: What becomes of a request to receive that says nothing of what there is.
_NOTHING = (m.BUSY, m.WITHDRAWN)


def pipe(duplex: bool = True, address: str | None = None) -> tuple[BrokeredConnection, BrokeredConnection]:
    """The ends of a new pipe at this broker, see :func:`multihost.connection.Pipe`."""
    sharing = get_sharing(address)
    name = sharing.make(PIPE, frames=(b"" if duplex else b"\1",))
    return _connection(sharing, name, 0, True, duplex), _connection(sharing, name, 1, duplex, True)


class BrokeredConnection(Connection):
    """One end of a pipe that is an object of the broker's. Like those of multiprocessing it is for one thread at a time
    on each way."""

    _handle: int | None
    _readable: bool
    _writable: bool

    def _begin(self, sharing: Sharing, name: bytes, side: int, readable: bool, writable: bool) -> None:
        # The standard library's marks what is closed with None.
        self._handle = -1
        self._readable = readable
        self._writable = writable
        self._name = name
        self._side = side
        self._sending = threading.Lock()
        self._receiving = threading.Lock()
        self._bind(sharing)

    def _bind(self, sharing: Sharing) -> None:
        self._sharing = sharing
        self._pid = os.getpid()
        #: What has come and was not taken yet.
        self._come: deque[Frame] = deque()
        #: A request to receive whose answer nobody has looked at.
        self._asked: Ask | None = None
        #: There was more to receive, when the last of it came.
        self._more = False
        self._watch = Watch(sharing, self._name, self._side)
        #: It has been pickled: what comes early goes back.
        self._shipped = False
        self._pace = Pace()

    def _use(self) -> Sharing:
        """The way to the broker. In a forked process this end has one more handle."""
        if self._pid != os.getpid():
            self._watch.close(ours=False)
            self._bind(get_sharing())
            self._sharing.tell(self._name, Pipes.OPEN, self._side)
        return self._sharing

    # -- sending -------------------------------------------------------------------------------------

    def _send_bytes(self, buf: bytes | memoryview) -> None:
        # A copy: it may still be here when its owner changes it.
        message = bytes(buf)
        sharing = self._use()
        with self._sending:
            pace = self._pace
            if not pace.loosely(len(message)):
                ask = sharing.begin(self._name, Pipes.SEND, self._side, (message,), kick=False)
                self._finish(ask)
                pace.answered()
                if ask.amount or ask.status == m.UNKNOWN:
                    raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
            elif not (pace.in_turns() and self._call(message)):
                sharing.tell(self._name, Pipes.SEND, self._side, (message,))

    def _call(self, message: bytes) -> bool:
        """Send, and ask for what comes next, unless that is here, or another thread receives: it may be about to ask, and
        of two requests one would be forgotten, with its answer."""
        if not self._readable or not self._receiving.acquire(blocking=False):
            return False
        try:
            if self._asked is not None or self._come:
                return False
            self._asked = self._sharing.begin(
                self._name,
                Pipes.CALL,
                self._side | 1 << 1,
                (message,),
                then=self._watch.called,
                kick=False,
            )
            return True
        finally:
            self._receiving.release()

    def _finish(self, ask: Ask) -> None:
        """Wait for the answer. That the pipe is no more is one, too."""
        try:
            self._sharing.finish(ask)
        except ConnectionError:
            if ask.status != m.UNKNOWN or ask.error is not None:
                raise

    # -- receiving -----------------------------------------------------------------------------------

    def recv(self) -> Any:
        """Receive an object. Raises EOFError when nothing is left and the other end was closed."""
        self._check_closed()
        self._check_readable()
        return pickle.loads(self._take())

    def _recv_bytes(self, maxsize: int | None = None) -> io.BytesIO | None:
        message = self._take()
        if maxsize is not None and len(message) > maxsize:
            return None
        file = io.BytesIO(message)
        file.seek(0, io.SEEK_END)
        return file

    def _take(self) -> Frame:
        sharing = self._use()
        with self._receiving:
            while not self._come:
                ask = self._asked
                if ask is None:
                    ask = self._asked = sharing.begin(
                        self._name, Pipes.RECV, self._side | BATCH << 1, kick=False
                    )
                self._finish(ask)
                self._asked = None
                self._collect(ask)
            message = self._come.popleft()
            if not self._come:
                self._watch.received(self._more)
            self._pace.received()
            return message

    def _collect(self, ask: Ask) -> None:
        """Take in what has come. Raises EOFError if nothing ever will."""
        self._more = bool(ask.amount & Pipes.MORE)
        self._come.extend(ask.frames)
        if self._shipped and len(self._come) > 1:
            # Somebody else may be waiting for it.
            back = [self._come.pop() for _ in range(len(self._come) - 1)][::-1]
            self._give_back(back)
            self._more = True
        elif not self._come and self._handle is None:
            raise OSError("handle is closed")
        elif ask.status == m.UNKNOWN or (ask.status == m.GRANTED and not ask.frames):
            raise EOFError

    def _give_back(self, messages: Iterable[Frame]) -> None:
        self._sharing.tell(self._name, Pipes.SHIP, self._side, (b"", *messages))

    def _has(self) -> bool:
        """Is there something here to receive?"""
        asked = self._asked
        return bool(self._come) or (asked is not None and asked.done and asked.status not in _NOTHING)

    def _poll(self, timeout: float | None) -> bool:
        sharing = self._use()
        asked = self._asked
        if asked is not None and (timeout is None or timeout > 0):
            sharing.wait(asked, timeout)
        if self._has():
            return True
        now = timeout is not None and timeout <= 0
        ask = sharing.begin(self._name, Pipes.POLL, self._side, now=now, kick=False)
        try:
            found = sharing.finish(ask, None if now else timeout) is not None
        except ConnectionError:
            if ask.status != m.UNKNOWN or ask.error is not None:
                raise
            found = True
        return found or self._has()

    def fileno(self) -> int:
        """A descriptor that is readable while there is something to receive, or the other end was closed. It is for
        waiting: there is nothing to be read from it."""
        self._check_closed()
        self._use()
        return self._watch.fileno()

    def told(self, ready: bool) -> None:
        """Who waits for it is told now that there is something to receive, or that there is nothing."""
        self._watch.told = ready

    # -- the end, and travelling -----------------------------------------------------------------------

    def _close(self) -> None:
        ours = self._pid == os.getpid()
        self._watch.close(ours)
        if ours:
            Pace.closed += 1
            if self._come:
                self._give_back(self._come)
            asked = self._asked
            if asked is not None:
                self._sharing.undo(asked, lambda ask: self._give_back(ask.frames))
                self._sharing.withdraw(asked)
            self._sharing.tell(self._name, Pipes.SHUT, self._side)

    def __reduce__(self) -> tuple[Callable[..., BrokeredConnection], tuple[Any, ...]]:
        self._check_closed()
        sharing = self._use()
        name, side = self._name, self._side
        ticket = os.urandom(_TICKET_BYTES)
        self._shipped = True
        self._recall()
        come, self._come = self._come, deque()
        sharing.tell(name, Pipes.SHIP, side, (ticket, *come))
        shipments.note(lambda: sharing.tell(name, Pipes.VOID, side, (ticket,)))
        return land, (name, side, self._readable, self._writable, ticket)

    def _recall(self) -> None:
        """Nothing is to come any more that nobody here waits for."""
        if self._asked is not None and self._receiving.acquire(blocking=False):
            try:
                ask, self._asked = self._asked, None
                if ask is not None:
                    self._sharing.withdraw(ask)
                    self._sharing.wait(ask)
                    self._come.extend(ask.frames)
            finally:
                self._receiving.release()


def _connection(
    sharing: Sharing, name: bytes, side: int, readable: bool, writable: bool
) -> BrokeredConnection:
    made: BrokeredConnection = object.__new__(BrokeredConnection)
    made._begin(sharing, name, side, readable, writable)
    return made


def land(name: bytes, side: int, readable: bool, writable: bool, ticket: bytes) -> BrokeredConnection:
    """A connection that was pickled, in the process that it has come to."""
    sharing = get_sharing()
    sharing.tell(name, Pipes.OPEN, side, (ticket,))
    made = _connection(sharing, name, side, readable, writable)
    made._shipped = True
    return made


# -- waiting ---------------------------------------------------------------------------------------------


def asking(objects: Iterable[Any]) -> list[BrokeredConnection]:
    """Those of the objects that are open connections of this kind."""
    return [each for each in objects if isinstance(each, BrokeredConnection) and not each.closed]


def ready(connections: list[BrokeredConnection], look: bool) -> list[BrokeredConnection]:
    """Those that are known to have something; who is not known of is asked after (``look``: all are)."""
    asked: dict[int, Ask] = {}
    for each in connections:
        sharing, watch = each._use(), each._watch
        if not each._has() and (watch.told or not (watch.ready or watch.begun or (watch.empty and not look))):
            asked[id(each)] = sharing.begin(each._name, Pipes.POLL, each._side, now=True)
    for each in connections:
        ask = asked.get(id(each))
        if ask is not None:
            each._finish(ask)
            each._watch.looked(ask.status != m.BUSY)
    return [each for each in connections if each._has() or each._watch.ready]


def wait_for(connections: list[BrokeredConnection], timeout: float | None) -> None:
    """Until one of them has something to receive. All of them are of one broker."""
    completion = Completion()
    for each in connections:
        each._watch.completion = completion
    try:
        for each in connections:
            each._watch.begin()
            completion.done = completion.done or each._watch.ready or each._has()
        connections[0]._sharing.wait(completion, timeout)
    finally:
        for each in connections:
            each._watch.completion = None


__all__ = ["BrokeredConnection", "asking", "land", "pipe", "ready", "wait_for"]
