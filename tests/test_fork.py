"""Programs that fork, or make processes of multiprocessing's, while they have pools open."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

BEGIN = """
import multiprocessing, os, signal, sys, threading, time
import multihost
from multihost import Executor, Pool
from workload import hold, pid, sleep, square, wait_for


def forked(function):
    number = os.fork()
    if number == 0:
        status = 1
        try:
            function()
            status = 0
        finally:
            sys.stdout.flush()
            os._exit(status)
    return number


def joined(number):
    deadline = time.monotonic() + 40
    while True:
        done, status = os.waitpid(number, os.WNOHANG)
        if done:
            assert os.waitstatus_to_exitcode(status) == 0, status
            return
        assert time.monotonic() < deadline, "the forked process hangs"
        time.sleep(0.005)
"""


def run(folder: Path, script: str) -> str:
    """What a script prints; it has to end well, and quietly."""
    path = folder / "script.py"
    path.write_text(BEGIN + textwrap.dedent(script))
    folders = os.pathsep.join(filter(None, [*sys.path, os.environ.get("PYTHONPATH", "")]))
    # Python 3.12 warns of every fork in a process with threads; what it warns of is what is tested here.
    quiet = "ignore:This process:DeprecationWarning"
    env = {**os.environ, "PYTHONPATH": folders, "MULTIHOST_BROKER": "", "PYTHONWARNINGS": quiet}
    command = [sys.executable, str(path)]
    done = subprocess.run(command, check=False, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and not done.stderr, done.stderr
    return done.stdout


def test_a_forked_process_makes_pools_of_its_own(tmp_path: Path) -> None:
    output = run(
        tmp_path,
        """
        with Pool(2) as pool:
            assert pool.map(square, range(3)) == [0, 1, 4]

            def child():
                with Pool(2) as mine:
                    print(mine.map(square, range(3)), flush=True)
                    assert set(mine.map(pid, range(4))).isdisjoint(pids)

            pids = {process.pid for process in pool._pool}
            joined(forked(child))
            assert pool.map(square, range(4)) == [0, 1, 4, 9]
            assert {process.pid for process in pool._pool} == pids
        """,
    )
    assert output == "[0, 1, 4]\n"


def test_the_parents_pool_is_of_no_use_in_the_child_and_says_so(tmp_path: Path) -> None:
    run(
        tmp_path,
        """
        pool, executor = Pool(1), Executor(1)
        pool.apply(square, (2,)), executor.submit(square, 2).result()
        pending, future, unread = pool.apply_async(sleep, (1,)), executor.submit(sleep, 1), pool.imap(abs, [1])

        def child():
            for call in (lambda: pool.map(square, [1]), lambda: pool.apply(square, (1,)),
                         lambda: pool.apply_async(square, (1,)), lambda: pool.imap(square, [1]),
                         lambda: executor.submit(square, 1), lambda: executor.map(square, [1])):
                try:
                    call()
                except ValueError as error:
                    assert "belongs to the parent process" in str(error)
                else:
                    raise AssertionError("it was of use")
            for wait in (pending.get, future.result):
                try:
                    wait()
                except multihost.MultihostError as error:
                    assert "forked" in str(error)
                else:
                    raise AssertionError("it was answered")
            unread.close()
            assert future.cancel()
            pool.close()
            pool.join()
            pool.terminate()
            executor.shutdown()

        joined(forked(child))
        assert pool.map(square, [3]) == [9]
        assert executor.submit(square, 3).result() == 9
        assert pending.get(40) == 1 and future.result(40) == 1 and list(unread) == [1]
        pool.terminate()
        executor.shutdown()
        """,
    )


def test_the_parents_objects_are_of_no_use_in_the_child_and_say_so(tmp_path: Path) -> None:
    run(
        tmp_path,
        """
        lock, queue = multihost.Lock(), multihost.Queue()

        def child():
            for call in (lock.acquire, queue.get):
                try:
                    call()
                except multihost.MultihostError as error:
                    assert "made by os.fork() cannot use those of its parent" in str(error)
                else:
                    raise AssertionError("it was of use")

        joined(forked(child))
        queue.put(1)
        assert queue.get() == 1 and lock.acquire(block=False)
        """,
    )


def test_a_child_that_ends_as_programs_do_leaves_the_parents_pool_alone(tmp_path: Path) -> None:
    run(
        tmp_path,
        """
        pool = Pool(2)
        pids = sorted(set(pool.map(pid, range(50), 1)) | {process.pid for process in pool._pool})
        pending = pool.map_async(sleep, [0.05] * 20, 1)
        if os.fork() == 0:
            sys.exit(0)
        os.wait()
        assert pending.get(40) == [0.05] * 20
        assert sorted(process.pid for process in pool._pool) == pids
        pool.close()
        pool.join()
        """,
    )


def test_a_fork_while_another_thread_leads(tmp_path: Path) -> None:
    run(
        tmp_path,
        """
        pool = Pool(2)
        stop = threading.Event()

        def work():
            while not stop.is_set():
                assert pool.apply(square, (3,)) == 9
                assert pool.map(square, range(9)) == [number ** 2 for number in range(9)]

        threads = [threading.Thread(target=work) for _ in range(2)]
        for thread in threads:
            thread.start()

        def child():
            with Pool(1) as mine:
                assert mine.map(square, [5]) == [25]

        for _ in range(4):
            joined(forked(child))
        stop.set()
        for thread in threads:
            thread.join()
        pool.terminate()
        pool.join()
        """,
    )


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_processes_of_multiprocessing_beside_and_with_pools(tmp_path: Path, method: str) -> None:
    output = run(
        tmp_path,
        f"""
        def work(queue):
            with Pool(1) as pool:
                queue.put(pool.map(square, [4]))

        if __name__ == "__main__":
            context = multihost.get_context({method!r})
            with Pool(1) as pool:
                assert pool.apply(square, (2,)) == 4
                queue = context.SimpleQueue()
                process = context.Process(target=work, args=(queue,))
                process.start()
                print(queue.get())
                process.join(40)
                assert process.exitcode == 0
                assert pool.apply(square, (3,)) == 9
        """,
    )
    assert output == "[16]\n"


def test_a_killed_parent_takes_its_children_along_though_it_has_forked(tmp_path: Path) -> None:
    """The forked process holds copies of the parent's descriptors, and must not keep the children alive."""
    run(
        tmp_path,
        """
        def parent():
            pool = Pool(2)
            with open(folder + "/pids", "w") as file:
                file.write(" ".join(str(process.pid) for process in pool._pool))
            if os.fork() == 0:
                open(folder + "/forked", "x").close()
                wait_for(folder + "/over")
                os._exit(0)
            wait_for(folder + "/forked")
            os.kill(os.getpid(), signal.SIGKILL)

        folder = os.path.dirname(os.path.abspath(__file__))
        number = forked(parent)
        _, status = os.waitpid(number, 0)
        assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
        pids = open(folder + "/pids").read().split()
        assert len(pids) == 2
        deadline = time.monotonic() + 20
        while any(os.path.exists(f"/proc/{pid}") for pid in pids):
            assert time.monotonic() < deadline, "children outlive their program"
            time.sleep(0.01)
        open(folder + "/over", "x").close()
        """,
    )
