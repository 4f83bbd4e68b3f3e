"""What travels: scripts behave as they do with processes that are forked."""

from __future__ import annotations

import pickle
import threading
from pathlib import Path
from typing import Any

import cloudpickle  # type: ignore[import-untyped]
import pytest
from scripts import script

from multihost import reduction
from multihost_common import byvalue
from multihost_common.blocks import pack_lengths
from multihost_common.errors import RemoteError

GUARD = """
if __name__ == "__main__":
    main()
"""


def answers(folder: Path, text: str) -> str:
    return script(folder, "from multihost.pool import Pool\n" + text + GUARD).strip()


# -- __main__ ------------------------------------------------------------------------------------------


def test_globals_travel_with_functions_and_their_helpers(tmp_path: Path) -> None:
    text = """
factor, table = 3, {"a": 1}

def helper(x):
    return deeper(x) + table["a"]

def deeper(x):
    return x * factor

def work(x):
    return helper(x)

def even(n):
    return n == 0 or odd(n - 1)

def odd(n):
    return n != 0 and even(n - 1)

def main():
    with Pool(2) as pool:
        print(pool.map(work, range(3)), pool.map(even, [10, 11]), pool.apply(deeper, (4,)))
"""
    assert answers(tmp_path, text) == "[1, 4, 7] [True, False] 12"


def test_an_initializer_sets_globals_that_functions_read(tmp_path: Path) -> None:
    text = """
state = None
count = 0

def begin(value):
    global state, late
    state, late = value, value + 1

def work(x):
    global count
    count += 1
    return state + late + x

def counted(_):
    return count

def main():
    with Pool(1, begin, (40,)) as pool:
        print(pool.map(work, [0, 1]), pool.apply(counted, (0,)), state, count)
"""
    assert answers(tmp_path, text) == "[81, 82] 2 None 0"


def test_a_pool_sees_globals_as_they_were_when_it_first_needed_them(tmp_path: Path) -> None:
    text = """
factor = 2

def work(x):
    return x * factor

def main():
    global factor
    with Pool(1) as pool:
        before = pool.map(work, [1])
        factor = 10
        print(before, pool.map(work, [1]))
    with Pool(1) as pool:
        print(pool.map(work, [1]))
"""
    assert answers(tmp_path, text).splitlines() == ["[2] [2]", "[10]"]


def test_instances_of_classes_of_main_keep_their_class(tmp_path: Path) -> None:
    text = """
import enum
from collections import namedtuple
from dataclasses import dataclass
from typing import NamedTuple

class Color(enum.Enum):
    RED = 1
    BLUE = 2

@dataclass(frozen=True)
class Point:
    x: int
    y: int = 0

class Pair(NamedTuple):
    a: int
    b: int

Old = namedtuple("Old", "a b")

class Node:
    class Inner:
        pass
    def __init__(self, value):
        self.value = value
    def leaf(self):
        return Leaf(self.value)
    def __call__(self, x):
        return self.value + x

class Leaf(Node):
    def __init__(self, value):
        super().__init__(value)
        self.inner = Node.Inner()

class Failure(Exception):
    def __init__(self, a, b):
        super().__init__(a, b)
        self.a = a

def flip(thing):
    if isinstance(thing, Color):
        return Color.BLUE if thing is Color.RED else Color.RED
    if isinstance(thing, Point):
        return Point(thing.y, thing.x)
    return type(thing)(thing.b, thing.a)

def fail(x):
    raise Failure(x, 2)

def main():
    with Pool(2) as pool:
        things = [Color.RED, Point(1, 2), Pair(1, 2), Old(1, 2)]
        flipped = pool.map(flip, things)
        assert [type(each) for each in flipped] == [type(each) for each in things]
        assert flipped == [Color.BLUE, Point(2, 1), Pair(2, 1), Old(2, 1)]
        assert flipped[0] is Color.BLUE
        leaf = pool.apply(Node(7).leaf)
        assert type(leaf) is Leaf and leaf.value == 7 and type(leaf.inner) is Node.Inner
        assert pool.map(Node(5), [1]) == [6]
        assert pool.map(Node.leaf, [Node(1)])[0].value == 1
        try:
            pool.map(fail, [1])
        except Failure as error:
            assert error.a == 1
            print("ok")
"""
    assert answers(tmp_path, text) == "ok"


def test_local_classes_lambdas_closures_and_partials(tmp_path: Path) -> None:
    text = """
import functools

bonus = 100

def scaled(k):
    def inner(x):
        return x * k + bonus
    return inner

def main():
    class Local:
        def method(self):
            return 7
    method = Local.method
    with Pool(2) as pool:
        assert pool.map(lambda x: x + bonus, [1]) == [101]
        assert pool.map(scaled(3), [1]) == [103]
        assert pool.map(functools.partial(pow, 2), [5]) == [32]
        assert pool.map(functools.partial(scaled(2)), [5]) == [110]
        back = pool.map(lambda x: x, [Local()])[0]
        assert type(back) is Local and back.method() == 7 and Local.method is method
        made = pool.apply(scaled, (4,))
        global bonus
        bonus = 0
        # What comes back uses the globals that are here.
        print(made(2))
"""
    assert answers(tmp_path, text) == "8"


def test_what_a_script_knows_about_itself(tmp_path: Path) -> None:
    text = """
import os, sys

def about(_):
    return __name__, os.path.basename(__file__), os.getcwd(), sys.argv, "here" in sys.path

def main():
    import sys
    sys.path.append("here")
    with Pool(1) as pool:
        assert pool.map(about, [0]) == [about(0)]
        print("same")
"""
    assert answers(tmp_path, text) == "same"


def test_modules_beside_the_script_are_imported_here(tmp_path: Path) -> None:
    (tmp_path / "helpers.py").write_text("def double(x):\n    return 2 * x\n")
    text = """
import helpers

def work(x):
    return helpers.double(x)

def main():
    with Pool(2) as pool:
        print(pool.map(helpers.double, [1, 2]), pool.map(work, [3]))
"""
    assert answers(tmp_path, text) == "[2, 4] [6]"


def test_a_global_that_cannot_travel_stays_behind(tmp_path: Path) -> None:
    text = """
source = (each for each in [1])

def unused(x):
    return x if x else next(source)

def used(x):
    for each in source:
        return x

def main():
    with Pool(1) as pool:
        print(pool.map(unused, [1]))
        try:
            pool.map(used, [1])
        except RuntimeError as error:
            print(error)
"""
    first, second = answers(tmp_path, text).splitlines()
    assert first == "[1]"
    assert second.startswith(
        "the global 'source' of the script is not in this process, since it cannot be pickled"
    )
    assert second.endswith("make it in the pool's initializer")


def test_a_large_global_is_pickled_once(tmp_path: Path) -> None:
    text = """
class Table:
    pickled = 0
    def __init__(self, values):
        self.values = values
    def __reduce__(self):
        Table.pickled += 1
        return Table, (self.values,)

table = Table([1, 2, 3])

def work(i):
    return table.values[i]

def main():
    with Pool(2) as pool:
        for _ in range(20):
            assert pool.map(work, [0, 1, 2]) == [1, 2, 3]
            assert pool.apply(work, (1,)) == 2
            assert list(pool.imap(work, [2])) == [3]
            assert pool.starmap(work, [(0,)]) == [1]
    print(Table.pickled)
"""
    assert answers(tmp_path, text) == "1"


def test_a_function_defined_anew_is_the_new_one(tmp_path: Path) -> None:
    text = """
def main():
    with Pool(1) as pool:
        for source in ("lambda x: x + 1", "lambda x: x + 2"):
            exec(f"global work\\nwork = {source}", globals())
            print(*pool.map(work, [1]), end=" ")
"""
    assert answers(tmp_path, text) == "2 3"


def test_functions_without_end_do_not_fill_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(byvalue, "MOST_BUILT", 10)
    monkeypatch.setattr(byvalue, "_built", {})
    for number in range(30):
        content = cloudpickle.dumps(lambda: 0)
        byvalue.build(bytes([number]), "made", content)
    assert len(byvalue._built) == 10
    kept = byvalue.build(bytes([29]), "made", b"")
    assert kept() == 0


def test_definitions_of_objects_that_are_gone_are_dropped() -> None:
    def make() -> bytes:
        class Gone:
            pass

        return byvalue.dumps(Gone())

    assert make()
    import gc

    gc.collect()
    assert all(made[0]() is not None for made in byvalue._made.values())


# -- items ---------------------------------------------------------------------------------------------


def test_plain_items_are_pickled_in_one_go() -> None:
    assert reduction.dump_many([1, "a", None]) == [pickle.dumps(each) for each in (1, "a", None)]


def test_a_batch_ends_before_an_item_with_buffers_and_one_that_does_not_pickle() -> None:
    wrapped = pickle.PickleBuffer(bytearray(reduction.OUT_OF_BAND_BYTES))
    assert len(reduction.dump_many([[1], [2], wrapped, [3]])) == 2
    assert len(reduction.dump_many([[1], threading.Lock(), [3]])) == 1
    assert reduction.dump_many([threading.Lock()]) == []


def test_large_buffers_leave_the_pickle() -> None:
    numpy = pytest.importorskip("numpy")
    array = numpy.arange(100_000)
    data, buffers = reduction.dump_item({"a": array, "b": numpy.arange(3)})
    assert len(data) < 1000 and len(buffers) == 1
    back = pickle.loads(data, buffers=buffers)
    assert (back["a"] == array).all()


def test_failures_names_the_items_that_do_not_pickle() -> None:
    found = reduction.failures([1, threading.Lock(), "a", (threading.Lock(),)])
    assert sorted(found) == [1, 3]
    assert all(isinstance(error, TypeError) for error in found.values())


# -- results -------------------------------------------------------------------------------------------


def _frames(*pieces: bytes) -> list[bytes]:
    return [pack_lengths([len(piece) for piece in pieces]), b"".join(pieces)]


class Poison:
    """Pickles, and does not unpickle."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return int, ("no number",)


def test_values_that_do_not_unpickle_leave_the_others_alone() -> None:
    frames = _frames(pickle.dumps([1, 2]), pickle.dumps([3, Poison()]), pickle.dumps([5]))
    outcomes = reduction.load_results(0, 5, frames)
    assert [outcome for outcome in outcomes if outcome[0]] == [(True, 1), (True, 2), (True, 5)]
    (_, first), (_, second) = outcomes[2:4]
    assert isinstance(first, RemoteError) and isinstance(second, RemoteError)
    assert "no number" in str(first)


def test_an_exception_that_does_not_unpickle_keeps_its_traceback() -> None:
    trace = "Traceback (most recent call last):\n  somewhere\nOops: 1"
    outcome = pickle.dumps((1, Poison(), trace))
    ((returned, error),) = reduction.load_results(1, 1, _frames(outcome))
    assert not returned and isinstance(error, RemoteError)
    assert "Oops: 1" in str(error)


@pytest.mark.parametrize("executor", [False, True], ids=["Pool", "Executor"])
def test_a_remote_traceback_is_the_cause(executor: bool) -> None:
    outcome = pickle.dumps((1, KeyError("k"), "the text"))
    ((_, error),) = reduction.load_results(1, 1, _frames(outcome), executor)
    assert isinstance(error, KeyError) and error.args == ("k",)
    assert type(error.__cause__).__name__ == ("_RemoteTraceback" if executor else "RemoteTraceback")
    assert "the text" in str(error.__cause__)
