"""What tests of Pool and Executor have run in child processes."""

from __future__ import annotations

import operator
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import multihost

#: A limit that no test ever reaches, seconds.
LONG = 600.0


def square(number: int) -> int:
    return number * number


def add(left: int, right: int = 0) -> int:
    return left + right


def pid(_: object = None) -> int:
    return os.getpid()


def pid_after(seconds: float) -> int:
    time.sleep(seconds)
    return os.getpid()


def sleep(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def sleep_shortly(number: int) -> int:
    time.sleep(0.001)
    return number


def fail(value: object) -> NoReturn:
    raise ValueError(f"no {value}")


def fail_on_negative(number: int) -> int:
    if number < 0:
        raise ValueError(number)
    return number


def fail_until_third(folder: str) -> int:
    """Raises twice, counting its calls by files in a folder."""
    calls = len(os.listdir(folder)) + 1
    Path(folder, str(calls)).touch()
    if calls < 3:
        raise ValueError(f"call {calls}")
    return calls


def first_time(flag: str) -> bool:
    try:
        os.close(os.open(flag, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def die_once(item: tuple[int, str]) -> int:
    """Kills its process the first time that anybody calls it with this file; 3 does it."""
    number, flag = item
    if number == 3 and first_time(flag):
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def die(number: int) -> int:
    """Kills its process by signal ``-number``, if that is one."""
    if number < 0:
        os.kill(os.getpid(), -number)
    return number


def leave(code: int) -> int:
    if code:
        os._exit(code)
    return code


def die_noting(folder: str) -> None:
    """Kills its process; each run leaves a file."""
    Path(folder, str(os.getpid())).touch()
    os.kill(os.getpid(), signal.SIGKILL)


def hold(item: tuple[str, str]) -> int:
    """Says by one file that it runs, and ends once there is the other file."""
    begun, release = item
    Path(begun).touch()
    wait_for(release)
    return os.getpid()


def wait_for(path: str, seconds: float = 60.0) -> None:
    """Until there is such a file."""
    deadline = time.monotonic() + seconds
    while not os.path.exists(path):
        assert time.monotonic() < deadline, f"no {path} within {seconds} s"
        time.sleep(0.002)


def wait_or_square(text: str) -> int:
    if text.isdigit():
        return square(int(text))
    wait_for(text)
    return 0


def note(item: tuple[str, int]) -> int:
    """Leaves a file that says which item ran."""
    folder, number = item
    Path(folder, str(number)).touch()
    return number


class TwoArgumentsError(Exception):
    """Pickles, and does not unpickle: as most exceptions with an ``__init__`` of their own."""

    def __init__(self, left: int, right: int) -> None:
        super().__init__(f"{left} is not {right}")


def raise_two_arguments(number: int) -> int:
    if number < 0:
        raise TwoArgumentsError(number, 2)
    return number


def lock_or(number: int) -> Any:
    return threading.Lock() if number < 0 else number


class NoPickle:
    def __reduce__(self) -> NoReturn:
        raise TypeError("this does not pickle, so says its class")


class NoUnpickle:
    """Of the kind that is only found out at the other end."""

    def __reduce__(self) -> tuple[Any, ...]:
        return fail, ("unpickling",)


def no_unpickle(number: int) -> Any:
    return NoUnpickle() if number < 0 else number


_value: Any = None


def set_value(value: Any) -> None:
    global _value
    _value = value


def get_value(_: object = None) -> Any:
    return _value


def raise_at_start() -> None:
    raise RuntimeError("this initializer always fails")


def nested(number: int) -> int:
    with multihost.Pool(1, address="") as pool:
        return sum(pool.map(square, range(number)))


class Counted:
    """Counts how often objects of it were pickled in this process."""

    pickled = 0

    def __init__(self, size: int = 0) -> None:
        self.content = bytes(size)

    def __reduce__(self) -> tuple[Any, ...]:
        Counted.pickled += 1
        return Counted, (0,), {"content": self.content}


def array_of(size: int) -> Any:
    """So many bytes that travel in shared memory."""
    import numpy

    return numpy.ones(size, dtype=numpy.uint8)


def negated(array: Any) -> Any:
    """In a process of a pool of this process's own."""
    with multihost.Pool(1) as pool:
        return pool.map(operator.neg, [array])[0]


def size_of(item: Counted) -> int:
    return len(item.content)


def until(holds: Any, seconds: float = 30.0) -> None:
    """Until this holds, looking again and again."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"not so within {seconds} s"
        time.sleep(0.005)


def outcomes(results: Iterator[Any]) -> tuple[list[Any], list[BaseException]]:
    """(values, exceptions) that an iterator gives out."""
    values: list[Any] = []
    errors: list[BaseException] = []
    while True:
        try:
            values.append(next(results))
        except StopIteration:
            return values, errors
        except Exception as error:  # noqa: BLE001
            errors.append(error)


#: The item that kills whoever runs it.
SHORT_KILLER = 41_234


def short_unless_killer(item: int) -> int:
    if item == SHORT_KILLER:
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(LONG)
    return item
