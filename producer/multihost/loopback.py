"""The loopback of a script, for its processes on other hosts, under ``multihost run``.

A script may serve something on 127.0.0.1, and its tasks connect there. On another host nobody listens at that address.
A connection that is refused there is asked for at the script: if that very process listens on that port, the bytes are
carried to it through a pipe at the broker. Else it stays refused.

    task -- socket -- pump == pipe at the broker == pump -- socket -- server        (the pumps: two threads each)

The script waits for that in no thread: a request to its broker is answered when somebody asks.
"""

from __future__ import annotations

import atexit
import errno
import os
import socket
import struct
import threading
import time
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from multihost_common import messages as m
from multihost_common.errors import MultihostError
from multihost_common.hooks import after_import
from multihost_common.shared import PIPE, Pipes

if TYPE_CHECKING:
    from multihost.brokered import BrokeredConnection
    from multihost.engines.sharing import Ask, Sharing

#: Connections that one script carries at once; more are refused.
MOST = 256

#: Bytes that are carried at once. What waits on its way is bounded by the pipe.
CHUNK = 256 << 10

#: Seconds for the script to connect to itself, and for a process to do so.
DIAL = 10.0

#: Seconds that a process which ends waits until what it has sent is on its way.
FINISH = 5.0

#: Requests to connect that the script takes at once.
_BATCH = 16
_TICKET_BYTES = 16
_LINKED, _REFUSED = b"\1", b"\0"

#: What ends a connection, wherever it comes from.
_ENDS = (OSError, EOFError, MultihostError, ValueError)


# -- in the script -------------------------------------------------------------------------------------


class Service:
    """Where processes of other hosts ask for connections to this one. Its ``name`` is known to nobody else."""

    def __init__(self, sharing: Sharing) -> None:
        self.name = os.urandom(m.OBJECT)
        self._sharing = sharing
        self._carried = threading.BoundedSemaphore(MOST)
        self._open()

    def _open(self) -> None:
        # As a listener it keeps both ends, or it would be over when somebody leaves.
        self._sharing.begin(self.name, m.MAKE, PIPE, (bytes(8), b""))
        self._await()

    def _await(self) -> None:
        self._sharing.begin(self.name, Pipes.RECV, _BATCH << 1, then=self._knocked)

    def _knocked(self, ask: Ask) -> None:
        # By who runs the loop, which must not wait.
        if self._sharing.usable:
            threading.Thread(target=self._attend, args=(ask,), name="multihost-loopback", daemon=True).start()

    def _attend(self, ask: Ask) -> None:
        with suppress(*_ENDS):
            if ask.error is not None:
                # The broker was started anew; processes of this script outlive that.
                self._open()
            elif ask.frames:
                self._await()
        for frame in ask.frames:
            with suppress(*_ENDS):
                threading.Thread(target=self._answer, args=(bytes(frame),), daemon=True).start()

    def _answer(self, asked: bytes) -> None:
        from multihost import brokered

        name, ticket, where = _split(asked)
        link = brokered.land(name, 1, True, True, ticket)
        # This is the only handle of its side.
        link._shipped = False
        made = None
        if self._carried.acquire(blocking=False):
            with suppress(*_ENDS):
                made = _dial(where)
            if made is None:
                self._carried.release()
        with suppress(*_ENDS):
            link.send_bytes(_REFUSED if made is None else _LINKED)
        if made is None:
            link.close()
        else:
            # If the other end has gone meanwhile that is over at once.
            Pump(made, link, self._carried.release)


def _split(asked: bytes) -> tuple[bytes, bytes, bytes]:
    end = m.OBJECT + _TICKET_BYTES
    return asked[: m.OBJECT], asked[m.OBJECT : end], asked[end:]


def _dial(where: bytes) -> socket.socket | None:
    host, _, port = where.decode().rpartition(" ")
    return socket.create_connection((host, int(port)), DIAL) if listens(host, int(port)) else None


def listens(host: str, port: int) -> bool:
    """Does this process itself listen on that port, at that address of its loopback or at any?"""
    import psutil

    mine: Any = psutil.Process()
    listing = getattr(mine, "net_connections", None) or mine.connections
    return _is_loopback(host) and any(
        each.status == psutil.CONN_LISTEN
        and each.laddr.port == port
        and each.laddr.ip in (host, "::", "" if ":" in host else "0.0.0.0")
        for each in listing("tcp")
    )


def _is_loopback(host: str) -> bool:
    return host == "::1" or (host.startswith("127.") and host.count(".") == 3)


_services: dict[Sharing, Service] = {}


def service(engine: Any) -> bytes:
    """The name by which processes of this engine ask; empty: they are all on this host."""
    if engine.local:
        return b""
    sharing: Sharing = engine.sharing
    if sharing not in _services:
        for each in [each for each in _services if not each.usable]:
            del _services[each]
        _services[sharing] = Service(sharing)
    return _services[sharing].name


# -- in processes on other hosts -----------------------------------------------------------------------


def reach(service: bytes) -> None:
    """From now on, in this process: what is refused at its own loopback is asked for at the script's."""
    after_import("socket", lambda module: _patch(module, service))


def _patch(module: Any, service: bytes) -> None:
    kind = module.socket
    usual, usual_ex = kind.connect, kind.connect_ex

    def connect(self: socket.socket, address: Any, /) -> None:
        try:
            usual(self, address)
        except ConnectionRefusedError:
            if not _carry(self, address, service, usual):
                raise

    def connect_ex(self: socket.socket, address: Any, /) -> int:
        code: int = usual_ex(self, address)
        try:
            return 0 if code == errno.ECONNREFUSED and _carry(self, address, service, usual) else code
        except TimeoutError:
            return errno.EAGAIN

    kind.connect, kind.connect_ex = connect, connect_ex


def _carry(sock: socket.socket, address: Any, service: bytes, connect: Any) -> bool:
    """Connect it to the script's loopback. False: that refuses, too. Raises TimeoutError after the socket's timeout."""
    from multihost.janitor import within_loop

    timeout = sock.gettimeout()
    host = _loopback_of(sock, address)
    if not host or timeout == 0 or within_loop():
        return False
    deadline = None if timeout is None else time.monotonic() + timeout
    try:
        link = _ask(service, f"{host} {address[1]}".encode(), deadline)
        if link is None:
            return False
        try:
            _pumps.add(Pump(_join(sock, host, connect), link))
            _watch_exit()
        except BaseException:
            link.close()
            raise
    except TimeoutError:
        raise TimeoutError("timed out") from None
    except _ENDS:
        return False
    return True


def _loopback_of(sock: socket.socket, address: Any) -> str:
    """The address that is meant, if it is one of the loopback and the socket is one of TCP; else nothing."""
    here = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}.get(sock.family)
    if here is None or sock.type != socket.SOCK_STREAM:
        return ""
    host = here if address[0] == "localhost" else str(address[0])
    return host if _is_loopback(host) else ""


def _ask(service: bytes, where: bytes, deadline: float | None) -> BrokeredConnection | None:
    from multihost import brokered, rendezvous

    door = brokered.land(service, 1, True, True, b"")
    try:
        link = rendezvous.knock(door, where.decode(), where, deadline)
    finally:
        door.close()
    if link.recv_bytes() == _LINKED:
        return link
    link.close()
    return None


def _join(sock: socket.socket, host: str, connect: Any) -> socket.socket:
    """Connect it to this process; the other end of that."""
    with socket.socket(sock.family, socket.SOCK_STREAM) as listener:
        listener.settimeout(DIAL)
        listener.bind(("::1" if ":" in host else "127.0.0.1", 0))
        listener.listen()
        _connect_again(sock, listener.getsockname(), connect)
        while True:
            peer, where = listener.accept()
            if where == sock.getsockname():
                return peer
            # Somebody else on this host.
            peer.close()


def _connect_again(sock: socket.socket, address: Any, connect: Any) -> None:
    for _ in range(2):
        # Linux answers the first one with ECONNABORTED where the socket has a timeout.
        with suppress(OSError):
            connect(sock, address)
            return
    # Other systems do not let a socket try again: its descriptor becomes that of a new one.
    with socket.socket(sock.family, sock.type) as fresh:
        os.dup2(fresh.fileno(), sock.fileno(), sock.get_inheritable())
    sock.settimeout(sock.gettimeout())
    connect(sock, address)


# -- carrying --------------------------------------------------------------------------------------------


class Pump:
    """Carries bytes between a socket and a pipe, both ways, until both have ended or one has broken.

    An empty message is the end of one way. ``ended`` is called when it is over."""

    def __init__(self, sock: socket.socket, link: BrokeredConnection, ended: Any = None) -> None:
        self._sock = sock
        self._link = link
        self._ended = ended
        self._lock = threading.Lock()
        self._ways = 2
        self._sending = self._giving = False
        sock.settimeout(None)
        with suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sender, giver = (
            threading.Thread(target=self._run, args=(way,), name="multihost-loopback", daemon=True)
            for way in (self._send, self._give)
        )
        self._sender.start()
        giver.start()

    def _run(self, way: Any) -> None:
        try:
            way()
        except _ENDS:
            self._break()
        with self._lock:
            self._ways -= 1
            over = not self._ways
        if over:
            self._sock.close()
            self._link.close()
            if self._ended is not None:
                self._ended()

    def _send(self) -> None:
        # It is looked at before it is taken: what is on its way is always to be seen by finish().
        while self._sock.recv(1, socket.MSG_PEEK):
            self._sending = True
            self._link.send_bytes(self._sock.recv(CHUNK))
            self._sending = False
        self._link.send_bytes(b"")

    def _give(self) -> None:
        while data := self._link.recv_bytes():
            self._giving = True
            self._sock.sendall(data)
            self._giving = False
        self._sock.shutdown(socket.SHUT_WR)

    def _break(self) -> None:
        """It is not to look as if all had come: the other end of the socket finds its connection reset."""
        with suppress(*_ENDS):
            self._link.close()
        with suppress(OSError):
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            # The other thread wakes up. To shut both ways would say the end of what was sent.
            self._sock.shutdown(socket.SHUT_RDWR if self._giving else socket.SHUT_RD)

    def finish(self) -> None:
        """The process ends, and with it the other end of the socket: all that was sent is to be on its way before."""
        deadline = time.monotonic() + FINISH
        while self._sender.is_alive() and (self._sending or self._unread()) and time.monotonic() < deadline:
            self._sender.join(0.01)
        if self._sender.is_alive():
            with suppress(*_ENDS):
                self._link.send_bytes(b"")

    def _unread(self) -> bool:
        try:
            self._sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except OSError:
            return False
        return True


_pumps: weakref.WeakSet[Pump] = weakref.WeakSet()
_watched: list[int] = []


def _watch_exit() -> None:
    if os.getpid() not in _watched:
        _watched[:] = [os.getpid()]
        atexit.register(_finish, os.getpid())


def _finish(pid: int) -> None:
    if pid == os.getpid():
        for each in list(_pumps):
            each.finish()


__all__ = ["Pump", "Service", "listens", "reach", "service"]
