"""What scripts for multiprocessing take for granted, and what did not hold once: run by ``multihost run``, output and errors."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from scripts import RUN, run, write

#: Scripts, what they print, and their exit status.
SCRIPTS = {
    "a queue that nobody used ends with the interpreter": (
        """
        import multiprocessing as mp
        unused, joinable = mp.Queue(1), mp.JoinableQueue()
        if __name__ == "__main__":
            with mp.Pool(1) as pool:
                print(pool.apply(abs, (-1,)))
        """,
        "1\n",
    ),
    "a process that ends breaks the pool of processes": (
        """
        import os
        from concurrent.futures import ProcessPoolExecutor
        from concurrent.futures.process import BrokenProcessPool
        if __name__ == "__main__":
            with ProcessPoolExecutor(1) as executor:
                try:
                    executor.submit(os._exit, 1).result()
                except BrokenProcessPool:
                    print("broken")
        """,
        "broken\n",
    ),
    "instances of classes with slots": (
        """
        import multiprocessing as mp
        from dataclasses import dataclass
        class Point:
            __slots__ = ("x", "__y")
            def __init__(self, x): self.x, self.__y = x, -x
            def y(self): return self.__y
        class Named(Point):
            __slots__ = "name"
        @dataclass(slots=True)
        class Row: items: list
        def same(each): return each, hasattr(each, "__dict__")
        if __name__ == "__main__":
            named = Named(2)
            named.name = "two"
            with mp.Pool(1) as pool:
                point, named, row = pool.map(same, [Point(1), named, Row([3])])
            print(point[0].y(), point[1], named[0].name, named[0].y(), named[1], *row)
        """,
        "-1 False two -2 False Row(items=[3]) False\n",
    ),
    "functions with decorators": (
        """
        import multiprocessing as mp
        from functools import cached_property, lru_cache, singledispatch, wraps
        def thousand(function):
            @wraps(function)
            def more(x): return function(x) + 1000
            return more
        @thousand
        def decorated(x): return x
        @lru_cache(maxsize=None)
        def fib(n): return n if n < 2 else fib(n - 1) + fib(n - 2)
        @singledispatch
        def kind(x): return "object"
        @kind.register
        def _(x: int): return "int"
        class Lazy:
            @cached_property
            def value(self): return 5
        def use(x): return decorated(x), fib(90), kind(x), kind("x"), Lazy().value
        if __name__ == "__main__":
            with mp.Pool(1) as pool:
                print(pool.map(use, [1]), pool.map(fib, [80]), pool.map(decorated, [2]), pool.apply(tuple, ([fib],))[0] is fib)
        """,
        "[(1001, 2880067194370816120, 'int', 'object', 5)] [23416728348467685] [1002] True\n",
    ),
    "classes that are noted when they are defined": (
        """
        import multiprocessing as mp
        class Plugin:
            known = {}
            def __init_subclass__(cls, /, name):
                assert name not in Plugin.known
                Plugin.known[name] = cls
        class First(Plugin, name="first"):
            def go(self): return 1
        class Noting(type):
            made = []
            def __new__(kind, name, bases, space, *, extra):
                made = super().__new__(kind, name, bases, {**space, "both": space["must"] + extra})
                kind.made.append(name)
                return made
            def __init__(cls, name, bases, space, *, extra): super().__init__(name, bases, space)
        class Noted(metaclass=Noting, extra=1):
            must = 2
        def use(name):
            class Late(First, name="late"): pass
            return Plugin.known[name]().go(), sorted(Plugin.known), Noting.made, Noted.both
        if __name__ == "__main__":
            with mp.Pool(1) as pool:
                print(pool.map(use, ["first"]), type(pool.apply(next, (iter([First()]),))) is First, sorted(Plugin.known))
        """,
        "[(1, ['first', 'late'], ['Noted'], 3)] True ['first']\n",
    ),
    "locks of threads": (
        """
        import multiprocessing as mp, sys, threading
        lock, condition, local, out = threading.RLock(), threading.Condition(), threading.local(), sys.stdout
        local.value = 4
        class Single:
            _lock = threading.Lock()
        class Worker(mp.Process):
            def __init__(self, queue):
                super().__init__()
                self.queue, self.lock, self.stop = queue, threading.Lock(), threading.Event()
            def run(self):
                with self.lock, lock, condition, Single._lock:
                    self.queue.put((self.stop.is_set(), local.value))
                print("done", file=out)
        if __name__ == "__main__":
            queue = mp.Queue()
            worker = Worker(queue)
            worker.start()
            worker.join()
            print(queue.get())
        """,
        "done\n(False, 4)\n",
    ),
    "functions that are looked up by their names": (
        """
        import multiprocessing as mp, sys, threading
        lock, data = threading.Lock(), [1]
        def double(x): return 2 * x
        def even(n): return n == 0 or odd(n - 1)
        def odd(n): return n != 0 and eval("even")(n - 1)
        def named(name): return globals()[name]
        def call(name, x): return globals()[name](x)
        def attribute(name): return getattr(sys.modules[__name__], name)
        def work(tasks, results):
            for name, x in iter(tasks.get, None):
                results.put(globals()[name](x))
        if __name__ == "__main__":
            tasks, results = mp.Queue(), mp.Queue()
            process = mp.Process(target=work, args=(tasks, results))
            process.start()
            for task in (("double", 4), ("odd", 3), None):
                tasks.put(task)
            print(results.get(), results.get())
            process.join()
            with mp.Pool(1, maxtasksperchild=1) as pool:
                print(pool.starmap(call, [("double", 2), ("even", 3)]), pool.map(attribute, ["data"]))
        """,
        "8 True\n[4, False] [[1]]\n",
    ),
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_behaves_as_under_python(name: str, tmp_path: Path) -> None:
    text, out = SCRIPTS[name]
    write(tmp_path, {"script.py": text})
    done = run(*RUN, tmp_path / "script.py", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, out, "")


def test_ctrl_c_reaches_processes_when_the_script_does_not_catch_it(tmp_path: Path) -> None:
    text = """
        import multiprocessing as mp, os, signal
        def wait(begun, never):
            begun.set()
            never.get()
        if __name__ == "__main__":
            begun, never = mp.Event(), mp.Queue()
            process = mp.Process(target=wait, args=(begun, never))
            process.start()
            begun.wait()
            os.kill(os.getpid(), signal.SIGINT)
            never.get()
    """
    write(tmp_path, {"script.py": text})
    done = run(*RUN, tmp_path / "script.py", cwd=tmp_path)
    assert done.returncode == 130
    assert re.findall("^KeyboardInterrupt$", done.stderr, re.MULTILINE) == ["KeyboardInterrupt"] * 2
