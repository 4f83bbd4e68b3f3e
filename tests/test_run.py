"""``multihost run``: a script behaves as under ``python``, and its pools are multihost's."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
from alike import ALIKE
from scripts import PATIENCE, PYTHON, RUN, environment, run, write


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


def test_all_of_multiprocessing_is_ours_in_children_too(tmp_path: Path) -> None:
    module = """
        import multiprocessing, multiprocessing.queues
        from multiprocessing import Lock, Process, get_context
        def look():
            made = [multiprocessing.Queue(), Lock(), multiprocessing.Value("i"), get_context("spawn").Event()]
            kinds = [type(each).__module__ for each in made] + [Process.__module__]
            return kinds, isinstance(made[0], multiprocessing.queues.Queue), multiprocessing.get_start_method()
    """
    text = """
        import multiprocessing, concurrent.futures, module
        from multiprocessing.pool import ThreadPool
        def inner(queue): queue.put(module.look())
        def outer(queue):
            process = multiprocessing.Process(target=inner, args=(queue,))
            process.start()
            process.join()
        if __name__ == "__main__":
            multiprocessing.set_start_method("forkserver")
            queue = multiprocessing.Queue()
            process = multiprocessing.Process(target=outer, args=(queue,))
            process.start()
            found = [module.look(), queue.get()]
            process.join()
            with multiprocessing.Pool(1) as pool, concurrent.futures.ProcessPoolExecutor(1) as executor:
                found += [pool.apply(module.look), executor.submit(module.look).result()]
            ours = ["queues", "synchronize", "sharedctypes", "synchronize", "process"]
            assert all(each == (["multihost." + name for name in ours], True, "forkserver") for each in found), found
            with ThreadPool(1) as threads:
                assert threads.apply(lambda: 5) == 5
            print("ours")
    """
    write(tmp_path, {"script.py": text, "module.py": module})
    done = run(*RUN, tmp_path / "script.py", cwd=tmp_path)
    assert (done.stdout, done.returncode) == ("ours\n", 0), done.stderr


def test_a_script_that_needs_no_processes_does_not_pay_for_them(tmp_path: Path) -> None:
    write(tmp_path, {"script.py": "import sys\nprint('multiprocessing' in sys.modules)\n"})
    assert run(*RUN, tmp_path / "script.py").stdout == "False\n"


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
