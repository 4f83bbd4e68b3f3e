"""Arrays where all processes are on this machine: they lie in memory that all of them see."""

from __future__ import annotations

import errno
import gc
import os
import pickle
import signal
from typing import Any

import numpy as np
import pytest

import multihost as mp
from multihost.arenas import MappedCell
from multihost.engines.choosing import BROKER_VARIABLE

#: Seconds that anything here may take.
LIMIT = 30.0


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(BROKER_VARIABLE, raising=False)


def add(array: Any, other: Any, lock: Any) -> None:
    for _ in range(50):
        with lock:
            np.frombuffer(array)[:] += 1
            memoryview(other).cast("B")[1] += 1


def test_who_looks_at_the_memory_of_an_array_sees_what_others_write() -> None:
    array, other = mp.RawArray("d", 100_000), mp.Array("B", 3)
    np.frombuffer(array)[:] = 0.5
    processes = [mp.Process(target=add, args=(array, other.get_obj(), other.get_lock())) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(LIMIT)
    assert (np.frombuffer(array) == 100.5).all()
    assert array[99_999] == 100.5 and other[:] == [0, 100, 0]


def put_array(queue: Any, end: Any) -> None:
    array = mp.RawArray("i", [4, 5])
    queue.put(array)
    queue.put(pickle.dumps(array))
    queue.close()
    queue.join_thread()
    end.wait(LIMIT)
    os.kill(os.getpid(), signal.SIGKILL)


def test_an_array_outlives_its_maker_for_those_who_have_it_and_others_are_told() -> None:
    queue: Any = mp.Queue()
    end = mp.Event()
    process = mp.Process(target=put_array, args=(queue, end))
    process.start()
    array, pickled = queue.get(timeout=LIMIT), queue.get(timeout=LIMIT)
    pickle.loads(pickled)[0] = 6
    assert array[:] == [6, 5]
    copies = pickle.loads(pickled)
    end.set()
    process.join(LIMIT)
    assert process.exitcode == -signal.SIGKILL and copies[:] == [6, 5]
    del array, copies
    with pytest.raises(mp.BrokerLostError, match="the process that made it has ended"):
        pickle.loads(pickled)


def test_an_array_that_is_given_away_is_there_when_others_open_it() -> None:
    queue: Any = mp.Queue()
    for size in (2, 100_000):
        queue.put(mp.RawArray("i", [7] * size))
    gc.collect()
    assert [len(queue.get(timeout=LIMIT)) for _ in range(2)] == [2, 100_000]
    with mp.Pool(1) as pool:
        assert pool.map(sum, [mp.RawArray("i", [1, 2]), mp.RawArray("i", [1] * 100_000)]) == [3, 100_000]


def test_without_a_descriptor_to_spare_an_array_is_as_a_value_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as patched:
        patched.setattr(os, "memfd_create", fails)
        array = mp.RawArray("i", [7] * 100_000)
    assert not isinstance(array._cell, MappedCell)
    with mp.Pool(1) as pool:
        assert pool.apply(sum, (array,)) == 700_000


def test_many_small_arrays_share_their_memory_and_give_it_back() -> None:
    before = len(os.listdir("/proc/self/fd"))
    arrays = [mp.RawArray("i", [number]) for number in range(2000)]
    assert all(isinstance(each._cell, MappedCell) for each in arrays)
    assert [each[0] for each in arrays] == list(range(2000))
    assert len(os.listdir("/proc/self/fd")) <= before + 4
    arrays.clear()
    assert len(os.listdir("/proc/self/fd")) <= before
