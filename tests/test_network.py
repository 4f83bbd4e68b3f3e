"""Slow links, loss, cuts of one direction, slow readers, and the death of anybody at any time, on several hosts."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from random import Random
from typing import Any

import history
import pytest
import shells
from test_hosts import CASES, Cluster, bed, close, cluster, folder

__all__ = ["bed", "cluster", "folder"]

pytestmark = [pytest.mark.hosts, pytest.mark.timeout(200)]

#: Bytes that a broker may grow by, whatever is done by one producer that takes results out slowly.
GROWTH = 160 << 20

#: Seconds for which parties are killed.
HAVOC = 35.0


@pytest.fixture
def slow(bed: Any, cluster: Cluster) -> Iterator[Cluster]:
    """All links but the broker's take 50 ms each way and lose every fiftieth packet."""
    for name in ("w1", "w2", "producer"):
        bed.shape(name, delay=50, loss=2)
    try:
        yield cluster
    finally:
        for name in ("w1", "w2", "producer"):
            line = bed[name].line
            bed.clear(name)
            close(line)


def test_a_slow_link_that_loses_packets_gives_nobody_up(slow: Cluster, folder: Path) -> None:
    slow.case("exactly_once", folder, timeout=100)
    assert "silent" not in slow.broker.stderr
    assert "again" not in "".join(worker.stderr for worker in slow.workers.values())


@pytest.mark.long
@pytest.mark.parametrize(
    "ends", [("w1", "broker"), ("broker", "w1"), ("producer", "broker"), ("broker", "producer")]
)
def test_a_cut_of_one_direction_loses_nothing(bed: Any, cluster: Cluster, ends: tuple[str, str]) -> None:
    with cluster.producer(CASES, "long_map", CASE_ITEMS="200") as shell:
        shell.wait_for("first answer of w1")
        bed.cut(*ends, both=False)
        try:
            # A worker is not waited for; a producer cannot go on before its packets get through.
            if "w1" in ends:
                assert shell.wait(60) == 0, str(shell)
            else:
                time.sleep(15.0)
        finally:
            bed.heal(*ends)
        assert shell.wait(60) == 0, str(shell)
        assert "complete" in shell.stdout


def rss(bed: Any, host: str, pattern: str) -> int:
    """Resident bytes of the process of that host whose command line has it."""
    (pid,) = [pid for pid, line in bed[host].processes().items() if pattern in line and "nsenter" not in line]
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.long
def test_a_slow_reader_fills_no_memory_of_the_broker(bed: Any, cluster: Cluster) -> None:
    before = most = rss(bed, "broker", "multihost broker")
    with cluster.producer(CASES, "slow_consumer") as shell:
        while shell.process.poll() is None:
            most = max(most, rss(bed, "broker", "multihost broker"))
            time.sleep(0.1)
        assert shell.wait(60) == 0, str(shell)
    assert most - before < GROWTH


class Havoc:
    """Kills one of all parties at a time, and starts it again."""

    def __init__(self, bed: Any, cluster: Cluster, tmp_path: Path, random: Random) -> None:
        self.bed = bed
        self.cluster = cluster
        self.random = random
        self.tmp_path = tmp_path
        self.until = time.monotonic() + HAVOC
        self.clients: list[tuple[shells.Shell, Path, bool]] = []
        self.stack = cluster.stack.enter_context(ExitStack())
        self.killed: list[str] = []

    def client(self) -> None:
        """One more producer, for as long as there is havoc."""
        path = self.tmp_path / f"history-{len(self.clients)}"
        shell = self.stack.enter_context(
            self.cluster.producer(
                CASES, "with_history", CASE_HISTORY=str(path), CASE_SEED=str(self.random.random()),
                CASE_SECONDS=str(max(5.0, self.until - time.monotonic())),
            )
        )  # fmt: skip
        self.clients.append((shell, path, True))

    def strike(self) -> None:
        """One of them is killed."""
        what = self.random.choice(["broker", "w1", "w2", "child", "producer"])
        self.killed.append(what)
        if what == "broker":
            self.cluster.broker.signal(signal.SIGKILL)
            self.cluster.broker.wait()
            time.sleep(self.random.choice([0.0, 0.0, 1.0]))
            self.cluster.start_broker()
        elif what == "child":
            host = self.bed[self.random.choice(["w1", "w2"])]
            # The first one has forked the others.
            pids = sorted(pid for pid, line in host.processes().items() if "forkserver" in line)[1:]
            if pids:
                os.kill(self.random.choice(pids), signal.SIGKILL)
        elif what == "producer":
            at = self.random.randrange(len(self.clients))
            shell, path, _ = self.clients[at]
            if shell.process.poll() is None:
                shell.signal(signal.SIGKILL)
                self.clients[at] = (shell, path, False)
                self.client()
        else:
            self.cluster.workers[what].signal(signal.SIGKILL)
            self.cluster.workers[what].wait()
            self.cluster.worker(what)


@pytest.mark.long
def test_whoever_is_killed_at_whatever_time_each_item_is_answered_once(
    bed: Any, cluster: Cluster, tmp_path: Path
) -> None:
    seed = int(os.environ.get("MULTIHOST_SEED", "0")) or Random().getrandbits(32)
    print(f"MULTIHOST_SEED={seed}")
    havoc = Havoc(bed, cluster, tmp_path, Random(seed))
    for _ in range(3):
        havoc.client()
    while time.monotonic() < havoc.until:
        time.sleep(havoc.random.uniform(0.2, 2.5))
        havoc.strike()
    answers = 0
    for shell, path, lives in havoc.clients:
        if lives:
            assert shell.wait(60) == 0, str(shell)
        text = path.read_text() if path.exists() else ""
        assert history.judge(text) == [], (havoc.killed, str(shell))
        assert history.ended(text) or not lives
        answers += text.count("answer")
    assert answers > 500
    print(f"{answers} answers; killed: {' '.join(havoc.killed)}")
