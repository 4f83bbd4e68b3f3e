"""Executor: concurrent.futures as it is known, and cancel of what runs."""

from __future__ import annotations

import concurrent.futures
import gc
import itertools
import os
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from workload import (
    LONG,
    Counted,
    add,
    fail,
    fail_on_negative,
    get_value,
    hold,
    note,
    pid,
    pid_after,
    raise_at_start,
    set_value,
    sleep,
    square,
    until,
    wait_for,
)

import multihost
from multihost.executor import Executor

if TYPE_CHECKING:
    from conftest import MakeExecutor


# -- submit --------------------------------------------------------------------------------------------


def test_it_is_an_executor_and_gives_out_futures(make_executor: MakeExecutor) -> None:
    executor = make_executor(2)
    assert isinstance(executor, concurrent.futures.Executor)
    future = executor.submit(add, 2, right=3)
    assert isinstance(future, concurrent.futures.Future)
    assert future.result() == 5 and future.done() and not future.cancelled() and future.exception() is None
    assert executor.submit(dict, self=1, fn=2).result(60) == {"self": 1, "fn": 2}
    assert executor._max_workers == 2


def test_futures_can_be_waited_for_in_all_ways(make_executor: MakeExecutor) -> None:
    executor = make_executor(2)
    numbers = range(50)
    done = concurrent.futures.as_completed([executor.submit(square, number) for number in numbers], 60)
    assert sorted(future.result() for future in done) == [number**2 for number in numbers]
    futures = [executor.submit(square, number) for number in numbers]
    assert concurrent.futures.wait(futures, 60).not_done == set()
    failing = [executor.submit(sleep, LONG), executor.submit(fail, 1)]
    first = concurrent.futures.wait(failing, 60, concurrent.futures.FIRST_EXCEPTION)
    assert first.done == {failing[1]}


def test_result_and_exception_wait_no_longer_than_they_are_told(make_executor: MakeExecutor) -> None:
    future = make_executor(1).submit(sleep, LONG)
    for method in (future.result, future.exception):
        with pytest.raises(TimeoutError):
            method(0.02)
        with pytest.raises(TimeoutError):
            method(timeout=0)


def test_callbacks_run_without_anybody_waiting_and_may_submit(make_executor: MakeExecutor) -> None:
    executor = make_executor(1)
    got: list[int] = []
    finished = threading.Event()

    def again(future: concurrent.futures.Future[int]) -> None:
        got.append(executor.submit(square, future.result()).result(60))
        finished.set()

    executor.submit(square, 3).add_done_callback(again)
    assert finished.wait(60) and got == [81]


def test_threads_share_an_executor(make_executor: MakeExecutor) -> None:
    executor = make_executor(2)
    sums: list[int] = []

    def work() -> None:
        sums.append(sum(executor.submit(square, number).result(60) for number in range(100)))

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sums == [sum(number**2 for number in range(100))] * 6


def test_a_future_lets_go_of_its_arguments_and_its_pool(make_executor: MakeExecutor) -> None:
    executor = make_executor(1)
    argument = Counted(10)
    known = weakref.ref(argument)
    future = executor.submit(id, argument)
    future.result(60)
    del argument
    assert known() is None
    result = weakref.ref(executor.submit(Counted, 1).result(60))
    assert result() is None


# -- cancel --------------------------------------------------------------------------------------------


def test_cancel_of_what_has_not_begun(make_executor: MakeExecutor, tmp_path: Path) -> None:
    executor = make_executor(1)
    release = tmp_path / "release"
    running = executor.submit(hold, (str(tmp_path / "begun"), str(release)))
    waiting = executor.submit(note, (str(tmp_path), 7))
    told: list[Any] = []
    waiting.add_done_callback(told.append)
    wait_for(str(tmp_path / "begun"))
    assert waiting.cancel() and waiting.cancelled() and told == [waiting]
    done = concurrent.futures.wait([waiting], 60).done
    assert done == {waiting}
    # What is asked for later comes later: by now the process knows that it is not to begin.
    assert make_executor(1).submit(square, 3).result(60) == 9
    release.touch()
    assert running.result(60) > 0
    assert executor.submit(square, 2).result(60) == 4
    assert not (tmp_path / "7").exists()


def test_cancel_wakes_who_waits(make_executor: MakeExecutor, tmp_path: Path) -> None:
    future = make_executor(1).submit(hold, (str(tmp_path / "begun"), "never"))
    wait_for(str(tmp_path / "begun"))
    threading.Thread(target=future.cancel).start()
    with pytest.raises(concurrent.futures.CancelledError):
        future.result(60)
    with pytest.raises(concurrent.futures.CancelledError):
        future.exception(60)


def test_a_cancelled_process_is_gone(make_executor: MakeExecutor, tmp_path: Path) -> None:
    executor = make_executor(1)
    child = executor.submit(pid).result(60)
    future = executor.submit(hold, (str(tmp_path / "begun"), "never"))
    wait_for(str(tmp_path / "begun"))
    assert future.cancel()
    until(lambda: not os.path.exists(f"/proc/{child}"))
    assert executor.submit(pid).result(60) != child


# -- map -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"chunksize": 7}, {"chunksize": None}, {"buffersize": 3}])
def test_map(make_executor: MakeExecutor, options: dict[str, Any]) -> None:
    executor = make_executor(2)
    assert list(executor.map(square, range(100), **options)) == [number**2 for number in range(100)]
    assert list(executor.map(add, range(50), range(100), **options)) == list(range(0, 100, 2))
    assert list(executor.map(square, [], **options)) == []
    assert list(executor.map(square, **options)) == []


def test_map_checks_its_arguments(make_executor: MakeExecutor) -> None:
    executor = make_executor(1)
    with pytest.raises(ValueError, match="chunksize"):
        executor.map(square, [1], chunksize=0)
    with pytest.raises(ValueError, match="buffersize"):
        executor.map(square, [1], buffersize=0)
    with pytest.raises(TypeError, match="buffersize"):
        executor.map(square, [1], buffersize="a")  # type: ignore[arg-type]


def test_map_ends_with_the_first_exception(make_executor: MakeExecutor) -> None:
    results = make_executor(1).map(fail_on_negative, [1, -2, 3])
    assert next(results) == 1
    with pytest.raises(ValueError, match="-2"):
        next(results)
    with pytest.raises(StopIteration):
        next(results)


def test_map_with_a_timeout(make_executor: MakeExecutor) -> None:
    results = make_executor(2).map(sleep, [0.0, LONG], timeout=1)
    assert next(results) == 0.0
    with pytest.raises(TimeoutError):
        next(results)


@pytest.mark.parametrize("chunksize", [1, 4])
def test_buffersize_reads_on_demand_and_in_the_callers_thread(
    make_executor: MakeExecutor, chunksize: int
) -> None:
    readers: set[threading.Thread] = set()

    def endless() -> Iterator[int]:
        for number in itertools.count():
            readers.add(threading.current_thread())
            yield number

    source = endless()
    results = make_executor(2).map(square, source, chunksize=chunksize, buffersize=8)
    assert next(source) == 8
    assert [next(results) for _ in range(8)] == [number**2 for number in range(8)]
    assert next(source) <= 17 + chunksize
    assert readers == {threading.current_thread()}
    results.close()  # type: ignore[attr-defined]


def test_an_input_that_raises_is_raised_to_who_takes_the_results(make_executor: MakeExecutor) -> None:
    def breaks() -> Iterator[int]:
        yield from (1, 2, 3)
        raise LookupError("no more")

    executor = make_executor(1)
    with pytest.raises(LookupError):
        executor.map(square, breaks())
    results = executor.map(square, breaks(), buffersize=1)
    assert [next(results), next(results)] == [1, 4]
    with pytest.raises(LookupError):
        next(results)


def test_results_nobody_takes_are_computed_all_the_same(address: str, tmp_path: Path) -> None:
    with Executor(2, address=address) as executor:
        executor.map(note, [(str(tmp_path), number) for number in range(3000)])
    assert len(list(tmp_path.iterdir())) == 3000


def test_results_may_be_taken_after_the_with_block(address: str) -> None:
    with Executor(2, address=address) as executor:
        results = executor.map(square, range(10_000))
    assert list(results) == [number**2 for number in range(10_000)]


def test_a_lazy_map_ends_with_its_executor(make_executor: MakeExecutor) -> None:
    executor = make_executor(1)
    results = executor.map(square, itertools.count(), buffersize=3)
    executor.shutdown()
    with pytest.raises(RuntimeError, match="after shutdown"):
        list(results)


# -- options -------------------------------------------------------------------------------------------


def test_arguments_are_checked(address: str) -> None:
    for wrong in (0, -1):
        with pytest.raises(ValueError, match="max_workers must be greater than 0"):
            Executor(wrong, address=address)
        with pytest.raises(ValueError, match="max_tasks_per_child"):
            Executor(1, max_tasks_per_child=wrong, address=address)
    with pytest.raises(TypeError, match="max_tasks_per_child"):
        Executor(1, max_tasks_per_child="a", address=address)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="initializer must be a callable"):
        Executor(1, initializer=3, address=address)  # type: ignore[arg-type]


def test_options_of_processpoolexecutor(make_executor: MakeExecutor) -> None:
    executor = make_executor(1, None, set_value, ("set",), max_tasks_per_child=2)
    assert executor.submit(get_value).result(60) == "set"
    pids = [executor.submit(pid).result(60) for _ in range(5)]
    assert pids[1] == pids[2] != pids[3] == pids[4] != pids[0]


def test_a_failing_initializer_breaks_the_executor(make_executor: MakeExecutor) -> None:
    executor = make_executor(2, initializer=raise_at_start)
    with pytest.raises(concurrent.futures.BrokenExecutor, match="this initializer always fails"):
        executor.submit(square, 1).result(60)
    with pytest.raises(concurrent.futures.BrokenExecutor, match="this initializer always fails"):
        executor.submit(square, 1).result(60)


# -- the end -------------------------------------------------------------------------------------------


def test_shutdown_waits_for_the_work(address: str) -> None:
    executor = Executor(2, address=address)
    futures = [executor.submit(pid_after, 0.01) for _ in range(20)]
    executor.shutdown()
    executor.shutdown()
    assert all(future.done() for future in futures)
    for call in (executor.submit, executor.map):
        with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
            call(square, [1])
    for child in {future.result() for future in futures}:
        assert not os.path.exists(f"/proc/{child}")


def test_shutdown_without_waiting_lets_the_work_end(make_executor: MakeExecutor, tmp_path: Path) -> None:
    executor = make_executor(1)
    release = tmp_path / "release"
    future = executor.submit(hold, (str(tmp_path / "begun"), str(release)))
    executor.shutdown(wait=False)
    assert not future.done()
    release.touch()
    assert future.result(60) > 0


def test_shutdown_with_cancel_futures(make_executor: MakeExecutor, tmp_path: Path) -> None:
    executor = make_executor(2)
    release = tmp_path / "release"
    running = [executor.submit(hold, (str(tmp_path / name), str(release))) for name in "ab"]
    waiting = [executor.submit(note, (str(tmp_path), number)) for number in range(1000)]
    for name in "ab":
        wait_for(str(tmp_path / name))
    executor.shutdown(wait=False, cancel_futures=True)
    # It goes the way that the cancellations went, behind them: once it has its result, the host has heard of them.
    make_executor(1).submit(pid).result(60)
    release.touch()
    executor.shutdown()
    assert all(future.result(0) > 0 for future in running)
    assert all(future.cancelled() for future in waiting)
    assert not [each for each in tmp_path.iterdir() if each.name.isdigit()]


def test_a_deleted_executor_finishes_its_work_and_leaves_no_process(address: str, tmp_path: Path) -> None:
    executor = Executor(1, address=address)
    release = tmp_path / "release"
    future = executor.submit(hold, (str(tmp_path / "begun"), str(release)))
    known = weakref.ref(executor)
    del executor
    gc.collect()
    assert known() is None
    release.touch()
    child = future.result(60)
    until(lambda: not os.path.exists(f"/proc/{child}"))


def test_kill_workers(make_executor: MakeExecutor, tmp_path: Path) -> None:
    executor = make_executor(1)
    future = executor.submit(hold, (str(tmp_path / "begun"), "never"))
    wait_for(str(tmp_path / "begun"))
    executor.kill_workers()
    with pytest.raises(multihost.MultihostError, match="terminated"):
        future.result(60)


def test_ctrl_c_in_a_with_block_ends_at_once(address: str) -> None:
    before = time.monotonic()
    with pytest.raises(KeyboardInterrupt), Executor(1, address=address) as executor:
        executor.submit(sleep, LONG)
        raise KeyboardInterrupt
    assert time.monotonic() - before < 10


# -- the interpreter's end -----------------------------------------------------------------------------


def run(script: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a script in an interpreter of its own, on the local engine."""
    path = os.pathsep.join(filter(None, [*sys.path, os.environ.get("PYTHONPATH", "")]))
    env = {**os.environ, "PYTHONPATH": path, "MULTIHOST_BROKER": ""}
    command = [sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(command, check=False, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == code, done.stderr
    return done


def test_what_was_submitted_is_done_before_the_interpreter_ends() -> None:
    done = run("""
        import time
        from multihost import Executor

        def late():
            time.sleep(0.5)
            print("done")

        Executor(1).submit(late)
    """)
    assert done.stdout == "done\n" and not done.stderr


def test_an_interpreter_that_ends_by_ctrl_c_does_not_wait() -> None:
    before = time.monotonic()
    done = run(
        """
        import time
        from multihost import Executor

        executor = Executor(1)
        executor.submit(time.sleep, 600)
        raise KeyboardInterrupt
        """,
        code=-2,
    )
    assert "KeyboardInterrupt" in done.stderr
    assert time.monotonic() - before < 20


def test_nothing_can_be_submitted_at_exit() -> None:
    done = run("""
        import atexit
        from multihost import Executor

        executor = Executor(1)

        @atexit.register
        def late():
            try:
                executor.submit(abs, 1)
            except RuntimeError as error:
                print(error)
    """)
    assert "cannot schedule new futures after" in done.stdout and not done.stderr


def test_an_open_pool_does_not_keep_the_interpreter() -> None:
    done = run("""
        import time
        from multihost import Pool

        pool = Pool(2)
        print(pool.map(abs, [-1, -2]))
        pending = pool.map_async(time.sleep, [600, 600])
        unread = pool.imap(abs, iter(range(10**9)))
    """)
    assert done.stdout == "[1, 2]\n" and not done.stderr
