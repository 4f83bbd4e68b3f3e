"""Waiting for descriptors: awake where the last waits were brief, and never longer than told."""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Iterator

import pytest

from multihost_common import waiter as module
from multihost_common.waiter import BRIEF, SIGNS, Habit, Waiter, milliseconds


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """(read end, write end)."""
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


def test_a_brief_wait_is_expected_after_several_in_a_row() -> None:
    habit = Habit()
    for _ in range(SIGNS):
        assert not habit.expects()
        habit.learn(BRIEF / 2)
    assert habit.expects()


def test_a_single_long_wait_ends_the_habit() -> None:
    habit = Habit()
    for _ in range(10 * SIGNS):
        habit.learn(0.0)
    habit.learn(BRIEF)
    assert not habit.expects()
    habit.learn(0.0)
    assert not habit.expects()


def test_milliseconds_are_rounded_up() -> None:
    assert [milliseconds(each) for each in (-1.0, 0.0, 0.0001, 0.001, 1.5)] == [0, 0, 1, 1, 1500]


@pytest.mark.parametrize("awake", [False, True])
def test_what_is_ready_is_told(pipe: tuple[int, int], awake: bool) -> None:
    waiter = _waiter(awake)
    waiter.watch(pipe[0])
    assert waiter.wait(0) == waiter.wait(0.001) == []
    os.write(pipe[1], b"x")
    for seconds in (0, 5.0, None):
        assert waiter.wait(seconds) == [(pipe[0], select.POLLIN)]
    waiter.watch(pipe[0], 0)
    assert waiter.wait(0.001) == []


@pytest.mark.parametrize("awake", [False, True])
def test_what_comes_later_ends_the_wait(pipe: tuple[int, int], awake: bool) -> None:
    waiter = _waiter(awake)
    waiter.watch(pipe[0])
    writer = threading.Timer(0.05, os.write, (pipe[1], b"x"))
    writer.start()
    assert waiter.wait(60) == [(pipe[0], select.POLLIN)]
    writer.join()


def test_who_waits_in_vain_sleeps(pipe: tuple[int, int]) -> None:
    waiter = _waiter(awake=True)
    waiter.watch(pipe[0])
    before = time.process_time()
    assert waiter.wait(0.2) == []
    assert time.process_time() - before < 0.1


def test_a_single_processor_is_left_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "available_cpus", lambda: 1)
    waiter = Waiter()
    assert not waiter.awake()
    for _ in range(SIGNS):
        waiter.habit.learn(0.0)
    assert not waiter.awake()


def _waiter(awake: bool) -> Waiter:
    waiter = Waiter()
    for _ in range(SIGNS if awake else 0):
        waiter.habit.learn(0.0)
    return waiter
