"""What is numbered arrives once and in order, whatever connections are lost; who was forgotten begins anew."""

from __future__ import annotations

import threading
from collections import deque

import pytest
from forwarder import forwarder
from hypothesis import given
from hypothesis import strategies as st
from sites import Site
from tasks import acquire_and_release

from multihost.engines.choosing import get_engine, get_sharing
from multihost.engines.remote import RemoteEngine
from multihost.engines.sharing import Sharing
from multihost.pool import Pool
from multihost_common import messages as m
from multihost_common.errors import BrokerLostError
from multihost_common.shared import SEMAPHORE, Semaphores
from multihost_common.stream import MANY, STREAMED, Stream

MESSAGES = 40


class Line:
    """Two ends, and what is on its way from the first to the second."""

    def __init__(self) -> None:
        self.here, self.there = Stream(), Stream()
        self.way: deque[m.Act] = deque()
        self.taken: list[int] = []
        self.said = 0

    def say(self) -> None:
        self.said += 1
        act = m.Act(0, b"o" * m.OBJECT, amount=self.said)
        self.here.stamp(act)
        self.way.append(act)

    def deliver(self) -> None:
        if self.way:
            act = self.way.popleft()
            if self.there.take(m.decode(m.encode(act))):
                self.taken.append(act.amount)

    def acknowledge(self) -> None:
        if self.there.due(now=True):
            self.here.acknowledged(self.there.heard)

    def cut(self) -> None:
        """All that is on its way is lost."""
        self.way.clear()
        self.way.extend(self.here.again(self.there.heard))  # type: ignore[arg-type]


@given(st.lists(st.sampled_from(["say", "deliver", "acknowledge", "cut"]), max_size=MESSAGES))
def test_each_message_comes_once_and_in_order(steps: list[str]) -> None:
    line = Line()
    for step in steps:
        getattr(line, step)()
    line.cut()
    while line.way:
        line.deliver()
    assert line.taken == list(range(1, line.said + 1))


def test_what_was_heard_is_not_kept() -> None:
    line = Line()
    told = 0
    for _ in range(10 * MANY):
        line.say()
        line.deliver()
        if line.there.due():
            told += 1
            line.here.acknowledged(line.there.heard)
    assert told == 10 and line.here.again(line.there.heard) == [] and line.here.size == 0


def test_what_is_not_numbered_passes() -> None:
    stream = Stream()
    assert stream.take(m.Act()) and stream.take(m.Act()) and not stream.due(now=True)


def test_every_numbered_message_has_a_number() -> None:
    assert all(name in [field for field, _, _ in m.schema(cls)] for cls in STREAMED for name in ["seq"])


def lock(sharing: Sharing) -> bytes:
    return sharing.make(SEMAPHORE, 1, ((1).to_bytes(8, "little"),))


def redial(engine: RemoteEngine) -> None:
    engine._do(lambda: engine._session.redial("a test wants it"))


def test_nothing_is_said_twice_when_connections_are_lost(site: Site) -> None:
    engine = get_engine(site.address)
    assert isinstance(engine, RemoteEngine)
    name = lock(engine.sharing)
    over = threading.Event()
    rounds = 0

    def use() -> None:
        nonlocal rounds
        while not over.is_set():
            assert engine.sharing.ask(name, Semaphores.ACQUIRE)
            engine.sharing.tell(name, Semaphores.RELEASE)
            rounds += 1

    thread = threading.Thread(target=use)
    thread.start()
    for _ in range(10):
        before = rounds
        redial(engine)
        while rounds < before + 20:
            over.wait(0.01)
    over.set()
    thread.join()
    # Had an acquire been lost, the thread would wait; had a release come twice, or not at all, it would show.
    asked = engine.sharing.ask(name, Semaphores.VALUE)
    assert asked is not None and asked.amount == 1


def test_what_tasks_say_is_not_lost_with_the_connection_of_their_worker(site: Site) -> None:
    with forwarder(site.address) as way:
        site.worker(address=way.address)
        with Pool(2, address=site.address) as pool:
            name = lock(get_sharing(site.address))
            pool.map(acquire_and_release, [(name, 1)] * 2)
            result = pool.map_async(acquire_and_release, [(name, 300)] * 4, chunksize=1)
            while not result.ready() and way.connections < 6:
                seen = way.connections
                way.cut()
                while way.connections == seen:
                    result.wait(0.02)
                result.wait(0.05)
            assert result.get(30) == [300] * 4
            assert way.connections > 2


def test_who_waits_is_told_that_a_new_broker_knows_nothing(site: Site) -> None:
    sharing = get_sharing(site.address)
    name = lock(sharing)
    sharing.ask(name, Semaphores.ACQUIRE)
    waiting = sharing.begin(name, Semaphores.ACQUIRE)
    site.restart()
    with pytest.raises(BrokerLostError, match="started anew"):
        sharing.finish(waiting, 20)
    with pytest.raises(BrokerLostError, match="no more"):
        sharing.ask(name, Semaphores.ACQUIRE)
    assert sharing.ask(lock(sharing), Semaphores.ACQUIRE)
