"""A job never stops half-way: whatever is measured, and whenever results are taken, it is fed to its end."""

from __future__ import annotations

from random import Random
from typing import Any, cast

import pytest

from multihost.engines.base import Engine
from multihost.iterators import IMapIterator, Inbox
from multihost.jobs import LEAST_SECONDS, WINDOW_BYTES, MapJob, Options, Task
from multihost.results import MapResult
from multihost.sources import Items
from multihost_common import messages as m
from multihost_common.pickling import dumps, pieces_frames


class Loop:
    """What of an engine is called here: it notes that the job is to be looked at."""

    def __init__(self, random: Random, job: MapJob, inbox: Inbox) -> None:
        self.random = random
        self.job = job
        self.inbox = inbox
        self.poked = True
        self.under_way: list[m.Feed] = []
        self.iterator = IMapIterator(None, cast(Engine, self), inbox, job)

    def poke(self, job: MapJob) -> None:
        self.poked = True

    def cancel(self, job: MapJob) -> None:
        self.poked = False

    def produce(self) -> None:
        self.poked = False
        while messages := self.job.produce():
            self.under_way += [each for each in messages if isinstance(each, m.Feed)]

    def answer(self) -> None:
        """Some worker has done a part of what it was given, and that took whatever it took."""
        feed = self.under_way.pop(self.random.randrange(len(self.under_way)))
        spent = int(feed.count * 10 ** self.random.uniform(-1, 4.5))
        size = int(10 ** self.random.uniform(0, 7.5))
        self.job.handle(result(feed, spent, size))
        self.poked = True


#: Stands for large parts of results.
ZEROS = memoryview(bytes(32 << 20))


def result(feed: m.Feed, spent: int, size: int = 0) -> m.Result:
    """Of all items of ``feed``: their numbers, in ``spent`` microseconds and with ``size`` bytes more."""
    piece = dumps(list(range(feed.start, feed.start + feed.count)), 5)
    frames = pieces_frames([piece], [ZEROS[:size]] if size else ())
    return m.Result(feed.job, feed.start, feed.count, 0, spent, m.VALUES, frames)


class Dripping(Items):
    """Its items come a few at a time, as far as it is allowed, and its end is found late."""

    def __init__(self, count: int) -> None:
        super().__init__(range(count))
        self.total = None
        self.count = count
        self.put = 0
        self.taken = 0
        self.allowed = 0

    def allow(self, taken: int) -> None:
        self.allowed = taken

    def ready(self) -> int:
        return self.put - self.taken

    def drop(self, count: int) -> None:
        self.taken += count
        super().drop(count)

    def drip(self, job: MapJob, chunksize: int) -> bool:
        """Put one more item in; False: it may not, or there is none."""
        if self.put >= self.allowed or self.total is not None:
            return False
        if self.put == self.count:
            self.total = self.count
            return True
        self.put += 1
        return job.starving and self.ready() >= chunksize


@pytest.mark.parametrize("seed", range(150))
def test_a_job_is_fed_to_its_end(seed: int) -> None:
    random = Random(seed)
    count = random.choice([1, 50, 100, 3000])
    dripping = random.random() < 0.5
    chunksize = random.choice([1, 3, 7]) if dripping else random.choice([None, None, 1, 7])
    source = Dripping(count) if dripping else Items(range(count))
    inbox = Inbox(ordered=random.random() < 0.5)
    job = MapJob(1, Task(b"", b"f" * 32), Options(), source, inbox, chunksize)
    job.id, job.capacity = 1, random.choice([1, 2, 5])
    loop = Loop(random, job, inbox)
    taken: list[Any] = []
    while len(taken) < count:
        if loop.poked:
            loop.produce()
        possible = [name for name, can in _possible(loop, source) if can]
        assert possible, f"it stopped after {job.fed} of {count} items were fed, {len(taken)} taken"
        step = random.choice(possible)
        if step == "answer":
            loop.answer()
        elif step == "take":
            taken.append(loop.iterator.next())
        elif isinstance(source, Dripping):
            loop.poked = source.drip(job, chunksize or 1) or loop.poked
    assert sorted(taken) == list(range(count))


def feeds(job: MapJob) -> list[m.Feed]:
    """What it sends now."""
    found: list[m.Feed] = []
    while messages := job.produce():
        found += [each for each in messages if isinstance(each, m.Feed)]
    return found


def test_large_results_are_not_asked_for_faster_than_they_come() -> None:
    taken = MapResult(None, cast(Engine, None), 100)
    job = MapJob(1, Task(b"", b"f" * 32), Options(), Items(range(100)), taken, 1)
    job.id, job.capacity = 1, 2
    fed, size = 0, 16 << 20
    for done in range(60):
        fed += sum(each.count for each in feeds(job))
        if done > 10:
            assert 0 < fed - done <= WINDOW_BYTES // size
        job.handle(result(m.Feed(1, done, 1, 1), 20_000, size))


def test_chunks_are_not_too_small_to_be_worth_a_message() -> None:
    inbox = Inbox(ordered=False)
    job = MapJob(1, Task(b"", b"f" * 32), Options(), Items(range(1_000_000)), inbox)
    job.id, job.capacity = 1, 2
    sizes: list[int] = []
    under_way = feeds(job)
    while under_way:
        done = under_way.pop(0)
        sizes += [done.chunksize] * (done.count // done.chunksize)
        # 0.1 us an item.
        job.handle(result(done, max(1, done.count // 10)))
        under_way += feeds(job)
    # But for the first ones, when nothing had been measured, and what was left at the end.
    assert min(sizes[10:]) >= LEAST_SECONDS / 1e-7 / 4
    assert len(sizes) < 100


@pytest.mark.parametrize(("children", "items"), [(8, 2000), (64, 5000), (64, 1000)])
def test_short_items_first_do_not_make_large_chunks_of_long_ones(children: int, items: int) -> None:
    job = MapJob(1, Task(b"", b"f" * 32), Options(), Items(range(items)), Inbox(ordered=False))
    job.id, job.capacity = 1, children
    under_way = feeds(job)
    largest = 0
    while under_way:
        done = under_way.pop(0)
        left = items - done.start
        largest = max(largest, done.chunksize * children - left)
        job.handle(result(done, done.count))
        under_way += feeds(job)
    # Whatever the items then take, nobody has more than a fair share of them in one piece.
    assert largest <= children


def _possible(loop: Loop, source: Items) -> list[tuple[str, bool]]:
    drips = isinstance(source, Dripping) and source.total is None and source.put < source.allowed
    return [("answer", bool(loop.under_way)), ("take", bool(loop.inbox.ready)), ("drip", drips)]
