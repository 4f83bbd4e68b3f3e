"""The machine of a queue, asked by processes that are numbers: who gets what, who waits, what becomes of the dead."""

from __future__ import annotations

import pytest
from queue_site import Site, unpacked

from multihost_broker.objects import queue as queues
from multihost_broker.objects.machine import Request
from multihost_common import messages as m
from multihost_common.blocks import pack_lengths
from multihost_common.shared import Queues

ALL = (1 << Queues.WINDOW_BITS) - 1


@pytest.fixture
def site() -> Site:
    return Site()


# -- putting and getting -----------------------------------------------------------------------------


def test_items_come_in_the_order_in_which_they_were_put(site: Site) -> None:
    site.put(1, "a")
    site.put(1, "b", "c")
    assert [site.items(site.get(2, taken=n)) for n in range(3)] == [["a"], ["b"], ["c"]]


def test_who_asks_first_gets_the_first_item(site: Site) -> None:
    gets = [site.get(party) for party in (2, 3, 4)]
    site.put(1, "a")
    site.put(1, "b", "c")
    assert [site.items(number) for number in gets] == [["a"], ["b"], ["c"]]


def test_the_only_consumer_gets_several_items_at_once_as_many_as_it_asks_for(site: Site) -> None:
    for item in "abcdef":
        site.put(1, item)
    first = site.get(2, window=4)
    assert site.items(first) == ["a", "b", "c", "d"]
    assert site.answers[first].amount == 0
    second = site.get(2, window=4, taken=4)
    assert site.items(second) == ["e", "f"]
    assert site.answers[second].amount == 4


def test_a_run_of_items_is_passed_on_as_it_came(site: Site) -> None:
    site.put(1, "a", "b", "c")
    frames = site.answers[site.get(2, window=10)].frames
    assert [bytes(each) for each in frames] == [pack_lengths([1, 1, 1]), b"abc"]


def test_several_consumers_get_small_shares(site: Site) -> None:
    site.get(2, now=True)
    site.get(3, now=True)
    site.put(1, *map(str, range(40)))
    assert len(site.items(site.get(2, window=100))) == 10
    assert len(site.items(site.get(3, window=2))) == 2
    assert len(site.items(site.get(3, window=100))) == 7


def test_what_one_gets_at_once_is_bounded_by_bytes(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queues, "BATCH", 100)
    site.put(1, *("x" * 40 for _ in range(5)))
    site.put(1, "y" * 500, "z")
    assert len(site.items(site.get(2, window=50))) == 2
    assert len(site.items(site.get(2, window=50, taken=2))) == 2
    assert len(site.items(site.get(2, window=50, taken=4))) == 1
    assert [len(each) for each in site.items(site.get(2, window=50, taken=5))] == [500]
    assert site.items(site.get(2, window=50, taken=6)) == ["z"]


def test_an_item_with_buffers_travels_alone(site: Site) -> None:
    site.put(1, "a")
    site.put(1, "b", buffers=[b"0123"])
    site.put(1, "c")
    gets = [site.answers[site.get(2, window=10, taken=n)] for n in range(3)]
    assert [unpacked(each) for each in gets] == [["a"], ["b"], ["c"]]
    assert [list(each.frames[2:]) for each in gets] == [[], [b"0123"], []]


def test_an_empty_queue_is_busy_for_who_does_not_wait(site: Site) -> None:
    assert site.status(site.get(2, now=True)) == m.BUSY
    waits = site.get(2)
    site.withdraw(waits)
    site.put(1, "a")
    assert site.status(waits) == m.WITHDRAWN
    assert site.items(site.get(3)) == ["a"]


@pytest.mark.parametrize(
    "frames",
    [[], [b""], [b"", b""], [b"\1\0\0", b"a"], [b"\2\0\0\0", b"a"], [b"\1\0\0\0\1\0\0\0", b"ab", b"buffer"]],
)
def test_what_is_no_item_is_refused(site: Site, frames: list[bytes]) -> None:
    assert site.status(site.ask(1, Queues.PUT, frames=frames)) == m.FORBIDDEN
    assert site.size() == 0


def test_what_a_queue_does_not_know_is_refused(site: Site) -> None:
    assert site.status(site.ask(1, 99)) == m.FORBIDDEN
    assert site.status(site.ask(1, Queues.LISTEN)) == m.FORBIDDEN
    act = m.Act(0, b"", Queues.GET)
    refused: list[m.Acted] = []
    site.queue.act(Request(1, act, lambda request, acted: refused.append(acted)))
    assert refused[0].status == m.FORBIDDEN


# -- bounds ------------------------------------------------------------------------------------------


def test_a_full_queue_has_who_puts_wait_until_an_item_is_got() -> None:
    site = Site(maxsize=2)
    puts = [site.put(1, item) for item in "abcd"]
    assert [site.status(each) for each in puts] == [m.GRANTED, m.GRANTED, None, None]
    assert site.status(site.put(1, "e", now=True)) == m.BUSY
    assert site.items(site.get(2)) == ["a"]
    assert [site.status(each) for each in puts] == [m.GRANTED, m.GRANTED, m.GRANTED, None]
    assert site.size() == 2


def test_what_a_consumer_has_early_fills_a_bounded_queue_until_it_is_taken() -> None:
    site = Site(maxsize=3)
    for item in "abc":
        site.put(1, item)
    assert site.items(site.get(2, window=3)) == ["a", "b", "c"]
    assert site.size() == 2, "one has its user, who waited for it"
    assert site.status(site.put(1, "d")) == m.GRANTED
    waits = site.put(1, "e")
    assert site.status(waits) is None
    site.ask(2, Queues.TAKEN, 2)
    assert site.status(waits) == m.GRANTED


def test_of_several_items_those_go_in_that_there_is_room_for() -> None:
    site = Site(maxsize=2)
    first, second = site.put(1, "a", "b", "c"), site.put(1, "d")
    assert site.size() == 2
    assert site.status(site.put(1, "e", now=True)) == m.BUSY
    assert site.items(site.get(2)) == ["a"]
    assert site.status(first) == m.GRANTED
    assert site.status(second) is None
    assert [site.items(site.get(2, taken=n)) for n in (1, 2, 3)] == [["b"], ["c"], ["d"]]


def test_a_producer_that_dies_takes_along_what_there_was_no_room_for() -> None:
    site = Site(maxsize=2)
    site.put(1, "a", "b", "c")
    late = site.put(3, "d")
    site.depart(1)
    assert [site.items(site.get(2, taken=n)) for n in range(3)] == [["a"], ["b"], ["d"]]
    assert site.status(late) == m.GRANTED


def test_producers_are_told_their_share_of_the_room() -> None:
    site = Site(maxsize=10)
    assert site.answers[site.put(1, "a")].amount == 9 * Queues.ROOM
    assert site.answers[site.put(3, "b")].amount == 4 * Queues.ROOM
    site.depart(1)
    assert site.answers[site.put(3, "c")].amount == 7 * Queues.ROOM
    assert Site().maxsize_told() == 0


def test_who_puts_waits_while_memory_is_full(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queues, "ROOM", 1000)
    puts = [site.put(1, "x" * 600) for _ in range(3)]
    assert [site.status(each) for each in puts] == [m.GRANTED, m.GRANTED, None]
    before = site.queue.size()
    assert before >= 1200
    site.get(2)
    site.get(2, taken=1)
    assert site.status(puts[2]) == m.GRANTED
    site.get(2, taken=2)
    site.ask(2, Queues.TAKEN, 3)
    assert site.queue.size() == 0


# -- giving back -------------------------------------------------------------------------------------


def test_what_a_dead_consumer_has_not_taken_is_in_front_again(site: Site) -> None:
    site.put(1, *"abcdef")
    assert len(site.items(site.get(2, window=4))) == 4
    site.ask(2, Queues.TAKEN, 2)
    site.depart(2)
    assert site.items(site.get(3, window=10)) == ["c", "d", "e", "f"]


def test_one_killed_inside_get_blocks_nobody(site: Site) -> None:
    site.get(2)
    other = site.get(3)
    site.depart(2)
    site.put(1, "a")
    assert site.items(other) == ["a"]


def test_what_several_dead_consumers_had_is_in_its_old_order(site: Site) -> None:
    site.get(2, now=True)
    site.get(3, now=True)
    site.put(1, *map(str, range(16)))
    assert site.items(site.get(2, window=4)) == ["0", "1", "2", "3"]
    assert site.items(site.get(3, window=4)) == ["4", "5", "6"]
    site.depart(2)
    site.depart(3)
    assert site.items(site.get(4, window=100)) == list(map(str, range(16)))


def test_what_one_has_early_is_recalled_when_another_one_waits(site: Site) -> None:
    site.put(1, *"abcd")
    site.get(2, window=10)
    listens = site.ask(2, Queues.LISTEN)
    assert site.status(listens) is None
    waits = site.get(3)
    assert site.status(listens) == m.GRANTED
    site.give_back(2, 2, 2)
    assert site.items(waits) == ["c"]
    assert site.size(2, taken=2) == 1


def test_who_listens_late_is_told_at_once_that_another_one_waits(site: Site) -> None:
    site.put(1, *"abcd")
    site.get(2, window=10)
    site.get(3)
    assert site.status(site.ask(2, Queues.LISTEN)) == m.GRANTED


def test_nothing_is_recalled_from_who_has_nothing_to_spare(site: Site) -> None:
    site.put(1, "a")
    site.get(2)
    listens = site.ask(2, Queues.LISTEN)
    site.get(3)
    assert site.status(listens) is None


def test_only_what_is_early_is_given_back(site: Site) -> None:
    site.put(1, *"abcd")
    site.get(2, window=4)
    site.give_back(2, 3, 500)
    site.give_back(2, 100, 5)
    site.give_back(7, 0, 5)
    assert site.size() == 3
    assert site.items(site.get(3, window=9)) == ["d"]


def test_items_in_the_middle_are_given_back_though_others_came_since(site: Site) -> None:
    site.put(1, *"abcdef")
    site.get(2, window=3)
    assert site.items(site.get(2, window=2, taken=1)) == ["d", "e"]
    site.give_back(2, 1, 2)
    assert site.items(site.get(3, window=1)) == ["b"]
    assert site.items(site.get(3, window=1, taken=1)) == ["c"]
    site.ask(2, Queues.TAKEN, 5)
    site.depart(2)
    assert site.items(site.get(3, taken=2)) == ["f"]


# -- tasks, and the end ------------------------------------------------------------------------------


def test_join_waits_until_every_item_is_done_with(site: Site) -> None:
    assert site.status(site.ask(1, Queues.JOIN)) == m.GRANTED
    site.put(1, "a", "b")
    joins = site.ask(1, Queues.JOIN)
    site.get(2, window=2)
    site.ask(2, Queues.TASK_DONE)
    assert site.status(joins) is None
    site.ask(2, Queues.TASK_DONE)
    assert site.status(joins) == m.GRANTED
    late = site.answers[site.ask(2, Queues.TASK_DONE)]
    assert (late.status, late.text) == (m.FORBIDDEN, "task_done() called too many times")


def test_a_queue_that_is_shut_gives_what_it_has_and_then_ends_for_everybody(site: Site) -> None:
    site.put(1, "a", "b")
    site.ask(1, Queues.SHUTDOWN)
    assert site.answers[site.put(1, "c")].amount == Queues.SHUT
    assert site.items(site.get(2)) == ["a"]
    assert site.items(site.get(3)) == ["b"]
    assert site.items(site.get(3, taken=1)) == []
    assert site.items(site.get(2, taken=1, now=True)) == []


def test_who_waits_is_told_of_the_shutdown() -> None:
    site = Site(maxsize=1)
    site.put(1, "a")
    puts = site.put(1, "b")
    site.ask(1, Queues.SHUTDOWN)
    assert site.answers[puts].amount == Queues.SHUT
    assert site.items(site.get(2)) == ["a"]
    other = Site()
    gets = [other.get(party) for party in (2, 3)]
    other.ask(1, Queues.SHUTDOWN)
    assert [other.items(each) for each in gets] == [[], []]


def test_who_waits_for_what_another_one_has_early_is_not_told_too_soon(site: Site) -> None:
    site.put(1, "a", "b")
    site.get(2, window=2)
    site.ask(1, Queues.SHUTDOWN)
    waits = site.get(3)
    assert site.status(waits) is None
    site.depart(2)
    assert site.items(waits) == ["a"]
    again = site.get(3, window=5, taken=1)
    assert site.items(again) == ["b"]


def test_an_immediate_shutdown_drops_what_is_there_also_what_is_early(site: Site) -> None:
    site.put(1, *"abcd")
    site.get(2, window=3)
    listens = site.ask(2, Queues.LISTEN)
    joins = site.ask(1, Queues.JOIN)
    site.ask(1, Queues.SHUTDOWN, 1)
    assert site.status(listens) == m.GRANTED
    site.give_back(2, 1, 2)
    assert site.size() == 0
    assert site.items(site.get(2, taken=1)) == []
    assert site.status(joins) is None, "the first one was got"
    site.ask(2, Queues.TASK_DONE)
    assert site.status(joins) == m.GRANTED
    assert site.queue.size() == 0


def test_an_item_that_is_done_with_does_not_come_to_another_process() -> None:
    site = Site()
    site.put(1, "a")
    site.ask(2, Queues.GET, 1)
    site.ask(2, Queues.TASK_DONE, 1)
    site.queue.depart(2)
    assert site.queue.items() == 0
    assert site.queue.unfinished == 0
