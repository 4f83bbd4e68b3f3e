"""The forkserver: it can be killed at any time, and what it hands on to children is right."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
import tasks
from nursery import Nursery, exists, nothing_left, wait_gone

from multihost_worker.events import ChildDied, ChildReady


@pytest.fixture
def nurse() -> Iterator[Nursery]:
    with nothing_left(), Nursery() as made:
        yield made


def test_killed_it_takes_its_children_along_and_another_is_started(nurse: Nursery) -> None:
    for child in (1, 2):
        nurse.begin(child, function=tasks.spawn_and_nap)
        nurse.give([600], child=child)
    first = nurse.children._server.pid
    pids = list(nurse.children.pids().values())
    begun = time.monotonic()
    os.kill(first, signal.SIGKILL)
    nurse.wait(ChildDied, count=2)
    assert time.monotonic() - begun < 0.5
    wait_gone([first, *pids], 1.0)
    assert {each.signal for each in nurse.found(ChildDied)} == {signal.SIGKILL}
    assert "the forkserver was killed" in nurse.found(ChildDied)[0].text
    nurse.begin(3, function=tasks.double)
    nurse.give([21], child=3)
    assert nurse.outcomes(1, child=3) == {0: 42}
    assert nurse.children._server.pid not in (0, first)


def test_killed_before_it_has_forked(nurse: Nursery) -> None:
    nurse.children.start()
    os.kill(nurse.children._server.pid, signal.SIGKILL)
    nurse.begin(1)
    nurse.death(1)
    nurse.begin(2, function=tasks.double)


def test_killed_again_and_again(nurse: Nursery) -> None:
    for child in range(1, 6):
        nurse.begin(child, function=tasks.double)
        os.kill(nurse.children._server.pid, signal.SIGKILL)
        nurse.death(child)


def test_one_that_does_not_answer_is_killed_in_the_end() -> None:
    with nothing_left(), Nursery() as nurse:
        nurse.begin(function=tasks.same)
        server, pid = nurse.children._server.pid, nurse.children.pids()[1]
        os.kill(server, signal.SIGSTOP)
        nurse.children.close(timeout=0.5)
        wait_gone([server, pid], 1.0)
    assert not exists(server)


def test_signals_to_it_do_nothing(nurse: Nursery) -> None:
    nurse.begin(1, function=tasks.same)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(nurse.children._server.pid, number)
    nurse.begin(2, function=tasks.same)
    assert not nurse.found(ChildDied)


def test_children_have_the_usual_signal_handlers(nurse: Nursery) -> None:
    nurse.begin(function=tasks.handlers)
    nurse.give([0])
    assert nurse.outcomes(1)[0] == {
        "SIGINT": "default_int_handler",
        "SIGTERM": "SIG_DFL",
        "SIGHUP": "SIG_DFL",
        "SIGCHLD": "SIG_DFL",
        "SIGPIPE": "SIG_IGN",
        "blocked": [],
        "wakeup": -1,
    }


def test_children_are_of_their_own_and_hold_no_more_than_they_need(nurse: Nursery) -> None:
    for child in (1, 2, 3):
        nurse.begin(child, function=tasks.holdings)
    nurse.give([0], child=3)
    held = nurse.outcomes(1, child=3)[0]
    # The socket, the page and its map's duplicate.
    assert len(held["files"]) == 3, held
    assert held["group"] == held["pid"]
    assert held["main"] == "__main__"


def test_children_of_a_preloaded_server_have_their_own_random_numbers() -> None:
    with nothing_left(), Nursery(preload=["random", "no_such_module"]) as nurse:
        drawn = set()
        for child in (1, 2, 3):
            nurse.begin(child, function=tasks.draw)
            nurse.give([0], child=child)
            drawn.add(nurse.outcomes(1, child=child)[0])
        assert len(drawn) == 3


def test_many_children_at_once(nurse: Nursery) -> None:
    for child in range(20):
        nurse.begin(child)
    nurse.wait(ChildReady, count=20)
    pids = set(nurse.children.pids().values())
    assert len(pids) == 20
    for child in range(20):
        nurse.stop(child)
    nurse.wait(ChildDied, count=20)
    assert {each.exitcode for each in nurse.found(ChildDied)} == {0}


FLAGS = """
import sys, nursery, tasks
with nursery.Nursery(env={"ADDED": "1"}) as nurse:
    nurse.begin(function=tasks.flags)
    nurse.give([0])
    print(nurse.outcomes(1)[0])
"""


def test_the_interpreters_options_are_handed_on() -> None:
    done = subprocess.run(
        [sys.executable, "-O", "-W", "error::UserWarning", "-X", "utf8=1", "-X", "tracemalloc", "-c", FLAGS],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        timeout=30,
        check=True,
    )
    assert done.stdout.strip() == str((1, ["error::UserWarning"], True, True, "1"))
    assert done.stderr == ""
