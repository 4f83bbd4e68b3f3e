"""Pipes between processes on any hosts; all else of ``multiprocessing.connection`` is the standard library's.

    here, there = Pipe()
    Process(target=work, args=(there,)).start()
    here.send("hello")

A pipe is an object of the broker's: its connections can be pickled to any process on any host. Listener and Client make
connections of sockets, as ever: they reach what their address reaches.
"""

from __future__ import annotations

import copyreg
import errno
import io
import multiprocessing.connection as _standard
import os
import pickle
import platform
import threading
from collections import deque
from collections.abc import Callable, Iterable
from multiprocessing import reduction as _standard_reduction
from multiprocessing.connection import (  # type: ignore[attr-defined]
    AuthenticationError,
    BufferTooShort,
    Client,
    Listener,
    XmlClient,
    XmlListener,
    answer_challenge,
    deliver_challenge,
    families,
)
from typing import TYPE_CHECKING, Any

from multihost.engine import Completion
from multihost.pace import Pace
from multihost.reduction import dump_function
from multihost.sharing import Ask, Sharing, get_sharing
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


def Pipe(duplex: bool = True, *, address: str | None = None) -> tuple[Connection, Connection]:  # noqa: N802
    """Two connections, the ends of a new pipe; if not ``duplex``, the first one receives and the second one sends.

    ``address``: of a broker (None: the one of this process; empty: this machine)."""
    sharing = get_sharing(address)
    name = sharing.make(PIPE, frames=(b"" if duplex else b"\1",))
    return _connection(sharing, name, 0, True, duplex), _connection(sharing, name, 1, duplex, True)


class Connection(_standard.Connection):
    """One end of a pipe. Like those of multiprocessing it is for one thread at a time on each way.

    Made of a descriptor, as multiprocessing makes them, it is one of the standard library's.
    """

    _handle: int | None
    _readable: bool
    _writable: bool

    if TYPE_CHECKING:
        # The standard library has them.
        def _check_closed(self) -> None: ...
        def _check_readable(self) -> None: ...
        def _check_writable(self) -> None: ...

    def __new__(cls, handle: int, readable: bool = True, writable: bool = True) -> Any:
        """Of a descriptor."""
        return _standard.Connection(handle, readable, writable)

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

    def send(self, obj: Any) -> None:
        """Send an object that can be pickled. Raises ValueError if it takes more than 256 MiB."""
        self._check_closed()
        self._check_writable()
        self._put(dump_function(obj))

    def _send_bytes(self, buf: memoryview) -> None:
        # A copy: it may still be here when its owner changes it.
        self._put(bytes(buf))

    def _put(self, message: bytes) -> None:
        sharing = self._use()
        with self._sending:
            pace = self._pace
            if not pace.loosely(len(message)):
                ask = sharing.begin(self._name, Pipes.SEND, self._side, (message,))
                self._finish(ask)
                pace.answered()
                if ask.amount or ask.status == m.UNKNOWN:
                    raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
            elif pace.in_turns() and self._asked is None and not self._come and self._readable:
                call = sharing.begin(
                    self._name, Pipes.CALL, self._side | 1 << 1, (message,), then=self._watch.called
                )
                self._asked = call
            else:
                sharing.tell(self._name, Pipes.SEND, self._side, (message,))

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
                    ask = self._asked = sharing.begin(self._name, Pipes.RECV, self._side | BATCH << 1)
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
        ask = sharing.begin(self._name, Pipes.POLL, self._side, now=now)
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

    def __reduce__(self) -> tuple[Callable[..., Connection], tuple[Any, ...]]:
        self._check_closed()
        sharing = self._use()
        name, side = self._name, self._side
        ticket = os.urandom(_TICKET_BYTES)
        self._shipped = True
        self._recall()
        come, self._come = self._come, deque()
        sharing.tell(name, Pipes.SHIP, side, (ticket, *come))
        shipments.note(lambda: sharing.tell(name, Pipes.VOID, side, (ticket,)))
        return _land, (name, side, self._readable, self._writable, ticket)

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


def _connection(sharing: Sharing, name: bytes, side: int, readable: bool, writable: bool) -> Connection:
    made: Connection = object.__new__(Connection)
    made._begin(sharing, name, side, readable, writable)
    return made


def _land(name: bytes, side: int, readable: bool, writable: bool, ticket: bytes) -> Connection:
    """A connection that was pickled, in the process that it has come to."""
    sharing = get_sharing()
    sharing.tell(name, Pipes.OPEN, side, (ticket,))
    made = _connection(sharing, name, side, readable, writable)
    made._shipped = True
    return made


# -- waiting ---------------------------------------------------------------------------------------------


def wait(object_list: Iterable[Any], timeout: float | None = None) -> list[Any]:
    """Those of the objects that are ready to be received from, at the latest after ``timeout`` seconds: connections of
    whatever kind, sockets, descriptors, sentinels of processes."""
    objects = list(object_list)
    ours = [each for each in objects if isinstance(each, Connection) and each._handle is not None]
    if not ours:
        return _standard.wait(objects, timeout)
    others = [each for each in objects if each not in ours]
    at_once = timeout is not None and timeout <= 0
    ready = _ready(ours, look=at_once)
    if ready or at_once:
        found = [*ready, *(_standard.wait(others, 0) if others else ())]
    elif others:
        found = _standard.wait(objects, timeout)
    else:
        _wait_for(ours, timeout)
        found = _ready(ours, look=False)
    for each in ours:
        each._watch.told = each in found
    return [each for each in objects if each in found]


def _ready(connections: list[Connection], look: bool) -> list[Connection]:
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


def _wait_for(connections: list[Connection], timeout: float | None) -> None:
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


# -- connections of the standard library -------------------------------------------------------------------


def _reduce_standard(connection: _standard.Connection) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    fd = _standard_reduction.DupFd(connection.fileno())
    return _rebuild_standard, (platform.node(), fd, connection.readable, connection.writable)


def _rebuild_standard(host: str, fd: Any, readable: bool, writable: bool) -> _standard.Connection:
    if host != platform.node():
        raise OSError(
            f"a connection of a socket or descriptor of {host} cannot be used on {platform.node()}: "
            "pass one end of a multihost.Pipe() instead, or the address of its Listener"
        )
    return _standard.Connection(fd.detach(), readable, writable)


# Plain pickle would make a connection of the same descriptor number, whatever that is in the other process.
copyreg.pickle(_standard.Connection, _reduce_standard)


def __getattr__(name: str) -> Any:
    return getattr(_standard, name)


__all__ = [
    "AuthenticationError",
    "BufferTooShort",
    "Client",
    "Connection",
    "Listener",
    "Pipe",
    "XmlClient",
    "XmlListener",
    "answer_challenge",
    "deliver_challenge",
    "families",
    "wait",
]
