"""The workloads of what processes share: queues, pipes, locks, and processes themselves.

Each is given a module with multiprocessing's names, which is multiprocessing on one side and multihost on the others.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from time import monotonic, perf_counter
from typing import Any

from multihost.bench.loads import WrongResultError

#: Round trips that are not counted.
WARM = 20


def _put_all(queue: Any, number: int, size: int, ready: Any) -> None:
    item = b"x" * size
    ready.get()
    queue.put(monotonic())
    for each in range(number):
        queue.put(item if size else each)


def _get_all(queue: Any, number: int, size: int, ready: Any, answers: Any) -> None:
    ready.put(True)
    # When the first put began: both processes have the same clock.
    began = queue.get()
    wrong = False
    for each in range(number):
        item = queue.get()
        wrong = wrong or (len(item) != size if size else item != each)
    answers.put((monotonic() - began, wrong))


def queue(api: Any, number: int, size: int, manager: bool = False) -> dict[str, float]:
    """W7: from one process to another, one put and one get at a time; ints, or ``size`` bytes each. Items a second."""
    shared = api.Manager() if manager else None
    items = shared.Queue() if shared is not None else api.Queue()
    ready, answers = api.SimpleQueue(), api.SimpleQueue()
    processes = [
        api.Process(target=_get_all, args=(items, number, size, ready, answers)),
        api.Process(target=_put_all, args=(items, number, size, ready)),
    ]
    for process in processes:
        process.start()
    took, wrong = answers.get()
    for process in processes:
        process.join()
    if shared is not None:
        shared.shutdown()
    _expect(not wrong)
    return {"rate": number / took}


def _echo(connection: Any) -> None:
    while (message := connection.recv()) is not None:
        connection.send(message)


def _ask(connection: Any, number: int, answers: Any) -> None:
    answers.put(_trips(connection, number))


def _trips(connection: Any, number: int) -> float:
    times = []
    for each in range(number + WARM):
        began = perf_counter()
        connection.send(each)
        answer = connection.recv()
        times.append(perf_counter() - began)
        _expect(answer == each)
    connection.send(None)
    return statistics.median(times[WARM:])


def pipe(api: Any, number: int, two: bool = False) -> dict[str, float]:
    """PIPE: an integer there and back, between the script and a process, or between ``two`` processes. Seconds."""
    here, there = api.Pipe()
    echo = api.Process(target=_echo, args=(there,))
    echo.start()
    if two:
        answers = api.SimpleQueue()
        ask = api.Process(target=_ask, args=(here, number, answers))
        ask.start()
        seconds = answers.get()
        ask.join()
    else:
        seconds = _trips(here, number)
    echo.join()
    here.close()
    there.close()
    return {"seconds": seconds}


def lock(api: Any, number: int) -> dict[str, float]:
    """LOCK: acquire and release when nobody else wants it, in round trips to where locks are."""
    shared, event = api.Lock(), api.Event()
    both, trips = [], []
    for _ in range(number + WARM):
        began = perf_counter()
        event.is_set()
        between = perf_counter()
        shared.acquire()
        shared.release()
        both.append(perf_counter() - between)
        trips.append(between - began)
    return {"trips": statistics.median(both[WARM:]) / statistics.median(trips[WARM:])}


def _nothing() -> None:
    """What the processes do."""


def processes(api: Any, number: int) -> dict[str, float]:
    """PROCESS: so many are started, and joined. Seconds."""
    began = perf_counter()
    started = [api.Process(target=_nothing) for _ in range(number)]
    for process in started:
        process.start()
    for process in started:
        process.join()
    took = perf_counter() - began
    _expect([process.exitcode for process in started] == [0] * number)
    return {"seconds": took}


def _expect(right: bool) -> None:
    if not right:
        raise WrongResultError("not what was sent has come: please report this")


LOADS: dict[str, Callable[..., dict[str, float]]] = {
    each.__name__: each for each in (queue, pipe, lock, processes)
}
