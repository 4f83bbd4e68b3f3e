"""The parts that carry a script's loopback to its processes on other hosts; the whole: ``test_far.py``."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
import threading
from typing import Any

import pytest

from multihost import loopback
from multihost.brokered import pipe
from multihost.pace import Pace

HERE = "127.0.0.1"
LARGE = bytes(range(256)) * 8_000


def test_only_what_this_very_process_listens_on_is_served() -> None:
    with (
        socket.create_server((HERE, 0)) as mine,
        socket.create_server(("", 0)) as anywhere,
        socket.socket() as bound,
    ):
        port = mine.getsockname()[1]
        assert loopback.listens(HERE, port)
        assert not loopback.listens("127.0.0.2", port)
        assert not loopback.listens("::1", port)
        assert loopback.listens("127.0.0.2", anywhere.getsockname()[1])
        assert not loopback.listens("0.0.0.0", anywhere.getsockname()[1]), (
            "that is no address of the loopback"
        )
        bound.bind((HERE, 0))
        assert not loopback.listens(HERE, bound.getsockname()[1])
    assert not loopback.listens(HERE, port)
    asked = f"from multihost import loopback; print(loopback.listens({HERE!r}, {{}}))"
    with socket.create_server((HERE, 0)) as mine:
        asked = asked.format(mine.getsockname()[1])
        assert subprocess.check_output([sys.executable, "-c", asked], text=True) == "False\n"


def read_all(sock: socket.socket) -> bytes:
    return b"".join(iter(lambda: sock.recv(65_536), b""))


@pytest.fixture
def ends(address: str) -> Any:
    """Both ends of what two pumps carry, with the pumps."""
    left, right = pipe(address=address)
    with socket.create_server((HERE, 0)) as server:
        pairs = [(socket.create_connection(server.getsockname()), server.accept()[0]) for _ in range(2)]
    pumps = [loopback.Pump(pairs[0][1], left), loopback.Pump(pairs[1][1], right)]
    with pairs[0][0] as user, pairs[1][0] as served:
        user.settimeout(20)
        served.settimeout(20)
        yield user, served, pumps


def test_bytes_are_carried_both_ways_and_each_way_ends_alone(ends: Any) -> None:
    user, served, _ = ends
    user.sendall(LARGE)
    user.shutdown(socket.SHUT_WR)
    assert read_all(served) == LARGE
    served.sendall(LARGE[::-1])
    served.close()
    assert read_all(user) == LARGE[::-1]


def test_a_connection_that_breaks_does_not_look_as_if_all_had_come(ends: Any) -> None:
    user, served, _ = ends
    served.sendall(b"half")
    assert user.recv(4) == b"half"
    user.sendall(b"not read")
    served.recv(1)
    # With something unread the system resets it.
    served.close()
    with pytest.raises(ConnectionResetError):
        read_all(user)


def test_a_process_that_ends_has_sent_what_it_could(ends: Any) -> None:
    user, served, pumps = ends
    user.sendall(LARGE[:100_000])
    pumps[0].finish()
    assert read_all(served) == LARGE[:100_000], "and its end: the socket is still open here"


@pytest.mark.parametrize("timeout", [None, 20.0])
@pytest.mark.parametrize("again", [True, False])
def test_a_refused_socket_is_connected_whether_or_not_its_system_lets_it_try_again(
    again: bool, timeout: float | None
) -> None:
    tried: list[int] = []

    def connect(sock: socket.socket, address: Any) -> None:
        tried.append(os.fstat(sock.fileno()).st_ino)
        if not again and tried[-1] == tried[0]:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        sock.connect(address)

    with socket.socket() as sock:
        sock.settimeout(timeout)
        with pytest.raises(ConnectionRefusedError):
            sock.connect((HERE, 1))
        with loopback._join(sock, HERE, connect) as other:
            other.sendall(b"word")
            assert sock.recv(4) == b"word"
    assert (tried[-1] == tried[0]) == again, "it is another socket only where that is needed"


class InTurns(Pace):
    """Of a connection that has long been sent and received over in turns."""

    def loosely(self, size: int) -> bool:
        return True

    def in_turns(self) -> bool:
        return True


def test_nothing_is_lost_when_one_thread_sends_just_while_another_one_asks(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = pipe(address=address)
    there.send_bytes(b"before")
    assert here.recv_bytes() == b"before"
    here._pace = InTurns()
    usual = here._sharing.begin
    asking, go_on = threading.Event(), threading.Event()

    def begin(name: bytes, op: int, *args: Any, **options: Any) -> Any:
        if threading.current_thread() is receiver and not go_on.is_set():
            asking.set()
            assert go_on.wait(20)
        return usual(name, op, *args, **options)

    def receive() -> None:
        for _ in range(2):
            came.append(here.recv_bytes())

    came: list[bytes] = []
    receiver = threading.Thread(target=receive, daemon=True)
    monkeypatch.setattr(here._sharing, "begin", begin)
    receiver.start()
    assert asking.wait(20)
    here.send_bytes(b"word")
    go_on.set()
    for each in (b"first", b"second"):
        there.send_bytes(each)
    receiver.join(5)
    assert came == [b"first", b"second"]
    assert there.recv_bytes() == b"word"
    here.send_bytes(b"in turns")
    assert here._asked is not None, "where nobody else receives, it is one request"
