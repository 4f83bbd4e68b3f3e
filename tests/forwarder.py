"""A port in front of another one, whose connections a test can cut: what is on its way then is lost."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress


class Forwarder:
    """Passes on whatever connects to ``address`` to the port that it stands for."""

    def __init__(self, target: str) -> None:
        host, port = target.removeprefix("tcp://").rsplit(":", 1)
        self._target = host, int(port)
        self._server = socket.create_server(("127.0.0.1", 0))
        self.address = f"tcp://127.0.0.1:{self._server.getsockname()[1]}"
        self._open: list[socket.socket] = []
        self._all: list[socket.socket] = []
        self._lock = threading.Lock()
        self.connections = 0
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._server.accept()
            except OSError:
                return
            far = socket.create_connection(self._target)
            for each in (near, far):
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self.connections += 1
                self._open += [near, far]
                self._all += [near, far]
            for pair in ((near, far), (far, near)):
                thread = threading.Thread(target=self._pass, args=pair)
                self._threads.append(thread)
                thread.start()

    def _pass(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65_536):
                sink.sendall(data)
        _end(source)
        _end(sink)

    def cut(self) -> None:
        """End all connections there are."""
        with self._lock:
            ended, self._open = self._open, []
        for each in ended:
            _end(each)

    def close(self) -> None:
        """End everything."""
        # accept() does not notice that its socket is closed by another thread, but that it is shut down.
        _end(self._server)
        self._server.close()
        self._threads[0].join()
        self.cut()
        for thread in self._threads[1:]:
            thread.join()
        for each in self._all:
            each.close()


def _end(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


@contextmanager
def forwarder(target: str) -> Iterator[Forwarder]:
    """See :class:`Forwarder`; ``target``: an address as tcp://host:port."""
    made = Forwarder(target)
    try:
        yield made
    finally:
        made.close()
