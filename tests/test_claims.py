"""What a child has begun is its own, what it has not can be taken back, and nothing runs twice."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
import tasks
from nursery import Nursery, nothing_left

from multihost_worker.claims import ClaimBook, Claims
from multihost_worker.events import Run


@pytest.fixture
def nurse() -> Iterator[Nursery]:
    with nothing_left(), Nursery() as made:
        yield made


@pytest.fixture
def book() -> Iterator[ClaimBook]:
    with nothing_left():
        made = ClaimBook()
        yield made
        made.close()


class OtherProcess:
    """Claims from another process, as record locks are between processes; one claim at a time."""

    def __init__(self, book: ClaimBook) -> None:
        self._ask, self._asked = os.pipe(), os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._ask[1])
            claims = Claims(book.fd)
            while words := os.read(self._ask[0], 100).split():
                os.write(self._asked[1], b"%d" % claims.claim(int(words[0]), int(words[1])))
            os._exit(0)
        os.close(self._ask[0])
        os.close(self._asked[1])

    def claim(self, start: int, stop: int) -> bool:
        os.write(self._ask[1], f"{start} {stop}".encode())
        return bool(int(os.read(self._asked[0], 1)))

    def end(self) -> None:
        os.close(self._ask[1])
        os.close(self._asked[0])
        os.waitpid(self.pid, 0)


@pytest.fixture
def child(book: ClaimBook) -> Iterator[OtherProcess]:
    made = OtherProcess(book)
    yield made
    made.end()


def test_what_is_not_claimed_is_taken_back(book: ClaimBook, child: OtherProcess) -> None:
    book.give(100)
    assert child.claim(0, 10)
    assert child.claim(10, 30)
    assert book.reclaim() == 30
    assert not child.claim(30, 40)


def test_all_of_it_before_anything_is_claimed(book: ClaimBook, child: OtherProcess) -> None:
    book.give(100)
    assert book.reclaim() == 0
    assert not child.claim(0, 1)


def test_nothing_is_left_to_take(book: ClaimBook, child: OtherProcess) -> None:
    assert book.reclaim() == 0
    book.give(10)
    assert child.claim(0, 10)
    assert book.reclaim() == 10
    assert book.reclaim() == 10


def test_what_is_given_later_can_be_claimed_and_taken(book: ClaimBook, child: OtherProcess) -> None:
    book.give(100)
    assert child.claim(0, 10)
    assert book.reclaim() == 10
    book.give(200)
    assert not child.claim(10, 20)
    assert child.claim(100, 110)
    assert book.reclaim() == 110
    assert not child.claim(110, 120)


def test_taken_twice_without_the_child_noticing(book: ClaimBook, child: OtherProcess) -> None:
    book.give(100)
    assert book.reclaim() == 0
    book.give(200)
    assert book.reclaim() == 100
    book.give(300)
    assert not child.claim(0, 1)
    assert not child.claim(100, 101)
    assert child.claim(200, 201)


def test_an_answer_that_ends_where_the_taken_begins_unlocks_nothing(
    book: ClaimBook, child: OtherProcess
) -> None:
    """The child sends it before it tries the next claim, which must fail."""
    book.give(100)
    assert child.claim(0, 10)
    assert book.reclaim() == 10
    book.passed(10)
    assert not child.claim(10, 20)


def test_locks_are_given_up_when_the_child_is_past_them(book: ClaimBook, child: OtherProcess) -> None:
    for turn in range(50):
        book.give(100 * (turn + 1))
        assert child.claim(100 * turn, 100 * turn + 10)
        assert book.reclaim() == 100 * turn + 10
        assert not child.claim(100 * turn + 10, 100 * turn + 20)
        book.passed(100 * turn + 10)
    assert len(book._taken) <= 2
    inode = os.fstat(book.fd).st_ino
    locks = [line for line in Path("/proc/locks").read_text().splitlines() if f":{inode} " in line]
    assert len(locks) <= 4


def test_progress_is_told_by_the_page(book: ClaimBook) -> None:
    assert book.progress(5.0) == (-1, 5.0, 1)
    page = Claims(book.fd).page
    page[0] = 8
    assert book.progress(6.0) == (7, 6.0, 1)
    assert book.progress(9.0) == (7, 6.0, 1), "since it was first seen"
    page[1], page[2] = 3_000_000_000, 8
    assert book.progress(10.0) == (7, 3.0, 1), "since the child says"
    page[0] = 9
    assert book.progress(11.0) == (8, 11.0, 1), "the child's time is that of the item before"
    page[0] = 0
    assert book.progress(12.0) == (-1, 12.0, 1)
    assert book.position() == -1


def test_results_withheld_behind_a_long_item_are_noticed_once(book: ClaimBook) -> None:
    page = Claims(book.fd).page
    book.give(10)
    assert not book.withholds(), "it runs nothing"
    page[0] = 1
    assert [book.withholds() for _ in range(3)] == [False] * 3, "nothing is done before the first"
    page[0] = 4
    assert [book.withholds() for _ in range(4)] == [False, True, False, False]
    book.passed(3)
    page[0] = 5
    assert [book.withholds() for _ in range(3)] == [False, True, False]
    page[0] = 6
    book.passed(5)
    assert [book.withholds() for _ in range(3)] == [False] * 3


# -- with children -----------------------------------------------------------------------------------


@pytest.mark.parametrize("function", [tasks.nap, tasks.long_sum])
@pytest.mark.parametrize("chunksize", [1, 10])
def test_a_child_that_is_busy_in_c_loses_what_it_has_not_begun_at_once(
    nurse: Nursery, function: object, chunksize: int
) -> None:
    nurse.begin(function=function)  # type: ignore[arg-type]
    nurse.give([600] * 100, chunksize=chunksize)
    nurse.running()
    begun = time.monotonic()
    assert nurse.reclaim() == chunksize
    assert time.monotonic() - begun < 0.05


def test_after_a_reclaim_the_child_goes_on_with_what_it_is_given(nurse: Nursery, tmp_path: Path) -> None:
    nurse.begin(function=tasks.wait_for_file)
    gate = tmp_path / "gate"
    nurse.give([str(gate)] * 10)
    nurse.running()
    assert nurse.reclaim() == 1
    assert nurse.give([""] * 5, start=10) == 10
    gate.touch()
    assert nurse.outcomes(6) == {0: str(gate), **dict.fromkeys(range(10, 15), "")}


@pytest.mark.parametrize("chunksize", [1, 7])
@pytest.mark.parametrize("seed", range(4))
def test_every_item_runs_once_however_often_it_is_taken_back(
    nurse: Nursery, tmp_path: Path, chunksize: int, seed: int
) -> None:
    """Two children work on 4000 items; what is taken from one at random goes to either."""
    random = Random(seed)
    log = tmp_path / "log"
    once = bool(seed % 2)
    for child in (1, 2):
        nurse.begin(child, function=tasks.same)
        nurse.define(tasks.append_line, child=child, at_most_once=once)
    count = 4000
    todo = [(start, min(start + 100, count)) for start in range(0, count, 100)]
    given: dict[int, list[tuple[int, int]]] = {1: [], 2: []}

    def give(child: int, start: int, stop: int) -> None:
        # As the core cuts blocks: a lease that begins inside a chunk carries the whole chunk.
        base = start - start % chunksize
        end = min(count, -(-stop // chunksize) * chunksize) if chunksize > 1 else stop
        position = give_part(nurse, child, str(log), base, start, stop, end, chunksize)
        given[child].append((position, start))

    for _ in range(3000):
        answered = sum(each.count for each in nurse.results())
        if answered == count:
            break
        if todo and random.random() < 0.5:
            give(random.choice((1, 2)), *todo.pop(random.randrange(len(todo))))
        if random.random() < 0.3:
            child = random.choice((1, 2))
            todo += take_back(nurse, child, given[child])
        nurse.children.poll(random.choice((0, 0, 0.0005, 0.002)))
    for start, stop in todo:
        give(1, start, stop)
    assert nurse.outcomes(count) == {item: item for item in range(count)}
    ran = Counter(int(line) for line in log.read_text().split())
    assert ran == Counter(range(count))


def give_part(
    nurse: Nursery, child: int, log: str, base: int, start: int, stop: int, end: int, chunksize: int
) -> int:
    import pickle

    from multihost_common.blocks import pack_lengths

    pickles = []
    for at in range(base, end, chunksize):
        chunk = [(log, item) for item in range(at, min(at + chunksize, end))]
        pickles.append(pickle.dumps(chunk if chunksize > 1 else chunk[0]))
    position = nurse.positions[child]
    nurse.positions[child] += stop - start
    frames = [pack_lengths([len(each) for each in pickles]), b"".join(pickles)]
    nurse.children.do(Run(child, position, 1, start, stop - start, chunksize, start - base, frames))
    return position


def take_back(nurse: Nursery, child: int, given: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """What the child has not begun, as ranges of items; ``given`` keeps the rest."""
    until = nurse.positions[child]
    position = nurse.reclaim(child)
    back = []
    while given and given[-1][0] >= position:
        first, start = given.pop()
        back.append((start, start + until - first))
        until = first
    if given and position < until:
        first, start = given[-1]
        back.append((start + position - first, start + until - first))
    return [(start, stop) for start, stop in back if start < stop]
