"""What children print is bounded, and what an agent keeps on disk ends with it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from nursery import PATIENCE, nothing_left

from multihost_common.messages import Output
from multihost_worker import memory, privatedir
from multihost_worker.output import BURST, RATE, Printer
from multihost_worker.privatedir import PrivateDir


class Clock:
    """Time is a value."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_output_over_the_budget_is_dropped_and_a_line_says_so() -> None:
    sent: list[Output] = []
    clock = Clock()
    printer = Printer(sent.append, "host", clock)
    printer(7, 42, 1, b"a" * BURST)
    printer(7, 42, 1, b"b" * 1000)
    printer(7, 43, 1, b"another child has its own budget")
    assert [len(each.frames[0]) for each in sent] == [BURST, 32]
    clock.now += 2000 / RATE
    printer(7, 42, 2, b"c" * 1000)
    assert bytes(sent[2].frames[0]) == b"[multihost: 1000 bytes of output of process 42 were dropped]\n"
    assert (sent[3].pid, sent[3].stream, bytes(sent[3].frames[0])) == (42, 2, b"c" * 1000)


def test_output_that_nobody_hears_is_told_of_once_somebody_does() -> None:
    sent: list[Output] = []
    heard = [False]
    printer = Printer(sent.append, "host", Clock(), lambda: heard[0])
    printer(7, 42, 1, b"a" * 1000)
    printer(7, 42, 1, b"b" * 500)
    assert not sent
    heard[0] = True
    printer(7, 42, 1, b"c")
    assert bytes(sent[0].frames[0]) == b"[multihost: 1500 bytes of output of process 42 were dropped]\n"
    assert bytes(sent[1].frames[0]) == b"c"


def test_what_was_dropped_last_is_told_at_the_end_or_after_a_while() -> None:
    sent: list[Output] = []
    clock = Clock()
    printer = Printer(sent.append, "host", clock)
    for pid in (1, 2):
        printer(7, pid, 1, b"a" * BURST)
        printer(7, pid, 1, b"a" * 10)
    printer(7, 1, 1, b"")
    assert b"of process 1 were dropped" in bytes(sent[-1].frames[0])
    clock.now += 61
    printer.sweep()
    assert b"of process 2 were dropped" in bytes(sent[-1].frames[0])
    assert not printer._budgets


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def test_a_private_directory_is_private_and_goes_when_it_is_closed(temporary: Path) -> None:
    with nothing_left():
        made = PrivateDir()
        assert os.stat(made.path).st_mode & 0o777 == 0o700
        made.note({"pid": 5, "registered": True})
        (state,) = privatedir.states()
        assert (state["pid"], state["registered"]) == (5, True)
        made.close()
    assert list(temporary.iterdir()) == []
    assert privatedir.states() == []


AGENT = """
import sys, time
from multihost_worker.privatedir import PrivateDir
made = PrivateDir()
print(made.path, flush=True)
time.sleep(600)
"""


def test_a_private_directory_goes_with_an_agent_that_is_killed(temporary: Path) -> None:
    agent = subprocess.Popen(
        [sys.executable, "-c", AGENT],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TMPDIR": str(temporary)},
    )
    assert agent.stdout is not None
    path = Path(agent.stdout.readline().decode().strip())
    assert path.is_dir()
    agent.kill()
    agent.wait(10)
    agent.stdout.close()
    deadline = time.monotonic() + PATIENCE
    while path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_what_a_dead_agent_left_is_swept_by_the_next_and_a_young_one_is_not(temporary: Path) -> None:
    living = PrivateDir()
    old, young = temporary / f"{privatedir.PREFIX}1-old", temporary / f"{privatedir.PREFIX}2-young"
    for each in (old, young):
        each.mkdir()
        (each / "lock").touch()
    os.utime(old, (0, 0))
    os.utime(living.path, (0, 0))
    privatedir.sweep()
    assert not old.exists()
    assert young.exists(), "it may be about to get its lock"
    assert Path(living.path).exists()
    living.close()


def test_memory_of_a_process() -> None:
    assert 1 << 20 < memory.resident(os.getpid()) < 1 << 33
    assert memory.resident(1 << 30) == 0
    assert memory.oom_kills() >= 0
