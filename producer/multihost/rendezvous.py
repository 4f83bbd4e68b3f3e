"""Connections by address, from any process that works for this script to any other.

    listener = Listener()                                       # in one process
    connection = listener.accept()

    connection = connect(listener.address, key)                 # in any other

Where all processes are on this machine that is a socket of it. With a broker a listener holds a pipe there, and its
address is the name of that: a client makes a pipe of its own, and puts what the other end of it is known by into the
listener's. Nothing is unpickled before both ends have proved that they know the key.
"""

from __future__ import annotations

import errno
import multiprocessing.connection as _standard
import os
import socket
import sys
import time
from collections import OrderedDict
from contextlib import suppress
from functools import partial
from typing import Any, Self

from multihost import brokered
from multihost.brokered import BrokeredConnection
from multihost.connection import Connection, answer_challenge, deliver_challenge
from multihost.engines.choosing import all_here, get_sharing
from multihost.janitor import finish, later, within_loop
from multihost_common import messages as m
from multihost_common import shipments

#: What an address at a broker begins with, and one of this machine.
PREFIX, LOCAL_PREFIX = "multihost:", "multihost-local:"

#: Linux has addresses of sockets that leave no file behind.
_ABSTRACT = "\0multihost-"

#: Seconds after which a client looks whether the listener is still there.
PATIENCE = 1.0

#: Seconds that the counts of a manager which does not answer may hold up what another one is asked.
FINISH = 5.0

#: Connections that are kept for the next who asks for one: of one listener, and listeners.
MOST_IDLE = 2
MOST_LISTENERS = 16

#: Requests after which a connection is another one's: of proxies to their managers' servers.
_LAST_REQUESTS = frozenset({"accept_connection", "shutdown"})
#: Requests whose answers nobody looks at.
_COUNTS = frozenset({"incref", "decref"})


def is_address(address: object) -> bool:
    """Whether this is the address of a listener made by :func:`Listener`."""
    return isinstance(address, str) and address.startswith((PREFIX, LOCAL_PREFIX))


def Listener(  # noqa: N802
    address: object = None, family: object = None, backlog: int = 1
) -> BrokeredListener | LocalListener:
    """Accepts connections of those who know its address. That is made, not chosen: ``address`` must be None."""
    if address is not None:
        raise ValueError(f"{address!r}: the address of such a listener cannot be chosen")
    return LocalListener(backlog) if all_here() else BrokeredListener()


class LocalListener:
    """A listener for processes of this machine."""

    def __init__(self, backlog: int = 1) -> None:
        chosen = _ABSTRACT + os.urandom(16).hex() if sys.platform == "linux" else None
        self._listener = _standard.Listener(chosen, "AF_UNIX", backlog)
        name: Any = self._listener.address
        self.address = LOCAL_PREFIX + os.fsdecode(name).removeprefix(_ABSTRACT)

    def accept(self) -> Connection:
        """Wait for the next connection. Nothing is known of who made it."""
        return _ours(self._listener.accept())

    def close(self) -> None:
        """Nobody is accepted any more; who waits for that gets an OSError."""
        listener: Any = self._listener._listener  # type: ignore[attr-defined]
        with suppress(AttributeError, OSError):
            listener._socket.shutdown(socket.SHUT_RDWR)
        self._listener.close()


class BrokeredListener:
    """A listener for all who reach the same broker."""

    def __init__(self) -> None:
        # Both ends are kept, or it would be at its end when a client leaves.
        self._inner, self._outer = brokered.pipe()
        self.address = PREFIX + self._inner._name.hex()

    def accept(self) -> Connection:
        """Wait for the next connection. Nothing is known of who made it. Raises EOFError once that is over."""
        data = self._inner.recv_bytes()
        made = brokered.land(data[: m.OBJECT], 1, True, True, data[m.OBJECT :])
        # This is the only handle of its side.
        made._shipped = False
        return made

    def close(self) -> None:
        """Nobody is accepted any more."""
        self._inner.close()
        self._outer.close()


def connect(address: str, authkey: bytes) -> Connection:
    """A connection to the listener at this address, both sides known to have the same key.

    Raises ConnectionRefusedError if there is none, AuthenticationError if it has another key, EOFError if it ends
    meanwhile.
    """
    made = _reach(address) if address.startswith(PREFIX) else _dial(address)
    try:
        answer_challenge(made, authkey)
        deliver_challenge(made, authkey)
    except BaseException:
        made.close()
        raise
    return made


def _dial(address: str) -> Connection:
    name = address.removeprefix(LOCAL_PREFIX)
    return _ours(_standard.Client(name if os.path.isabs(name) else _ABSTRACT + name, "AF_UNIX"))


def _ours(connection: Any) -> Connection:
    """The same, as one that sends what the script itself defines by value."""
    fd, connection._handle = connection._handle, None
    return Connection(fd)


def hang_up(connection: Connection) -> None:
    """Let both ends know that it is over, also a thread of this process that waits for something to come."""
    if not isinstance(connection, BrokeredConnection):
        with suppress(OSError), socket.socket(fileno=os.dup(connection.fileno())) as made:
            made.shutdown(socket.SHUT_RDWR)
    else:
        connection.close()


def _reach(address: str) -> BrokeredConnection:
    try:
        name = bytes.fromhex(address.removeprefix(PREFIX))
    except ValueError:
        name = b""
    if len(name) != m.OBJECT:
        raise ValueError(f"{address!r} is no address of a listener")
    door = brokered.land(name, 1, True, True, b"")
    try:
        return knock(door, address)
    finally:
        door.close()


def knock(
    door: BrokeredConnection, address: str, word: bytes = b"", deadline: float | None = None
) -> BrokeredConnection:
    """A new pipe whose other end who listens behind this door has, with this word, once that has said something.

    Raises ConnectionRefusedError if nobody listens, TimeoutError after the deadline."""
    here, there = brokered.pipe()
    with shipments.collected() as promises:
        _, (name, *_, ticket) = there.__reduce__()
    there.close()
    try:
        door.send_bytes(name + ticket + word)
        # Who listens speaks first.
        while not here.poll(PATIENCE if deadline is None else _left(deadline)):
            if door.poll():
                raise EOFError
    except (EOFError, BrokenPipeError):
        shipments.void(promises)
        here.close()
        raise ConnectionRefusedError(
            errno.ECONNREFUSED, f"{os.strerror(errno.ECONNREFUSED)}: nobody listens at {address}"
        ) from None
    except BaseException:
        here.close()
        raise
    return here


def _left(deadline: float) -> float:
    """Seconds to wait once. Raises TimeoutError after the deadline."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return min(PATIENCE, left)


# -- connections that are kept -----------------------------------------------------------------------------


class _Line:
    """A connection that is kept for the next one who asks, once its user lets go of it."""

    def __init__(self, address: str, authkey: bytes) -> None:
        self._key = address, authkey
        self._connection: Connection | None = _idle.take(address, authkey) or connect(address, authkey)
        _idle.lent.add(self._connection)
        self._pid = os.getpid()
        self._unanswered = 0
        self._last = False

    def send(self, request: tuple[Any, ...]) -> None:
        """Send a request of a proxy."""
        self._unanswered += 1
        self._last = self._last or request[1] in _LAST_REQUESTS
        self._open().send(request)

    def recv(self) -> Any:
        """Its answer."""
        answer = self._open().recv()
        self._unanswered -= 1
        return answer

    def _open(self) -> Connection:
        if self._connection is None:
            raise OSError("handle is closed")
        return self._connection

    def close(self) -> None:
        """Nobody uses it any more."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        _idle.lent.discard(connection)
        done = self._last or self._unanswered or self._pid != os.getpid()
        if done or not _idle.keep(*self._key, connection):
            connection.close()

    def __del__(self) -> None:
        if getattr(self, "_connection", None) is not None:
            self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()


class _Later:
    """In place of a connection where waiting is not possible. How many proxies there are is told soon."""

    def __init__(self, address: str, authkey: bytes) -> None:
        self._key = address, authkey

    def send(self, request: tuple[Any, ...]) -> None:
        """Have the request made soon, after those before it."""
        if request[1] not in _COUNTS:
            raise RuntimeError("a manager cannot be asked anything while a result is being unpickled")
        later(partial(self._ask, request))

    def _ask(self, request: tuple[Any, ...]) -> None:
        line = _Line(*self._key)
        line.send(request)
        line.recv()
        line.close()

    def recv(self) -> Any:
        """The answer that it will have."""
        return "#RETURN", None

    def close(self) -> None:
        """There is nothing to close."""


class _Idle:
    """Connections that nobody uses just now. It takes no lock, as the garbage collector may come at any moment."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[str, bytes], list[Connection]] = OrderedDict()
        #: Those in use. The garbage collector would else close one before its user lets go of it.
        self.lent: set[Connection] = set()

    def take(self, address: str, authkey: bytes) -> Connection | None:
        """One that is kept, if any."""
        # IndexError: another thread has taken it.
        with suppress(KeyError, IndexError):
            kept = self._kept[address, authkey]
            while True:
                connection = kept.pop()
                if not isinstance(connection, BrokeredConnection) or connection._sharing is get_sharing():
                    return connection
        return None

    def keep(self, address: str, authkey: bytes, connection: Connection) -> bool:
        """Keep one. False: there are enough."""
        kept = self._kept.setdefault((address, authkey), [])
        if len(kept) >= MOST_IDLE:
            return False
        kept.append(connection)
        while len(self._kept) > MOST_LISTENERS:
            with suppress(KeyError):
                self._kept.popitem(last=False)
        return True

    def forget(self, address: str) -> None:
        """There is no such listener any more."""
        for key in list(self._kept):
            if key[0] == address:
                for connection in self._kept.pop(key, ()):
                    connection.close()


def Client(address: str, family: object = None, authkey: bytes | None = None) -> _Line | _Later:  # noqa: N802
    """A connection for the requests of proxies to the server of their manager; see :func:`connect`."""
    if authkey is None:
        raise TypeError("authkey should be a byte string")
    if within_loop():
        return _Later(address, authkey)
    # One proxy more is counted before one less is, or there might be none for a moment.
    finish(FINISH)
    return _Line(address, bytes(authkey))


def forget(address: str) -> None:
    """There is no listener at this address any more."""
    _idle.forget(address)


def _after_fork() -> None:
    global _idle
    _idle = _Idle()


_idle = _Idle()
os.register_at_fork(after_in_child=_after_fork)

__all__ = [
    "BrokeredListener",
    "Client",
    "Listener",
    "LocalListener",
    "connect",
    "forget",
    "hang_up",
    "is_address",
]
