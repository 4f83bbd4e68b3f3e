"""Results that cannot be sent: kept in memory, then on the disk, and sent in their order; and how much of that there may be."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any, TypeVar

import pytest
import shells
import tasks
from disks import fill, small_disk
from hypothesis import given, settings
from hypothesis import strategies as st

from multihost.engines.choosing import close_engines
from multihost.pool import Pool
from multihost_common import messages as m
from multihost_common.blocks import pack_lengths
from multihost_worker import backlog, spool
from multihost_worker import events as e
from multihost_worker.core import Core, CoreConfig
from multihost_worker.spool import Outflow, Spool

A = TypeVar("A")

#: Bytes of one result below.
RESULT = 10_000


class Worker:
    """An agent's core of one child, and the disk as the shell would have it."""

    def __init__(self, spool_bytes: int, jobs: int = 1) -> None:
        self.core = Core(CoreConfig(slots=1, spool_bytes=spool_bytes, heartbeat=0.0))
        self.disk: dict[int, Any] = {}
        self.wanted: list[int] = []
        #: The disk takes nothing more.
        self.disk_full = False
        self.sent: list[m.Message] = []
        self.runs: list[e.Run] = []
        self.tell(e.Connected())
        self.jobs = {number: m.OpenJob(number, 1) for number in range(1, jobs + 1)}
        self.hear(m.OpenPool(1), m.Grant(1, 1), *self.jobs.values())

    def tell(self, event: e.Event) -> None:
        events = [event]
        while events:
            for action in self.core.handle(events.pop(0), 0.0):
                if type(action) is e.Send:
                    self.sent.append(action.message)
                elif type(action) is e.StartChild:
                    events.append(e.ChildReady(action.child, 1))
                elif type(action) is e.Run:
                    self.runs.append(action)
                elif type(action) is e.Spool and self.disk_full:
                    events.append(e.NotSpooled(action.number, action.frames))
                elif type(action) is e.Spool:
                    self.disk[action.number] = action.frames
                elif type(action) is e.Unspool:
                    self.wanted.append(action.number)
                elif type(action) is e.Unlink:
                    self.disk.pop(action.number, None)

    def hear(self, *messages: m.Message) -> None:
        for message in messages:
            self.tell(e.Received(message))

    def lease(self, start: int, count: int = 1, job: int = 1) -> None:
        frames = (pack_lengths([2] * count), b"xx" * count)
        self.hear(m.Lease(job, start, count, 1, 0, start + 1, False, frames))

    def finish(self, size: int = RESULT) -> None:
        """What was given to the child first is done."""
        run = self.runs.pop(0)
        frames = (pack_lengths([size - 4]), bytes(size - 4))
        self.tell(e.ChildResult(run.child, run.job, run.start, run.count, 1_000_000, 0, frames))

    def read(self) -> None:
        """The shell reads what is wanted next."""
        number = self.wanted.pop(0)
        self.tell(e.Unspooled(number, self.disk.pop(number, None)))

    def work(self, items: int) -> None:
        """Items that are leased, one after the other, and done while there is no broker."""
        for item in range(items):
            self.lease(item)
        self.tell(e.Disconnected())
        for _ in range(items):
            self.finish()

    def results(self, job: int = 1) -> list[int]:
        return [each.start for each in self.sent if type(each) is m.Result and each.job == job]

    def held(self, job: int = 1) -> list[int]:
        return sorted(start for number, start, _, _ in self.core.books.held() if number == job)


@pytest.fixture(autouse=True)
def _little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory for two results, and for knowing of some that are on the disk."""
    monkeypatch.setattr(backlog, "MOST_KEPT", 2 * RESULT + 12 * backlog.OVERHEAD)


# -- what the core decides -----------------------------------------------------------------------------


def test_results_beyond_what_is_kept_in_memory_are_spooled_and_sent_in_their_order() -> None:
    worker = Worker(spool_bytes=100 * RESULT)
    worker.work(6)
    assert len(worker.disk) == 4
    assert not worker.results()
    assert worker.core.books.backlog.kept <= backlog.MOST_KEPT
    worker.tell(e.Connected())
    worker.hear(worker.jobs[1])
    # One at a time is read, when there is room for it on the way.
    assert worker.results() == [0, 1]
    assert len(worker.wanted) == 1
    while worker.wanted:
        worker.read()
        assert len(worker.wanted) <= 1
    assert worker.results() == [0, 1, 2, 3, 4, 5]
    assert all(sum(map(len, each.frames)) == RESULT for each in worker.sent if type(each) is m.Result)
    assert (worker.core.books.backlog.kept, worker.core.books.backlog.spooled) == (0, 0)


def test_what_is_done_while_earlier_results_are_read_comes_behind_them() -> None:
    worker = Worker(spool_bytes=100 * RESULT)
    worker.work(4)
    worker.tell(e.Connected())
    worker.hear(worker.jobs[1])
    worker.lease(4)
    worker.finish()
    assert worker.results() == [0, 1]
    assert worker.held() == [2, 3, 4]
    while worker.wanted:
        worker.read()
    assert worker.results() == [0, 1, 2, 3, 4]


def test_nothing_new_begins_once_memory_and_disk_have_all_they_may() -> None:
    worker = Worker(spool_bytes=2 * RESULT)
    for item in range(8):
        worker.lease(item)
    worker.tell(e.Disconnected())
    for _ in range(5):
        worker.finish()
    assert len(worker.disk) == 2
    assert not worker.runs, "the sixth does not begin"
    worker.tell(e.Connected())
    worker.hear(worker.jobs[1])
    while worker.wanted:
        worker.read()
    while worker.runs:
        worker.finish()
    assert worker.results() == list(range(8))


def test_a_full_disk_is_as_if_the_bound_were_reached() -> None:
    worker = Worker(spool_bytes=100 * RESULT)
    worker.disk_full = True
    for item in range(8):
        worker.lease(item)
    worker.tell(e.Disconnected())
    # One begins before it is known.
    for _ in range(4):
        worker.finish()
    assert not worker.disk
    assert not worker.runs
    worker.disk_full = False
    worker.tell(e.Connected())
    worker.hear(worker.jobs[1])
    while worker.runs:
        worker.finish()
    assert worker.results() == list(range(8))


def test_without_a_spool_nothing_is_written() -> None:
    worker = Worker(spool_bytes=0)
    worker.lease(0, 1)
    worker.lease(1, 1)
    worker.lease(2, 1)
    worker.lease(3, 1)
    worker.tell(e.Disconnected())
    for _ in range(3):
        worker.finish()
    assert not worker.disk
    assert not worker.runs


def test_a_result_that_cannot_be_read_is_not_named_any_more_so_that_its_item_runs_again() -> None:
    worker = Worker(spool_bytes=100 * RESULT)
    worker.work(4)
    worker.tell(e.Connected())
    worker.hear(worker.jobs[1])
    worker.disk.clear()
    worker.read()
    assert worker.held() == [3]
    worker.read()
    assert not worker.held()
    assert worker.results() == [0, 1]
    assert (worker.core.books.backlog.kept, worker.core.books.backlog.spooled) == (0, 0)


def test_a_job_that_is_over_leaves_nothing_on_the_disk() -> None:
    worker = Worker(spool_bytes=100 * RESULT)
    worker.work(5)
    worker.tell(e.Connected())
    worker.hear(m.CloseJob(1))
    assert not worker.disk
    assert (worker.core.books.backlog.kept, worker.core.books.backlog.spooled) == (0, 0)


def test_a_connection_that_ends_while_results_are_read_loses_none_that_was_not_sent() -> None:
    worker = Worker(spool_bytes=100 * RESULT)
    worker.work(5)
    worker.tell(e.Connected())
    worker.hear(worker.jobs[1])
    assert worker.results() == [0, 1]
    worker.tell(e.Disconnected())
    worker.read()
    assert worker.held() == [2, 3, 4]
    worker.tell(e.Connected())
    worker.hear(worker.jobs[1])
    while worker.wanted:
        worker.read()
    assert worker.results() == [0, 1, 2, 3, 4]


@given(
    st.lists(st.sampled_from(["work", "cut", "back", "read", "torn", "full", "empty", "end"]), max_size=60)
)
@settings(deadline=None)
def test_each_result_is_sent_once_in_order_or_named_or_lost_with_its_file(steps: list[str]) -> None:
    worker = Worker(spool_bytes=4 * RESULT, jobs=2)
    up, made, lost, over = True, {1: 0, 2: 0}, set(), set()
    for at, step in enumerate([*steps, "back"]):
        job = 1 + at % 2
        if step == "work" and not worker.runs and job not in over and up:
            worker.lease(made[job], job=job)
            made[job] += 1
            if worker.runs:
                worker.finish()
        elif step == "cut" and up:
            worker.tell(e.Disconnected())
            up = False
        elif step == "back" and not up:
            worker.tell(e.Connected())
            worker.hear(*(worker.jobs[each] for each in worker.jobs if each not in over))
            up = True
        elif step == "read" and worker.wanted:
            worker.read()
        elif step == "torn" and worker.disk:
            number = min(worker.disk)
            lost.add(number)
            del worker.disk[number]
        elif step in ("full", "empty"):
            worker.disk_full = step == "full"
        elif step == "end" and at % 7 == 0 and up and job not in over:
            worker.hear(m.CloseJob(job))
            over.add(job)
        log = worker.core.books.backlog
        assert log.spooled == sum(kept.size for _, kept in log._away.values()) <= 4 * RESULT
        assert log.kept >= 0
    while worker.wanted or worker.runs:
        if worker.wanted:
            worker.read()
        if worker.runs:
            worker.finish()
    for job in {1, 2} - over:
        sent = worker.results(job)
        assert sent == sorted(set(sent))
        assert not worker.held(job)
        assert made[job] - len(sent) <= len(lost)
    if not worker.core.jobs:
        assert (log.kept, log.spooled) == (0, 0)


# -- what the shell does -------------------------------------------------------------------------------


def frames(number: int, size: int = 1000) -> list[bytes]:
    return [pack_lengths([number]), bytes([number % 256]) * size, b"", b"buffer" * 10]


def files(folder: Path) -> list[str]:
    return [name for name in os.listdir(folder) if name.startswith("spool")]


def test_what_is_read_is_what_was_written_and_files_go_when_all_was_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool, "FILE_BYTES", 3000)
    disk = Spool(str(tmp_path))
    for number in range(10):
        assert disk.write(number, frames(number))
    assert 2 < len(files(tmp_path)) < 10
    for number in reversed(range(10)):
        read = disk.take(number)
        assert read is not None
        assert [bytes(each) for each in read] == frames(number)
        assert disk.take(number) is None
    assert not files(tmp_path)
    assert disk.size == 0


def test_files_go_when_nothing_in_them_is_needed(tmp_path: Path) -> None:
    disk = Spool(str(tmp_path))
    disk.write(1, frames(1))
    disk.write(2, frames(2))
    disk.drop(1)
    disk.drop(1)
    assert files(tmp_path)
    disk.drop(2)
    assert not files(tmp_path)


def test_the_bound_is_of_what_lies_on_the_disk(tmp_path: Path) -> None:
    disk = Spool(str(tmp_path), limit=5000)
    taken = [number for number in range(10) if disk.write(number, frames(number))]
    assert taken == [0, 1, 2, 3]
    disk.take(0)
    assert not disk.write(11, frames(11)), "the file is as large as before"


@pytest.mark.parametrize("damage", ["gone", "short"])
def test_a_file_that_was_damaged_is_not_read(tmp_path: Path, damage: str) -> None:
    disk = Spool(str(tmp_path))
    disk.write(1, frames(1))
    path = tmp_path / files(tmp_path)[0]
    if damage == "gone":
        path.unlink()
    else:
        os.truncate(path, 500)
    assert disk.take(1) is None
    assert disk.size == 0


@pytest.mark.mounts
def test_a_disk_that_is_full_takes_nothing_and_then_some_again(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 8 << 20) as folder:
        disk = Spool(str(folder), limit=1 << 30)
        assert disk.write(1, frames(1, 1 << 20))
        filler = fill(folder, leave=1 << 20)
        before = os.statvfs(folder).f_bavail
        assert not disk.write(2, frames(2, 3 << 20))
        assert os.statvfs(folder).f_bavail == before, "what was written of it is gone"
        filler.unlink()
        assert disk.write(3, frames(3, 3 << 20))
        for number, size in ((1, 1 << 20), (3, 3 << 20)):
            read = disk.take(number)
            assert read is not None
            assert [bytes(each) for each in read] == frames(number, size)


@pytest.mark.mounts
def test_half_of_what_is_free_is_taken_by_default(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 8 << 20) as folder:
        disk = Spool(str(folder))
        taken = [number for number in range(8) if disk.write(number, frames(number, 1 << 20))]
        assert len(taken) == 3


def test_no_more_is_read_than_leaves(tmp_path: Path) -> None:
    disk = Spool(str(tmp_path))
    for number in range(4):
        disk.write(number, [b"head", bytes([number]) * spool.WINDOW])
    flow = Outflow(disk)
    for number in range(4):
        flow.want(number)
    first = flow.next()
    assert first is not None
    assert flow.next() is None
    # As the socket does once it has passed it on; a thread of pyzmq's tells of it.
    del first
    second = shells.until(flow.next, "the first has left")
    assert second[0] == 1
    assert flow.next() is None
    flow.parted()
    assert flow.next() is not None
    shells.settle()


def test_a_worker_without_a_broker_spools_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MULTIHOST_KEYS", str(tmp_path / "keys"))
    temp, log = tmp_path / "temp", tmp_path / "log"
    temp.mkdir()

    def spooled() -> int:
        return sum(path.stat().st_size for path in temp.glob("*/spool-*"))

    size, items = 40 << 20, 6
    with shells.broker(tmp_path / "keys") as first:
        with shells.worker(first, "-c", items, "--spool-bytes", "1G", env={"TMPDIR": str(temp)}) as worker:
            with Pool(items, address=first.address) as pool:
                work = [(str(tmp_path), item, size) for item in range(items)]
                result = pool.map_async(tasks.large_after_go, work, chunksize=1)
                shells.until(lambda: log.exists() and len(log.read_text().split()) == items, "all have begun")
                first.signal(signal.SIGKILL)
                first.wait()
                (tmp_path / "go").touch()
                shells.until(lambda: spooled() >= (items - 1) * size, "what memory is not for is on the disk")
                with shells.broker(tmp_path / "keys", bind=first.address):
                    for item, value in enumerate(result.get(60)):
                        assert value == bytes([item]) * size
                    shells.until(lambda: not spooled(), "the files are gone")
                    pool.terminate()
                    pool.join()
                    close_engines()
            assert worker.process.poll() is None
        assert not list(temp.iterdir())
    shells.settle()
    assert len(log.read_text().split()) == items, "nothing has run twice"
