"""What a producer on some host of a cluster does: ``python cases.py NAME``; exit status 0 if it went well.

Each case is a function here; the functions it sends are in ``workload.py``, which the workers do not
have: it travels.
"""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from random import Random

import history
import workload

import multihost
from multihost import NoWorkersError, Pool, RemoteError, WorkerLostError
from multihost.pool import MaybeEncodingError

ITEMS = 200


def host_after(seconds: float) -> str:
    time.sleep(seconds)
    return platform.node()


def note_once(item: tuple[str, int, float]) -> int:
    """Leaves a file; raises if somebody has run this item before."""
    folder, number, seconds = item
    with open(Path(folder, f"ran-{number}"), "x"):
        time.sleep(seconds)
    return number


def folder() -> str:
    return os.environ["CASE_FOLDER"]


def say(text: str) -> None:
    print(text, flush=True)


# -- cases -----------------------------------------------------------------------------------------


def killed_once() -> None:
    items = [(number, f"{folder()}/flag") for number in range(ITEMS)]
    with Pool() as pool:
        assert pool.map(workload.die_once, items, chunksize=1) == list(range(ITEMS))


def killed_always() -> None:
    items = [-9 if number == 7 else number for number in range(ITEMS)]
    results, errors = [], []
    with Pool() as pool:
        iterator = pool.imap(workload.die, items)
        for _ in items:
            try:
                results.append(next(iterator))
            except WorkerLostError as error:
                errors.append(error)
    assert results == [item for item in items if item >= 0]
    (lost,) = errors
    assert (lost.deaths, lost.signal, lost.oom) == (3, 9, False), vars(lost)
    assert lost.host in ("w1", "w2") and lost.rss > 1 << 20, vars(lost)
    for word in ("SIGKILL", lost.host, "MiB", "OOM"):
        assert word in str(lost), str(lost)


def pickling() -> None:
    """Exceptions, results and arguments that do not travel, and a lambda, which does."""
    with Pool() as pool:
        assert pool.map(lambda number: number + ITEMS, range(5)) == list(range(ITEMS, ITEMS + 5))
        for function, expected in (
            (workload.raise_two_arguments, RemoteError),
            (workload.lock_or, MaybeEncodingError),
            (workload.no_unpickle, RemoteError),
        ):
            calls = [pool.apply_async(function, (number,)) for number in (1, -1, 2)]
            assert (calls[0].get(20), calls[2].get(20)) == (1, 2)
            try:
                calls[1].get(20)
            except expected:
                continue
            raise AssertionError(f"{function.__name__} raised nothing")
        try:
            pool.map(workload.size_of, [workload.Counted(3), workload.NoPickle()])
        except TypeError as error:
            assert "does not pickle" in str(error)
        else:
            raise AssertionError("an argument that does not pickle was sent")


def input_raises() -> None:
    def numbers() -> Iterator[int]:
        yield from range(10)
        raise ValueError("the input broke")

    got: list[int] = []
    with Pool() as pool:
        try:
            got.extend(pool.imap(workload.square, numbers()))
        except ValueError as error:
            assert "the input broke" in str(error)
        else:
            raise AssertionError("the error of the iterable was lost")
        iterator = pool.imap(workload.square, numbers())
        assert [next(iterator) for _ in range(10)] == [number**2 for number in range(10)]
        assert pool.apply(workload.square, (4,)) == 16


def interrupted() -> None:
    with Pool() as pool:
        try:
            say("begun")
            pool.map(workload.sleep, [60.0] * 8, chunksize=1)
        except KeyboardInterrupt:
            say("interrupted")
        pool.terminate()
    with Pool() as pool:
        assert pool.apply(workload.square, (5,)) == 25


def timed_out() -> None:
    with Pool(timeout=1.0) as pool:
        calls = [pool.apply_async(workload.sleep, (600.0 if number == 3 else 0.02,)) for number in range(40)]
        for number, call in enumerate(calls):
            try:
                assert call.get(30) == 0.02
            except multihost.TimeoutError as error:
                assert number == 3 and "item" in str(error), str(error)
            else:
                assert number != 3


def long_map() -> None:
    """Says so when each host has answered first, and at the end."""
    seen: set[str] = set()
    count = int(os.environ.get("CASE_ITEMS", "150"))
    with Pool() as pool:
        answers = 0
        for host in pool.imap_unordered(host_after, [0.1] * count):
            answers += 1
            if host not in seen:
                seen.add(host)
                say(f"first answer of {host} at {time.time()}")
        assert answers == count
    say("complete")


def exactly_once() -> None:
    items = [(folder(), number, 0.05) for number in range(ITEMS)]
    with Pool() as pool:
        answers = []
        for number in pool.imap_unordered(note_once, items):
            answers.append(number)
            if len(answers) == 20:
                say("under way")
        assert sorted(answers) == list(range(ITEMS))
    assert len(os.listdir(folder())) == ITEMS


def long_items() -> None:
    with Pool() as pool:
        pool.map(
            workload.hold, [(f"{folder()}/begun-{number}", f"{folder()}/never") for number in range(4)], 1
        )


def square_after(job: tuple[int, float]) -> int:
    time.sleep(job[1])
    return job[0] * job[0]


def with_history() -> None:
    """Maps of all kinds for ``CASE_SECONDS``; what was handed in and what came back is written down."""
    random = Random(os.environ["CASE_SEED"])
    writer = history.Writer(os.environ["CASE_HISTORY"])
    until = time.monotonic() + float(os.environ["CASE_SECONDS"])
    item = 0
    with Pool() as pool:
        while time.monotonic() < until:
            items = list(range(item, item + random.choice([1, 20, 200])))
            item = items[-1] + 1
            jobs = [(each, random.choice([0.0, 0.001, 0.02])) for each in items]
            for each in items:
                writer.write("call", each)
            way = random.choice(["map", "imap", "apply"])
            if way == "map":
                answers: Iterable[int] = pool.map(square_after, jobs, random.choice([1, 7, None]))
            elif way == "imap":
                answers = pool.imap(square_after, jobs)
            else:
                answers = [each.get() for each in [pool.apply_async(square_after, (job,)) for job in jobs]]
            for each, answer in zip(items, answers, strict=True):
                writer.write("answer", each, answer)
    writer.write("end")


def large(item: int) -> bytes:
    return bytes([item % 256]) * (256 << 10)


def slow_consumer() -> None:
    """Takes results out slowly, while they are made fast: 500 MiB of them."""
    with Pool() as pool:
        for number, result in enumerate(pool.imap(large, range(2000))):
            assert result[0] == number % 256
            if number % 10 == 0:
                say(f"taken {number}")
                time.sleep(0.05)
    say("complete")


def patient() -> None:
    try:
        Pool(start_timeout=1.0)
    except NoWorkersError as error:
        say(f"refused: {error}")
    with Pool() as pool:
        say(f"answer {pool.apply(workload.square, (3,))}")


if __name__ == "__main__":
    globals()[sys.argv[1]]()
