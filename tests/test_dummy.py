"""Pools of threads on the workers, and what else is of threads or of one host; on both engines."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

import multihost as mp
from multihost import dummy
from multihost.pool import ThreadPool
from multihost_common.errors import RemoteError, WorkerLostError

#: No wait of these tests lasts that long unless something is wrong, seconds.
LONG = 20.0

_marks = threading.local()


@pytest.fixture(autouse=True)
def here(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pools are made where the test runs."""
    monkeypatch.setenv("MULTIHOST_BROKER", address)


@pytest.fixture
def pool() -> Iterator[ThreadPool]:
    with ThreadPool(6) as made:
        yield made
    made.join()


def meet(barrier: Any) -> tuple[int, int]:
    barrier.wait(LONG)
    return os.getpid(), threading.get_ident()


def divide(number: int) -> float:
    return 1 / number


def wait_beside(begun: Any, over: Any) -> str:
    begun.release()
    over.wait(LONG)
    return "well"


def die_among(others: int, begun: Any, tried: Any) -> None:
    if not tried.is_set():
        for _ in range(others):
            begun.acquire(timeout=LONG)
    tried.set()
    os._exit(9)


def mark(value: int) -> None:
    _marks.value = value


def marked(number: int) -> int:
    return int(_marks.value) + number


def block(path: str) -> None:
    with open(path, "w"):
        time.sleep(LONG)


def attach(name: str) -> None:
    mp.shared_memory.SharedMemory(name)


def test_as_many_calls_run_at_once_as_there_are_threads(pool: ThreadPool) -> None:
    # None of them ends before all have begun.
    barrier = mp.Barrier(6)
    results = [pool.apply_async(meet, (barrier,)) for _ in range(6)]
    where = [result.get(LONG) for result in results]
    assert len(set(where)) == 6
    assert 1 < len({pid for pid, _ in where}) < 6
    assert os.getpid() not in {pid for pid, _ in where}


def test_methods_are_those_of_a_pool(pool: ThreadPool) -> None:
    seen: list[Any] = []
    scale = 3
    assert pool.map(lambda number: scale * number, range(20)) == [3 * number for number in range(20)]
    assert pool.starmap(pow, [(2, 3), (3, 2)], chunksize=1) == [8, 9]
    assert list(pool.imap(divide, [1, 2, 4])) == [1.0, 0.5, 0.25]
    assert sorted(pool.imap_unordered(divide, [1, 2, 4], chunksize=2)) == [0.25, 0.5, 1.0]
    result = pool.apply_async(divide, (0,), callback=seen.append, error_callback=seen.append)
    with pytest.raises(ZeroDivisionError) as raised:
        result.get(LONG)
    assert "return 1 / number" in str(raised.value.__cause__)
    assert seen == [raised.value]
    with pytest.raises(TypeError, match="pickle"):
        pool.apply(id, (threading.Lock(),))
    # Nothing has gone wrong since.
    assert pool.apply(divide, (2,)) == 0.5


def test_a_call_that_ends_its_process_is_given_up_and_those_beside_it_are_not(pool: ThreadPool) -> None:
    begun, tried, over = mp.Semaphore(0), mp.Event(), mp.Event()
    beside = [pool.apply_async(wait_beside, (begun, over)) for _ in range(5)]
    fatal = pool.apply_async(die_among, (5, begun, tried))
    with pytest.raises(WorkerLostError, match=r"3 times.*exit code 9"):
        fatal.get(LONG)
    over.set()
    assert [result.get(LONG) for result in beside] == ["well"] * 5


def test_every_thread_is_initialized() -> None:
    with dummy.Pool(3, mark, (5,)) as pool:
        assert pool.map(marked, range(9), chunksize=1) == list(range(5, 14))
    pool.join()
    with ThreadPool(2, divide, (0,)) as pool, pytest.raises(RemoteError, match="ZeroDivisionError"):
        pool.apply(marked, (1,))
    pool.join()
    with pytest.raises(TypeError):
        ThreadPool(2, "no function")
    with pytest.raises(ValueError, match="at least 1"):
        ThreadPool(0)


def test_processes_end_with_the_pool(tmp_path: Any) -> None:
    pool = ThreadPool(2)
    assert pool.map(divide, [1, 2]) == [1.0, 0.5]
    assert mp.active_children()
    pool.close()
    pool.join()
    assert not mp.active_children()
    pool = ThreadPool(2)
    path = tmp_path / "begun"
    result = pool.apply_async(block, (str(path),))
    deadline = time.monotonic() + LONG
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.002)
    pool.terminate()
    pool.join()
    assert not mp.active_children()
    assert not result.ready() or not result.successful()


@pytest.mark.local
def test_dummy_has_threads_of_this_process() -> None:
    seen: list[int] = []
    process = dummy.Process(target=seen.append, args=(1,))
    process.start()
    process.join()
    assert seen == [1]
    assert process.exitcode == 0
    assert dummy.Manager().Lock is dummy.Lock is threading.Lock


def test_memory_that_is_not_there_may_be_on_another_host() -> None:
    with mp.Pool(1) as pool, pytest.raises(FileNotFoundError, match="of one host"):
        pool.apply(attach, ("psm_of_nobody",))
    with pytest.raises(FileNotFoundError, match="of one host"):
        mp.shared_memory.ShareableList(name="psm_of_nobody")
