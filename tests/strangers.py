"""What may answer at an address in place of a broker, on loopback."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import zmq


@contextmanager
def listener(serve: Callable[[socket.socket], None] | None) -> Iterator[str]:
    """A TCP port where ``serve`` gets each connection; with None nobody accepts them."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        if serve is None:
            yield address
            return
        acceptor = threading.Thread(target=_accept, args=(server, serve), daemon=True)
        acceptor.start()
        try:
            yield address
        finally:
            with suppress(OSError):
                server.shutdown(socket.SHUT_RDWR)
            acceptor.join(10)


def _accept(server: socket.socket, serve: Callable[[socket.socket], None]) -> None:
    threads = []
    with suppress(OSError):
        while True:
            threads.append(threading.Thread(target=_serve, args=(server.accept()[0], serve), daemon=True))
            threads[-1].start()
    for thread in threads:
        thread.join(10)


def _serve(connection: socket.socket, serve: Callable[[socket.socket], None]) -> None:
    connection.settimeout(2)
    with connection, suppress(OSError):
        serve(connection)


def _web(connection: socket.socket) -> None:
    data = b""
    while b"\r\n" not in data and (part := connection.recv(4096)):
        data += part
    connection.sendall(b"HTTP/1.0 400 Bad Request\r\nContent-Length: 0\r\n\r\n")


def _talker(connection: socket.socket) -> None:
    connection.sendall(b"SSH-2.0-Something_9.2\r\n")
    connection.recv(4096)


def _closer(connection: socket.socket) -> None:
    pass


@contextmanager
def nobody() -> Iterator[str]:
    """A port that nobody listens on."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield f"tcp://127.0.0.1:{held.getsockname()[1]}"


@contextmanager
def silent() -> Iterator[str]:
    """Takes connections, never says anything."""
    with listener(None) as address:
        yield address


@contextmanager
def closes() -> Iterator[str]:
    """Ends each connection at once, as a forwarded port without a program behind it does."""
    with listener(_closer) as address:
        yield address


@contextmanager
def web() -> Iterator[str]:
    """A web server: waits for a request."""
    with listener(_web) as address:
        yield address


@contextmanager
def talker() -> Iterator[str]:
    """Greets in a language of its own."""
    with listener(_talker) as address:
        yield address


@contextmanager
def plain_zmq() -> Iterator[str]:
    """A ROUTER of somebody else's, without encryption."""
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        router.linger = 0
        yield f"tcp://127.0.0.1:{router.bind_to_random_port('tcp://127.0.0.1')}"
