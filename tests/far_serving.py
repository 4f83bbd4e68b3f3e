"""Serves on its own loopback, and has processes and tasks connect there: ``multihost run far_serving.py``."""

import multiprocessing
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from typing import IO, Any, cast

HERE = "127.0.0.1"
kept: list[socket.socket] = []
LARGE = bytes(range(256)) * 20_000
ELSEWHERE = """
import socket, sys
with socket.create_server(("127.0.0.1", 0)) as server:
    print(server.getsockname()[1], flush=True)
    sys.stdin.read()
"""


class Server:
    """Has each connection served by a thread of this process, and notes how that has ended."""

    def __init__(self, serve: Callable[[socket.socket], object], family: int = socket.AF_INET) -> None:
        self.serve = serve
        self.ended: Any = multiprocessing.Queue()
        self.listener = socket.create_server(("::1" if family == socket.AF_INET6 else HERE, 0), family=family)
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.run, daemon=True).start()

    def run(self) -> None:
        while True:
            peer, _ = self.listener.accept()
            threading.Thread(target=self.attend, args=(peer,), daemon=True).start()

    def attend(self, peer: socket.socket) -> None:
        with peer:
            try:
                self.ended.put(self.serve(peer))
            except OSError as error:
                self.ended.put(type(error).__name__)


def read_all(sock: socket.socket) -> bytes:
    return b"".join(iter(lambda: sock.recv(65_536), b""))


def echo(peer: socket.socket) -> str:
    while data := peer.recv(65_536):
        peer.sendall(data)
    return "end"


def leave(peer: socket.socket) -> None:
    peer.sendall(b"half of ")


def reset(peer: socket.socket) -> None:
    peer.recv(1)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def swallow(peer: socket.socket) -> int:
    return len(read_all(peer))


# -- on other hosts -----------------------------------------------------------------------------------


def there_and_back(host: str, port: int, data: bytes) -> bool:
    with socket.create_connection((host, port), timeout=30) as sock:

        def send() -> None:
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send)
        sender.start()
        came = read_all(sock)
        sender.join()
    return came == data


def read(port: int, word: bytes = b"") -> bytes | str:
    with socket.create_connection((HERE, port)) as sock:
        sock.settimeout(30)
        sock.sendall(word)
        try:
            return read_all(sock)
        except ConnectionResetError:
            return "reset"


def dial(port: int) -> int | str:
    with closing(socket.socket()) as sock:
        code = sock.connect_ex((HERE, port))
    try:
        socket.create_connection(("localhost", port)).close()
    except ConnectionRefusedError:
        return code
    return "it answers"


def send_and_end(port: int, killed: bool) -> None:
    sock = socket.create_connection((HERE, port))
    sock.sendall(b"x" if killed else LARGE)
    if killed:
        os.kill(os.getpid(), signal.SIGKILL)
    kept.append(sock)


def main() -> None:
    refused = socket.socket().connect_ex((HERE, 1))
    server, later = Server(echo), Server(echo, socket.AF_INET6)
    with multiprocessing.Pool(2) as pool:
        assert pool.apply(socket.gethostname) != socket.gethostname()
        assert pool.apply(there_and_back, (HERE, server.port, LARGE))
        assert pool.apply(there_and_back, ("localhost", server.port, b"word"))
        assert pool.apply(there_and_back, ("::1", later.port, b"word"))
        assert all(pool.starmap(there_and_back, [(HERE, server.port, LARGE[:n]) for n in range(20)]))
        assert pool.apply(read, (Server(leave).port,)) == b"half of "
        assert pool.apply(read, (Server(reset).port, b"x")) == "reset"
        gone = socket.create_server((HERE, 0))
        gone.close()
        with subprocess.Popen(
            [sys.executable, "-c", ELSEWHERE], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as other:
            strange = int(cast("IO[bytes]", other.stdout).readline())
            assert socket.socket().connect_ex((HERE, strange)) == 0
            assert pool.apply(dial, (strange,)) == refused, "it is another process that listens there"
            cast("IO[bytes]", other.stdin).close()
        assert pool.apply(dial, (1,)) == refused
    for killed, seen in ((False, {len(LARGE)}), (True, {1, "ConnectionResetError"})):
        server = Server(swallow)
        process = multiprocessing.Process(target=send_and_end, args=(server.port, killed))
        process.start()
        assert server.ended.get(timeout=30) in seen
        process.join()


if __name__ == "__main__":
    main()
