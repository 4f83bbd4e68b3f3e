"""Queues as scripts use them: multiprocessing's behaviour, between threads, tasks and processes, on both engines."""

from __future__ import annotations

import gc
import pickle
import queue as stdlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest
from conftest import MakePool

import multihost as mp
from multihost import queues
from multihost.engines.choosing import BROKER_VARIABLE
from multihost.queues import getting, items, line
from multihost_common.shared import Queues

#: Seconds that anything here may take.
LIMIT = 30.0


@pytest.fixture
def here(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Queues are made at this address."""
    monkeypatch.setenv(BROKER_VARIABLE, address)


pytestmark = pytest.mark.usefixtures("here")


@pytest.fixture
def run() -> Iterator[Callable[..., mp.Process]]:
    """Starts a process, which is gone after the test."""
    started: list[mp.Process] = []

    def start(target: Callable[..., object], *args: Any) -> mp.Process:
        process = mp.Process(target=target, args=args)
        process.start()
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.join(LIMIT)


# -- one process -------------------------------------------------------------------------------------


def test_what_is_put_is_got_in_order() -> None:
    q = mp.Queue()
    for item in (1, "two", [3], None, b"5"):
        q.put(item)
    assert [q.get(timeout=LIMIT) for _ in range(5)] == [1, "two", [3], None, b"5"]
    assert q.empty()


def test_an_empty_queue_raises_empty_at_once_or_when_the_time_is_over() -> None:
    q = mp.Queue()
    with pytest.raises(stdlib.Empty):
        q.get_nowait()
    began = time.monotonic()
    with pytest.raises(stdlib.Empty):
        q.get(timeout=0.1)
    assert 0.1 <= time.monotonic() - began < 5


def test_what_this_process_has_put_is_there_when_it_asks() -> None:
    q = mp.Queue()
    for n in range(100):
        q.put(n)
    assert q.qsize() == 100
    assert [q.get_nowait() for _ in range(100)] == list(range(100))
    assert q.qsize() == 0


def test_a_full_queue_raises_full_and_takes_more_once_there_is_room() -> None:
    q = mp.Queue(2)
    q.put(1)
    q.put_nowait(2)
    assert q.full()
    with pytest.raises(stdlib.Full):
        q.put(3, False)
    with pytest.raises(stdlib.Full):
        q.put(3, timeout=0.05)
    assert q.get(timeout=LIMIT) == 1
    assert not q.full()
    q.put(3, timeout=LIMIT)
    assert [q.get(timeout=LIMIT), q.get(timeout=LIMIT)] == [2, 3]


def test_a_flood_into_a_small_queue_waits_for_room_and_keeps_its_order() -> None:
    q, most = mp.Queue(10), list[int]()

    def produce() -> None:
        for n in range(2000):
            q.put(NoPickle() if n == 1000 else n)
        q.put(None)

    q._line.onerror = lambda error, obj: most.append(-1)
    producer = threading.Thread(target=produce)
    producer.start()
    got = []
    while (n := q.get(timeout=LIMIT)) is not None:
        got.append(n)
        if n % 100 == 0:
            answer = q._line.sharing.ask(q._name, Queues.SIZE)
            assert answer is not None
            most.append(answer.amount)
    producer.join(LIMIT)
    assert got == [n for n in range(2000) if n != 1000]
    assert max(most) <= 10
    assert most.count(-1) == 1


def test_threads_share_a_queue_and_each_item_goes_to_one() -> None:
    q, got = mp.Queue(), list[int]()

    def consume() -> None:
        got.extend(iter(q.get, None))

    threads = [threading.Thread(target=consume) for _ in range(3)]
    for thread in threads:
        thread.start()
    for n in range(500):
        q.put(n)
    for _ in threads:
        q.put(None)
    for thread in threads:
        thread.join(LIMIT)
    assert sorted(got) == list(range(500))


def test_a_thread_that_gives_up_leaves_the_item_to_one_that_waits() -> None:
    q, got = mp.Queue(), list[str]()
    waits = threading.Thread(target=lambda: got.append(q.get(timeout=LIMIT)))
    waits.start()
    with pytest.raises(stdlib.Empty):
        q.get(timeout=0.1)
    q.put("item")
    waits.join(LIMIT)
    assert got == ["item"]


def test_after_close_a_queue_says_that_it_is_closed() -> None:
    for q in (mp.Queue(), mp.JoinableQueue()):
        q.put(1)
        q.close()
        q.close()
        q.join_thread()
        with pytest.raises(ValueError, match="is closed"):
            q.put(1)
        with pytest.raises(ValueError, match="is closed"):
            q.get()
        with pytest.raises(OSError, match="is closed"):
            q.empty()
        assert q.qsize() == 1
    simple = mp.SimpleQueue()
    simple.close()
    with pytest.raises(OSError, match="closed"):
        simple.put(1)


def test_join_thread_wants_the_queue_closed() -> None:
    with pytest.raises(AssertionError, match="not closed"):
        mp.Queue().join_thread()


def test_what_cannot_be_pickled_is_told_and_the_queue_stays_usable(capfd: pytest.CaptureFixture[str]) -> None:
    for q in (mp.Queue(), mp.Queue(1)):
        q.put(NoPickle())
        q.put("fine")
        assert q.get(timeout=LIMIT) == "fine"
        assert "not this one" in capfd.readouterr().err
    with pytest.raises(RuntimeError, match="not this one"):
        mp.SimpleQueue().put(NoPickle())


def test_a_subclass_may_see_to_what_cannot_be_pickled() -> None:
    Careful.seen.clear()
    q = Careful(ctx=mp.get_context())
    q.put(NoPickle())
    q.put("fine")
    assert q.get(timeout=LIMIT) == "fine"
    assert [str(error) for error in Careful.seen] == ["not this one"]


def test_an_item_that_is_too_large_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(items, "MAX_ITEM", 1000)
    q = mp.Queue()
    with pytest.raises(ValueError, match="an item of 2000 bytes is too large for a queue"):
        q.put(bytes(2000))
    with pytest.raises(ValueError, match="too large"):
        mp.SimpleQueue().put(["x" * 2000])
    q.put(b"fine")
    assert q.get(timeout=LIMIT) == b"fine"


def test_large_buffers_travel_and_arrays_can_be_written_to() -> None:
    numpy = pytest.importorskip("numpy")
    for q in (mp.Queue(), mp.SimpleQueue()):
        for n in range(3):
            q.put({"data": numpy.full(100_000, n), "n": n})
        for n in range(3):
            item = q.get()
            item["data"][0] += 1
            assert item["data"].sum() == 100_000 * n + 1


def test_an_item_that_does_not_unpickle_raises_and_the_next_one_comes() -> None:
    q = mp.Queue()
    q.put(NoUnpickle())
    q.put("next")
    with pytest.raises(RuntimeError, match="not again"):
        q.get(timeout=LIMIT)
    assert q.get(timeout=LIMIT) == "next"


def test_a_flood_goes_in_few_messages_and_a_single_item_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    q = mp.Queue()
    sharing = q._line.sharing
    begun = list[int]()
    begin = sharing.begin

    def count(name: bytes, op: int, *args: Any, **options: Any) -> Any:
        begun.append(op)
        return begin(name, op, *args, **options)

    monkeypatch.setattr(sharing, "begin", count)
    q.put(0)
    assert begun == [Queues.PUT]
    for n in range(5000):
        q.put(n)
    q.close()
    q.join_thread()
    assert len(begun) < 500


# -- tasks -------------------------------------------------------------------------------------------


def test_join_waits_for_task_done_which_may_not_be_said_too_often() -> None:
    q = mp.JoinableQueue()
    q.join()
    for n in range(3):
        q.put(n)

    def work() -> None:
        for _ in range(3):
            q.get()
            q.task_done()

    worker = threading.Thread(target=work)
    worker.start()
    q.join()
    worker.join(LIMIT)
    with pytest.raises(ValueError, match=r"task_done\(\) called too many times"):
        q.task_done()


# -- the end -----------------------------------------------------------------------------------------


def test_a_loop_over_a_queue_ends_when_it_is_shut_down() -> None:
    q, got = mp.Queue(), list[int]()
    threads = [threading.Thread(target=lambda: got.extend(q)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for n in range(10):
        q.put(n)
    q.shutdown()
    for thread in threads:
        thread.join(LIMIT)
    assert sorted(got) == list(range(10))
    with pytest.raises(mp.ShutDown):
        q.put(1)
    with pytest.raises(mp.ShutDown):
        q.get(timeout=0.1)
    if sys.version_info >= (3, 13):
        assert mp.ShutDown is stdlib.ShutDown


def test_an_immediate_shutdown_drops_what_is_there() -> None:
    q = mp.JoinableQueue(3)
    for n in range(3):
        q.put(n)
    failed = list[BaseException]()

    def put() -> None:
        try:
            q.put(4)
        except mp.ShutDown as error:
            failed.append(error)

    waits = threading.Thread(target=put)
    waits.start()
    q.shutdown(immediate=True)
    waits.join(LIMIT)
    q.join()
    assert len(failed) == 1
    assert list(q) == []


def test_a_queue_that_nobody_uses_any_more_is_gone() -> None:
    q = mp.Queue()
    copy = pickle.loads(pickle.dumps(q))
    q.put(1)
    assert copy.get(timeout=LIMIT) == 1
    assert copy._line is q._line
    name = q._name
    del q, copy
    gc.collect()
    assert name not in line._lines


# -- tasks and processes -------------------------------------------------------------------------------


def test_tasks_put_what_the_script_gets_and_get_what_it_puts(make_pool: MakePool) -> None:
    q, back = mp.Queue(), mp.SimpleQueue()
    with make_pool(2, initializer=_keep, initargs=(back,)) as pool:
        results = pool.map_async(_double, [q] * 4, chunksize=1)
        for n in range(4):
            q.put(n)
        assert sorted(back.get() for _ in range(4)) == [0, 2, 4, 6]
        assert results.get(LIMIT) == [None] * 4


def test_the_sentinel_protocol(run: Callable[..., mp.Process]) -> None:
    tasks, results = mp.JoinableQueue(), mp.Queue()
    workers = [run(_work, tasks, results) for _ in range(3)]
    for n in range(60):
        tasks.put(n)
    for _ in workers:
        tasks.put(None)
    tasks.join()
    got = sorted(results.get(timeout=LIMIT) for _ in range(60))
    assert got == [n * n for n in range(60)]
    for worker in workers:
        worker.join(LIMIT)
        assert worker.exitcode == 0


def test_a_process_sends_all_it_has_put_before_it_ends(run: Callable[..., mp.Process]) -> None:
    q = mp.Queue()
    process = run(_produce, q, 20_000)
    process.join(LIMIT)
    assert process.exitcode == 0
    assert [q.get(timeout=LIMIT) for _ in range(20_000)] == list(range(20_000))


def test_items_of_a_consumer_that_is_killed_go_to_another_one(run: Callable[..., mp.Process]) -> None:
    q, report = mp.Queue(), mp.Queue()
    for n in range(1000):
        q.put(n)
    victim = run(_take, q, report, 100)
    assert report.get(timeout=LIMIT) == 99
    victim.kill()
    victim.join(LIMIT)
    assert [q.get(timeout=LIMIT) for _ in range(900)] == list(range(100, 1000))
    assert q.empty()


def test_a_reader_killed_inside_get_blocks_nobody(run: Callable[..., mp.Process]) -> None:
    q, report = mp.Queue(), mp.Queue()
    readers = [run(_read, q, report) for _ in range(2)]
    for _ in readers:
        assert report.get(timeout=LIMIT) == "ready"
    readers[0].kill()
    readers[0].join(LIMIT)
    for n in range(5):
        q.put(n)
    assert [report.get(timeout=LIMIT) for _ in range(5)] == list(range(5))


def test_what_a_consumer_has_early_goes_to_who_waits_for_it(run: Callable[..., mp.Process]) -> None:
    q, report, go_on = mp.Queue(), mp.Queue(), mp.Queue()
    for n in range(1000):
        q.put(n)
    run(_take, q, report, 100, go_on)
    assert report.get(timeout=LIMIT) == 99
    # The other one has some early, and looks at none of them.
    assert sorted(q.get(timeout=LIMIT) for _ in range(900)) == list(range(100, 1000))
    go_on.put(None)


def test_threads_of_a_process_relay_from_queue_to_queue(run: Callable[..., mp.Process]) -> None:
    chain, count = [mp.Queue() for _ in range(5)], 10_000
    process = run(_relay_all, chain, count)
    for n in range(count):
        chain[0].put(n)
    assert [chain[-1].get(timeout=LIMIT) for _ in range(count)] == list(range(count))
    process.join(LIMIT)
    assert process.exitcode == 0


# -- what runs elsewhere -------------------------------------------------------------------------------


class NoPickle:
    """Cannot be pickled."""

    def __reduce__(self) -> Any:
        raise RuntimeError("not this one")


class NoUnpickle:
    """Cannot be unpickled."""

    def __reduce__(self) -> Any:
        return _refuse, ()


def _refuse() -> None:
    raise RuntimeError("not again")


class Careful(queues.Queue):
    """Notes what could not be pickled."""

    seen: list[Exception] = []  # noqa: RUF012

    @staticmethod
    def _on_queue_feeder_error(e: Exception, obj: Any) -> None:
        assert type(obj) is NoPickle
        Careful.seen.append(e)


_kept: list[Any] = []


def _keep(back: Any) -> None:
    _kept.append(back)


def _double(q: Any) -> None:
    _kept[0].put(2 * q.get(timeout=LIMIT))


def _work(tasks: Any, results: Any) -> None:
    for n in iter(tasks.get, None):
        results.put(n * n)
        tasks.task_done()
    tasks.task_done()


def _produce(q: Any, count: int) -> None:
    for n in range(count):
        q.put(n)


def _take(q: Any, report: Any, count: int, go_on: Any = None) -> None:
    last = [q.get() for _ in range(count)][-1]
    while not q._line.quiet:
        time.sleep(getting.REPORT)
    report.put(last)
    if go_on is None:
        signal.pause()
    go_on.get()


def _read(q: Any, report: Any) -> None:
    report.put("ready")
    for item in iter(q.get, None):
        report.put(item)


def _relay_all(chain: list[Any], count: int) -> None:
    def relay(source: Any, target: Any) -> None:
        for _ in range(count):
            target.put(source.get())

    threads = [threading.Thread(target=relay, args=pair) for pair in pairwise(chain)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
