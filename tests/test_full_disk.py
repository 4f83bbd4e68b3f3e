"""A journal on a full disk: new work is refused, what has begun goes on, and it resumes by itself."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import disks
import pytest
import shells
from journals import PATIENCE, MakeLoop, Small, loops, record

from multihost_broker.journal.errors import StoreFullError
from multihost_broker.journal.records import Erase, Forget, Spooled
from multihost_broker.journal.sqlitestore import SqliteStore
from multihost_broker.journal.store import MemoryStore
from multihost_common.blocks import Frame


@pytest.fixture
def make_loop() -> Iterator[MakeLoop]:
    """Makes loops whose journals are closed after the test."""
    with loops() as make:
        yield make


def test_on_a_full_disk_new_work_is_refused_results_go_on_and_it_resumes(make_loop: MakeLoop) -> None:
    store = Small(room=10, reserve=5)
    loop = make_loop(store)
    accepted = [loop.append(record()) for _ in range(10)]
    loop.until_synced(accepted[-1])
    refused = [loop.append(record()) for _ in range(3)]
    loop.until(lambda: loop.refused == refused, "all three are refused")
    assert loop.journal.full
    results = [loop.append(record("result"), essential=True) for _ in range(4)]
    results.append(loop.append(Erase((accepted[0],))))
    loop.until_synced(results[-1])
    assert {number for number, _ in store.load()} == {*accepted[1:], *results[:-1]}
    store.make_room(20)
    loop.until(lambda: not loop.journal.full, "it resumes")
    assert store.held == 5
    loop.until_synced(loop.append(record()))
    assert loop.refused == refused


def test_of_one_group_only_what_is_new_is_refused(make_loop: MakeLoop) -> None:
    store = Small(room=1, reserve=5, gated=True)
    loop = make_loop(store)
    first = loop.append(record())
    assert store.busy.wait(PATIENCE)
    group = [loop.append(record(), essential=essential) for essential in (False, True, False, True)]
    store.gate.set()
    loop.until_synced(group[3])
    assert loop.refused == [group[0], group[2]]
    assert {number for number, _ in store.load()} == {first, group[1], group[3]}


def test_results_wait_when_the_reserve_is_used_up_and_deletions_do_not(make_loop: MakeLoop) -> None:
    store = Small(room=0, reserve=2)
    MemoryStore.append_batch(store, [(1, record(job=b"old"))])
    loop = make_loop(store)
    results = [loop.append(record(job=b"new"), essential=True) for _ in range(5)]
    deletion = loop.append(Forget(b"old"))
    loop.append(Erase((results[4],)))
    shells.until(lambda: 1 not in dict(store.load()), "what is deleted is gone before there is room")
    later = loop.append(record(), essential=True)
    last = loop.append(Erase((results[3],)))
    new = loop.append(record())
    loop.until(lambda: loop.refused == [new], "new work is refused meanwhile")
    assert loop.synced < deletion
    store.make_room(20)
    loop.until_synced(last)
    assert list(dict(store.load())) == [*results[:3], later]
    loop.until(lambda: not loop.journal.full, "it resumes")
    assert loop.refused == [new]


def test_what_can_wait_waits_for_room_and_a_stream_of_results_does_not_put_that_off(
    make_loop: MakeLoop,
) -> None:
    class NoRoomToTidy(MemoryStore):
        tight = True

        def compact(self) -> bool:
            if self.tight:
                raise StoreFullError("the disk is full")
            return False

        def regain_reserve(self) -> bool:
            # It is there as soon as somebody looks, but for the first time, at the start.
            self.tight = self.tight and not hasattr(self, "asked")
            self.asked = True
            return True

    loop = make_loop(NoRoomToTidy(), retry=0.5)
    loop.until(lambda: loop.journal.full, "it knows")
    deadline = time.monotonic() + 5
    while loop.journal.full:
        assert time.monotonic() < deadline
        loop.until_synced(loop.append(record(), essential=True))


def test_what_still_waits_when_the_broker_ends_is_told_as_refused(make_loop: MakeLoop) -> None:
    loop = make_loop(Small(room=0, reserve=0))
    waits = loop.append(record(), essential=True)
    loop.until(lambda: loop.journal.full, "the disk is full")
    loop.journal.close()
    loop.take()
    assert loop.refused == [waits]
    assert loop.synced == 0


def test_what_waits_is_tried_once_more_at_the_end(make_loop: MakeLoop) -> None:
    store = Small(room=0, reserve=0)
    loop = make_loop(store, retry=60)
    waits = loop.append(record(), essential=True)
    shells.until(lambda: loop.journal._waiting, "it waits")
    store.make_room(5)
    loop.journal.close()
    loop.take()
    assert (loop.synced, loop.refused) == (waits, [])


def test_a_disk_that_is_full_from_the_start_is_known(make_loop: MakeLoop) -> None:
    store = Small(room=3, reserve=5)
    store.held = 0
    loop = make_loop(store)
    refused, result = loop.append(record()), loop.append(record(), essential=True)
    loop.until_synced(result)
    assert loop.refused == [refused]
    again = make_loop(store)
    again.until(lambda: again.journal.full, "it knows at once if there is something in it")


@pytest.mark.parametrize("reserve", [0, 5])
def test_that_the_disk_is_full_or_has_room_again_is_news(make_loop: MakeLoop, reserve: int) -> None:
    store = Small(room=1, reserve=reserve)
    loop = make_loop(store)
    loop.until_synced(loop.append(record()))
    loop.append(record(), essential=True)
    # Nobody looks but because of a wake.
    while not loop.journal.full:
        assert loop.woken.acquire(timeout=PATIENCE)
        loop.take()
    store.make_room(20)
    while loop.journal.full:
        assert loop.woken.acquire(timeout=PATIENCE)
        loop.take()


def test_what_waits_for_room_is_read_when_it_has_got_it_and_other_things_at_once(
    make_loop: MakeLoop,
) -> None:
    store = Small(room=1, reserve=0)
    loop = make_loop(store)
    there = loop.append(record())
    loop.until_synced(there)
    waits = loop.append(record(), essential=True)
    loop.until(lambda: loop.journal.full, "the disk is full")
    loop.journal.read(1, (there, waits))
    loop.journal.read(2, (there,))
    loop.journal.read(3, (99,))
    assert loop.until_read(2).keys() == {there}
    assert loop.until_read(3) == {}
    assert 1 not in loop.records
    store.make_room(20)
    assert loop.until_read(1).keys() == {there, waits}


def test_a_journal_that_nobody_uses_takes_up_no_room(make_loop: MakeLoop, tmp_path: Path) -> None:
    ballast = tmp_path / "journal" / "ballast"
    loop = make_loop(SqliteStore(tmp_path / "journal", ballast=1 << 20))
    loop.journal.read(1, (1,))
    loop.until_read(1)
    assert not ballast.exists()
    loop.until_synced(loop.append(record()))
    assert ballast.stat().st_blocks * 512 >= 1 << 20


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with disks.small_disk(tmp_path / "disk", 12 << 20) as path:
        yield path


@pytest.mark.mounts
def test_a_real_disk_is_filled_goes_on_and_resumes(disk: Path, make_loop: MakeLoop) -> None:
    ballast = disk / "journal" / "ballast"
    loop = make_loop(SqliteStore(disk / "journal", ballast=2 << 20))
    accepted = [loop.append(record("new", job=b"0"))]
    loop.until_synced(accepted[0])
    assert ballast.exists()
    filler = disks.fill(disk, leave=2 << 20)
    while not loop.refused:
        assert len(accepted) < 5000
        accepted.append(loop.append(record("new", size=4000, job=b"%d" % (len(accepted) // 100))))
        loop.until(lambda: loop.synced >= accepted[-1] or accepted[-1] in loop.refused)
    assert loop.journal.full and not ballast.exists()
    results = [loop.append(record("result", size=4000), essential=True) for _ in range(100)]
    results.append(loop.append(Forget(b"0")))
    loop.until_synced(results[-1])
    again = loop.append(record("new"))
    loop.until(lambda: again in loop.refused)
    filler.unlink()
    loop.until(lambda: not loop.journal.full, "it resumes")
    assert ballast.stat().st_blocks * 512 >= 2 << 20
    last = loop.append(record("new"))
    loop.until_synced(last)
    loop.journal.close()
    with closing(SqliteStore(disk / "journal", ballast=2 << 20)) as store:
        kept = {number for number, _ in store.load()}
    assert kept == {*accepted[100:-1], *results[:-1], last}


@pytest.mark.mounts
def test_a_broker_starts_on_a_full_disk_and_finishes_what_it_has(disk: Path, make_loop: MakeLoop) -> None:
    loop = make_loop(SqliteStore(disk / "journal", ballast=1 << 20))
    loop.until_synced(loop.append(record("old", size=100_000)))
    loop.journal.close()
    filler = disks.fill(disk)
    store = SqliteStore(disk / "journal", ballast=1 << 20)
    assert [each.header for _, each in store.load()] == [b"old"]
    loop = make_loop(store)
    loop.until(lambda: loop.journal.full, "it knows")
    loop.until_synced(loop.append(record("result"), essential=True))
    loop.until_synced(loop.append(Forget(b"job")))
    filler.unlink()
    loop.until(lambda: not loop.journal.full, "it resumes")


@pytest.mark.mounts
def test_a_payload_that_a_real_disk_has_no_room_for_leaves_no_file(disk: Path, make_loop: MakeLoop) -> None:
    loop = make_loop(SqliteStore(disk / "journal", ballast=1 << 20))
    large = loop.append(record(size=40 << 20))
    loop.until(lambda: loop.refused == [large])
    loop.until_synced(loop.append(record()))
    assert list((disk / "journal" / "spool").iterdir()) == []


# -- large payloads ------------------------------------------------------------------------------------


class NoLarge(MemoryStore):
    """A disk with so little room for large payloads, and a reserve."""

    def __init__(self, room: int, reserve: int) -> None:
        super().__init__()
        self.room = room
        self.reserve = reserve

    def put_blob(self, frames: Sequence[Frame]) -> Spooled:
        if sum(map(len, frames)) > self.room:
            raise StoreFullError("the disk is full")
        return super().put_blob(frames)

    def release_reserve(self) -> None:
        self.room, self.reserve = self.room + self.reserve, 0


def test_a_payload_that_does_not_fit_is_refused_alone(make_loop: MakeLoop) -> None:
    store = NoLarge(room=7000, reserve=4000)
    loop = make_loop(store, spool_bytes=5000)
    tickets = [loop.append(record(size=size)) for size in (10, 9000, 6000, 10)]
    loop.until_synced(tickets[3])
    assert loop.refused == [tickets[1]]
    assert store.reserve == 4000
    assert not loop.journal.full


def test_the_file_of_a_record_that_is_refused_is_removed(make_loop: MakeLoop) -> None:
    store = Small(room=1, reserve=1)
    loop = make_loop(store, spool_bytes=5000)
    loop.until_synced(loop.append(record()))
    refused = [loop.append(record(size=9000)), loop.append(record(size=9000))]
    loop.until(lambda: loop.refused == refused)
    assert not store._blobs


def test_a_large_result_gets_the_reserve_and_if_that_does_not_do_is_refused_alone(
    make_loop: MakeLoop,
) -> None:
    store = NoLarge(room=7000, reserve=4000)
    loop = make_loop(store, spool_bytes=5000)
    tickets = [loop.append(record(size=size), essential=True) for size in (10, 9000, 90_000, 10)]
    loop.until_synced(tickets[3])
    assert len(store._blobs) == 1
    assert loop.refused == [tickets[2]]
