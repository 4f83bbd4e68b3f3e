"""Input of producers that is in the broker's memory: how much there may be, who waits, and that nobody else does."""

from __future__ import annotations

from typing import TypeVar

import pytest

from multihost_broker.core import Core, CoreConfig
from multihost_broker.events import Gone, Note, Received, Send, Tick
from multihost_broker.memory import LOOK, OVERHEAD
from multihost_common import messages as m
from multihost_common.blocks import pack_lengths
from multihost_common.tables import unpack_rows

M = TypeVar("M", bound=m.Message)

FUNCTION = b"f" * 32

#: Bytes that one item counts, and for how many there is room.
ITEM = 10_000
ROOM = 100


class Site:
    """A broker's core, and what it has said to whom."""

    def __init__(self, limit: int = ROOM * ITEM) -> None:
        self.core = Core(CoreConfig(max_memory=limit))
        self.now = 100.0
        self.said: dict[str, list[m.Message]] = {}
        self.notes: list[str] = []

    def tell(self, event: Received | Gone | Tick) -> None:
        for action in self.core.handle(event, self.now):
            if type(action) is Send:
                message = m.decode(m.encode(action.message))
                self.said.setdefault(str(action.peer), []).append(message)
            elif type(action) is Note:
                self.notes.append(action.text)

    def hear(self, peer: str, *messages: m.Message) -> None:
        role = m.WORKER if peer.startswith("w") else m.PRODUCER
        for message in messages:
            self.tell(Received(peer, role, m.decode(m.encode(message))))

    def take(self, peer: str, kind: type[M]) -> list[M]:
        """What it has been told of this kind since the last time."""
        said = self.said.get(peer, [])
        self.said[peer] = [each for each in said if type(each) is not kind]
        return [each for each in said if type(each) is kind]

    def hello(self, peer: str, slots: int = 0, **more: object) -> None:
        kind = m.WORKER if peer.startswith("w") else m.PRODUCER
        self.hear(peer, m.Hello(kind, m.PROTOCOL_VERSION, "3.11", 5, peer, slots=slots, **more))  # type: ignore[arg-type]

    def producer(self, peer: str, jobs: int = 1) -> None:
        """It has a pool with so many jobs."""
        self.hello(peer, client=peer.encode().ljust(16))
        self.hear(peer, m.OpenPool(1), m.Blob(FUNCTION, (b"function",)))
        for job in range(1, jobs + 1):
            self.hear(peer, m.OpenJob(job, 1, FUNCTION))

    def feed(self, peer: str, start: int, job: int = 1, count: int = 1) -> None:
        """So many items, each in a Feed of its own."""
        for item in range(start, start + count):
            self.hear(peer, feed(item, job))

    def holds(self, peer: str) -> list[bool]:
        return [each.hold for each in self.take(peer, m.Hold)]

    def look(self) -> None:
        """A little later, as the core wants it."""
        self.now += 2 * LOOK
        self.tell(Tick())

    def work(self, peer: str, most: int = 1 << 30) -> int:
        """The worker answers what it has been leased; how many items that was."""
        done = 0
        while done < most and (leases := self.take(peer, m.Lease)):
            for at, lease in enumerate(leases):
                if done >= most:
                    self.said[peer] += leases[at:]
                    break
                frames = (pack_lengths([1]), b"x")
                self.hear(
                    peer, m.Result(lease.job, lease.start, lease.count, lease.attempt, 1_000_000, 0, frames)
                )
                done += lease.count
        return done

    def answered(self, peer: str, job: int = 1) -> list[int]:
        return sorted(
            each.start for each in self.said.get(peer, []) if type(each) is m.Result and each.job == job
        )

    @property
    def used(self) -> int:
        return self.core.ledger.memory.used


def feed(item: int, job: int = 1) -> m.Feed:
    size = ITEM - OVERHEAD - 4
    return m.Feed(job, item, 1, 1, (pack_lengths([size]), bytes(size)))


@pytest.fixture
def site() -> Site:
    return Site()


def test_who_has_more_than_is_free_waits_until_it_has_half_as_much(site: Site) -> None:
    site.producer("p1")
    site.feed("p1", 0, count=50)
    assert site.used == 50 * ITEM
    assert site.holds("p1") == []
    site.feed("p1", 50)
    assert site.holds("p1") == [True]
    assert [note for note in site.notes if "waits" in note]
    site.hello("w1", 1)
    site.work("w1", 17)
    site.look()
    assert site.holds("p1") == [], "34 are here still, 66 are free"
    site.work("w1", 1)
    site.look()
    assert site.holds("p1") == [False]
    assert site.work("w1") == 33
    assert site.used == 0


def test_nobody_is_looked_at_while_nobody_waits(site: Site) -> None:
    site.producer("p1")
    site.feed("p1", 0, count=50)
    assert site.core.ledger.memory.deadline() is None
    site.feed("p1", 50)
    deadline = site.core.deadline()
    assert deadline is not None
    assert deadline <= site.now + LOOK


def test_what_is_not_heeded_is_dropped_and_asked_for_when_there_is_room(site: Site) -> None:
    site.producer("p1")
    site.feed("p1", 0, count=ROOM)
    taken = site.used // ITEM
    # Four times what is free, and the one that was taken last.
    assert 80 <= taken <= 81
    assert not site.take("p1", m.Refused)
    site.hear("p1", m.EndJob(1, ROOM))
    assert not site.take("p1", m.Refused), "what is said of what was dropped is no fault"
    site.hello("w1", 1)
    assert site.work("w1") == taken
    assert not site.take("p1", m.EndResults)
    site.look()
    holds = site.take("p1", m.Hold)
    assert [each.hold for each in holds] == [True, False]
    assert unpack_rows(holds[1].frames[0], 2) == [(1, taken)]
    site.hear("p1", m.OpenJob(1, 1, FUNCTION, resumed=True))
    for item in range(taken, ROOM):
        site.feed("p1", item)
    site.hear("p1", m.EndJob(1, ROOM))
    site.work("w1")
    assert site.answered("p1") == list(range(ROOM))
    assert len(site.take("p1", m.EndResults)) == 1
    assert site.used == 0


def test_what_was_on_its_way_when_there_was_room_again_is_not_taken_out_of_order(site: Site) -> None:
    site.producer("p1")
    site.feed("p1", 0, count=82)
    taken = site.used // ITEM
    site.hello("w1", 1)
    site.work("w1")
    site.look()
    assert site.holds("p1") == [True, False]
    # Sent before the producer had heard that it may go on.
    site.feed("p1", 82)
    assert not site.take("p1", m.Refused)
    site.look()
    assert site.holds("p1") == [], "it is asked once"
    site.hear("p1", m.OpenJob(1, 1, FUNCTION, resumed=True))
    site.feed("p1", taken, count=83 - taken)
    site.hear("p1", m.EndJob(1, 83))
    site.work("w1")
    assert site.answered("p1") == list(range(83))


def test_one_that_floods_keeps_nobody_else_from_working(site: Site) -> None:
    site.producer("p1", jobs=20)
    site.producer("p2")
    site.hello("w1", 4)
    for at in range(40):
        for job in range(1, 21):
            site.feed("p1", at, job)
    assert site.used <= ROOM * ITEM
    assert site.holds("p1") == [True]
    site.feed("p2", 0, count=5)
    site.hear("p2", m.EndJob(1, 5))
    assert site.holds("p2") == []
    assert not site.take("p2", m.Refused)
    site.work("w1")
    assert site.answered("p2") == list(range(5))
    assert len(site.take("p2", m.EndResults)) == 1


def test_many_that_flood_share_what_there_is(site: Site) -> None:
    peers = [f"p{number}" for number in range(9)]
    for peer in peers:
        site.producer(peer)
    for item in range(60):
        for peer in peers:
            site.feed(peer, item)
    assert site.used <= (ROOM + 1) * ITEM
    used = [account.used // ITEM for account in site.core.ledger.memory._accounts.values()]
    assert max(used) - min(used) <= 1
    site.producer("late")
    site.feed("late", 0)
    assert not site.core.ledger.memory._accounts[site.core.sessions.by_peer["late"].number].dropped


def test_work_that_is_here_goes_on_while_its_producer_waits(site: Site) -> None:
    site.producer("p1")
    site.feed("p1", 0, count=60)
    site.hello("w1", 2)
    assert site.holds("p1") == [True]
    assert site.work("w1") == 60


def test_what_is_leased_counts_until_it_has_its_answer(site: Site) -> None:
    site.producer("p1")
    site.hello("w1", 4)
    site.feed("p1", 0, count=4)
    assert len([each for each in site.said["w1"] if type(each) is m.Lease]) >= 1
    assert site.used == 4 * ITEM
    site.work("w1")
    assert site.used == 0


def test_one_that_comes_back_is_told_again(site: Site) -> None:
    site.producer("p1")
    site.feed("p1", 0, count=51)
    session = site.core.sessions.by_peer["p1"]
    site.tell(Gone("p1"))
    site.hello("p9", client=session.client, session=session.number)
    assert site.core.sessions.by_peer["p9"] is session
    assert site.holds("p9") == [True]
    site.hear("p9", m.OpenPool(1), m.OpenJob(1, 1, FUNCTION, resumed=True))
    site.feed("p9", 0, count=51)
    site.hear("p9", m.Restated())
    assert site.used == 51 * ITEM, "what was here counts once"


def test_what_a_producer_had_is_free_when_it_ends(site: Site) -> None:
    site.producer("p1")
    site.feed("p1", 0, count=90)
    site.hear("p1", m.Bye())
    assert site.used == 0
    assert site.core.ledger.memory.deadline() is None


def test_input_that_may_have_been_run_is_not_taken_later_as_if_it_were_new() -> None:
    """A broker that was started anew has no room for what an earlier one took, of a job with ``at_most_once``."""
    site = Site(limit=10 * ITEM)
    site.hello("p1", session=7, client=b"c" * 16)
    site.hear("p1", m.OpenPool(1), m.Blob(FUNCTION, (b"function",)))
    site.hear("p1", m.OpenJob(1, 1, FUNCTION, at_most_once=True, resumed=True))
    site.feed("p1", 0, count=20)
    site.hear("p1", m.EndJob(1, 20), m.Restated())
    failed = site.take("p1", m.Failed)
    assert sum(each.count for each in failed) == 20
    assert {each.reason for each in failed} == {m.LOST}
    assert site.take("p1", m.EndResults)


def test_without_a_bound_nothing_is_counted() -> None:
    site = Site(limit=0)
    site.producer("p1")
    site.feed("p1", 0, count=300)
    assert site.holds("p1") == []
    assert site.used == 0
