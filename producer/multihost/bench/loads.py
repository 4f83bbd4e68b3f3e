"""The workloads, each run with whatever pool a side has. Each checks its results and answers figures."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from time import perf_counter, process_time
from typing import Any

from multihost.bench import work

#: Seed and shape of the sleeps of W8: a lognormal around 2 ms.
SEED, MEDIAN_SECONDS, SIGMA = 8, 0.002, 1.0

#: An item of W6: some 2 ms of interpreter.
FIB = 22

#: Calls that are not counted before those that are: the other side has had the caches meanwhile.
WARM_CALLS = 20


class WrongResultError(Exception):
    """A pool has not returned what a plain loop returns."""


def many(pool: Any, items: int, chunksize: int | None) -> dict[str, float]:
    """W1, W2: a map of a function that does nothing. Items a second."""
    began, used = perf_counter(), process_time()
    results = pool.map(work.no_op, range(items), chunksize)
    took, used = perf_counter() - began, process_time() - used
    _expect(results == list(range(items)))
    return {"rate": items / took, "cpu": used / items}


def calls(pool: Any, number: int) -> dict[str, Any]:
    """W3: apply, one after the other. Seconds of each."""
    apply, no_op = pool.apply, work.no_op
    for _ in range(WARM_CALLS):
        apply(no_op, (1,))
    times = []
    for each in range(number):
        began = perf_counter()
        answer = apply(no_op, (each,))
        times.append(perf_counter() - began)
        _expect(answer == each)
    return {"times": times}


def futures(pool: Any, number: int) -> dict[str, float]:
    """W4: apply_async, then get of each. Calls a second."""
    began = perf_counter()
    pending = [pool.apply_async(work.no_op, (each,)) for each in range(number)]
    results = [each.get() for each in pending]
    took = perf_counter() - began
    _expect(results == list(range(number)))
    return {"rate": number / took}


def arrays_in(pool: Any, number: int, size: int = work.ARRAY_BYTES) -> dict[str, float]:
    """W5 in: an array of ``size`` bytes per item to a process, a float back. MB a second."""
    arrays = [work.make_array(each, size) for each in range(number)]
    few = arrays[: min(4, number)]
    _expect(pool.map(work.checksum, few, 1) == [work.checksum(each) for each in few])
    began = perf_counter()
    results = pool.map(work.probe, arrays, 1)
    took = perf_counter() - began
    _expect(results == [work.probe(each) for each in arrays])
    return {"rate": number * size / took / 1e6}


def arrays_out(pool: Any, number: int, size: int = work.ARRAY_BYTES) -> dict[str, float]:
    """W5 out: a number to a process, an array of ``size`` bytes back. MB a second."""
    began = perf_counter()
    results = pool.starmap(work.make_array, [(each, size) for each in range(number)], 1)
    took = perf_counter() - began
    _expect([work.probe(array) for array in results] == [_probe(each, size) for each in range(number)])
    _expect(work.checksum(results[-1]) == work.checksum(work.make_array(number - 1, size)))
    return {"rate": number * size / took / 1e6}


def _probe(number: int, size: int) -> float:
    """What ``work.probe`` says of this array."""
    value = float(number & 255)
    return value + value / 1000 + size


def compute(pool: Any, items: int) -> dict[str, float]:
    """W6: a map of plain computing. Seconds."""
    expected = [work.fib(FIB)] * items
    began = perf_counter()
    results = pool.map(work.fib, [FIB] * items)
    took = perf_counter() - began
    _expect(results == expected)
    return {"seconds": took}


def durations(items: int, rising: bool) -> list[float]:
    """The sleeps of W8, in seconds: always the same."""
    source = random.Random(SEED)
    sleeps = [source.lognormvariate(math.log(MEDIAN_SECONDS), SIGMA) for _ in range(items)]
    return sorted(sleeps) if rising else sleeps


def uneven(pool: Any, items: int, rising: bool, chunksize: int | None) -> dict[str, float]:
    """W8: a map over sleeps of very different length. Seconds."""
    sleeps = durations(items, rising)
    began = perf_counter()
    results = pool.map(work.nap, sleeps, chunksize)
    took = perf_counter() - began
    _expect(results == sleeps)
    return {"seconds": took}


def _expect(right: bool) -> None:
    if not right:
        raise WrongResultError("the results differ from those of a plain loop: please report this")


LOADS: dict[str, Callable[..., dict[str, Any]]] = {
    each.__name__: each for each in (many, calls, futures, arrays_in, arrays_out, compute, uneven)
}
