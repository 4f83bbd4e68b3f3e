"""What a producer keeps of its input until it has the answers."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from multihost.kept import Kept
from multihost_common.messages import Feed


def kept(*counts: int) -> Kept:
    """Feeds of so many items each, one after the other."""
    made, start = Kept(), 0
    for count in counts:
        made.keep(Feed(1, start, count))
        start += count
    return made


def starts(what: Kept) -> list[int]:
    return [feed.start for feed in what.feeds()]


def test_a_feed_goes_with_its_last_answer() -> None:
    made = kept(3, 2)
    made.answered(0, 2)
    assert starts(made) == [0, 3]
    assert list(made.known()) == [(0, 2)]
    made.answered(2, 4)
    assert starts(made) == [3]
    assert list(made.known()) == [(3, 1)]
    made.answered(3, 5)
    assert not made.feeds() and not list(made.known())


def test_an_answer_that_comes_twice_counts_once() -> None:
    made = kept(3)
    made.answered(0, 2)
    made.answered(0, 2)
    made.answered(1, 2)
    assert starts(made) == [0]
    made.answered(2, 3)
    made.answered(0, 3)
    assert not made.feeds()


@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=6),
    st.lists(st.tuples(st.integers(0, 36), st.integers(1, 8)), max_size=30),
)
def test_exactly_what_has_no_answer_would_be_run_again(
    counts: list[int], answers: list[tuple[int, int]]
) -> None:
    made, items = kept(*counts), sum(counts)
    answered: set[int] = set()
    for start, count in answers:
        stop = min(start + count, items)
        if start < stop:
            made.answered(start, stop)
            answered |= set(range(start, stop))
    known = {item for start, count in made.known() for item in range(start, start + count)}
    fed = {item for feed in made.feeds() for item in range(feed.start, feed.start + feed.count)}
    assert fed - known == set(range(items)) - answered
    assert known <= answered


def test_what_is_sent_again_is_what_was_handed_in() -> None:
    array = bytearray(b"handed in")
    made = Kept()
    made.keep(Feed(1, 0, 1, 1, [b"length", b"pickle", memoryview(array)]))
    array[:] = b"the next!"
    # Nor does it hold on to the caller's memory.
    array.append(0)
    (feed,) = made.feeds()
    assert list(map(bytes, feed.frames)) == [b"length", b"pickle", b"handed in"]


def test_what_cannot_change_is_not_copied() -> None:
    content = b"constant"
    made = Kept()
    made.keep(Feed(1, 0, 1, 1, [b"length", b"pickle", content]))
    assert made.feeds()[0].frames[2] is content
