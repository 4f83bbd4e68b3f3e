"""Values and arrays of ctypes types, as scripts use them; on both engines."""

from __future__ import annotations

import array
import ctypes
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import multihost as mp
from multihost.engines.choosing import get_sharing
from multihost.sharedctypes import copy, synchronized


class Point(ctypes.Structure):
    _fields_ = [("x", ctypes.c_int), ("y", ctypes.c_double)]

    def norm(self) -> float:
        return float(self.x**2 + self.y**2)


class Kinds(ctypes.Union):
    _fields_ = [("number", ctypes.c_uint32), ("bytes", ctypes.c_uint8 * 4)]


class Mixed(ctypes.Structure):
    _anonymous_ = ("kinds",)
    _fields_ = [
        ("name", ctypes.c_char * 8),
        ("low", ctypes.c_uint8, 4),
        ("high", ctypes.c_uint8, 4),
        ("points", Point * 2),
        ("kinds", Kinds),
    ]


@pytest.fixture(autouse=True)
def here(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Objects are made where the test runs."""
    monkeypatch.setenv("MULTIHOST_BROKER", address)


def elsewhere(obj: Any) -> Any:
    """The object as another process has it: with bytes of its own."""
    from multihost import cells

    known = dict(cells._known)
    cells._known.clear()
    try:
        return pickle.loads(pickle.dumps(obj))
    finally:
        cells._known.clear()
        cells._known.update(known)


@pytest.mark.parametrize(
    ("kind", "first", "second"),
    [
        ("i", 4343, -24234),
        ("d", 3.625, -4.25),
        ("q", 2**33, 2**34),
        ("c", b"x", b"y"),
        (ctypes.c_bool, True, False),
    ],
)
def test_a_value_is_the_same_everywhere(kind: Any, first: Any, second: Any) -> None:
    for value in (mp.Value(kind, first), mp.RawValue(kind, first)):
        other = elsewhere(value)
        assert other.value == first
        other.value = second
        assert value.value == second


def test_an_array_is_the_same_everywhere_element_by_element_and_in_slices() -> None:
    for made in (mp.Array("i", range(10)), mp.RawArray("i", list(range(10)))):
        other = elsewhere(made)
        assert len(other) == 10
        other[0] = 100
        other[-1] = 900
        other[4:8] = array.array("i", [1, 2, 3, 4])
        other[1:4:2] = [11, 33]
        assert list(made) == made[:] == [100, 11, 2, 33, 1, 2, 3, 4, 8, 900]
        assert made[::-3] == [900, 3, 33, 100]
        assert (made[2], made[5:2]) == (2, [])
        for index in (10, -11):
            with pytest.raises(IndexError):
                made[index]
        with pytest.raises(ValueError, match="same size"):
            made[2:4] = [1]


def test_an_array_begins_with_zeros_and_may_be_empty_or_large() -> None:
    assert mp.Array("h", 3)[:] == [0, 0, 0]
    assert list(mp.Array("i", 0)) == []
    numbers = list(range(400_000))
    large = mp.Array("d", numbers)
    assert elsewhere(large)[:] == numbers


def test_characters_have_a_value_and_all_their_bytes() -> None:
    text = mp.Array("c", 12)
    other = elsewhere(text)
    text.value = b"hello"
    other.value *= 2
    assert text.value == b"hellohello"
    text.value = b"bye"
    assert other.raw == b"bye\0ohello\0\0"
    other.raw = b"AB"
    assert text[:4] == b"ABe\0"
    wide = mp.Array("u", "häuser", lock=False)
    assert elsewhere(wide).value == "häuser"
    with pytest.raises(TypeError):
        text.value = 7


def test_a_structure_has_its_fields_and_its_methods_everywhere() -> None:
    for point in (mp.Value(Point, 3, 4.0), mp.RawValue(Point, 3, 4.0)):
        other = elsewhere(point)
        other.x += 3
        other.y = 8
        raw = point if isinstance(point, Point) else point.get_obj()
        assert (point.x, point.y, raw.norm()) == (6, 8.0, 100.0)


def test_parts_of_structures_and_arrays_are_shared_too() -> None:
    mixed = mp.RawValue(Mixed)
    other = elsewhere(mixed)
    other.name = b"seven"
    other.low, other.high = 5, 9
    other.points[1].x = 7
    other.points[0] = other.points[1]
    other.number = 0x01020304
    assert (mixed.name, mixed.low, mixed.high) == (b"seven", 5, 9)
    assert [each.x for each in mixed.points] == [7, 7]
    assert sum(mixed.bytes) == sum(mixed.kinds.bytes) == 10
    rows = mp.RawArray(ctypes.c_int * 3, 2)
    elsewhere(rows)[1][2] = 5
    assert [row[:] for row in rows] == [[0, 0, 0], [0, 0, 5]]
    points = mp.Array(Point, [(1, 2), (3, 4)], lock=False)
    for each in elsewhere(points):
        each.x **= 2
    assert [each.x for each in points] == [1, 9]


def test_a_copy_is_shared_and_is_not_what_it_was_made_from() -> None:
    plain, shared = Point(2, 5.0), mp.RawValue(Point, 3, 6.0)
    elsewhere(shared).x = 4
    for each, x in ((copy(plain), 2), (copy(shared), 4)):
        assert each.x == x
        elsewhere(each).x = 9
        assert each.x == 9
    assert (plain.x, shared.x) == (2, 4)


def test_increments_under_the_lock_are_all_counted() -> None:
    number, numbers = mp.Value("i"), mp.Array("i", 3)
    copies = [(elsewhere(number), elsewhere(numbers)) for _ in range(3)]

    def work(each: tuple[Any, Any]) -> None:
        one, many = each
        for _ in range(20):
            with one.get_lock():
                one.value += 1
            with many:
                for index in range(3):
                    many[index] += index

    with ThreadPoolExecutor(3) as threads:
        list(threads.map(work, copies))
    assert (number.value, numbers[:]) == (60, [0, 60, 120])


def test_what_is_read_while_the_lock_is_held_is_read_once(
    monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    numbers = mp.Array("i", range(1000))
    sharing, asked = get_sharing(address), [0]
    begin = sharing.begin

    def counted(*args: Any, **kwds: Any) -> Any:
        asked[0] += 1
        return begin(*args, **kwds)

    monkeypatch.setattr(sharing, "begin", counted)
    with numbers:
        for index in range(1000):
            numbers[index] = numbers[index] * 2 + (numbers[index - 1] if index else 0)
    assert asked[0] < 10
    assert numbers[2] == 4 + 2 + 0
    assert elsewhere(numbers)[3] == 6 + 6


def test_locks_of_values_are_those_that_were_given_or_new_ones() -> None:
    lock = mp.Lock()
    for value in (mp.Value("i", 5, lock=lock), mp.Array("i", 5, lock=lock)):
        assert value.get_lock() is lock
        assert value.acquire()
        assert not value.acquire(False)
        value.release()
    assert repr(mp.Value("i", 5, lock=None)) == "<Synchronized wrapper for c_int(5)>"
    assert type(mp.Value("i").get_lock()).__name__ == "RLock"
    assert not hasattr(mp.Value("i", lock=False), "get_lock")
    with pytest.raises(AttributeError, match="'no lock' has no method 'acquire'"):
        mp.Array("i", 3, lock="no lock")
    with pytest.raises(AssertionError, match="already synchronized"):
        synchronized(mp.Value("i"))
    with pytest.raises(TypeError, match="points to memory of this process"):
        mp.Value(ctypes.c_char_p, b"text")


def test_a_thread_that_reads_does_not_undo_what_another_one_writes() -> None:
    numbers, over = mp.RawArray("i", 4), threading.Event()

    def read() -> None:
        while not over.is_set():
            numbers[:]

    thread = threading.Thread(target=read)
    thread.start()
    try:
        for each in range(200):
            numbers[1] = each
            assert numbers[1] == each
    finally:
        over.set()
        thread.join()


def double(point: Any, numbers: Any) -> str:
    with point:
        point.x *= 2
    numbers[1].y = point.x
    return type(point.get_obj()).__name__


def test_a_structure_that_only_the_script_has_travels_with_its_values(make_pool: Any) -> None:
    class Local(ctypes.Structure):
        _fields_ = [("x", ctypes.c_int), ("y", ctypes.c_double)]

    point, numbers = mp.Value(Local, 3), mp.Array(Local, 2, lock=False)
    pool = make_pool(1)
    assert pool.apply(double, (point, numbers)) == "Local"
    assert pool.apply(lambda: ctypes.sizeof(Local)) == ctypes.sizeof(Local)
    assert (point.x, numbers[1].y) == (6, 6.0)


def add_to(whole: Any, real: Any, n: int) -> None:
    for _ in range(n):
        whole.value += 3
        whole.value -= 1
        real.value += 0.5


def test_what_processes_add_at_the_same_time_all_counts() -> None:
    whole, real = mp.Value("i", -7), mp.Value("d", 0.25)
    processes = [mp.Process(target=add_to, args=(whole, real, 20)) for _ in range(3)]
    for each in processes:
        each.start()
    add_to(whole, real, 20)
    for each in processes:
        each.join(20)
    assert (whole.value, real.value) == (-7 + 4 * 40, 0.25 + 4 * 10)


def test_other_statements_write_what_they_say() -> None:
    value = mp.Value("i", 5)
    other = elsewhere(value)
    seen = value.value
    other.value = 10
    value.value = seen + 1
    assert other.value == 6
    value.value *= 2
    assert other.value == 12
    with pytest.raises(TypeError):
        value.value += 0.5
    value.value = 1
    assert other.value == 1
