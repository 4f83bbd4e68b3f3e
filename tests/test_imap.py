"""imap and imap_unordered: lazy, bounded, over anything; and what happens to an iterator that is left."""

from __future__ import annotations

import gc
import itertools
import multiprocessing
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from workload import (
    LONG,
    fail_on_negative,
    hold,
    note,
    outcomes,
    sleep,
    sleep_shortly,
    square,
    until,
    wait_for,
    wait_or_square,
)

from multihost.pool import Pool

if TYPE_CHECKING:
    from conftest import MakePool

#: An input read further ahead than this is not read lazily.
FAR = 5_000


class Source:
    """An iterable without a length that counts how far it was read."""

    def __init__(self, stop: int | None = None) -> None:
        self.read = 0
        self.stop = stop

    def __iter__(self) -> Iterator[int]:
        for number in itertools.count() if self.stop is None else range(self.stop):
            self.read += 1
            yield number


@pytest.mark.parametrize("chunksize", [1, 3, 100])
def test_results_come_in_order(make_pool: MakePool, chunksize: int) -> None:
    pool = make_pool(2)
    squares = [number**2 for number in range(1000)]
    assert list(pool.imap(square, range(1000), chunksize)) == squares
    assert list(pool.imap(square, Source(1000), chunksize)) == squares
    assert sorted(pool.imap_unordered(square, Source(1000), chunksize)) == squares


def test_unordered_gives_out_what_is_ready(make_pool: MakePool, tmp_path: Path) -> None:
    pool = make_pool(2)
    release = tmp_path / "release"
    results = pool.imap_unordered(wait_or_square, [str(release), "3", "4"])
    assert sorted(next(results) for _ in range(2)) == [9, 16]
    release.touch()
    assert next(results) == 0
    with pytest.raises(StopIteration):
        next(results)
    with pytest.raises(StopIteration):
        next(results)


def test_an_endless_input_is_read_only_ahead_of_the_results(make_pool: MakePool) -> None:
    pool = make_pool(2)
    for method in (pool.imap, pool.imap_unordered):
        source = Source()
        results = method(sleep_shortly, source)
        taken = [next(results) for _ in range(200)]
        assert len(taken) == 200 and source.read < 200 + FAR
        before = source.read
        assert not _grows(source), f"{before} read, then {source.read}"
        results.close()


def _grows(source: Source) -> bool:
    """Is it still read although nobody takes results? After it has filled the window it must not be."""
    seen = -1
    for _ in range(100):
        if source.read == seen:
            return False
        seen = source.read
        threading.Event().wait(0.1)
    return True


def test_buffersize_bounds_the_input(make_pool: MakePool) -> None:
    source = Source()
    results = make_pool(2).imap(square, source, buffersize=10)
    for number in range(500):
        assert next(results) == number**2
        assert source.read <= number + 1 + 10
    results.close()


def test_a_list_is_sent_only_ahead_of_the_results(make_pool: MakePool, tmp_path: Path) -> None:
    items = [(str(tmp_path), number) for number in range(200)]
    results = make_pool(2).imap(note, items, buffersize=5)
    assert [next(results) for _ in range(20)] == list(range(20))
    assert len(list(tmp_path.iterdir())) <= 25
    assert list(results) == list(range(20, 200))


def test_an_exception_is_one_result_among_others(make_pool: MakePool) -> None:
    results = make_pool(1).imap(fail_on_negative, [1, -2, 3])
    assert next(results) == 1
    with pytest.raises(ValueError, match="-2"):
        next(results)
    assert next(results) == 3


def test_next_with_a_timeout(make_pool: MakePool, tmp_path: Path) -> None:
    begun, release = tmp_path / "begun", tmp_path / "release"
    results = make_pool(1).imap(hold, [(str(begun), str(release))])
    wait_for(str(begun))
    with pytest.raises(multiprocessing.TimeoutError):
        results.next(0.02)
    with pytest.raises(multiprocessing.TimeoutError):
        results.next(timeout=0)
    release.touch()
    assert results.next(30) > 0


def test_an_iterable_that_raises(make_pool: MakePool) -> None:
    pool = make_pool(2)
    results = pool.imap(square, breaks_after(3))
    assert [next(results) for _ in range(3)] == [0, 1, 4]
    with pytest.raises(LookupError, match="no more"):
        next(results)
    with pytest.raises(StopIteration):
        next(results)
    values, errors = outcomes(pool.imap_unordered(square, breaks_after(3)))
    assert sorted(values) == [0, 1, 4] and [str(error) for error in errors] == ["no more"]
    with pytest.raises(LookupError, match="no more"):
        pool.map(square, breaks_after(3))
    assert pool.map(square, [2]) == [4]


def breaks_after(count: int) -> Iterator[int]:
    yield from range(count)
    raise LookupError("no more")


def test_an_iterable_that_cannot_be_iterated(make_pool: MakePool) -> None:
    pool = make_pool(1)
    for method in (pool.map, pool.imap, pool.imap_unordered):
        with pytest.raises(TypeError, match="not iterable"):
            list(method(square, 3))  # type: ignore[arg-type]


def test_leaving_half_way_ends_the_work_and_the_reading(make_pool: MakePool) -> None:
    pool = make_pool(2)
    source = Source()
    assert next(each for each in pool.imap(square, source) if each > 100) == 121
    gc.collect()
    until(lambda: not _grows(source))
    until(lambda: not [each for each in threading.enumerate() if each.name == "multihost-filler"])
    assert pool.map(square, [1, 2]) == [1, 4]


def test_an_iterator_nobody_ever_asked_does_all_its_work(make_pool: MakePool, tmp_path: Path) -> None:
    pool = make_pool(2)
    pool.imap_unordered(note, [(str(tmp_path), number) for number in range(2000)])
    pool.imap(note, ((str(tmp_path), number) for number in range(2000, 4000)))
    pool.close()
    pool.join()
    assert len(list(tmp_path.iterdir())) == 4000


@pytest.mark.parametrize("lazy", [False, True])
def test_results_may_be_taken_after_join(make_pool: MakePool, lazy: bool) -> None:
    pool = make_pool(2)
    count = 3 * FAR
    results = pool.imap(square, Source(count) if lazy else range(count), buffersize=10)
    pool.close()
    pool.join()
    assert list(results) == [number**2 for number in range(count)]


def test_an_iterator_keeps_its_pool(address: str) -> None:
    pool = Pool(1, address=address)
    known = weakref.ref(pool)
    results = pool.imap(square, range(3))
    del pool
    gc.collect()
    assert known() is not None
    with pytest.warns(ResourceWarning, match="unclosed"):
        # At its end it lets go of the pool.
        assert list(results) == [0, 1, 4]


def test_terminate_ends_an_endless_iterator(make_pool: MakePool) -> None:
    pool = make_pool(2)
    results = pool.imap(sleep, itertools.repeat(LONG))
    pool.terminate()
    pool.join()
    # One for each item that was read already; and it ends.
    values, errors = outcomes(results)
    assert not values and {str(error) for error in errors} == {"the pool was terminated"}


def test_two_threads_take_from_one_iterator(make_pool: MakePool) -> None:
    results = make_pool(2).imap_unordered(square, range(2000))
    taken: list[int] = []

    def take() -> None:
        taken.extend(results)

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(taken) == [number**2 for number in range(2000)]
