"""Connections between tasks and processes, here and on a cluster."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

import multihost
from multihost.connection import Connection, Pipe, wait
from multihost.process import Process

if TYPE_CHECKING:
    from conftest import MakePipe

#: Seconds after which a test is wrong to wait still.
SOON = 20.0


# -- processes and tasks -----------------------------------------------------------------------------------


def echo(connection: Connection) -> None:
    while (message := connection.recv_bytes()) != b"":
        connection.send_bytes(message)


def report(connection: Connection, through: Connection) -> None:
    own, others = Pipe()
    through.send(others)
    connection.send(own.recv())
    connection.send(own.recv())
    # It does not end before it is told to.
    own.recv()


def hang(connection: Connection) -> None:
    connection.send("here")
    connection.recv()


def leave_behind(connection: Connection) -> None:
    r, w = Pipe(duplex=False)
    connection.send(r)
    w.send("last words")
    w.close()
    # On this machine it is handed over by the process that sent it.
    connection.recv()


def send_square(job: tuple[Connection, int]) -> int:
    connection, number = job
    connection.send(number**2)
    return number


def started(target: Callable[..., object], *args: object) -> Process:
    made = Process(target=target, args=args, daemon=True)
    made.start()
    return made


def test_a_process_echoes_and_its_end_is_told(pipe: MakePipe) -> None:
    a, b = pipe()
    made = started(echo, b)
    b.close()
    for message in (b"hello", bytes(3 << 20), b"again"):
        a.send_bytes(message)
        assert a.poll(SOON)
        assert a.recv_bytes() == message
    for each in range(200):
        a.send_bytes(b"%d" % each)
        assert a.recv_bytes() == b"%d" % each
    a.send_bytes(b"")
    with pytest.raises(EOFError):
        a.recv()
    made.join(SOON)
    assert made.exitcode == 0


def test_processes_exchange_pipes_of_their_own(pipe: MakePipe) -> None:
    (a, b), (c, d) = pipe(), pipe()
    made = started(report, b, d)
    own = c.recv()
    with own:
        own.send("to it")
        assert a.recv() == "to it"
        own.send("again")
        assert wait([a, made.sentinel, c], SOON) == [a]
        assert a.recv() == "again"
        own.send("end")
        made.join(SOON)
        assert made.sentinel in wait([a, made.sentinel, c], SOON)


def test_a_pipe_outlives_the_process_that_made_it(pipe: MakePipe) -> None:
    a, b = pipe()
    made = started(leave_behind, b)
    with a.recv() as left:
        a.send("go")
        made.join(SOON)
        assert made.exitcode == 0
        assert left.recv() == "last words"
        with pytest.raises(EOFError):
            left.recv()


@pytest.mark.parametrize("early", [True, False])
def test_a_killed_process_is_the_end_of_its_connections(pipe: MakePipe, early: bool) -> None:
    a, b = pipe()
    made = started(hang, b)
    b.close()
    if not early:
        assert a.recv() == "here"
    made.kill()
    with pytest.raises(EOFError):
        for _ in range(2):
            a.recv()
    with pytest.raises(BrokenPipeError):
        a.send("x")
    made.join(SOON)


def test_tasks_send_through_connections(pipe: MakePipe, make_pool: Callable[..., multihost.Pool]) -> None:
    r, w = pipe(duplex=False)
    with make_pool(2) as pool:
        assert pool.map(send_square, [(w, each) for each in range(6)], chunksize=1) == list(range(6))
        assert sorted(r.recv() for _ in range(6)) == [each**2 for each in range(6)]
        w.close()
        pool.terminate()
    with pytest.raises(EOFError):
        r.recv()
