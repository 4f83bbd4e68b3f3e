"""Functions that children run in tests; they are imported there, so this module is light."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any


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


_prompts: list[int] = []


def count_prompts(seconds: float) -> int:
    """How often this process was prompted until this item had slept."""
    import signal

    known: Any = signal.getsignal(signal.SIGURG)
    if not _prompts:
        _prompts.append(0)
        signal.signal(signal.SIGURG, lambda *args: (_prompts.append(1), known(*args)))  # type: ignore[func-returns-value]
    time.sleep(seconds)
    return sum(_prompts)


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
        threading.Thread(target=touch_late, args=(f"{folder}/thread",)).start()


def touch_late(path: str) -> None:
    time.sleep(0.3)
    touch(path)


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
    """One call into C that never ends."""
    import itertools

    return sum(itertools.repeat(1, 1 << 50))


def handlers(_: object) -> dict[str, Any]:
    import signal

    found: dict[str, Any] = {}
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGCHLD", "SIGPIPE"):
        handler = signal.getsignal(getattr(signal, name))
        found[name] = handler.name if isinstance(handler, signal.Handlers) else handler.__name__  # type: ignore[union-attr]
    found["blocked"] = list(signal.pthread_sigmask(signal.SIG_BLOCK, []))
    found["wakeup"] = signal.set_wakeup_fd(-1)
    return found


def holdings(_: object) -> dict[str, Any]:
    files = []
    for name in os.listdir("/proc/self/fd"):
        try:
            files.append((int(name), os.readlink(f"/proc/self/fd/{name}")))
        except OSError:
            continue
    return {
        "files": [each for each in files if each[0] > 2],
        "group": os.getpgid(0),
        "pid": os.getpid(),
        "main": sys.modules["__main__"].__name__,
    }


def draw(_: object) -> float:
    import random

    return random.random()


def flags(_: object) -> tuple[Any, ...]:
    import tracemalloc

    return (
        sys.flags.optimize,
        [each for each in sys.warnoptions if "User" in each],
        bool(sys.flags.utf8_mode),
        tracemalloc.is_tracing(),
        os.environ["ADDED"],
    )


def append_and_nap(job: tuple[str, int]) -> int:
    """Note that this item ran, and take a while."""
    append_line(job)
    time.sleep(0.01)
    return job[1]


def note_and_nap(job: tuple[str, int, float]) -> int:
    """Note that this item ran, and take so many seconds."""
    append_line(job[:2])
    time.sleep(job[2])
    return job[1]


def pid_after_nap(seconds: float) -> int:
    time.sleep(seconds)
    return os.getpid()


def touch_and_wait(here: str, go: str) -> str:
    """Say that it runs, and end when it is told to."""
    touch(here)
    while not Path(go).exists():
        time.sleep(0.01)
    return "went"


def size_once_there(job: tuple[str, bytes]) -> int:
    path, data = job
    wait_for_file(path)
    return len(data)


def size_after_nap(data: bytes) -> int:
    time.sleep(0.001)
    return len(data)


def hoard(size: int) -> None:
    """Take so much memory, and keep it."""
    held = bytearray(size)
    held[::4096] = b"x" * len(held[::4096])
    time.sleep(600)


def short_unless(item: float) -> float:
    """Nothing, nearly, for an int; a nap of so many seconds for a float; death for a negative number."""
    if type(item) is int:
        if item < 0:
            os.kill(os.getpid(), 9)
            time.sleep(600)
        return item
    time.sleep(item)
    return item


def short_unless_odd(item: int) -> int:
    if item % 2:
        raise ValueError(item)
    return item


def die_while_there(job: tuple[str, int]) -> int:
    """Ends its process as long as the file is there."""
    path, item = job
    if Path(path).exists():
        os.kill(os.getpid(), 9)
    return item


def touch_and_wait_for(here: str, go: str) -> str:
    return touch_and_wait(here, go) if here else "went"


def remembered_and_pid(_: object) -> tuple[Any, int]:
    return _remembered, os.getpid()


def same_after_nap(job: tuple[Any, float]) -> Any:
    item, seconds = job
    if seconds:
        time.sleep(seconds)
    return item


def large_after_go(job: tuple[str, int, int]) -> bytes:
    """So many bytes, once told to end; notes that the item ran."""
    folder, item, size = job
    append_line((str(Path(folder) / "log"), item))
    while not (Path(folder) / "go").exists():
        time.sleep(0.01)
    return bytes([item]) * size


def acquire_and_release(args: tuple[bytes, int]) -> int:
    """A lock at the broker, taken and given back so many times."""
    from multihost.engines.choosing import get_sharing
    from multihost_common.shared import Semaphores

    name, times = args
    sharing = get_sharing()
    for _ in range(times):
        assert sharing.ask(name, Semaphores.ACQUIRE)
        sharing.tell(name, Semaphores.RELEASE)
    return times
