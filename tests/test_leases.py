"""Interval books, against the plain sets that they stand for."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from multihost_broker.answered import Answered
from multihost_broker.leases import Lease, Leases
from multihost_common.blocks import Block

RANGES = st.lists(st.tuples(st.integers(0, 40), st.integers(1, 12)), max_size=30)
BLOCK = Block(0, 100, 1, (b"", b""))


def leases() -> Leases:
    owner: Any = SimpleNamespace()
    return Leases(owner, owner)


@given(RANGES)
def test_answered_is_a_set_of_items(ranges: list[tuple[int, int]]) -> None:
    answered, items = Answered(), set()
    for start, count in ranges:
        stop = start + count
        missing = [item for low, high in answered.missing(start, stop) for item in range(low, high)]
        fresh = [item for low, high in answered.add(start, stop) for item in range(low, high)]
        assert fresh == missing == [item for item in range(start, stop) if item not in items]
        items |= set(range(start, stop))
        assert answered.total == len(items)
    assert len(answered) == sum(1 for item in items if item - 1 not in items)


def test_a_million_items_answered_in_order_are_one_interval() -> None:
    answered = Answered()
    for start in range(0, 1_000_000, 1000):
        answered.add(start, start + 1000)
    assert len(answered) == 1 and answered.total == 1_000_000


@given(RANGES, RANGES, st.booleans())
def test_leases_are_a_map_from_items_to_attempts(
    given_out: list[tuple[int, int]], taken: list[tuple[int, int]], by_attempt: bool
) -> None:
    books = leases()
    held: dict[int, int] = {}
    for number, (start, count) in enumerate(given_out, 1):
        if not any(item in held for item in range(start, start + count)):
            books.add(Lease(BLOCK.span().sub(start, start + count), number))
            held |= dict.fromkeys(range(start, start + count), number)
    for start, count in taken:
        stop = start + count
        attempt = held.get(start) if by_attempt else None
        if by_attempt and attempt is None:
            continue
        expected = {
            item: each
            for item, each in held.items()
            if start <= item < stop and (attempt is None or each == attempt)
        }
        got = {
            item: lease.attempt
            for lease in books.take(start, stop, attempt)
            for item in range(lease.span.start, lease.span.stop)
        }
        assert got == expected
        held = {item: each for item, each in held.items() if item not in got}
        assert books.items == len(held) and bool(books) == bool(held)
    assert sum(len(lease.span) for lease in books) == len(held)
    assert sum(len(lease.span) for lease in books.clear()) == len(held)
    assert not books and books.items == 0


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 40), st.integers(1, 12)), max_size=40))
def test_answers_that_were_lost_are_taken_out_again(steps: list[tuple[bool, int, int]]) -> None:
    answered, items = Answered(), set[int]()
    for add, start, count in steps:
        stop = start + count
        had = items & set(range(start, stop))
        if add:
            fresh = {item for low, high in answered.add(start, stop) for item in range(low, high)}
            assert fresh == set(range(start, stop)) - had
            items |= fresh
        else:
            out = {item for low, high in answered.discard(start, stop) for item in range(low, high)}
            assert out == had
            items -= had
        assert answered.total == len(items)
        assert {item for low, high in answered.ranges() for item in range(low, high)} == items
        assert {i for low, high in answered.missing(0, 60) for i in range(low, high)} == set(
            range(60)
        ) - items
