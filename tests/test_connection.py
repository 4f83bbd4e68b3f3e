"""Connections as scripts use them: between threads, tasks and processes, here and on a cluster."""

from __future__ import annotations

import array
import pickle
import queue
import selectors
import socket
import threading
from collections.abc import Callable
from multiprocessing import connection as standard
from typing import TYPE_CHECKING, Any

import pytest

import multihost
from multihost.connection import BufferTooShort, Client, Connection, Listener, Pipe, wait
from multihost.engines.choosing import BROKER_VARIABLE
from multihost_common import shipments

if TYPE_CHECKING:
    from conftest import MakePipe

#: Seconds after which a test is wrong to wait still.
SOON = 20.0


def aside(function: Callable[[], object]) -> threading.Thread:
    """Do this in another thread."""
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    return thread


# -- messages ------------------------------------------------------------------------------------------


def test_objects_and_bytes_travel_both_ways(pipe: MakePipe) -> None:
    a, b = pipe()
    for each in ([1, 2.25, None], b"bytes", {"a": (1,)}):
        a.send(each)
        assert b.recv() == each
    b.send_bytes(b"abcdefghijkl")
    b.send_bytes(b"abcdefghijkl", 7)
    b.send_bytes(bytearray(b"abcdefghijkl"), 2, 3)
    b.send_bytes(array.array("i", [1, 2]), 4)
    assert [a.recv_bytes() for _ in range(3)] == [b"abcdefghijkl", b"hijkl", b"cde"]
    assert array.array("i", a.recv_bytes()).tolist() == [2]
    a.send_bytes(b"")
    assert b.poll()
    assert b.recv_bytes() == b""


def test_what_was_sent_is_what_it_was_then(pipe: MakePipe) -> None:
    a, b = pipe()
    buffer = bytearray(b"then")
    a.send_bytes(buffer)
    buffer[:] = b"now!"
    assert b.recv_bytes() == b"then"


def test_messages_are_received_into_buffers_where_they_fit(pipe: MakePipe) -> None:
    a, b = pipe()
    buffer = array.array("i", [0] * 4)
    a.send_bytes(array.array("i", [1, 2]))
    assert b.recv_bytes_into(buffer, buffer.itemsize) == 2 * buffer.itemsize
    assert buffer.tolist() == [0, 1, 2, 0]
    a.send_bytes(b"too long for four")
    with pytest.raises(BufferTooShort) as caught:
        b.recv_bytes_into(bytearray(4))
    assert caught.value.args == (b"too long for four",)


def test_wrong_arguments_are_told_as_multiprocessing_tells_them(pipe: MakePipe) -> None:
    a, b = pipe()
    for arguments in ((27,), (22, 5), (26, 1), (-1,), (4, -1)):
        with pytest.raises(ValueError, match=r"offset|size"):
            a.send_bytes(b"abcdefghijklmnopqrstuvwxyz", *arguments)
    with pytest.raises(ValueError, match="negative maxlength"):
        b.recv_bytes(-1)
    a.send_bytes(b"longer")
    with pytest.raises(OSError, match="bad message length"):
        b.recv_bytes(3)


def test_an_object_that_does_not_pickle_leaves_the_connection_as_it_was(pipe: MakePipe) -> None:
    a, b = pipe()
    with pytest.raises(TypeError):
        a.send(threading.Lock())
    a.send("fine")
    assert b.recv() == "fine"


def test_a_one_way_pipe_goes_one_way(pipe: MakePipe) -> None:
    r, w = pipe(duplex=False)
    w.send(1)
    assert r.recv() == 1
    assert (r.readable, r.writable, w.readable, w.writable) == (True, False, False, True)
    for act in (lambda: r.send(2), w.recv, w.poll):
        with pytest.raises(OSError, match=r"-only"):
            act()


def test_a_message_of_64_mib_arrives(pipe: MakePipe) -> None:
    a, b = pipe()
    large = bytes(range(256)) * (64 << 12)
    thread = aside(lambda: a.send_bytes(large))
    assert b.recv_bytes() == large
    thread.join(SOON)


def test_a_message_that_is_too_large_for_a_broker_is_refused(
    cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(BROKER_VARIABLE, cluster)
    a, b = Pipe()
    with a, b:
        with pytest.raises(ValueError, match="256 MiB"):
            a.send_bytes(bytes((256 << 20) + 1))
        a.send("still there")
        assert b.recv() == "still there"


def test_many_messages_in_a_row_arrive_in_order(pipe: MakePipe) -> None:
    a, b = pipe()

    def work() -> None:
        for each in range(3000):
            a.send(each)

    thread = aside(work)
    assert [b.recv() for _ in range(3000)] == list(range(3000))
    thread.join(SOON)


def test_who_sends_waits_for_room(pipe: MakePipe) -> None:
    a, b = pipe()
    sent: list[int] = []

    def work() -> None:
        for each in range(4):
            a.send_bytes(bytes(1 << 20))
            sent.append(each)

    thread = aside(work)
    assert b.poll(SOON)
    thread.join(0.2)
    assert thread.is_alive()
    assert len(sent) < 4
    for _ in range(4):
        b.recv_bytes()
    thread.join(SOON)
    assert not thread.is_alive()


def test_messages_in_turns_arrive_each_once(pipe: MakePipe) -> None:
    a, b = pipe()

    def echo() -> None:
        for _ in range(300):
            b.send(b.recv())

    thread = aside(echo)
    for each in range(290):
        a.send(each)
        assert each % 50 or a.poll(SOON)
        assert each % 51 or wait([a], SOON) == [a]
        assert a.recv() == each
    # What comes for somebody who has asked ahead goes to whoever receives.
    a.send("last")
    with pickle.loads(pickle.dumps(a)) as shared:
        assert shared.recv() == "last"
        for each in range(9):
            a.send(each)
            assert (shared if each % 2 else a).recv() == each
    thread.join(SOON)


# -- the end -------------------------------------------------------------------------------------------


def test_after_the_last_message_comes_the_end(pipe: MakePipe) -> None:
    a, b = pipe()
    a.send("last")
    a.close()
    assert b.recv() == "last"
    assert b.poll()
    for receive in (b.recv, b.recv_bytes):
        with pytest.raises(EOFError):
            receive()
    with pytest.raises(BrokenPipeError):
        b.send(1)


def test_sending_to_a_closed_end_fails_at_once(pipe: MakePipe) -> None:
    a, b = pipe()
    for _ in range(10):
        a.send(1)
    b.close()
    with pytest.raises(BrokenPipeError):
        a.send(2)


def test_a_closed_connection_says_so_and_may_be_closed_again(pipe: MakePipe) -> None:
    a, b = pipe()
    with a, b:
        assert not a.closed
    a.close()
    assert a.closed
    for act in (
        a.recv,
        a.poll,
        a.fileno,
        lambda: a.send(1),
        lambda: a.send_bytes(b"x"),
        lambda: pickle.dumps(a),
    ):
        with pytest.raises(OSError, match="handle is closed"):
            act()


def test_who_waits_is_told_when_the_other_end_is_collected(pipe: MakePipe) -> None:
    a, b = Pipe()
    copy = pickle.loads(pickle.dumps(b))
    b.close()
    told = []

    def receive() -> None:
        try:
            a.recv()
        except EOFError:
            told.append("end")

    thread = aside(receive)
    thread.join(0.05)
    assert not told
    del copy
    thread.join(SOON)
    assert told == ["end"]
    a.close()


# -- waiting -------------------------------------------------------------------------------------------


def test_poll_waits_as_long_as_it_is_told_to(pipe: MakePipe) -> None:
    a, b = pipe()
    assert not b.poll()
    assert not b.poll(-1)
    assert not b.poll(0.05)
    thread = aside(lambda: a.send("x"))
    assert b.poll(SOON)
    assert b.poll(None)
    assert b.recv() == "x"
    thread.join(SOON)


def test_one_waits_for_connections_of_both_kinds_sockets_and_descriptors_at_once(pipe: MakePipe) -> None:
    a, b = pipe()
    r, w = pipe(duplex=False)
    one, other = socket.socketpair()
    theirs, end = standard.Pipe()
    with one, other, theirs, end:
        mix = [b, r, one, theirs, end.fileno()]
        assert wait(mix, 0) == []
        assert wait(mix, 0.05) == []
        thread = aside(lambda: a.send(1))
        assert wait(mix, SOON) == [b]
        thread.join(SOON)
        other.send(b"x")
        assert wait(mix, SOON) == [b, one]
        assert b.recv() == 1
        assert wait(mix, SOON) == [one]
        one.recv(1)
        w.close()
        assert wait(mix, SOON) == [r]
        theirs.send(1)
        assert wait(mix, SOON) == [r, end.fileno()]


def test_one_waits_for_several_pipes_until_the_last_has_ended(pipe: MakePipe) -> None:
    pipes = [pipe(duplex=False) for _ in range(4)]

    def work() -> None:
        for each in range(5):
            for _, w in pipes:
                w.send(each)
        for _, w in pipes:
            w.close()

    thread = aside(work)
    readers, got = [r for r, _ in pipes], []
    while readers:
        ready = wait(readers, SOON)
        assert ready
        for each in ready:
            try:
                got.append(each.recv())
            except EOFError:
                readers.remove(each)
    thread.join(SOON)
    assert sorted(got) == sorted(list(range(5)) * 4)


def test_a_selector_is_told_exactly_while_there_is_something(pipe: MakePipe) -> None:
    a, b = pipe()
    with selectors.DefaultSelector() as selector:
        selector.register(b, selectors.EVENT_READ)
        assert not selector.select(0.05)
        for _ in range(3):
            a.send("x")
        for left in (3, 2, 1):
            assert selector.select(SOON), left
            b.recv()
        assert not selector.select(0.05)
        thread = aside(a.close)
        assert selector.select(SOON)
        thread.join(SOON)


# -- travelling ----------------------------------------------------------------------------------------


def test_a_connection_travels_through_a_connection(pipe: MakePipe) -> None:
    a, b = pipe()
    r, w = pipe(duplex=False)
    w.send("early")
    a.send(r)
    r.close()
    with b.recv() as arrived:
        assert arrived.recv() == "early"
        w.send("late")
        assert arrived.recv() == "late"
        assert not arrived.writable
    with pytest.raises(BrokenPipeError):
        w.send("too late")


def test_what_came_early_is_given_back_when_a_connection_is_shared(pipe: MakePipe) -> None:
    a, b = pipe()
    for each in range(5):
        a.send(each)
    assert b.recv() == 0
    with pickle.loads(pickle.dumps(b)) as shared:
        assert [shared.recv(), b.recv(), shared.recv(), b.recv()] == [1, 2, 3, 4]


def test_a_pickle_that_comes_to_nothing_does_not_keep_the_end_open(pipe: MakePipe) -> None:
    a, b = pipe()
    with pytest.raises(TypeError):
        a.send([b, threading.Lock()])
    b.close()
    with pytest.raises(EOFError):
        a.recv()


# -- the standard library's ------------------------------------------------------------------------------


def test_listener_and_client_are_the_standard_librarys() -> None:
    with Listener(("localhost", 0), authkey=b"key") as listener:
        accepted: list[standard.Connection] = []
        thread = aside(lambda: accepted.append(listener.accept()))
        with Client(listener.address, authkey=b"key") as client:
            thread.join(SOON)
            client.send("hello")
            assert wait(accepted, SOON) == accepted
            assert accepted[0].recv() == "hello"
            accepted[0].close()
    assert multihost.connection.Listener is standard.Listener


def test_a_connection_of_a_descriptor_is_one_of_the_system() -> None:
    one, other = socket.socketpair()
    with Connection(one.detach()) as a, Connection(other.detach()) as b:
        a.send("x")
        assert b.recv() == "x"
        assert isinstance(a, standard.Connection)


@pytest.mark.parametrize("make", [standard.Pipe, Pipe])
def test_a_connection_of_a_descriptor_is_handed_over_once(make: Callable[..., Any]) -> None:
    a, b = make()
    with a, b:
        data = pickle.dumps(a)
        with pickle.loads(data) as copy:
            assert type(copy) is type(a)
            copy.send("x")
            assert b.recv() == "x"
        with pytest.raises(OSError, match=r"another host.*multihost\.Pipe"):
            pickle.loads(data)


def test_what_is_for_many_processes_is_on_offer_until_it_is_taken_back() -> None:
    a, b = Pipe()
    with shipments.collected(lasting=True) as promises:
        data = pickle.dumps(a)
    a.close()
    for _ in range(3):
        pickle.loads(data).close()
    assert not b.poll(0.05)
    shipments.void(promises)
    with b, pytest.raises(EOFError):
        b.recv()


def greet(connection: Connection) -> None:
    connection.send("ready")


def test_every_process_of_a_pool_gets_the_connections_of_its_initializer(
    pipe: MakePipe, make_pool: Callable[..., multihost.Pool]
) -> None:
    r, w = pipe(duplex=False)
    with make_pool(3, greet, (w,)) as pool:
        pool.map(abs, range(3), chunksize=1)
        assert r.recv() == "ready"
        w.close()
        pool.terminate()
        pool.join()
    with pytest.raises(EOFError):
        while True:
            assert r.recv() == "ready"


def test_who_waits_for_a_message_makes_no_callbacks_of_pools(address: str, pipe: MakePipe) -> None:
    # A callback may need an answer from the very thread that waits.
    here, there = pipe()
    answers: queue.SimpleQueue[object] = queue.SimpleQueue()

    def ask(value: object) -> None:
        there.send(value)
        answers.put(there.recv())

    def answer() -> None:
        while (value := here.recv()) is not None:
            here.send(value)

    thread = aside(answer)
    with multihost.Pool(1, address=address) as pool:
        for number in range(20):
            pool.apply_async(int, (number,), callback=ask)
            assert answers.get(timeout=SOON) == number
    there.send(None)
    thread.join(SOON)
    assert not thread.is_alive()
