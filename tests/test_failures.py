"""What bad things get. Each case runs on whatever engine ``address`` names."""

from __future__ import annotations

import multiprocessing
import multiprocessing.pool
import os
import platform
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, CancelledError
from concurrent.futures.process import _RemoteTraceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from workload import (
    LONG,
    NoPickle,
    die,
    die_noting,
    die_once,
    fail,
    fail_until_third,
    hold,
    leave,
    lock_or,
    no_unpickle,
    outcomes,
    pid,
    raise_two_arguments,
    sleep,
    square,
    until,
    wait_for,
)

from multihost import RemoteError, WorkerLostError

if TYPE_CHECKING:
    from conftest import MakeExecutor, MakePool

#: One item among these is bad; enough for several messages.
NUMBERS = [*range(1, 150), -9, *range(150, 300)]
GOOD = [number for number in NUMBERS if number >= 0]


# -- a child dies --------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunksize", [None, 1, 4])
def test_a_child_killed_once_is_not_noticed(
    make_pool: MakePool, tmp_path: Path, chunksize: int | None
) -> None:
    items = [(number, str(tmp_path / "flag")) for number in range(200)]
    assert make_pool(2).map(die_once, items, chunksize) == list(range(200))
    assert (tmp_path / "flag").exists()


def test_a_child_killed_once_in_any_kind_of_call(make_pool: MakePool, tmp_path: Path) -> None:
    pool = make_pool(2)
    assert pool.apply(die_once, ((3, str(tmp_path / "a")),)) == 3
    assert list(pool.imap(die_once, [(number, str(tmp_path / "b")) for number in range(9)])) == list(range(9))
    results = [pool.apply_async(die_once, ((number, str(tmp_path / "c")),)) for number in range(9)]
    assert [result.get(60) for result in results] == list(range(9))


def test_an_item_that_always_kills_is_given_up_after_three_deaths(make_pool: MakePool) -> None:
    values, errors = outcomes(make_pool(2).imap(die, NUMBERS))
    assert values == GOOD
    (error,) = errors
    assert isinstance(error, WorkerLostError) and isinstance(error, BrokenExecutor)
    assert error.item == NUMBERS.index(-9)
    assert error.deaths == 3 and error.signal == signal.SIGKILL and error.oom is False
    assert error.host == platform.node() and error.pid > 0
    assert 1 << 20 < error.rss < 4 << 30
    for part in (error.host, "SIGKILL", "3 times", "MiB", "not by the OOM killer", str(error.pid)):
        assert part in str(error)


def test_map_raises_it_once_the_rest_is_done(make_pool: MakePool) -> None:
    pool = make_pool(2)
    with pytest.raises(WorkerLostError, match="SIGKILL"):
        pool.map(die, NUMBERS)
    with pytest.raises(WorkerLostError, match="SIGSEGV") as caught:
        pool.apply(die, (-signal.SIGSEGV,))
    assert caught.value.signal == signal.SIGSEGV
    assert pool.map(square, [3]) == [9]


def test_a_child_that_exits(make_pool: MakePool) -> None:
    with pytest.raises(WorkerLostError, match="exited with code 7") as caught:
        make_pool(1).map(leave, [0, 0, 7, 0])
    assert (caught.value.exitcode, caught.value.signal, caught.value.item) == (7, 0, 2)


def test_several_killers_and_only_they_are_given_up(make_pool: MakePool) -> None:
    numbers = list(range(100))
    for at in (10, 11, 60):
        numbers[at] = -9
    values, errors = outcomes(make_pool(2).imap_unordered(die, numbers))
    assert sorted(values) == [number for number in numbers if number >= 0]
    assert sorted(getattr(error, "item", -1) for error in errors) == [10, 11, 60]


def test_at_most_once_is_never_run_again(make_pool: MakePool, tmp_path: Path) -> None:
    with pytest.raises(WorkerLostError) as caught:
        make_pool(1, at_most_once=True).apply(die_noting, (str(tmp_path),))
    assert caught.value.deaths == 1 and len(list(tmp_path.iterdir())) == 1


def test_three_deaths_are_three_runs(make_pool: MakePool, tmp_path: Path) -> None:
    with pytest.raises(WorkerLostError):
        make_pool(1).apply(die_noting, (str(tmp_path),))
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.local
def test_a_child_killed_from_outside(make_pool: MakePool, tmp_path: Path) -> None:
    pool = make_pool(2)
    begun, release = tmp_path / "begun", tmp_path / "release"
    result = pool.apply_async(hold, ((str(begun), str(release)),))
    wait_for(str(begun))
    for child in pool._pool:
        os.kill(child.pid, signal.SIGKILL)
    release.touch()
    assert result.get(60) > 0
    assert pool.map(square, range(20)) == [number**2 for number in range(20)]


# -- what does not pickle ------------------------------------------------------------------------------


def test_an_exception_that_does_not_unpickle(make_pool: MakePool) -> None:
    values, errors = outcomes(make_pool(2).imap(raise_two_arguments, NUMBERS))
    assert values == GOOD
    (error,) = errors
    assert isinstance(error, RemoteError)
    assert "TwoArgumentsError" in str(error) and "-9 is not 2" in str(error)
    assert "in raise_two_arguments" in str(error)


def test_a_result_that_does_not_pickle(make_pool: MakePool) -> None:
    pool = make_pool(2)
    values, errors = outcomes(pool.imap(lock_or, NUMBERS))
    assert values == GOOD
    (error,) = errors
    assert type(error) is multiprocessing.pool.MaybeEncodingError  # type: ignore[attr-defined]
    assert "cannot pickle" in str(error) and "lock object" in str(error)
    with pytest.raises(multiprocessing.pool.MaybeEncodingError):  # type: ignore[attr-defined]
        pool.map(lock_or, NUMBERS, 7)


@pytest.mark.parametrize("chunksize", [1, 10])
def test_a_result_that_does_not_unpickle(make_pool: MakePool, chunksize: int) -> None:
    values, errors = outcomes(make_pool(2).imap(no_unpickle, NUMBERS, chunksize))
    assert errors and all(isinstance(error, RemoteError) for error in errors)
    assert len(errors) <= chunksize and set(values) <= set(GOOD)
    assert len(values) + len(errors) == len(NUMBERS)
    assert "cannot be unpickled here" in str(errors[0]) and "no unpickling" in str(errors[0])


@pytest.mark.parametrize("chunksize", [1, 10])
def test_an_argument_that_does_not_pickle(make_pool: MakePool, chunksize: int) -> None:
    pool = make_pool(2)
    items: list[Any] = list(NUMBERS)
    items[NUMBERS.index(-9)] = NoPickle()
    values, errors = outcomes(pool.imap(die, items, chunksize))
    assert values == GOOD
    assert [str(error) for error in errors] == ["this does not pickle, so says its class"]
    for call in (lambda: pool.map(die, items, chunksize), lambda: pool.apply(die, (NoPickle(),))):
        with pytest.raises(TypeError, match="does not pickle"):
            call()
    assert pool.apply(square, (3,)) == 9


def test_a_function_that_does_not_pickle(make_pool: MakePool) -> None:
    pool = make_pool(1)
    for call in (pool.map, pool.imap):
        with pytest.raises(TypeError, match="cannot pickle"):
            call(threading.Lock().acquire, [1])
    with pytest.raises(TypeError, match="cannot pickle"):
        pool.apply(threading.Lock().acquire)


def test_a_lambda_a_closure_and_a_method_work(make_pool: MakePool) -> None:
    pool = make_pool(2)
    seven = 7
    assert pool.map(lambda number: number + seven, range(5)) == [7, 8, 9, 10, 11]
    assert pool.apply(lambda: seven) == 7
    assert list(pool.imap("-".join, [["a", "b"]])) == ["a-b"]
    assert pool.map([10, 20].index, [20, 10]) == [1, 0]


# -- time ----------------------------------------------------------------------------------------------


def test_timeout_ends_only_its_own_child(make_pool: MakePool) -> None:
    pool = make_pool(2, timeout=0.5)
    values, errors = outcomes(pool.imap(sleep, [0.0, LONG, *[0.01] * 50]))
    assert values == [0.0] + [0.01] * 50
    (error,) = errors
    assert isinstance(error, multiprocessing.TimeoutError)
    assert "timeout=0.5 s" in str(error) and platform.node() in str(error)


@pytest.mark.local
def test_the_other_children_of_the_pool_stay(make_pool: MakePool) -> None:
    pool = make_pool(2, timeout=0.5)
    before = {child.pid for child in pool._pool}
    with pytest.raises(multiprocessing.TimeoutError):
        pool.apply(sleep, (LONG,))
    until(lambda: len(pool._pool) == 2)
    assert len(before & {child.pid for child in pool._pool}) == 1


def test_retries_run_a_function_that_raised_again(make_pool: MakePool, tmp_path: Path) -> None:
    assert make_pool(1, retries=2).apply(fail_until_third, (str(tmp_path),)) == 3
    with pytest.raises(ValueError, match="no 1"):
        make_pool(1, retries=2).apply(fail, (1,))


# -- Ctrl-C --------------------------------------------------------------------------------------------


def _calls(pool: Any, item: tuple[str, str]) -> dict[str, Callable[[], Any]]:
    return {
        "map": lambda: pool.map(hold, [item] * 3, 1),
        "apply": lambda: pool.apply(hold, (item,)),
        "get": lambda: pool.apply_async(hold, (item,)).get(),
        "wait": lambda: pool.apply_async(hold, (item,)).wait(),
        "next": lambda: next(pool.imap(hold, [item])),
    }


@pytest.mark.parametrize("method", ["map", "apply", "get", "wait", "next"])
def test_ctrl_c_is_raised_at_once(make_pool: MakePool, tmp_path: Path, method: str) -> None:
    pool = make_pool(2)
    begun = tmp_path / "begun"
    call = _calls(pool, (str(begun), str(tmp_path / "release")))[method]
    sent = _interrupt_when(begun)
    with pytest.raises(KeyboardInterrupt):
        call()
    assert time.monotonic() - sent[0] < 5
    if method in ("map", "apply"):
        # Nobody can want these any more, so their processes were taken back.
        assert pool.map(square, [2]) == [4]


def test_ctrl_c_while_another_thread_waits(make_pool: MakePool, tmp_path: Path) -> None:
    pool = make_pool(2)
    release = tmp_path / "release"
    other = pool.apply_async(hold, ((str(tmp_path / "other"), str(release)),))
    got: list[int] = []
    thread = threading.Thread(target=lambda: got.append(other.get(60)))
    thread.start()
    wait_for(str(tmp_path / "other"))
    _interrupt_when(tmp_path / "begun")
    with pytest.raises(KeyboardInterrupt):
        pool.apply(hold, ((str(tmp_path / "begun"), "never"),))
    release.touch()
    thread.join(60)
    assert len(got) == 1


def _interrupt_when(begun: Path) -> list[float]:
    """Send this process a Ctrl-C once there is the file; the list then has the time."""
    sent: list[float] = []

    def interrupt() -> None:
        wait_for(str(begun))
        sent.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    return sent


def test_ctrl_c_of_the_terminal_does_not_reach_the_children(make_pool: MakePool) -> None:
    assert os.getpgid(make_pool(1).apply(pid)) != os.getpgid(0)


# -- the same for Executor -----------------------------------------------------------------------------


def test_an_executor_is_not_broken_by_a_death(make_executor: MakeExecutor) -> None:
    executor = make_executor(2)
    futures = [executor.submit(die, number) for number in [1, -9, 2, 3]]
    error = futures[1].exception(60)
    assert isinstance(error, WorkerLostError) and error.deaths == 3
    assert [futures[at].result(60) for at in (0, 2, 3)] == [1, 2, 3]
    assert executor.submit(square, 3).result(60) == 9


def test_an_executor_raises_what_pickle_raised(make_executor: MakeExecutor) -> None:
    executor = make_executor(1)
    with pytest.raises(TypeError, match="cannot pickle"):
        executor.submit(lock_or, -1).result(60)
    with pytest.raises(TypeError, match="does not pickle"):
        executor.submit(square, NoPickle()).result(60)
    with pytest.raises(RemoteError, match="TwoArgumentsError"):
        executor.submit(raise_two_arguments, -1).result(60)
    with pytest.raises(ValueError, match="no 1") as caught:
        executor.submit(fail, 1).result(60)
    assert type(caught.value.__cause__) is _RemoteTraceback
    with pytest.raises(TimeoutError, match=r"timeout=0\.2 s"):
        make_executor(1, timeout=0.2).submit(sleep, LONG).result(60)


def test_cancel_of_a_running_future_kills_its_child_only(make_executor: MakeExecutor, tmp_path: Path) -> None:
    executor = make_executor(2)
    release = tmp_path / "release"
    lost = executor.submit(hold, (str(tmp_path / "lost"), "never"))
    kept = executor.submit(hold, (str(tmp_path / "kept"), str(release)))
    for name in ("lost", "kept"):
        wait_for(str(tmp_path / name))
    assert lost.running() and lost.cancel() and lost.cancelled() and lost.done()
    assert lost.cancel()
    with pytest.raises(CancelledError):
        lost.result(60)
    # The place of the cancelled one is free again, while the other still runs.
    assert executor.submit(square, 5).result(60) == 25
    assert not kept.done()
    release.touch()
    assert kept.result(60) > 0 and not kept.cancel()
