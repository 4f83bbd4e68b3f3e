"""``multihost run``: a script behaves as under ``python``, and its pools are multihost's."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
from scripts import PATIENCE, PYTHON, RUN, environment, run, write

#: Scripts without arguments, each run by python and by multihost: both have to say and exit the same.
ALIKE = {
    "map": """
        from multiprocessing import Pool
        def f(x): return x * x
        if __name__ == "__main__":
            with Pool(3) as pool:
                print(pool.map(f, range(10)), pool._processes)
    """,
    "no guard": """
        import multiprocessing
        def f(x): return x + 1
        pool = multiprocessing.Pool(2)
        print(pool.map(f, [1, 2]), list(pool.imap(f, "" or [3])))
        pool.close()
        pool.join()
    """,
    "context": """
        import multiprocessing as mp
        def f(x): return -x
        if __name__ == "__main__":
            for method in ("fork", "spawn"):
                with mp.get_context(method).Pool(2) as pool:
                    print(method, pool.map(f, [1]))
            with mp.get_context().Pool(processes=1, maxtasksperchild=1) as pool:
                print(pool.map(f, [1, 2, 3], chunksize=1))
    """,
    "start method": """
        import multiprocessing
        def f(x): return -x
        if __name__ == "__main__":
            multiprocessing.set_start_method("spawn")
            multiprocessing.freeze_support()
            with multiprocessing.Pool(2) as pool:
                print(multiprocessing.get_start_method(), pool.starmap(pow, [(2, 3)]), pool.apply(f, [1]))
    """,
    "pool module": """
        from multiprocessing.pool import Pool, ThreadPool
        def f(x): return -x
        if __name__ == "__main__":
            with Pool(2) as pool, ThreadPool(2) as threads:
                print(pool.map(f, [1]), threads.map(lambda x: x + 1, [1]), type(pool).__name__)
    """,
    "initializer": """
        import multiprocessing
        def begin(a, b): global state; state = a + b
        def f(x): return state + x
        if __name__ == "__main__":
            with multiprocessing.Pool(2, initializer=begin, initargs=(1, 2)) as pool:
                print(pool.map(f, [1]))
    """,
    "executor": """
        from concurrent.futures import ProcessPoolExecutor, as_completed
        def f(x):
            if x == 3: raise ValueError(x)
            return x * 10
        if __name__ == "__main__":
            with ProcessPoolExecutor(max_workers=2) as executor:
                print(list(executor.map(f, range(3), chunksize=2)), executor.submit(f, x=5).result())
                print(repr(executor.submit(f, 3).exception()))
                print(sorted(each.result() for each in as_completed([executor.submit(f, i) for i in range(3)])))
    """,
    "executor and context": """
        import concurrent.futures, multiprocessing
        def f(x): return x
        if __name__ == "__main__":
            with concurrent.futures.ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as e:
                print(e.submit(f, 1).result(timeout=30))
    """,
    "callbacks": """
        import multiprocessing
        def f(x): return 1 // x
        if __name__ == "__main__":
            pool = multiprocessing.Pool(2)
            good = pool.apply_async(f, (1,), callback=lambda value: print("good", value))
            good.wait()
            bad = pool.apply_async(f, (0,), error_callback=lambda error: print("bad", error))
            bad.wait()
            pool.close()
            pool.join()
            print(good.successful(), bad.successful())
    """,
    "errors": """
        import multiprocessing
        def f(x): raise KeyError(x)
        if __name__ == "__main__":
            with multiprocessing.Pool(2) as pool:
                try:
                    pool.map(f, [1])
                except KeyError as error:
                    print(repr(error), type(error.__cause__).__name__, 'raise KeyError(x)' in str(error.__cause__))
                try:
                    pool.apply_async(f, (1,)).get(timeout=30)
                except KeyError as error:
                    print(repr(error))
    """,
    "its own names": """
        import sys, __main__
        print(__name__, sys.argv[1:], __file__ == sys.argv[0], __doc__, __spec__, __package__, __builtins__)
        print(sorted(name for name in vars(__main__) if not name.startswith("__")), sys.path[0])
    """,
    "docstring": '''
        """What it is."""
        print(__doc__, __annotations__ if "__annotations__" in globals() else {})
    ''',
    "exit 3": "import sys; sys.exit(3)",
    "exit with text": "import sys; sys.exit('no')",
    "exit none": "import sys; sys.exit()",
    "exception": """
        def f():
            raise ValueError("some text")
        f()
    """,
    "syntax error": "x = (1\n",
    "syntax error in an import": "import broken_module",
    "os._exit": "import os; print('a', flush=True); os._exit(7)",
    "an error in a pool": """
        import multiprocessing
        def f(x): raise ValueError(x)
        if __name__ == "__main__":
            with multiprocessing.Pool(1) as pool:
                pool.map(f, [1])
    """,
    "logging": """
        import logging, multiprocessing
        logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.INFO)
        special = logging.getLogger("special")
        special.setLevel(logging.DEBUG)
        def f(x):
            logging.info("information")
            logging.debug("not shown")
            special.debug("special")
            print("printed", flush=True)
        if __name__ == "__main__":
            with multiprocessing.Pool(1) as pool:
                pool.map(f, [1])
    """,
    "logging to a file": """
        import logging, multiprocessing
        logging.basicConfig(filename="log.txt", filemode="w", level=logging.INFO)
        def f(x): logging.info("from a child")
        if __name__ == "__main__":
            with multiprocessing.Pool(1) as pool:
                pool.map(f, [1])
            print(open("log.txt").read())
    """,
    "manager": """
        import multiprocessing
        def f(shared, x): shared.append(x)
        if __name__ == "__main__":
            with multiprocessing.Pool(2) as pool, multiprocessing.Manager() as manager:
                shared = manager.list()
                pool.starmap(f, [(shared, x) for x in range(4)])
                print(sorted(shared))
    """,
    "other parts of multiprocessing": """
        import multiprocessing
        def f(queue): queue.put(5)
        if __name__ == "__main__":
            queue = multiprocessing.Queue()
            process = multiprocessing.Process(target=f, args=(queue,))
            process.start()
            print(queue.get(), process.join(), process.exitcode)
    """,
}


def unmarked(text: str) -> str:
    """Tracebacks without what may differ: the frames of the pools themselves, and the marks of 3.11."""
    text = re.sub(
        r'^ *File "[^"]*(?:multiprocessing|multihost|concurrent)[^"]*".*\n(?:    .*\n)*',
        "",
        text,
        flags=re.MULTILINE,
    )
    return re.sub(r"^ *[~^]+\n", "", text, flags=re.MULTILINE)


@pytest.mark.parametrize("text", ALIKE.values(), ids=ALIKE)
def test_a_script_does_what_it_does_with_python(text: str, tmp_path: Path) -> None:
    write(tmp_path, {"script.py": text, "broken_module.py": "def f(:\n"})
    plain, ours = (run(*launcher, tmp_path / "script.py", cwd=tmp_path) for launcher in (PYTHON, RUN))
    assert (ours.stdout, ours.returncode) == (plain.stdout, plain.returncode), ours.stderr
    assert unmarked(ours.stderr) == unmarked(plain.stderr)


def test_pools_are_ours(tmp_path: Path) -> None:
    text = """
        import concurrent.futures, multiprocessing, multiprocessing.pool, multihost
        assert issubclass(multiprocessing.pool.Pool, multihost.Pool)
        assert issubclass(concurrent.futures.ProcessPoolExecutor, multihost.Executor)
        with multiprocessing.Pool(2) as pool:
            assert isinstance(pool, multihost.Pool) and isinstance(pool, multiprocessing.pool.Pool)
        print("ours")
    """
    write(tmp_path, {"script.py": text})
    done = run(*RUN, tmp_path / "script.py")
    assert (done.stdout, done.returncode) == ("ours\n", 0), done.stderr


def test_arguments_are_the_scripts(tmp_path: Path) -> None:
    write(tmp_path, {"script.py": "import sys\nprint(sys.argv[1:])\n"})
    done = run(*RUN, tmp_path / "script.py", "--processes", "x", "-m", "--help", "--", "-")
    assert done.stdout == "['--processes', 'x', '-m', '--help', '--', '-']\n", done.stderr


def test_processes_are_those_of_pools_without_a_number(tmp_path: Path) -> None:
    text = """
        import multiprocessing, concurrent.futures
        with multiprocessing.Pool() as pool, multiprocessing.Pool(2) as other:
            print(pool._processes, other._processes)
    """
    write(tmp_path, {"script.py": text})
    done = run(*RUN, "--processes", "3", tmp_path / "script.py")
    assert (done.stdout, done.returncode) == ("3 2\n", 0), done.stderr


def test_a_module_is_run_as_python_runs_it(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "pack/__init__.py": "",
            "pack/part.py": "NAME = 'part'\n",
            "pack/tool.py": """
                import sys
                from .part import NAME
                print(NAME, __name__, __package__, __spec__.name, sys.argv[1:], sys.path[0])
            """,
        },
    )
    words = ("-m", "pack.tool", "--flag", "x")
    plain, ours = (run(*launcher, *words, cwd=tmp_path) for launcher in (PYTHON, RUN))
    assert ours.stdout == plain.stdout and ours.stdout.startswith(
        "part __main__ pack pack.tool ['--flag', 'x']"
    )


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (("nowhere.py",), 2, "can't open file"),
        (("-m", "no_such_module"), 1, "No module named no_such_module"),
        (("-m", "no_such_package.module"), 1, "No module named 'no_such_package'"),
        (("empty",), 2, "can't find '__main__' module in"),
    ],
)
def test_there_is_no_such_script(tmp_path: Path, words: tuple[str, ...], code: int, text: str) -> None:
    (tmp_path / "empty").mkdir()
    done = run(*RUN, *words, cwd=tmp_path)
    assert done.returncode == code
    assert done.stderr.startswith("multihost run: ") and text in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_folder_with_a_main(tmp_path: Path) -> None:
    write(tmp_path, {"app/__main__.py": "import beside\nprint(beside.x)\n", "app/beside.py": "x = 5\n"})
    assert run(*RUN, "app", cwd=tmp_path).stdout == "5\n"


def test_a_broker_that_is_not_there_is_told(tmp_path: Path) -> None:
    write(tmp_path, {"script.py": "import multiprocessing\nmultiprocessing.Pool(2)\n"})
    began = time.monotonic()
    keys = {"MULTIHOST_KEYS": str(tmp_path / "keys")}
    done = run(*RUN, "--broker", "tcp://127.0.0.1:1", tmp_path / "script.py", env=keys)
    assert done.returncode != 0 and "multihost" in done.stderr
    assert time.monotonic() - began < 15


def test_ctrl_c_ends_the_script_and_all_its_processes(tmp_path: Path) -> None:
    text = """
        import multiprocessing, os, time
        def f(x):
            with open(f"pid-{x}", "w") as file:
                file.write(str(os.getpid()))
            os.rename(f"pid-{x}", f"ready-{x}")
            time.sleep(60)
        if __name__ == "__main__":
            with multiprocessing.Pool(2) as pool:
                pool.map(f, range(2), chunksize=1)
    """
    write(tmp_path, {"script.py": text})
    process = subprocess.Popen(
        [*RUN, str(tmp_path / "script.py")],
        cwd=tmp_path,
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        pids = [_pid(tmp_path / f"ready-{x}") for x in range(2)]
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 130
    assert err.rstrip().endswith("KeyboardInterrupt")
    _await_end(pids)


def _pid(path: Path) -> int:
    deadline = time.monotonic() + PATIENCE
    while not path.exists():
        assert time.monotonic() < deadline, "the task has not begun"
        time.sleep(0.01)
    return int(path.read_text())


def _await_end(pids: list[int]) -> None:
    deadline = time.monotonic() + PATIENCE
    while any(os.path.exists(f"/proc/{pid}") for pid in pids):
        assert time.monotonic() < deadline, "processes are left"
        time.sleep(0.01)
