"""How children print, die and end, and that nothing stays of them."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import tasks
from nursery import PATIENCE, Nursery, exists, nothing_left, open_files, wait_gone

from multihost_worker.events import (
    ChildDied,
    ChildResult,
)

MIB = 1 << 20


@pytest.fixture
def nurse() -> Iterator[Nursery]:
    with nothing_left(), Nursery() as made:
        yield made


# -- output ------------------------------------------------------------------------------------------


class Heard:
    """What was captured."""

    def __init__(self) -> None:
        self.text = {1: b"", 2: b""}
        self.ended = 0

    def __call__(self, pool: int, pid: int, stream: int, data: bytes) -> None:
        assert pool == 7
        if not data:
            self.ended += 1
            return
        self.text[stream] += data


@pytest.fixture
def heard() -> Heard:
    return Heard()


def test_output_comes_before_the_result(heard: Heard) -> None:
    with nothing_left(), Nursery(capture=heard) as nurse:
        nurse.begin(function=tasks.say)
        for start in range(50):
            nurse.give([(f"out {start}", f"err {start};")], start=start)
            nurse.until(lambda: len(nurse.results()) > start)  # noqa: B023
            assert heard.text[1].endswith(f"out {start}".encode()), "without an end of line too"
            assert heard.text[2].endswith(f"err {start};".encode())
        nurse.stop()
        nurse.death()
        assert heard.ended == 1


def test_output_of_subprocesses_is_captured(heard: Heard) -> None:
    with nothing_left(), Nursery(capture=heard) as nurse:
        nurse.begin(function=tasks.echo)
        nurse.give(["hello"])
        nurse.outcomes(1)
        assert heard.text[1] == b"hello\n"


def test_the_last_words_of_a_child_are_in_its_death(heard: Heard) -> None:
    with nothing_left(), Nursery(capture=heard) as nurse:
        nurse.begin(function=tasks.last_words)
        nurse.give(["a" * 3000 + "the end"])
        died = nurse.death()
        assert died.exitcode == 9
        assert died.text.endswith("the end")
        assert len(died.text) == 2000
        assert heard.text[2].endswith(b"the end")


def test_who_prints_for_ever_stops_nobody() -> None:
    with nothing_left(), Nursery(capture=lambda *_: None) as nurse:
        nurse.begin(1, function=tasks.print_for_ever)
        nurse.begin(2, function=tasks.double)
        nurse.give([1], child=1)
        nurse.running(1)
        for start in range(20):
            nurse.give([start], child=2, start=start)
            nurse.until(lambda: len(nurse.results(2)) > start)  # noqa: B023


# -- deaths ------------------------------------------------------------------------------------------


def test_killed_while_idle(nurse: Nursery) -> None:
    nurse.begin(function=tasks.same)
    pid = nurse.children.pids()[1]
    begun = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    died = nurse.death()
    assert time.monotonic() - begun < 0.5
    assert (died.pid, died.signal, died.exitcode, died.position) == (pid, signal.SIGKILL, 0, -1)
    assert died.rss > MIB
    assert not died.oom


@pytest.mark.parametrize("chunksize", [1, 2, 5])
def test_killed_while_running(nurse: Nursery, chunksize: int) -> None:
    nurse.begin(function=tasks.nap)
    position = nurse.give([0, 0, 0, 600, 0], chunksize=chunksize)
    nurse.until(lambda: nurse.running().position == position + 3)
    begun = time.monotonic()
    nurse.kill()
    died = nurse.death()
    assert time.monotonic() - begun < 0.5
    assert (died.signal, died.position) == (signal.SIGKILL, position + 3)
    assert died.pid
    assert nurse.children.pids() == {}


DEATHS = {
    "os_exit": (4, 4, 0),
    "kill_self": (signal.SIGSEGV, 0, signal.SIGSEGV),
    "close_all": (0, None, None),
    "kill_group": (0, 0, signal.SIGKILL),
}


@pytest.mark.parametrize("name", DEATHS)
def test_ways_to_die_in_a_task(nurse: Nursery, name: str) -> None:
    argument, exitcode, signum = DEATHS[name]
    nurse.begin(function=getattr(tasks, name))
    position = nurse.give([argument])
    died = nurse.death()
    assert died.position in ((position, -1) if exitcode is None else (position,))
    if exitcode is not None:
        assert (died.exitcode, died.signal) == (exitcode, signum)


def test_killed_in_the_middle_of_a_large_result(nurse: Nursery) -> None:
    nurse.begin(function=tasks.large_then_die)
    nurse.give([3])
    died = nurse.death()
    assert died.signal == signal.SIGKILL
    assert nurse.results() == []


def test_what_was_sent_before_a_death_is_told_before_it(nurse: Nursery) -> None:
    nurse.begin(function=tasks.same)
    nurse.define(tasks.filled_or_die, at_most_once=True)
    nurse.give([*range(40), -1])
    pid = nurse.children.pids()[1]
    wait_gone([pid], PATIENCE)
    died = nurse.death()
    sent = sum(each.count for each in nurse.found(ChildResult))
    assert sent == died.position == 40
    assert nurse.events[-1] is died


def test_a_stopped_child_ends_in_its_own_time(nurse: Nursery, tmp_path: Path) -> None:
    """It runs what it has, its exit handlers, and waits for its threads, as a program does."""
    nurse.begin(function=tasks.leave_behind)
    nurse.give([str(tmp_path), str(tmp_path)])
    nurse.stop()
    died = nurse.death()
    assert (died.exitcode, died.signal, died.position) == (0, 0, -1)
    assert len(nurse.outcomes(2)) == 2
    assert {each.name for each in tmp_path.iterdir()} == {"thread", "atexit"}


def test_daemon_threads_do_not_keep_a_child(nurse: Nursery) -> None:
    nurse.begin(function=tasks.start_daemon)
    nurse.give([600])
    nurse.outcomes(1)
    nurse.stop()
    assert nurse.death().exitcode == 0


@pytest.mark.parametrize("how", ["kill", "stop", "exit"])
def test_grandchildren_go_with_their_parent(nurse: Nursery, how: str) -> None:
    nurse.begin(function=tasks.spawn_and_tell)
    nurse.give([1])
    grandchild = nurse.outcomes(1)[0]
    assert exists(grandchild)
    if how == "exit":
        nurse.define(tasks.os_exit, job=2)
        nurse.give([0], job=2)
    else:
        getattr(nurse, how)()
    nurse.death()
    wait_gone([grandchild], 1.0)


def test_rubbish_on_the_pipe_costs_only_that_child(nurse: Nursery) -> None:
    nurse.begin(1, function=tasks.scribble)
    nurse.begin(2, function=tasks.same)
    nurse.give([1], child=1)
    died = nurse.death(1)
    assert "could not be read" in died.text
    nurse.give([1], child=2)
    assert nurse.outcomes(1, child=2) == {0: 1}


def test_no_descriptors_for_another_child(nurse: Nursery) -> None:

    nurse.begin(1, function=tasks.same)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest, before[1]))
    spare = fill_descriptors()
    try:
        nurse.begin(2)
        died = nurse.found(ChildDied)[0]
    finally:
        for fd in spare:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert (died.child, died.pid) == (2, 0)
    assert "no process could be started: Too many open files" in died.text
    nurse.give([1], child=1)
    assert nurse.outcomes(1, child=1) == {0: 1}


def fill_descriptors() -> list[int]:
    made = []
    while True:
        try:
            made.append(os.dup(0))
        except OSError:
            return made


# -- the end -----------------------------------------------------------------------------------------


def test_nothing_is_left_of_twenty_rounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with nothing_left():
        for turn in range(20):
            with Nursery(capture=(lambda *_: None) if turn % 2 else None) as nurse:
                for child in (1, 2):
                    nurse.begin(child, function=tasks.same)
                    nurse.give([b"a" * 100_000], child=child)
                if turn % 3:
                    nurse.outcomes(1, child=1)
                if turn % 5 == 0:
                    nurse.children.close(kill=False)
                    assert len(nurse.found(ChildDied)) == 2
    assert list(tmp_path.iterdir()) == []


def test_closing_twice_and_never_started() -> None:
    with nothing_left(), Nursery() as nurse:
        nurse.children.close()
        nurse.children.close()


def test_a_fork_of_the_agent_holds_nothing(nurse: Nursery) -> None:
    """Else children would not see the agent's end while such a process lives."""
    nurse.begin(function=tasks.same)
    nurse.give([b"a" * 100_000])
    nurse.outcomes(1)
    nurse.events.clear()
    ours = set(nurse.children.watched)
    begin, end = os.pipe()
    pid = os.fork()
    if pid == 0:
        still: list[object] = [fd for fd in ours if not closed(fd)]
        still += [name for name in open_files() if "multihost" in name]
        nurse.children.close()
        os.write(end, repr(still).encode())
        os._exit(0)
    os.close(end)
    assert os.read(begin, 1000) == b"[]"
    os.close(begin)
    os.waitpid(pid, 0)
    nurse.give([1], start=1)
    nurse.outcomes(1)


def closed(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return True
    return False


AGENT = """
import nursery, tasks
with nursery.Nursery() as nurse:
    for child in (1, 2):
        nurse.begin(child, function=tasks.spawn_and_nap)
        nurse.give([600], child=child)
    nurse.children.poll(0.5)
    print(nurse.children._server.pid, *nurse.children.pids().values(), flush=True)
    while True:
        nurse.children.poll(60)
"""


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
def test_children_and_forkserver_end_with_the_agent(signum: int) -> None:
    with nothing_left():
        agent = subprocess.Popen(
            [sys.executable, "-c", AGENT],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        assert agent.stdout is not None
        pids = [int(pid) for pid in agent.stdout.readline().split()]
        deadline = time.monotonic() + PATIENCE
        while len(below := descendants_of(pids)) < 2:
            assert time.monotonic() < deadline
        agent.send_signal(signum)
        agent.wait(10)
        agent.stdout.close()
        assert len(pids) == 3
        assert wait_gone([*pids, *below], 1.0) < 1.0


def descendants_of(pids: list[int]) -> list[int]:
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                parent = Path(f"/proc/{name}/stat").read_text().rsplit(")", 1)[1].split()[1]
            except OSError:
                continue
            if int(parent) in pids[1:]:
                found.append(int(name))
    return found
