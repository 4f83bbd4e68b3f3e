"""Pool: every method of multiprocessing's, its errors, and its end."""

from __future__ import annotations

import multiprocessing
import multiprocessing.pool
import os
import pickle
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from workload import (
    LONG,
    Counted,
    add,
    array_of,
    fail,
    fail_on_negative,
    fail_until_third,
    get_value,
    hold,
    negated,
    note,
    pid,
    pid_after,
    raise_at_start,
    set_value,
    size_of,
    sleep,
    square,
    until,
    wait_for,
)

import multihost

if TYPE_CHECKING:
    from conftest import MakePool


# -- calls ---------------------------------------------------------------------------------------------


def test_every_method_answers_what_multiprocessing_answers(make_pool: MakePool) -> None:
    pool = make_pool(2)
    numbers = list(range(30))
    squares = [number**2 for number in numbers]
    pairs = [(number, 1) for number in numbers]
    sums = [number + 1 for number in numbers]
    assert pool.apply(add, (2,), {"right": 3}) == 5
    assert pool.apply_async(add, (2, 3)).get() == 5
    assert pool.map(square, numbers) == squares
    assert pool.map_async(square, numbers).get() == squares
    assert pool.starmap(add, pairs) == sums
    assert pool.starmap_async(add, pairs).get() == sums
    assert list(pool.imap(square, numbers)) == squares
    assert sorted(pool.imap_unordered(square, numbers)) == squares


@pytest.mark.parametrize("chunksize", [None, 1, 3, 7, 1000])
def test_map_keeps_the_order_whatever_the_chunks(make_pool: MakePool, chunksize: int | None) -> None:
    assert make_pool(2).map(square, range(500), chunksize) == [number**2 for number in range(500)]


@pytest.mark.parametrize(
    "iterable", [[], (), range(0), iter([]), {}, set()], ids=lambda each: type(each).__name__
)
def test_nothing_to_do(make_pool: MakePool, iterable: Any) -> None:
    pool = make_pool(1)
    assert pool.map(square, iterable) == []
    assert pool.map_async(square, []).get(0) == []
    assert list(pool.imap(square, iterable)) == []


def test_any_iterable_will_do(make_pool: MakePool) -> None:
    pool = make_pool(2)
    assert pool.map(square, (number for number in range(4))) == [0, 1, 4, 9]
    assert sorted(pool.map(square, {1, 2})) == [1, 4]
    assert pool.map(str.upper, "abc") == ["A", "B", "C"]
    assert pool.map(square, {1: "a", 2: "b"}.keys()) == [1, 4]


def test_an_exception_arrives_with_its_remote_traceback(make_pool: MakePool) -> None:
    pool = make_pool(2)
    with pytest.raises(ValueError, match="no 7") as caught:
        pool.apply(fail, (7,))
    cause = caught.value.__cause__
    assert type(cause) is multiprocessing.pool.RemoteTraceback  # type: ignore[attr-defined]
    assert "in fail" in str(cause)
    assert pool.apply(square, (3,)) == 9


def test_the_first_error_by_index_wins_once_all_items_are_done(make_pool: MakePool, tmp_path: Path) -> None:
    pool = make_pool(2)
    with pytest.raises(ValueError, match="-3"):
        pool.map(fail_on_negative, [1, -3, 2, -4] * 10, 1)
    result = pool.map_async(note, [(str(tmp_path), number) for number in range(20)])
    assert result.get() == list(range(20))
    assert len(list(tmp_path.iterdir())) == 20


def test_a_result_tells_its_state(make_pool: MakePool, tmp_path: Path) -> None:
    pool = make_pool(1)
    begun, release = tmp_path / "begun", tmp_path / "release"
    result = pool.apply_async(hold, ((str(begun), str(release)),))
    wait_for(str(begun))
    assert not result.ready()
    with pytest.raises(ValueError, match="not ready"):
        result.successful()
    with pytest.raises(multiprocessing.TimeoutError):
        result.get(0.01)
    result.wait(0.01)
    assert not result.ready()
    release.touch()
    result.wait()
    assert result.ready() and result.successful() and isinstance(result.get(), int)
    failed = pool.apply_async(fail, (1,))
    failed.wait()
    assert failed.ready() and not failed.successful()


def test_result_classes_have_the_names_of_multiprocessing(make_pool: MakePool) -> None:
    pool = make_pool(1)
    assert type(pool.apply_async(square, (1,))).__name__ == "AsyncResult"
    assert type(pool.map_async(square, [1])).__name__ == "MapResult"
    assert type(pool.imap(square, [1])).__name__ == "IMapIterator"
    assert multihost.TimeoutError is multiprocessing.TimeoutError


# -- callbacks -----------------------------------------------------------------------------------------


def test_callbacks_run_in_the_order_of_the_results_and_before_get_returns(make_pool: MakePool) -> None:
    pool = make_pool(1)
    seen: list[Any] = []
    results = [pool.apply_async(square, (number,), callback=seen.append) for number in range(50)]
    assert results[-1].get() == 49 * 49
    assert seen == [number**2 for number in range(50)]
    assert pool.map_async(square, [5, 6], callback=seen.append).get() == seen[-1] == [25, 36]


def test_error_callbacks_get_the_exception(make_pool: MakePool) -> None:
    pool = make_pool(1)
    errors: list[BaseException] = []
    fine: list[Any] = []
    pool.apply_async(fail, (1,), callback=fine.append, error_callback=errors.append).wait()
    pool.map_async(fail, [1, 2], callback=fine.append, error_callback=errors.append).wait()
    assert [type(error) for error in errors] == [ValueError, ValueError]
    assert not fine


def test_a_callback_may_use_the_pool(make_pool: MakePool) -> None:
    pool = make_pool(2)
    again: list[int] = []
    done = threading.Event()

    def once_more(value: int) -> None:
        again.append(pool.apply(square, (value,)))
        pool.apply_async(square, (again[0],), callback=last)

    def last(value: int) -> None:
        again.append(value)
        done.set()

    assert pool.apply_async(square, (2,), callback=once_more).get(30) == 4
    assert done.wait(30) and again == [16, 256]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_callback_that_raises_stops_nothing(make_pool: MakePool) -> None:
    pool = make_pool(1)
    assert pool.apply_async(square, (2,), callback=fail).get(30) == 4
    assert pool.apply(square, (3,)) == 9


def test_who_waits_is_told_at_once_that_a_slow_callback_has_ended(make_pool: MakePool) -> None:
    pool = make_pool(1)
    for _ in range(3):
        begun = time.monotonic()
        pool.map_async(square, [2], callback=lambda _: time.sleep(0.05)).wait(20)
        assert time.monotonic() - begun < 15


def test_callbacks_come_though_nobody_waits(make_pool: MakePool) -> None:
    done = threading.Event()
    make_pool(1).apply_async(square, (2,), callback=lambda _: done.set())
    assert done.wait(30)


# -- options -------------------------------------------------------------------------------------------


def test_arguments_are_checked(make_pool: MakePool) -> None:
    for wrong in (0, -1):
        with pytest.raises(ValueError, match="at least 1"):
            make_pool(wrong)
    for no_number in (0, -1, "a"):
        with pytest.raises(ValueError, match="maxtasksperchild"):
            make_pool(1, maxtasksperchild=no_number)
    with pytest.raises(TypeError, match="initializer must be a callable"):
        make_pool(1, initializer=3)
    with pytest.raises(ValueError, match="timeout"):
        make_pool(1, timeout=0)
    with pytest.raises(ValueError, match="retries"):
        make_pool(1, retries=-1)
    pool = make_pool(1)
    for wrong in (0, -1):
        with pytest.raises(ValueError, match="Chunksize must be 1"):
            pool.imap(square, [1], wrong)
    with pytest.raises(ValueError, match="buffersize"):
        pool.imap(square, [1], buffersize=0)


def test_the_initializer_runs_once_in_each_process(make_pool: MakePool) -> None:
    pool = make_pool(2, set_value, ("set",))
    assert pool.map(get_value, range(10), 1) == ["set"] * 10


def test_a_pool_has_its_own_processes_and_as_many_as_it_says(make_pool: MakePool) -> None:
    first, second = make_pool(2, set_value, (1,)), make_pool(3, set_value, (2,))
    assert first.map(get_value, range(6), 1) == [1] * 6
    assert second.map(get_value, range(6), 1) == [2] * 6
    pids = set(first.map(pid_after, [0.05] * 12, 1))
    assert len(pids) == 2 and os.getpid() not in pids
    assert pids.isdisjoint(second.map(pid_after, [0.01] * 6, 1))


def test_the_initializer_runs_in_a_pool_that_is_not_used(make_pool: MakePool, tmp_path: Path) -> None:
    pool = make_pool(1, initializer=note, initargs=((str(tmp_path), 1),))
    pool.close()
    pool.join()
    assert (tmp_path / "1").exists()


def test_a_failing_initializer_is_an_error_and_no_hang(make_pool: MakePool) -> None:
    pool = make_pool(2, raise_at_start)
    with pytest.raises(multihost.RemoteError, match="this initializer always fails"):
        pool.map(square, range(10))
    with pytest.raises(multihost.RemoteError, match="this initializer always fails"):
        pool.apply(square, (1,))
    with pytest.raises(multihost.RemoteError, match="this initializer always fails"):
        list(pool.imap(square, range(10)))


def test_processes_are_replaced_after_maxtasksperchild(make_pool: MakePool) -> None:
    pids = make_pool(1, maxtasksperchild=2).map(pid, range(6), 1)
    assert len(set(pids)) == 3
    assert pids[0] == pids[1] != pids[2] == pids[3] != pids[4] == pids[5]


def test_options_of_a_call(make_pool: MakePool, tmp_path: Path) -> None:
    pool = make_pool(2)
    with pytest.raises(ValueError, match="call 1"):
        pool.apply(fail_until_third, (str(tmp_path),))
    (tmp_path / "1").unlink()
    assert pool.options(retries=2).apply(fail_until_third, (str(tmp_path),)) == 3
    with pytest.raises(multiprocessing.TimeoutError):
        pool.options(timeout=0.1).apply(sleep, (LONG,))
    assert pool.apply(sleep, (0.2,)) == 0.2
    hasty = pool.options(timeout=LONG)
    pool.close()
    with pytest.raises(ValueError, match="Pool not running"):
        hasty.apply(square, (1,))


# -- large inputs --------------------------------------------------------------------------------------


def test_a_large_input_is_not_pickled_all_at_once(make_pool: MakePool, tmp_path: Path) -> None:
    pool = make_pool(1)
    begun, release = tmp_path / "begun", tmp_path / "release"
    blocked = pool.apply_async(hold, ((str(begun), str(release)),))
    wait_for(str(begun))
    size, count = 1 << 20, 300
    Counted.pickled = 0
    result = pool.map_async(size_of, [Counted(size)] * count, 1)
    result.wait(0.5)
    assert 0 < Counted.pickled * size <= 80 << 20
    release.touch()
    blocked.wait()
    assert result.get() == [size] * count


def test_large_buffers_come_back_as_they_were_and_writable(make_pool: MakePool) -> None:
    sent = bytearray(os.urandom(1 << 20))
    back = make_pool(1).apply(pickle.loads, (pickle.dumps(sent),))
    assert back == sent
    back[0] ^= 1


def test_large_arrays_go_to_pools_in_pools_and_back(make_pool: MakePool) -> None:
    numpy = pytest.importorskip("numpy")
    arrays = [numpy.arange(number, number + 700_000) for number in range(3)]
    back = make_pool(2).map(negated, arrays, 1)
    assert all((-one == other).all() for one, other in zip(arrays, back, strict=True))
    back[0][0] = 7


@pytest.mark.local
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
def test_memory_of_results_is_given_back_though_the_pool_is_idle(make_pool: MakePool) -> None:
    pool = make_pool(1)
    child = pool.apply(pid)
    before = _segments("self")
    results = pool.map(array_of, [32 << 20] * 12, 1)
    assert _segments(child) >= 12 and _segments("self") >= before + 12
    del results
    # What a child keeps for its next results is not as much.
    until(lambda: _segments(child) <= 6 and _segments("self") <= before + 6, 10)


def _segments(process: int | str) -> int:
    """How many shared memory segments this process has mapped."""
    return Path(f"/proc/{process}/maps").read_text().count("memfd:multihost")
