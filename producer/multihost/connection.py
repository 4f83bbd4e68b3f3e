"""Pipes between processes on any hosts; all else of ``multiprocessing.connection`` is the standard library's.

    here, there = Pipe()
    Process(target=work, args=(there,)).start()
    here.send("hello")

Connections can be pickled to any process that works for this script. Where all of these are on this machine a pipe is one
of the system's, as in multiprocessing; with a broker it is an object of the broker's (:mod:`multihost.brokered`).
Listener and Client make connections of sockets, as ever: they reach what their address reaches.
"""

from __future__ import annotations

import copyreg
import multiprocessing.connection as _standard
import os
import pickle
import socket
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from multiprocessing import AuthenticationError, BufferTooShort
from multiprocessing.connection import Client, Listener, answer_challenge, deliver_challenge
from multiprocessing.reduction import ForkingPickler
from typing import TYPE_CHECKING, Any

from multihost.engines.choosing import all_here
from multihost.handing import offer, take
from multihost.reduction import dump_function
from multihost_common import shipments


def Pipe(duplex: bool = True, *, address: str | None = None) -> tuple[Connection, Connection]:  # noqa: N802
    """Two connections, the ends of a new pipe; if not ``duplex``, the first one receives and the second one sends.

    ``address``: of a broker (None: the one of this process; empty: this machine)."""
    if not all_here(address):
        from multihost import brokered

        return brokered.pipe(duplex, address)
    if duplex:
        one, other = (each.detach() for each in socket.socketpair())
        for fd in (one, other):
            os.set_blocking(fd, True)
        return Connection(one), Connection(other)
    reader, writer = os.pipe()
    return Connection(reader, writable=False), Connection(writer, readable=False)


class Connection(_standard.Connection):
    """One end of a pipe, or of whatever else this descriptor stands for."""

    _handle: int | None
    _readable: bool
    _writable: bool

    if TYPE_CHECKING:
        # The standard library has them.
        def _check_closed(self) -> None: ...
        def _check_readable(self) -> None: ...
        def _check_writable(self) -> None: ...
        def _send_bytes(self, buf: bytes | memoryview) -> None: ...

    def send(self, obj: Any) -> None:
        """Send an object that can be pickled. What the script itself defines travels by value."""
        self._check_closed()
        self._check_writable()
        self._send_bytes(_dump(obj))

    def __reduce__(self) -> tuple[Callable[..., _standard.Connection], tuple[Any, ...]]:
        return _reduce(self)


def _dump(obj: Any) -> bytes:
    try:
        return dump_function(obj)
    except (pickle.PicklingError, TypeError, AttributeError):
        marked = shipments.mark()
        # Sockets, and what else multiprocessing knows how to pickle.
        with suppress(Exception):
            return bytes(ForkingPickler.dumps(obj))
        shipments.void_since(marked)
        raise


# -- waiting ---------------------------------------------------------------------------------------------


def wait(object_list: Iterable[Any], timeout: float | None = None) -> list[Any]:
    """Those of the objects that are ready to be received from, at the latest after ``timeout`` seconds: connections of
    whatever kind, sockets, descriptors, sentinels of processes."""
    objects = list(object_list)
    brokered = sys.modules.get("multihost.brokered")
    ours = brokered.asking(objects) if brokered is not None else []
    if brokered is None or not ours:
        return _standard.wait(objects, timeout)
    others = [each for each in objects if each not in ours]
    at_once = timeout is not None and timeout <= 0
    ready: list[Any] = brokered.ready(ours, look=at_once)
    if ready or at_once:
        ready = [*ready, *(_standard.wait(others, 0) if others else ())]
    elif others:
        ready = _standard.wait(objects, timeout)
    else:
        brokered.wait_for(ours, timeout)
        ready = brokered.ready(ours, look=False)
    for each in ours:
        each.told(each in ready)
    return [each for each in objects if each in ready]


# -- descriptors that travel -------------------------------------------------------------------------------


def _reduce(connection: _standard.Connection) -> tuple[Callable[..., _standard.Connection], tuple[Any, ...]]:
    kind = Connection if isinstance(connection, Connection) else _standard.Connection
    return _land, (kind, *offer(connection.fileno()), connection.readable, connection.writable)


def _land(
    kind: type[_standard.Connection], address: str, ticket: bytes, readable: bool, writable: bool
) -> _standard.Connection:
    return kind(take(address, ticket), readable, writable)


# Plain pickle would make a connection of the same descriptor number, whatever that is in the other process.
copyreg.pickle(_standard.Connection, _reduce)


def __getattr__(name: str) -> Any:
    # What else the standard library's module of this name has.
    return getattr(_standard, name)


__all__ = [
    "AuthenticationError",
    "BufferTooShort",
    "Client",
    "Connection",
    "Listener",
    "Pipe",
    "answer_challenge",
    "deliver_challenge",
    "wait",
]
