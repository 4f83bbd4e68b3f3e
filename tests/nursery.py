"""Real child processes without cores: a test does the actions itself and looks at the events.

Also the functions that the children run; they are imported there, so this module is light.
"""

from __future__ import annotations

import gc
import os
import pickle
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from multihost_common.blocks import pack_lengths
from multihost_common.pickling import dumps_value, loads_pieces
from multihost_worker.children import Children
from multihost_worker.events import (
    ChildDied,
    ChildReady,
    ChildResult,
    Define,
    Event,
    KillChild,
    Reclaim,
    Reclaimed,
    Run,
    StartChild,
    StopChild,
)

PATIENCE = 20.0
E = TypeVar("E")


class Nursery:
    """Children, the events they have caused, and the positions each was given."""

    def __init__(self, **options: Any) -> None:
        self.events: list[Event] = []
        self.children = Children(self.events.append, **options)
        self.positions: dict[int, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.children.close()
        # Results refer to shared memory, and that to descriptors.
        self.events.clear()

    # -- actions -----------------------------------------------------------------------------------

    def begin(self, child: int = 1, function: Callable[..., Any] | None = None, **setup: Any) -> None:
        """Start a child; with a function wait until it is ready, and define that as job 1."""
        self.children.do(StartChild(child, 7, pickle.dumps(setup) if setup else b"", b""))
        self.positions[child] = 0
        if function is not None:
            self.wait(ChildReady, child=child)
            self.define(function, child=child)

    def define(self, function: Any, child: int = 1, job: int = 1, **options: Any) -> None:
        """Tell the child the function of a job; ``function`` may be a pickle."""
        blob = function if isinstance(function, bytes) else pickle.dumps(function)
        known: dict[str, Any] = {"call": 0, "timeout": 0.0, "retries": 0, "at_most_once": False}
        self.children.do(Define(child, job, blob, b"", **{**known, **options}))

    def give(
        self,
        items: Sequence[Any],
        child: int = 1,
        job: int = 1,
        chunksize: int = 1,
        skip: int = 0,
        start: int = 0,
        pickles: list[bytes] | None = None,
    ) -> int:
        """Run these items, numbered from ``start``; the first ``skip`` are not. Answers the position."""
        frames: list[Any] = []
        if pickles is None:
            chunks = [items[at : at + chunksize] for at in range(0, len(items), chunksize)]
            made = [dumps_value(chunk[0] if chunksize == 1 else list(chunk)) for chunk in chunks]
            pickles = [data for data, _ in made]
            frames = [buffer for _, buffers in made for buffer in buffers]
        position = self.positions[child]
        count = len(items) - skip
        self.positions[child] = position + count
        payload = [pack_lengths([len(each) for each in pickles]), b"".join(pickles), *frames]
        self.children.do(Run(child, position, job, start + skip, count, chunksize, skip, payload))
        return position

    def stop(self, child: int = 1) -> None:
        self.children.do(StopChild(child))

    def kill(self, child: int = 1) -> None:
        self.children.do(KillChild(child))

    def reclaim(self, child: int = 1) -> int:
        """Take back what has not begun; from which position on that is."""
        self.children.do(Reclaim(child))
        return self.found(Reclaimed)[-1].position

    # -- events ------------------------------------------------------------------------------------

    def found(self, kind: type[E], child: int | None = None) -> list[E]:
        """The events of this kind (and child) so far."""
        return [
            event
            for event in self.events
            if isinstance(event, kind) and (child is None or getattr(event, "child", child) == child)
        ]

    def wait(self, kind: type[E], child: int | None = None, count: int = 1) -> E:
        """The last of ``count`` such events, waited for."""
        self.until(lambda: len(self.found(kind, child)) >= count)
        return self.found(kind, child)[count - 1]

    def until(self, condition: Callable[[], object], patience: float = PATIENCE) -> None:
        """Handle what the children send until the condition holds."""
        deadline = time.monotonic() + patience
        while not condition():
            left = deadline - time.monotonic()
            assert left > 0, f"it did not come to pass; events: {[brief(each) for each in self.events[-20:]]}"
            self.children.poll(min(left, 0.05))

    def outcomes(self, count: int, child: int | None = None, job: int = 1) -> dict[int, Any]:
        """The outcome of each item, once there are ``count``; values stand for themselves."""
        self.until(lambda: sum(each.count for each in self.results(child, job)) >= count)
        answers: dict[int, Any] = {}
        for result in self.results(child, job):
            answered = [each for piece in loads_pieces(result.frames) for each in opened(piece, result)]
            assert len(answered) == result.count
            for item, answer in enumerate(answered, result.start):
                assert item not in answers, f"item {item} was answered twice"
                answers[item] = answer
        return answers

    def results(self, child: int | None = None, job: int = 1) -> list[ChildResult]:
        return [each for each in self.found(ChildResult, child) if each.job == job]

    def death(self, child: int = 1) -> ChildDied:
        return self.wait(ChildDied, child)


def opened(piece: Any, result: ChildResult) -> list[Any]:
    """The answers of one piece."""
    if result.encoding == 0:
        return list(piece)
    return [piece[1] if piece[0] == 0 else piece]


def brief(event: Event) -> str:
    text = repr(event)
    return text if len(text) < 300 else text[:300] + "..."


def exists(pid: int) -> bool:
    """Whether the process lives; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def wait_gone(pids: Sequence[int], patience: float) -> float:
    """Wait until none of the processes lives; the seconds it took."""
    begun = time.monotonic()
    while any(exists(pid) for pid in pids):
        assert time.monotonic() - begun < patience, f"still there: {[pid for pid in pids if exists(pid)]}"
        time.sleep(0.005)
    return time.monotonic() - begun


def open_files() -> list[str]:
    """What the open descriptors of this process refer to."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{name}"))
        except OSError:
            continue
    return sorted(each.split(":")[0] for each in found)


def descendants() -> list[int]:
    """Process ids of everything below this process that lives."""
    parents: dict[int, int] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                parents[int(name)] = int(Path(f"/proc/{name}/stat").read_text().rsplit(")", 1)[1].split()[1])
            except OSError:
                continue
    found = [os.getpid()]
    for pid in found:
        found += [each for each, parent in parents.items() if parent == pid]
    return [pid for pid in found[1:] if exists(pid)]


@contextmanager
def nothing_left() -> Iterator[None]:
    """What is begun inside leaves neither a descriptor nor a process."""
    files, processes = open_files(), descendants()
    yield
    gc.collect()
    assert open_files() == files
    assert descendants() == processes


# -- what children run -------------------------------------------------------------------------------


def same(item: Any) -> Any:
    return item


def double(item: int) -> int:
    return 2 * item


def nap(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def touch(path: str) -> str:
    Path(path).write_text(str(os.getpid()))
    return path


def touch_and_nap(path: str) -> None:
    touch(path)
    time.sleep(600)


def append_line(job: tuple[str, int]) -> int:
    """Note that this item ran, in one write."""
    path, item = job
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, f"{item}\n".encode())
    os.close(fd)
    return item


def os_exit(status: int) -> None:
    os._exit(status)


def kill_self(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(600)


def raise_it(error: BaseException) -> None:
    raise error


def sys_exit(status: object) -> None:
    sys.exit(status)  # type: ignore[arg-type]


def remainder(number: int, by: int) -> int:
    return number % by


def add_one(array: Any) -> Any:
    return array + 1


def second_half(array: Any) -> Any:
    return array[len(array) // 2 :]


def filled(number: int) -> Any:
    import numpy

    return numpy.full(10_000, number)


def filled_or_die(number: int) -> Any:
    if number < 0:
        os.kill(os.getpid(), 9)
    return filled(number)


_kept: list[Any] = []


def keep(item: Any) -> None:
    _kept.append(item)


def kept(_: object) -> list[int]:
    assert all((array == array[0]).all() for array in _kept)
    return [int(array[0]) for array in _kept]


def wait_for_file(path: str) -> str:
    while path and not Path(path).exists():
        time.sleep(0.005)
    return path


def raise_if_error(item: object) -> object:
    if isinstance(item, BaseException):
        raise item
    return item


_times: dict[str, int] = {}


def third_time(name: str) -> int:
    """Works the third time."""
    _times[name] = _times.get(name, 0) + 1
    if _times[name] < 3:
        raise LookupError(_times[name])
    return _times[name]


class TwoArgumentsError(Exception):
    """Pickles, and fails at the far end."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


class BadReduce:
    def __reduce__(self) -> Any:
        raise ZeroDivisionError


class ExitReduce:
    def __reduce__(self) -> Any:
        raise SystemExit(1)


class BadRepr(BadReduce):
    def __repr__(self) -> str:
        return str(1 // 0)


class FailsToLoad:
    def __reduce__(self) -> Any:
        return fail_to_load, ()


class FailsToLoadFunction(FailsToLoad):
    def __call__(self) -> None:
        """Never reached."""


def fail_to_load() -> None:
    raise LookupError("it cannot be loaded")


def misbehave(name: str) -> Any:
    if name == "LocalError":

        class LocalError(Exception):
            def __reduce__(self) -> Any:
                raise TypeError("never")

        raise LocalError("of a class that nobody can import")
    if name == "TwoArgumentsError":
        raise TwoArgumentsError(1, 2)
    if name == "lock":
        import threading

        return threading.Lock()
    return globals()[name]() if name else name


_ticks: list[int] = []


def ticking(item: int) -> int:
    """A timer whose handler raises wherever the child is, some times."""
    import signal

    def handler(*_: object) -> None:
        _ticks.append(1)
        if len(_ticks) >= 200:
            signal.setitimer(signal.ITIMER_REAL, 0)
        if running_items():
            raise TimeoutError

    if not _ticks:
        _ticks.append(0)
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.00037)
    return item


def running_items() -> bool:
    """Is the interrupted frame, or the one that called it, the loop over items?"""
    frame: Any = sys._getframe(2)
    return frame is not None and frame.f_code.co_name in ("_singles", "_items", "ticking")


_remembered: tuple[Any, ...] = ()


def remember(*args: Any) -> None:
    global _remembered
    _remembered = args


def surroundings(module: str) -> dict[str, Any]:
    from multiprocessing.process import current_process

    return {
        "cwd": os.getcwd(),
        "environ": dict(os.environ),
        "argv": sys.argv,
        "name": current_process().name,
        "initialized": _remembered,
        "module": __import__(module).value,
        "stdin": sys.stdin.read(),
    }


def say(texts: tuple[str, str]) -> None:
    print(texts[0], end="")
    print(texts[1], end="", file=sys.stderr)


def echo(text: str) -> None:
    import subprocess

    subprocess.run(["echo", text], check=True)


def last_words(text: str) -> None:
    print(text, end="", file=sys.stderr, flush=True)
    os._exit(9)


def print_for_ever(_: object) -> None:
    while True:
        os.write(1, b"x" * 65_536)


def close_all(_: object) -> None:
    os.closerange(3, 1000)


def kill_group(_: object) -> None:
    os.killpg(0, 9)


def large_then_die(seconds: float) -> Any:
    """Dies while what it has returned is being pickled."""

    class Deadly:
        def __reduce__(self) -> Any:
            os.kill(os.getpid(), 9)

    return [b"a" * (16 << 20), Deadly()]


def leave_behind(folder: str) -> None:
    import atexit
    import threading

    if not _kept:
        _kept.append(folder)
        atexit.register(touch, f"{folder}/atexit")
        threading.Thread(target=lambda: (time.sleep(0.3), touch(f"{folder}/thread"))).start()


def start_daemon(seconds: float) -> None:
    import threading

    threading.Thread(target=time.sleep, args=(seconds,), daemon=True).start()


def spawn_and_tell(_: object) -> int:
    import subprocess

    return subprocess.Popen(["sleep", "600"]).pid


def spawn_and_nap(seconds: float) -> None:
    spawn_and_tell(0)
    time.sleep(seconds)


def scribble(_: object) -> None:
    """What some C library might do that closes a descriptor twice."""
    import stat

    for name in os.listdir("/proc/self/fd"):
        fd = int(name)
        try:
            if fd > 2 and stat.S_ISSOCK(os.fstat(fd).st_mode):
                os.write(fd, (20).to_bytes(8, "little") + b"\xff" * 20)
        except OSError:
            continue
    time.sleep(600)


def long_sum(_: object) -> int:
    """One call into C that takes longer than any test, and never lets go of the interpreter."""
    import itertools

    return sum(itertools.repeat(1, 1 << 50))
