"""Waiting for descriptors: awake where the last waits were brief, and never longer than told."""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Iterator

import pytest

from multihost_common import waiter as module
from multihost_common.waiter import BRIEF, LOOK, SIGNS, Alarm, Habit, Waiter, milliseconds


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


def test_soon_is_nothing_at_once_for_who_would_sleep(pipe: tuple[int, int]) -> None:
    waiter = _waiter(awake=False)
    waiter.watch(pipe[0])
    os.write(pipe[1], b"x")
    assert waiter.soon() == []


def test_soon_tells_what_comes_while_awake_and_then_no_more(pipe: tuple[int, int]) -> None:
    waiter = _waiter(awake=True)
    waiter.watch(pipe[0])
    os.write(pipe[1], b"x")
    assert waiter.soon() == [(pipe[0], select.POLLIN)]
    os.read(pipe[0], 1)
    assert waiter.soon() == []
    assert not waiter.awake()


def test_an_alarm_rings_when_it_is_time() -> None:
    alarm = Alarm(lambda: 10.0)
    assert not alarm.rings(9.0)
    assert alarm.patience(9.5) == 0.5
    assert not alarm.rings(9.999)
    assert alarm.rings(10.0)


def test_an_alarm_without_a_time_never_rings() -> None:
    alarm = Alarm(lambda: None)
    assert alarm.patience(1.0) is None
    assert not any(alarm.rings(float(now)) for now in range(10))


def test_an_alarm_is_asked_now_and_then_and_sees_that_its_time_has_changed() -> None:
    asked = 0
    due = 100.0

    def deadline() -> float:
        nonlocal asked
        asked += 1
        return due

    alarm = Alarm(deadline)
    times = [at * LOOK / 10 for at in range(1000)]
    assert not any(alarm.rings(now) for now in times)
    assert 50 < asked < 200
    due = now = times[-1]
    # Found out a little later, though nobody was asleep; and before a sleep at once.
    assert alarm.rings(now + LOOK)
    assert alarm.patience(now) == 0.0


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
