"""The journal: what it says is durable is, whatever becomes of the disk or the broker; it never hangs."""

from __future__ import annotations

import random
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from functools import partial
from itertools import chain
from pathlib import Path

import appender
import pytest
import shells
from journals import PATIENCE, Gated, Loop, MakeLoop, loops, record

from multihost_broker.journal.errors import StoreError
from multihost_broker.journal.records import Change, Erase, Forget, Record, Spooled
from multihost_broker.journal.sqlitestore import SqliteStore
from multihost_broker.journal.store import MemoryStore
from multihost_broker.journal.thread import BATCH
from multihost_common.errors import EX_IOERR


@pytest.fixture
def make_loop() -> Iterator[MakeLoop]:
    """Makes loops whose journals are closed after the test."""
    with loops() as make:
        yield make


def _told(loop: Loop, ticket: int) -> bool:
    return loop.journal._news.synced == ticket


# -- groups --------------------------------------------------------------------------------------------


def test_a_record_alone_is_committed_at_once_and_is_there(make_loop: MakeLoop) -> None:
    store = MemoryStore()
    loop = make_loop(store)
    assert loop.append(record("only")) == 1
    loop.until_synced(1)
    assert [each.header for _, each in store.load()] == [b"only"]


def test_what_comes_during_a_commit_makes_the_next_groups(make_loop: MakeLoop) -> None:
    store = Gated()
    loop = make_loop(store)
    loop.append(record())
    assert store.busy.wait(PATIENCE)
    tickets = [loop.append(record()) for _ in range(2 * BATCH + 10)]
    loop.take()
    assert loop.synced == 0
    store.gate.set()
    loop.until_synced(tickets[-1])
    assert store.groups[0] == [1]
    assert [*chain(*store.groups)] == [1, *tickets]
    # Full ones, but where 2 ms were not enough to gather one on this machine.
    assert max(map(len, store.groups)) <= BATCH
    assert len(store.groups) < 20


def test_large_records_do_not_make_a_group_that_others_wait_for(make_loop: MakeLoop) -> None:
    store = Gated()
    loop = make_loop(store, spool_bytes=1 << 40)
    loop.append(record())
    assert store.busy.wait(PATIENCE)
    for _ in range(10):
        last = loop.append(record(size=3 << 20))
    store.gate.set()
    loop.until_synced(last)
    assert max(map(len, store.groups)) <= 3


def test_the_loop_is_woken_once_for_all_the_news_it_has_not_taken(make_loop: MakeLoop) -> None:
    loop = make_loop(MemoryStore())
    for _ in range(5):
        ticket = loop.append(record())
        shells.until(partial(_told, loop, ticket), "it is told")
    assert loop.wakes == 1
    loop.take()
    assert loop.synced == 5
    loop.until_synced(loop.append(record()))
    assert loop.wakes == 2


def test_tickets_go_on_where_the_store_ended(make_loop: MakeLoop) -> None:
    store = MemoryStore()
    store.append_batch([(41, record())])
    loop = make_loop(store)
    assert loop.append(record()) == 42
    loop.until_synced(42)


# -- a bounded queue -----------------------------------------------------------------------------------


def test_new_work_is_refused_while_too_much_waits_for_the_disk_but_results_are_not(
    make_loop: MakeLoop,
) -> None:
    store = Gated()
    loop = make_loop(store, queue_bytes=10_000)
    fits = [loop.append(record(size=4000)) for _ in range(2)]
    too_much = [loop.append(record(size=4000)) for _ in range(3)]
    result, deletion = loop.append(record(size=4000), essential=True), loop.append(Forget(b"none"))
    assert loop.journal.room < 0
    loop.take()
    assert loop.refused == too_much
    store.gate.set()
    loop.until_synced(deletion)
    assert [*chain(*store.groups)] == [*fits, result, deletion]
    assert loop.journal.room == 10_000
    loop.until_synced(loop.append(record(size=4000)))
    assert loop.refused == too_much


def test_what_is_larger_than_the_queue_gets_its_turn(make_loop: MakeLoop) -> None:
    loop = make_loop(MemoryStore(), queue_bytes=100)
    loop.until_synced(loop.append(record(size=5000)))
    assert not loop.refused


# -- large payloads ------------------------------------------------------------------------------------


def test_large_payloads_go_into_files(make_loop: MakeLoop, tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "journal", ballast=0)
    loop = make_loop(store, spool_bytes=5000)
    small, large = loop.append(record(size=100)), loop.append(Record(2, b"job", b"h", (b"a" * 9000, b"b")))
    again = loop.append(Record(3, b"job", b"h", Spooled("elsewhere", (9000,), b"")))
    loop.until_synced(again)
    loop.journal.close()
    with closing(SqliteStore(tmp_path / "journal", ballast=0)) as store:
        found = dict(store.load())
        assert found[small].payload == (b"x" * 100,)
        assert isinstance(found[large].payload, Spooled)
        assert found[again].payload == Spooled("elsewhere", (9000,), b"")
        frames = store.get((large,))[large].payload
        assert isinstance(frames, tuple)
        assert [bytes(each) for each in frames] == [b"a" * 9000, b"b"]


# -- reading -------------------------------------------------------------------------------------------


def test_what_was_appended_before_can_be_read(make_loop: MakeLoop, tmp_path: Path) -> None:
    loop = make_loop(SqliteStore(tmp_path / "journal", ballast=0), spool_bytes=5000)
    wanted = {loop.append(each): each for each in (record("small"), record("large", size=9000))}
    loop.journal.read(7, (*wanted, 99))
    # In its turn, though nothing else tells that it came.
    assert loop.until_read(7) == wanted
    assert loop.synced == 2
    loop.until_synced(loop.append(Erase((1,))))
    loop.journal.read(8, (1, 2))
    assert loop.until_read(8).keys() == {2}
    loop.journal.read(9, ())
    assert loop.until_read(9) == {}


def test_to_read_what_is_durable_does_not_wait_for_what_is_queued(make_loop: MakeLoop) -> None:
    class OneByOne(Gated):
        """Each group waits to be let."""

        def append_batch(self, changes: Sequence[tuple[int, Change]]) -> None:
            super().append_batch(changes)
            self.gate.clear()

    store = OneByOne()
    loop = make_loop(store)
    store.gate.set()
    first = loop.append(record("first"))
    loop.until_synced(first)
    last = [loop.append(record()) for _ in range(4 * BATCH)][-1]
    loop.journal.read(1, (first,))
    loop.journal.read(2, (first, last))
    # The one that is under way, no other one.
    store.gate.set()
    assert loop.until_read(1).keys() == {first}
    assert loop.synced < last
    assert 2 not in loop.records
    while loop.synced < last:
        store.gate.set()
        loop.take()
    assert loop.until_read(2).keys() == {first, last}


def test_what_was_refused_is_left_out(make_loop: MakeLoop) -> None:
    store = Gated()
    loop = make_loop(store, queue_bytes=10_000)
    fits = [loop.append(record(size=4000)) for _ in range(2)]
    refused = loop.append(record(size=4000))
    loop.journal.read(1, (*fits, refused))
    store.gate.set()
    assert loop.until_read(1).keys() == set(fits)
    assert loop.refused == [refused]


def test_a_store_that_cannot_be_read_is_final(make_loop: MakeLoop) -> None:
    class Unreadable(MemoryStore):
        def get(self, numbers: Sequence[int]) -> dict[int, Record]:
            raise StoreError("disk I/O error")

    loop = make_loop(Unreadable())
    loop.journal.read(1, (1,))
    loop.journal._thread.join(PATIENCE)
    for ask in (loop.take, lambda: loop.journal.read(2, (1,)), lambda: loop.append(record())):
        with pytest.raises(StoreError):
            ask()


# -- what is final -------------------------------------------------------------------------------------


class Broken(MemoryStore):
    """A disk that fails once: a second try would succeed, and be a lie."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error: BaseException | None = error
        self.calls: list[str] = []

    def append_batch(self, changes: Sequence[tuple[int, Change]]) -> None:
        self.calls.append("append_batch")
        error, self.error = self.error, None
        if error is not None:
            raise error
        super().append_batch(changes)

    def close(self) -> None:
        self.calls.append("close")

    def abandon(self) -> None:
        self.calls.append("abandon")


@pytest.mark.parametrize("error", [StoreError("disk I/O error"), MemoryError(), ZeroDivisionError()])
def test_after_an_error_nothing_is_tried_again_and_everybody_is_told(
    make_loop: MakeLoop, error: BaseException
) -> None:
    store = Broken(error)
    loop = make_loop(store)
    loop.append(record())
    assert loop.woken.acquire(timeout=PATIENCE)
    loop.journal._thread.join(PATIENCE)
    for ask in (loop.journal.take_synced, lambda: loop.append(record()), loop.journal.close):
        with pytest.raises(StoreError) as caught:
            ask()
        assert caught.value.exit_code == EX_IOERR
    assert store.calls == ["append_batch", "abandon"]
    assert store.last == 0


def test_an_io_error_ends_the_broker_and_leaves_what_was_confirmed(tmp_path: Path) -> None:
    argv = [sys.executable, str(Path(appender.__file__)), str(tmp_path / "journal"), str(2 << 20)]
    with shells.Shell(argv) as process:
        assert process.wait(PATIENCE) == EX_IOERR, str(process)
        confirmed = int(re.findall(r"^confirmed (\d+)$", process.stdout, re.MULTILINE)[-1])
        assert "journal.db cannot be used: disk I/O error" in process.stderr
    assert confirmed > 0
    # To work it into the database would have been to trust what the disk has refused.
    assert (tmp_path / "journal" / "journal.db-wal").stat().st_size > 0
    check_recovered(tmp_path / "journal", confirmed)


def test_close_commits_what_is_queued_and_ends_the_thread(make_loop: MakeLoop) -> None:
    store = Gated()
    loop = make_loop(store)
    tickets = [loop.append(record()) for _ in range(1000)]
    threading.Timer(0.05, store.gate.set).start()
    loop.journal.close()
    loop.take()
    assert loop.synced == tickets[-1]
    assert not loop.journal._thread.is_alive()
    with pytest.raises(RuntimeError):
        loop.append(record())


def test_close_does_not_wait_for_ever_for_a_disk_that_hangs(make_loop: MakeLoop) -> None:
    store = Gated()
    loop = make_loop(store)
    loop.append(record())
    with pytest.raises(StoreError, match="has not answered"):
        loop.journal.close(0.05)
    store.gate.set()


def test_close_goes_on_while_a_slow_disk_makes_progress(make_loop: MakeLoop) -> None:
    class Slow(MemoryStore):
        def append_batch(self, changes: Sequence[tuple[int, Change]]) -> None:
            time.sleep(0.15)
            super().append_batch(changes)

    store = Slow()
    loop = make_loop(store)
    for _ in range(8 * BATCH):
        loop.append(record())
    # Less than it takes in all, more than for one group.
    loop.journal.close(1.0)
    assert store.last == 8 * BATCH


# -- a broker that is killed ---------------------------------------------------------------------------


def check_recovered(directory: Path, confirmed: int) -> int:
    """All that was confirmed is there as it was, and nothing else than what was appended; the last number."""
    with closing(SqliteStore(directory, ballast=0)) as store:
        found = dict(store.load())
        expected = {
            n: each for n in range(1, store.last + 1) if isinstance(each := appender.change(n), Record)
        }
        for number in set(expected) - set(found):
            # Erased, or not confirmed.
            assert number % 10 == 5 or number > confirmed, f"{number} of {confirmed} is lost"
        for number, each in found.items():
            assert number % 10 != 5 or number + 5 > confirmed, f"{number} was erased"
            frames = each.payload if isinstance(each.payload, tuple) else store.get_blob(each.payload)
            assert Record(each.kind, each.job, each.header, tuple(map(bytes, frames))) == expected[number]
        named = {each.payload.name for each in found.values() if isinstance(each.payload, Spooled)}
        assert {path.name for path in (directory / "spool").iterdir()} == named
        return store.last


def test_what_was_confirmed_outlives_kill_9(tmp_path: Path) -> None:
    argv = [sys.executable, str(Path(appender.__file__)), str(tmp_path / "journal")]
    chance = random.Random(3)
    last = 0
    for _ in range(4):
        with shells.Shell(argv) as process:
            assert int(process.wait_for(r"^begins (\d+)$")[1]) == last
            process.wait_for(r"^confirmed \d+$", times=chance.randrange(1, 12))
            process.signal(signal.SIGKILL)
            process.wait(PATIENCE)
            confirmed = int(re.findall(r"^confirmed (\d+)\n", process.stdout, re.MULTILINE)[-1])
        assert confirmed > last
        last = check_recovered(tmp_path / "journal", confirmed)
        assert last >= confirmed
