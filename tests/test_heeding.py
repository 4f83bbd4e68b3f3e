"""A producer that is told to wait, ``Hold``, feeds nothing new; then first what there was no room for."""

from __future__ import annotations

from typing import TypeVar

import pytest
from simulation.producers import Engine

from multihost.engines.base import PoolSpec
from multihost.iterators import Inbox
from multihost.jobs import BaseJob, MapJob, Options, Task
from multihost.sources import Items
from multihost.streams import StreamJob
from multihost_common import messages as m
from multihost_common.blobs import digest_of
from multihost_common.blocks import pack_lengths
from multihost_common.tables import pack_rows

M = TypeVar("M", bound=m.Message)


class Ignored:
    """A call whose result nobody looks at."""

    def claim(self, item: int) -> bool:
        return True

    def take(self, value: object) -> None:
        return None


class Desk:
    """An engine, and what it has said."""

    def __init__(self) -> None:
        self.said: list[m.Message] = []
        self.engine = Engine(self.said.append)
        self.engine.welcome(4)
        self.pool = self.engine.open_pool(PoolSpec())
        self.task = Task(b"function", digest_of(b"function"))

    def stream(self) -> StreamJob:
        job = StreamJob(self.pool, self.task, Options())
        self.engine.start(job)
        return job

    def map(self, items: int, chunksize: int = 1) -> MapJob:
        job = MapJob(self.pool, self.task, Options(), Items(range(items)), Inbox(ordered=True), chunksize)
        self.engine.start(job)
        self.engine.turn()
        return job

    def call(self, job: StreamJob) -> None:
        job.submit(b"N.", (), Ignored())
        self.engine.poke(job)
        self.engine.turn()

    def hold(self, held: bool, *rows: tuple[int, int]) -> None:
        self.engine.take(m.Hold(held, (pack_rows(rows),) if rows else ()))
        self.engine.turn()

    def answer(self, job: BaseJob, start: int) -> None:
        self.engine.take(m.Result(job.id, start, 1, 1, 10, 0, [pack_lengths([4]), b"]Na."]))
        self.engine.turn()

    def take(self, kind: type[M]) -> list[M]:
        found = [each for each in self.said if type(each) is kind]
        self.said[:] = [each for each in self.said if type(each) is not kind]
        return found


@pytest.fixture
def desk() -> Desk:
    return Desk()


def test_calls_wait_until_there_is_room(desk: Desk) -> None:
    job = desk.stream()
    desk.call(job)
    assert len(desk.take(m.Feed)) == 1
    desk.hold(True)
    desk.call(job)
    desk.call(job)
    assert not desk.take(m.Feed)
    desk.hold(False)
    assert sum(each.count for each in desk.take(m.Feed)) == 2


def test_a_map_waits_and_goes_on_though_nobody_takes_results_out(desk: Desk) -> None:
    job = desk.map(1000)
    fed = sum(each.count for each in desk.take(m.Feed))
    assert 0 < fed < 1000
    desk.hold(True)
    for item in range(fed):
        desk.answer(job, item)
    assert not desk.take(m.Feed)
    desk.hold(False)
    assert desk.take(m.Feed)[0].start == fed


def test_a_job_that_is_begun_meanwhile_waits_too(desk: Desk) -> None:
    desk.hold(True)
    job = desk.map(10)
    assert desk.take(m.OpenJob)
    assert not desk.take(m.Feed)
    desk.hold(False)
    assert desk.take(m.Feed)
    assert not job.held


def test_the_end_of_an_input_is_told_all_the_same(desk: Desk) -> None:
    job = desk.stream()
    desk.call(job)
    desk.hold(True)
    job.close()
    desk.engine.poke(job)
    desk.engine.turn()
    assert [each.count for each in desk.take(m.EndJob)] == [1]


def test_what_was_dropped_is_fed_again_and_then_what_is_new(desk: Desk) -> None:
    job = desk.stream()
    for _ in range(4):
        desk.call(job)
    desk.answer(job, 0)
    desk.hold(True)
    desk.call(job)
    desk.said.clear()
    desk.hold(False, (job.id, 2))
    (opened,) = desk.take(m.OpenJob)
    assert opened.resumed
    assert [(each.start, each.count) for each in desk.take(m.Feed)] == [(2, 1), (3, 1), (4, 1)]


def test_an_end_that_was_dropped_with_the_input_is_told_again(desk: Desk) -> None:
    job = desk.map(4)
    desk.engine.turn()
    assert desk.take(m.EndJob)
    desk.hold(True)
    desk.said.clear()
    desk.hold(False, (job.id, 0))
    kinds = [type(each) for each in desk.said]
    assert kinds[0] is m.OpenJob
    assert kinds[-1] is m.EndJob
    assert sum(each.count for each in desk.take(m.Feed)) == 4


def test_what_is_not_wanted_any_more_is_said_again_behind_the_input(desk: Desk) -> None:
    job = desk.stream()
    for _ in range(3):
        desk.call(job)
    desk.engine.cancel(job, 2, 1)
    desk.hold(True)
    desk.said.clear()
    desk.hold(False, (job.id, 1))
    assert type(desk.said[-1]) is m.Cancel
    assert [each.start for each in desk.take(m.Feed)] == [1, 2]


def test_of_a_job_that_is_over_nothing_is_said(desk: Desk) -> None:
    job = desk.stream()
    desk.call(job)
    desk.hold(True)
    desk.engine.cancel(job)
    desk.said.clear()
    desk.hold(False, (job.id, 0), (99, 5))
    assert not desk.said


def test_another_broker_is_fed_until_it_says_otherwise(desk: Desk) -> None:
    job = desk.stream()
    desk.hold(True)
    desk.call(job)
    assert not desk.take(m.Feed)
    desk.engine.restate(4)
    desk.engine.turn()
    assert len(desk.take(m.Feed)) == 1


def test_a_table_that_is_none_is_passed_over(desk: Desk) -> None:
    job = desk.stream()
    desk.hold(True)
    desk.call(job)
    desk.engine.take(m.Hold(False, (b"seven b",)))
    desk.engine.turn()
    assert len(desk.take(m.Feed)) == 1
