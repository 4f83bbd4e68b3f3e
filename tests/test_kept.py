"""What a producer keeps until it has its answer, and states anew to another broker."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from hypothesis import given
from hypothesis import strategies as st
from simulation.producers import Engine

from multihost.engines.base import PoolSpec
from multihost.jobs import Options, Task
from multihost.kept import Kept
from multihost.streams import StreamJob
from multihost_common.blobs import digest_of
from multihost_common.blocks import pack_lengths
from multihost_common.messages import Cancel, EndJob, Feed, Message, OpenJob, OpenPool, Restated, Result

M = TypeVar("M", bound=Message)


class Ignored:
    """A call whose result nobody looks at."""

    def claim(self, item: int) -> bool:
        return True

    def take(self, value: Any) -> None:
        return None


def started(engine: Engine, calls: int) -> StreamJob:
    """A job of a new pool, with so many calls on their way."""
    pool = engine.open_pool(PoolSpec())
    job = StreamJob(pool, Task(b"function", digest_of(b"function")), Options())
    engine.start(job)
    for _ in range(calls):
        job.submit(b"N.", (), Ignored())
    engine.poke(job)
    engine.turn()
    return job


def of_kind(kind: type[M], said: list[Message]) -> list[M]:
    return [each for each in said if type(each) is kind]


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


def test_a_job_that_cannot_be_stated_anew_does_not_keep_the_others_from_it() -> None:
    said: list[Message] = []
    engine = Engine(said.append)
    engine.welcome(2)
    bad, good = started(engine, 1), started(engine, 1)
    said.clear()

    def say(message: Message) -> None:
        said.append(message)
        if type(message) is Feed and message.job == bad.id:
            # As the remote engine does with what is too large for the broker.
            engine._abort([bad], ValueError("too large"))

    engine._say = say
    engine.restate(2)
    assert [each.job for each in of_kind(Feed, said)] == [bad.id, good.id]
    assert type(said[-1]) is Restated


def test_a_pool_is_opened_once_while_all_are_stated_anew() -> None:
    said: list[Message] = []
    engine = Engine(said.append)
    asked: list[Callable[[], None]] = []
    engine._do = asked.append  # type: ignore[method-assign,assignment]
    engine.open_pool(PoolSpec())
    engine.restate(2)
    assert not of_kind(OpenPool, said)
    asked[0]()
    assert len(of_kind(OpenPool, said)) == 1


def test_cancelled_calls_are_forgotten_once_they_are_answered() -> None:
    said: list[Message] = []
    engine = Engine(said.append)
    engine.welcome(2)
    job = started(engine, 0)
    for item in range(1000):
        job.submit(b"N.", (), Ignored())
        engine.poke(job)
        engine.turn()
        engine.cancel(job, item, 1)
        if item != 7:
            engine.take(Result(job.id, item, 1, 1, 10, 0, [pack_lengths([4]), b"]Na."]))
    said.clear()
    engine.restate(2)
    assert len(of_kind(OpenJob, said)) == 1
    assert Cancel(job.id, 7, 1, False) in of_kind(Cancel, said)
    assert len(of_kind(Cancel, said)) < 600
    assert len(engine._cancelled[job.id]) < 600


def test_the_end_of_a_stream_is_told_though_who_leads_has_just_got_all_it_waited_for() -> None:
    said: list[Message] = []
    engine = Engine(said.append)
    engine.welcome(2)
    job = started(engine, 1)
    engine.take(Result(job.id, 0, 1, 1, 10, 0, [pack_lengths([4]), b"]Na."]))
    engine.turn()
    # One thread closes the pool, another one leaves the lead.
    job.close()
    engine.poke(job)
    assert engine._pending(done=True)
    engine.turn()
    assert of_kind(EndJob, said)
    assert not engine._pending(done=True)
