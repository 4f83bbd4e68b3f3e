"""Queues share the broker's memory: what one may have depends on what all have."""

from __future__ import annotations

from queue_site import Site

from multihost_broker.objects.room import Room
from multihost_common import messages as m

LIMIT = 1000


def queues(count: int) -> tuple[Room, list[Site]]:
    room, sites = Room(LIMIT, share=10), [Site() for _ in range(count)]
    for site in sites:
        site.queue.share(room)
    return room, sites


def fill(site: Site) -> int:
    """Put small items until one has to wait; that one."""
    for _ in range(LIMIT):
        number = site.put(1, "x" * 10)
        if site.status(number) is None:
            return number
    raise AssertionError("it never waits")


def test_a_queue_alone_has_half_of_the_room() -> None:
    room, (site,) = queues(1)
    site.put(1, "x" * 10)
    item = room.used
    fill(site)
    assert room.used == site.queue.bytes
    assert LIMIT // 2 < room.used <= LIMIT // 2 + item


def test_queues_that_are_filled_leave_room_for_the_next_one() -> None:
    room, sites = queues(20)
    for site in sites:
        fill(site)
    least = min(site.queue.bytes for site in sites)
    assert least >= 10
    assert room.used <= LIMIT + 20 * least


def test_a_queue_that_is_emptied_lets_others_go_on() -> None:
    room, (first, second) = queues(2)
    fill(first)
    waits = fill(second)
    taken = 0
    while second.status(waits) is None:
        assert first.queue.bytes, "the first is empty, and still the second waits"
        taken += len(first.items(first.get(2, 1, taken)))
        room.settle()
    assert second.status(waits) == m.GRANTED
    assert 0 < taken <= 4


def test_a_queue_that_is_no_more_takes_no_room() -> None:
    room, (first, second) = queues(2)
    fill(first)
    waits = fill(second)
    first.queue.forgotten()
    room.settle()
    assert second.status(waits) == m.GRANTED
    assert room.used == second.queue.bytes


def test_a_room_without_a_limit_is_never_full() -> None:
    site = Site()
    assert site.queue.room.limit == 0
    for _ in range(LIMIT):
        assert site.status(site.put(1, "x" * 10)) == m.GRANTED
