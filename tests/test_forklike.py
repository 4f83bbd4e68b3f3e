"""What a script sees of how its objects get into other processes: as multiprocessing has it, printed by the script itself."""

from __future__ import annotations

import os
from functools import partial
from operator import itemgetter
from pathlib import Path
from random import Random
from typing import Any

import pytest
from conftest import MakePool
from scripts import PYTHON, RUN, script

from multihost.callables import has_state
from multihost.executor import Executor
from multihost_common.errors import WorkerLostError


class Counter:
    """Counts its calls, in a list that is its state."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def __call__(self, item: int) -> int:
        return self.count(item)

    def count(self, item: int) -> int:
        """As a call."""
        self.seen.append(item)
        return len(self.seen)


def longer(seen: list[int], item: int) -> int:
    """How often the list has been here."""
    seen.append(item)
    return len(seen)


# -- callables with a state ------------------------------------------------------------------------------


def test_what_a_callable_changes_in_itself_lasts_for_a_chunk(make_pool: MakePool) -> None:
    pool = make_pool(2)
    for function in (Counter(), Counter().count, partial(Counter()), partial(longer, [])):
        assert pool.map(function, range(8), chunksize=3) == [1, 2, 3, 1, 2, 3, 1, 2]
        # Two processes have eight chunks, where nobody says how long they are to be.
        assert pool.map(function, range(18)) == [1, 2, 3] * 6
        assert list(pool.imap(function, range(4))) == [1] * 4
        assert sorted(pool.imap_unordered(function, range(4), chunksize=2)) == [1, 1, 2, 2]
    assert pool.starmap(Counter(), [(1,), (2,), (3,)], chunksize=2) == [1, 2, 1]
    made = Random(5)
    assert pool.starmap(Random(5).random, [()] * 4, chunksize=2) == [made.random(), made.random()] * 2


def test_a_chunk_whose_items_are_claimed_one_by_one_has_one_copy(address: str) -> None:
    with Executor(1, address=address, timeout=20, at_most_once=True) as executor:
        assert list(executor.map(Counter(), range(4), chunksize=2)) == [1, 2, 1, 2]


def test_an_item_that_kills_its_process_has_the_rest_of_its_chunk_begin_anew(make_pool: MakePool) -> None:
    answers = make_pool(1).imap(Deadly(), range(4), chunksize=4)
    assert [answers.next(30), answers.next(30)] == [1, 2]
    with pytest.raises(WorkerLostError):
        answers.next(30)
    assert answers.next(30) == 1


class Deadly(Counter):
    """Its third item is its end."""

    def count(self, item: int) -> int:
        """As a call."""
        if item == 2:
            os._exit(3)
        return super().count(item)


def test_a_callable_that_cannot_be_unpickled_fails_its_items_and_no_others(make_pool: MakePool) -> None:
    pool = make_pool(1)
    with pytest.raises(Exception, match="cannot be unpickled"):
        pool.map(Broken(), range(3))
    assert pool.map(abs, [-1]) == [1]


class Broken(Counter):
    """Cannot be had in another process."""

    def __setstate__(self, state: object) -> None:
        raise ValueError("not here")


@pytest.mark.parametrize(
    "function", [abs, len, Counter, dict.fromkeys, "a".join, itemgetter(1), partial(max, 3, (1,))]
)
def test_what_nothing_can_change_is_sent_once(function: Any) -> None:
    assert not has_state(function, b"")


# -- objects of the script ---------------------------------------------------------------------------------

#: A class that says when it is asked for its state; scripts add methods to it.
CLASS = """
import multiprocessing as mp, sys

class Hooked:
    def __init__(self, name):
        self.name, self.cache = name, [name]
    def __getstate__(self):
        sys.stdout.write(f"get {self.name}\\n")
        return {"name": self.name}
    def __setstate__(self, state):
        sys.stdout.write(f"set {state['name']}\\n")
        self.__dict__ = state
"""

HOOKED = (
    CLASS
    + """    def show(self, *more):
        print("shown", [sorted(each.__dict__) for each in (self, *more)])

class Sub(mp.Process):
    def __init__(self, own):
        super().__init__()
        self.own = own
    def run(self):
        self.own.show()

def run(process):
    process.start()
    process.join()
    print(process.exitcode, flush=True)

if __name__ == "__main__":
    mp.set_start_method(sys.argv[1])
    own = Hooked("own")
    run(mp.Process(target=own.show, args=(Hooked("argument"),)))
    run(Sub(own))
"""
)

POOLED = (
    CLASS
    + """    def __call__(self, item):
        return item + len(self.__dict__)

def begin(own):
    global state
    state = own

def work(own):
    return len(own.__dict__), len(state.__dict__), len(there.__dict__)

there = Hooked("there")

if __name__ == "__main__":
    mp.set_start_method(sys.argv[1])
    own = Hooked("own")
    with mp.Pool(1, begin, (own,)) as pool:
        found = pool.map(work, [own, own], chunksize=1), pool.apply(work, (own,))
        found += pool.map(own, range(5), chunksize=2), list(pool.imap(own, range(2)))
        pool.close()
        pool.join()
    print(found)
"""
)


@pytest.fixture
def env(address: str) -> dict[str, str]:
    """What has a script use the engine of this test."""
    settings = {"MULTIHOST_BROKER": address, "MULTIHOST_KEYS": os.environ.get("MULTIHOST_KEYS", "")}
    return {name: value for name, value in settings.items() if value}


@pytest.mark.parametrize(
    "text, method",
    [(HOOKED, "fork"), (HOOKED, "spawn"), (POOLED, "fork")],
    ids=["forked", "spawned", "pooled"],
)
def test_hooks_are_called_as_often_as_by_multiprocessing(
    text: str, method: str, env: dict[str, str], tmp_path: Path
) -> None:
    usual = script(tmp_path, text, method, launcher=PYTHON)
    ours = script(tmp_path, text, method, launcher=RUN, env=env)
    assert sorted(ours.splitlines()) == sorted(usual.splitlines())


def test_what_cannot_be_sent_as_it_stands_goes_by_its_hooks(env: dict[str, str], tmp_path: Path) -> None:
    text = """
import multiprocessing as mp, socket

class Counting:
    def __init__(self):
        self.name = "x"
        self.own = self.begin()
    def begin(self):
        return (each for each in ())
    def __getstate__(self):
        return {"name": self.name}
    def show(self):
        print(sorted(self.__dict__), sorted(there.__dict__))

class Reading(Counting):
    def begin(self):
        return open(__file__)

class Calling(Counting):
    def begin(self):
        return socket.socket()

there = Counting()

if __name__ == "__main__":
    mp.set_start_method("fork")
    for made in Counting(), Reading(), Calling():
        process = mp.Process(target=made.show)
        process.start()
        process.join()
        getattr(made.own, "close", bool)()
"""
    assert script(tmp_path, text, launcher=RUN, env=env) == "['name'] ['name']\n" * 3
