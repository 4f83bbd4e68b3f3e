"""Broker, workers and producer on hosts of their own: what becomes of the work when bad things happen.

Hosts are made of network namespaces by the test bed in ``$MULTIHOST_TESTBED`` (needs root).
"""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import shells

CASES = Path(__file__).with_name("cases.py")
EXAMPLES = CASES.parent.parent / "examples"
BED = (
    Path(os.environ.get("MULTIHOST_TESTBED", CASES.parent.parent.parent / "shared" / "testbed")) / "hosts.py"
)

pytestmark = [pytest.mark.hosts, pytest.mark.timeout(150)]


def missing() -> str:
    if os.geteuid() != 0:
        return "needs root to make network namespaces"
    return "" if BED.is_file() else f"needs a test bed: {BED} is not there; set MULTIHOST_TESTBED"


class Cluster:
    """A broker on the host ``broker``, workers of two children each on ``w1`` and ``w2``."""

    def __init__(self, bed: Any, keys: Path, stack: ExitStack) -> None:
        self.bed = bed
        self.keys = keys
        self.stack = stack
        self.start_broker()
        self.address = "tcp://broker:5555"
        self.workers: dict[str, shells.Shell] = {}

    def start_broker(self) -> None:
        """Start the broker, or another one in its place."""
        self.broker = self.stack.enter_context(
            shells.broker(self.keys, bind="tcp://0.0.0.0:5555", launch=self.bed["broker"].run)
        )

    def worker(self, host: str) -> shells.Shell:
        """Start a worker on this host, and wait until it has registered."""
        made = self.stack.enter_context(
            shells.worker(self.broker, "-c", 2, address=self.address, launch=self.bed[host].run)
        )
        self.workers[host] = made
        return made

    @contextmanager
    def producer(self, *argv: object, **env: str) -> Iterator[shells.Shell]:
        """A script on the host ``producer``."""
        settings = {"MULTIHOST_BROKER": self.address, "MULTIHOST_KEYS": str(self.broker.keys), **env}
        command = [sys.executable, *map(str, argv)]
        with shells.Shell(command, env=settings, launch=self.bed["producer"].run) as shell:
            yield shell

    def case(self, name: str, folder: Path, timeout: float = 60.0, **env: str) -> shells.Shell:
        """Run a case to its good end."""
        with self.producer(CASES, name, CASE_FOLDER=str(folder), **env) as shell:
            assert shell.wait(timeout) == 0, str(shell)
        return shell

    def processes(self, host: str) -> list[str]:
        return list(self.bed[host].processes().values())


@pytest.fixture(scope="module")
def bed() -> Iterator[Any]:
    reason = missing()
    if reason and "hosts" in os.environ.get("MULTIHOST_REQUIRE", "").split(","):
        pytest.fail(reason)
    if reason:
        pytest.skip(reason)
    spec = importlib.util.spec_from_file_location("testbed_hosts", BED)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with module.Bed(["broker", "w1", "w2", "w3", "producer"]) as made:
        yield made
        holders = [made.switch, *(host.holder for host in made), *(host.line for host in made)]
    for holder in holders:
        close(holder)


def close(holder: Any) -> None:
    """Let go of a process that was a host: the bed forgets it, and leaves its pipe to chance."""
    if holder is not None:
        holder.wait()
        holder.stdout.close()


@pytest.fixture
def cluster(bed: Any, tmp_path: Path) -> Iterator[Cluster]:
    with ExitStack() as stack:
        made = Cluster(bed, tmp_path / "keys", stack)
        made.worker("w1")
        made.worker("w2")
        yield made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "case"
    made.mkdir()
    return made


@pytest.mark.parametrize(
    "name", ["killed_once", "killed_always", "pickling", "input_raises", "timed_out", "exactly_once"]
)
def test_what_goes_wrong_in_a_task_stays_in_that_task(cluster: Cluster, folder: Path, name: str) -> None:
    cluster.case(name, folder)


def test_ctrl_c_ends_a_map_at_once_and_the_next_pool_works(cluster: Cluster, folder: Path) -> None:
    with cluster.producer(CASES, "interrupted") as shell:
        shell.wait_for("begun")
        time.sleep(1.0)  # until the map is on its way; it would take minutes
        shell.signal(signal.SIGINT)
        shell.wait_for("interrupted", 3.0)
        assert shell.wait(20) == 0, str(shell)


@pytest.mark.long
@pytest.mark.parametrize("fault", ["crash", "cut"])
def test_a_host_that_vanishes_takes_no_work_along(bed: Any, cluster: Cluster, fault: str) -> None:
    holder = bed["w2"].holder
    with cluster.producer(CASES, "long_map", CASE_ITEMS="300") as shell:
        shell.wait_for("first answer of w2")
        getattr(bed, fault)("w2")
        try:
            assert shell.wait(60) == 0, str(shell)
            assert "complete" in shell.stdout
        finally:
            if fault == "cut":
                bed.heal("w2")
            else:
                close(holder)
                bed.boot("w2")


@pytest.mark.long
@pytest.mark.parametrize("name", ["broker", "producer", "w1"])
def test_a_cut_of_a_quarter_of_a_minute_loses_nothing(bed: Any, cluster: Cluster, name: str) -> None:
    with cluster.producer(CASES, "long_map", CASE_ITEMS="300") as shell:
        shell.wait_for("first answer of w2")
        bed.cut(name)
        try:
            time.sleep(15.0)
        finally:
            bed.heal(name)
        assert shell.wait(100) == 0, str(shell)
        assert "complete" in shell.stdout


@pytest.mark.long
def test_the_brokers_host_crashes_and_is_there_again(bed: Any, cluster: Cluster) -> None:
    holder = bed["broker"].holder
    with cluster.producer(CASES, "long_map", CASE_ITEMS="300") as shell:
        shell.wait_for("first answer of w2")
        # Without a word: nobody's connection ends.
        bed.crash("broker")
        close(holder)
        bed.boot("broker")
        cluster.start_broker()
        assert shell.wait(100) == 0, str(shell)
        assert "complete" in shell.stdout


def test_a_broker_is_replaced_under_load_and_nothing_runs_twice(cluster: Cluster, folder: Path) -> None:
    with cluster.producer(CASES, "exactly_once", CASE_FOLDER=str(folder)) as shell:
        shell.wait_for("under way")
        for _ in range(2):
            cluster.broker.signal(signal.SIGTERM)
            assert cluster.broker.wait(15) == 0
            cluster.start_broker()
            time.sleep(1.0)
        assert shell.wait(60) == 0, str(shell)


def test_a_worker_that_joins_gets_work_within_a_second(cluster: Cluster) -> None:
    with cluster.producer(CASES, "long_map", CASE_ITEMS="200") as shell:
        shell.wait_for("first answer of w1")
        cluster.worker("w3")
        joined = time.time()
        answered = float(shell.wait_for(r"first answer of w3 at ([\d.]+)", 10)[1])
        # An item takes a tenth of a second; the worker had registered a moment before we knew.
        assert answered - joined < 1.1
        assert shell.wait(60) == 0, str(shell)


def test_sigterm_to_a_worker_loses_nothing_and_repeats_nothing(cluster: Cluster, folder: Path) -> None:
    with cluster.producer(CASES, "exactly_once", CASE_FOLDER=str(folder)) as shell:
        shell.wait_for("under way")
        cluster.workers["w2"].signal(signal.SIGTERM)
        assert cluster.workers["w2"].wait(15) == 0
        assert shell.wait(60) == 0, str(shell)


def test_work_of_a_killed_producer_is_cancelled_within_five_seconds(cluster: Cluster, folder: Path) -> None:
    def running() -> int:
        return sum("forkserver" in line for host in ("w1", "w2") for line in cluster.processes(host))

    with cluster.producer(CASES, "long_items", CASE_FOLDER=str(folder)) as shell:
        shells.until(lambda: len(list(folder.iterdir())) == 4, "all four items have begun")
        assert running() > 2
        shell.signal(signal.SIGKILL)
        # What is left are the two forkservers.
        shells.until(lambda: running() <= 2, "no child runs any more", 5.0)


def test_without_workers_it_says_so_and_waits(bed: Any, tmp_path: Path) -> None:
    with ExitStack() as stack:
        cluster = Cluster(bed, tmp_path / "keys", stack)
        with cluster.producer(CASES, "patient") as shell:
            assert "no worker" in shell.wait_for("refused: .*")[0]
            before = time.monotonic()
            shell.wait_for("no worker has joined .* waiting")
            assert 2.0 < time.monotonic() - before < 6.0
            cluster.worker("w1")
            shell.wait_for("answer 9")
            assert shell.wait(20) == 0, str(shell)


@pytest.mark.long
def test_census_while_a_worker_is_killed_and_one_is_added(cluster: Cluster) -> None:
    census = (EXAMPLES / "census.py", "--check")
    with cluster.producer(*census) as shell:
        shell.wait_for(r" files, ")
        cluster.workers["w2"].signal(signal.SIGKILL)
        cluster.worker("w3")
        assert shell.process.poll() is None, "it was over too soon: give it more rounds"
        assert shell.wait(100) == 0, str(shell)
    assert re.search("check: equal to a plain loop", shell.stdout + shell.stderr)
