"""The end of pools, pools of several threads, pools within pools, and what comes with the package."""

from __future__ import annotations

import gc
import multiprocessing
import multiprocessing.pool
import os
import pickle
import sys
import threading
import time
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from workload import (
    LONG,
    Counted,
    die,
    hold,
    nested,
    pid,
    pid_after,
    sleep,
    square,
    until,
    wait_for,
)

import multihost
from multihost.pool import Pool

if TYPE_CHECKING:
    from conftest import MakePool


# -- the end -------------------------------------------------------------------------------------------


def test_close_lets_the_work_end_and_takes_no_more(make_pool: MakePool) -> None:
    pool = make_pool(2)
    results = [pool.apply_async(pid_after, (0.01,)) for _ in range(20)]
    pool.close()
    pool.close()
    for call in (pool.apply, pool.apply_async):
        with pytest.raises(ValueError, match="Pool not running"):
            call(square, (1,))
    for method in (pool.map, pool.map_async, pool.imap, pool.imap_unordered):
        with pytest.raises(ValueError, match="Pool not running"):
            method(square, [1])
    with pytest.raises(ValueError, match="Pool not running"):
        pool.__enter__()
    pool.join()
    assert len({result.get() for result in results}) <= 2


def test_join_wants_close_first(make_pool: MakePool) -> None:
    with pytest.raises(ValueError, match="Pool is still running"):
        make_pool(1).join()


def test_terminate_ends_what_runs_at_once(make_pool: MakePool, tmp_path: Path) -> None:
    pool = make_pool(2)
    begun = tmp_path / "begun"
    result = pool.apply_async(hold, ((str(begun), "never"),))
    mapped = pool.map_async(sleep, [LONG] * 10)
    iterated = pool.imap(sleep, [LONG] * 10)
    wait_for(str(begun))
    before = time.monotonic()
    pool.terminate()
    pool.join()
    assert time.monotonic() - before < 10
    for get in (result.get, mapped.get, iterated.next):
        with pytest.raises(multihost.MultihostError, match="terminated"):
            get(10)


def test_terminate_of_a_pool_that_did_nothing(make_pool: MakePool) -> None:
    pool = make_pool(3)
    pool.terminate()
    pool.terminate()
    pool.join()


def test_a_with_block_ends_the_pool(address: str) -> None:
    with Pool(2, address=address) as pool:
        child = pool.apply(pid)
    pool.join()
    _await_end([child])


def test_a_forgotten_pool_warns_and_goes(address: str) -> None:
    pool = Pool(1, address=address)
    children = pool.map(pid_after, [0.01] * 4, 1)
    holder = [pool]
    del pool
    with pytest.warns(ResourceWarning, match="unclosed running multiprocessing pool"):
        holder.clear()
    _await_end(children)


def test_a_result_keeps_its_pool_alive_until_it_is_there(address: str, tmp_path: Path) -> None:
    begun, release = tmp_path / "begun", tmp_path / "release"
    pool = Pool(1, address=address)
    known = weakref.ref(pool)
    result = pool.apply_async(hold, ((str(begun), str(release)),))
    wait_for(str(begun))
    del pool
    gc.collect()
    assert known() is not None

    def finish() -> None:
        # Whoever takes in the result lets go of the pool, in its own time.
        release.touch()
        _await_end([result.get(30)])

    with pytest.warns(ResourceWarning, match="unclosed"):
        finish()


def test_results_do_not_outlive_their_owner(make_pool: MakePool) -> None:
    pool = make_pool(1)
    result = pool.apply_async(Counted, (10,))
    value = weakref.ref(result.get())
    assert value() is not None
    del result
    gc.collect()
    assert value() is None


def test_a_pool_does_not_pickle(make_pool: MakePool) -> None:
    with pytest.raises(NotImplementedError, match="cannot be passed between processes"):
        pickle.dumps(make_pool(1))


def test_a_closed_pool_leaves_no_process(address: str) -> None:
    pool = Pool(2, address=address)
    children = pool.map(pid_after, [0.01] * 4, 1)
    pool.close()
    pool.join()
    _await_end(children)


# -- threads and nesting -------------------------------------------------------------------------------


def test_threads_share_a_pool(make_pool: MakePool) -> None:
    pool = make_pool(2)
    problems: list[str] = []

    def work(number: int) -> None:
        for turn in range(20):
            if pool.apply(square, (number,)) != number**2:
                problems.append(f"apply {number}")
            if pool.map(square, range(turn)) != [each**2 for each in range(turn)]:
                problems.append(f"map {number}")
            if list(pool.imap(square, range(3))) != [0, 1, 4]:
                problems.append(f"imap {number}")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not problems and not any(thread.is_alive() for thread in threads)


def test_many_threads_wait_for_one_result(make_pool: MakePool, tmp_path: Path) -> None:
    release = tmp_path / "release"
    result = make_pool(1).apply_async(hold, ((str(tmp_path / "begun"), str(release)),))
    got: list[int] = []
    threads = [threading.Thread(target=lambda: got.append(result.get(60))) for _ in range(6)]
    for thread in threads:
        thread.start()
    release.touch()
    for thread in threads:
        thread.join(60)
    assert len(got) == 6 and len(set(got)) == 1


def test_closing_while_others_submit_loses_nothing(make_pool: MakePool) -> None:
    for _ in range(5):
        pool = make_pool(1)
        results: list[Any] = []
        refused = threading.Event()

        def submit(
            pool: Pool = pool, results: list[Any] = results, refused: threading.Event = refused
        ) -> None:
            try:
                while True:
                    results.append(pool.apply_async(square, (2,)))
            except ValueError:
                refused.set()

        thread = threading.Thread(target=submit)
        thread.start()
        until(lambda results=results: len(results) > 20)
        pool.close()
        assert refused.wait(30)
        thread.join()
        pool.join()
        outcomes = [result.get(30) if result.successful() else "late" for result in results]
        # A call that lost the race has the error of a closed pool as its outcome.
        assert set(outcomes[:-1]) == {4} and outcomes[-1] in (4, "late")


def test_a_pool_within_a_child(make_pool: MakePool) -> None:
    assert make_pool(1).apply(nested, (4,)) == 14


def test_a_pool_survives_what_its_children_die_of(make_pool: MakePool) -> None:
    pool = make_pool(2)
    with pytest.raises(multihost.WorkerLostError):
        pool.apply(die, (-9,))
    assert pool.map(square, range(10)) == [number**2 for number in range(10)]


# -- the package ---------------------------------------------------------------------------------------


def test_names_of_multiprocessing_are_there(address: str) -> None:
    for name in multiprocessing.__all__:
        assert getattr(multihost, name) is not None
    assert issubclass(multihost.Process, multiprocessing.process.BaseProcess)
    assert multihost.current_process() is multiprocessing.current_process()
    assert set(multiprocessing.__all__) <= set(dir(multihost))
    assert multihost.cpu_count() >= 1
    with multihost.get_context("spawn").Pool(1, address=address) as pool:
        assert type(pool) is Pool and pool.apply(square, (3,)) == 9
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = multihost.nonsense


def test_importing_the_package_brings_none_of_the_heavy_ones() -> None:
    import subprocess

    script = (
        "import sys, multihost.pool\n"
        "with multihost.Pool(1, address='') as pool: pool.map(abs, [1])\n"
        "heavy = {'zmq', 'msgpack', 'cloudpickle', 'psutil', 'click', 'asyncio'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    path = os.pathsep.join(filter(None, [*sys.path, os.environ.get("PYTHONPATH", "")]))
    subprocess.run(
        [sys.executable, "-c", script], check=True, timeout=60, env={**os.environ, "PYTHONPATH": path}
    )


def _await_end(pids: list[int]) -> None:
    for each in pids:
        until(lambda each=each: not os.path.exists(f"/proc/{each}"))
