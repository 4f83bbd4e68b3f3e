"""A real worker on loopback: it finds its broker again, drains, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import tasks
from shells import (
    Broker,
    Shell,
    alive,
    broker,
    descendants,
    multihost_argv,
    nobody_at,
    peer,
    settle,
    until,
    worker,
)
from strangers import closes, nobody, plain_zmq

from multihost.engines.choosing import close_engines
from multihost.pool import Pool
from multihost_common.errors import EX_CONFIG, EX_NOPERM, EX_OK, WorkerLostError
from multihost_common.keys import find_token, make_keys
from multihost_common.messages import Welcome
from multihost_worker.agent import Agent, Config
from multihost_worker.events import Stop

#: A worker on a host whose disk is full.
NO_ROOM = """
import tempfile, os, errno
def full(*args, **kwds): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
tempfile.mkdtemp = full
from multihost.cli import main
main()
"""


@pytest.fixture
def keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A keys directory, which this process uses too."""
    made = make_keys(tmp_path / "keys").directory
    monkeypatch.setenv("MULTIHOST_KEYS", str(made))
    return made


@pytest.fixture
def temp(tmp_path: Path) -> dict[str, str]:
    """The environment of a worker whose files lie apart."""
    (tmp_path / "temp").mkdir()
    return {"TMPDIR": str(tmp_path / "temp")}


@contextmanager
def pool_on(b: Broker, processes: int) -> Iterator[Pool]:
    """A pool of this process on a cluster."""
    pool = Pool(processes, address=b.address)
    try:
        yield pool
    finally:
        pool.terminate()
        pool.join()
        close_engines()
        settle()


def lines(path: Path) -> Counter[str]:
    return Counter(path.read_text().split()) if path.exists() else Counter()


def private(temp: dict[str, str]) -> list[str]:
    return os.listdir(temp["TMPDIR"])


# -- finding the broker --------------------------------------------------------------------------------


def test_a_worker_waits_until_there_is_a_broker(keys: Path) -> None:
    address = nobody_at()
    with Shell(multihost_argv("worker", address, "--keys", keys)) as w:
        w.wait_for(f"WARNING no broker answers at {address}; still trying")
        with broker(keys, bind=address):
            w.wait_for("registered with the broker")
            w.signal(signal.SIGTERM)
            assert w.wait() == EX_OK


def test_a_worker_waits_behind_a_forwarded_port(keys: Path) -> None:
    with closes() as address, Shell(multihost_argv("worker", address, "--keys", keys)) as w:
        w.wait_for("no broker answers")
        assert w.process.poll() is None
        w.signal(signal.SIGTERM)
        assert w.wait() == EX_OK


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_worker_without_a_broker_ends_at_once(keys: Path, temp: dict[str, str], number: int) -> None:
    with nobody() as address, Shell(multihost_argv("worker", address, "--keys", keys), env=temp) as w:
        w.wait_for("connecting to the broker")
        w.signal(number)
        assert w.wait(5) == EX_OK
    assert not private(temp)


def ended(w: Shell, status: int, says: str) -> None:
    """The worker ends within five seconds with this status and one line."""
    assert w.wait(6) == status
    assert not w.stdout
    errors = [line for line in w.stderr.splitlines() if line.startswith("multihost: ")]
    assert len(errors) == 1 and says in errors[0]
    assert "Traceback" not in w.stderr


def test_a_refused_token_ends_the_worker(keys: Path, temp: dict[str, str], tmp_path: Path) -> None:
    with broker(keys) as b:
        (keys / "worker.token").unlink()
        make_keys(keys)
        with worker(b, env=temp, registered=False) as w:
            ended(w, EX_NOPERM, "does not accept this token")
        other = make_keys(tmp_path / "other").directory
        with Shell(multihost_argv("worker", b.address, "--keys", other), env=temp) as w:
            ended(w, EX_NOPERM, "server key mismatch")
    assert not private(temp)


def test_another_python_ends_the_worker(keys: Path, temp: dict[str, str]) -> None:
    with broker(keys) as b, peer(b, "worker", python="2.7"), worker(b, env=temp, registered=False) as w:
        ended(w, EX_CONFIG, "this cluster runs 2.7")
    assert not private(temp)


def test_another_role_ends_the_worker(keys: Path, temp: dict[str, str]) -> None:
    token = keys / "producer.token"
    argv = multihost_argv("worker", nobody_at(), "--token-file", token)
    with Shell(argv, env=temp) as w:
        ended(w, EX_CONFIG, "is a token for the role producer, but worker is needed")
    assert not private(temp)


def test_what_is_no_broker_ends_the_worker(keys: Path, temp: dict[str, str]) -> None:
    with plain_zmq() as address, Shell(multihost_argv("worker", address, "--keys", keys), env=temp) as w:
        ended(w, EX_CONFIG, "not a multihost broker")
    assert not private(temp)


def test_an_address_nobody_can_dial_ends_the_worker(keys: Path, temp: dict[str, str]) -> None:
    with Shell(multihost_argv("worker", "nonsense", "--keys", keys), env=temp) as w:
        ended(w, EX_CONFIG, "write it like tcp://host:5555")
    assert not private(temp)


def test_a_host_without_room_for_its_files_is_told(keys: Path, tmp_path: Path) -> None:
    argv = multihost_argv("worker", nobody_at(), "--keys", keys)
    with Shell([*argv[:1], "-c", NO_ROOM, *argv[3:]]) as w:
        ended(w, EX_CONFIG, "a worker cannot start here: [Errno 28] No space left on device")


# -- losing it -----------------------------------------------------------------------------------------


def test_a_worker_registers_again_with_a_broker_that_was_started_again(keys: Path) -> None:
    address = nobody_at()
    with Shell(multihost_argv("worker", address, "--keys", keys, "-c", 2)) as w:
        counts = []
        for number, kill in enumerate((signal.SIGKILL, signal.SIGTERM, signal.SIGKILL), 1):
            with broker(keys, bind=address) as b:
                w.wait_for("registered with the broker", times=number)
                with pool_on(b, 2) as pool:
                    assert pool.map(abs, range(-5, 5)) == [abs(x) for x in range(-5, 5)]
                counts.append(w.descriptors())
                b.signal(kill)
                b.wait()
            w.wait_for(r"the connection to the broker is lost \(.*\); trying again", times=number)
        assert max(counts) <= counts[0] + 1
        assert w.process.poll() is None


@pytest.mark.long
def test_a_frozen_broker_is_dialled_anew(keys: Path) -> None:
    with broker(keys) as b, worker(b) as w:
        b.signal(signal.SIGSTOP)
        w.wait_for(r"is lost \(it has been silent for 10 s\); trying again")
        b.signal(signal.SIGCONT)
        w.wait_for("registered with the broker", times=2)
        with peer(b, "admin") as admin:
            until(lambda: admin.ask("health")["workers"] == 1, "the old session is forgotten")


@pytest.mark.long
def test_a_frozen_worker_is_given_up_and_comes_back(keys: Path) -> None:
    with broker(keys) as b, worker(b) as w, peer(b, "admin") as admin:
        w.signal(signal.SIGSTOP)
        until(lambda: admin.ask()["workers"][0]["suspect"], "it gets no new work after 5 s", 8)
        until(lambda: not admin.ask()["workers"], "it is lost after 10 s", 8)
        w.signal(signal.SIGCONT)
        w.wait_for("registered with the broker", times=2)
        assert len(admin.ask()["workers"]) == 1
        with pool_on(b, 1) as pool:
            assert pool.apply(abs, (-3,)) == 3


# -- leaving -------------------------------------------------------------------------------------------


def test_sigterm_drains_nothing_is_lost_and_nothing_runs_twice(
    keys: Path, temp: dict[str, str], tmp_path: Path
) -> None:
    log = tmp_path / "log"
    with broker(keys) as b, worker(b, "-c", 2, env=temp) as first, pool_on(b, 4) as pool:
        result = pool.map_async(tasks.append_and_nap, [(str(log), item) for item in range(400)], chunksize=1)
        until(lambda: len(lines(log)) > 20, "some have run")
        with worker(b, "-c", 2):
            first.signal(signal.SIGTERM)
            assert first.wait() == EX_OK
            assert not private(temp)
            assert result.get(60) == list(range(400))
    assert lines(log) == Counter(str(item) for item in range(400))


def test_a_map_waits_for_the_next_worker_when_the_last_one_has_gone(keys: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with broker(keys) as b, pool_on(b, 4) as pool, peer(b, "admin") as admin:
        with worker(b, "-c", 2) as first:
            result = pool.map_async(tasks.append_and_nap, [(str(log), item) for item in range(600)])
            until(lambda: len(lines(log)) > 50, "some have run")
            first.signal(signal.SIGKILL)
            until(lambda: not admin.ask()["workers"], "the broker has given it up")
        with worker(b, "-c", 2):
            assert result.get(60) == list(range(600))


def test_a_draining_worker_finishes_what_runs(keys: Path, tmp_path: Path) -> None:
    with broker(keys) as b, worker(b, "-c", 1) as w, pool_on(b, 1) as pool:
        result = pool.apply_async(tasks.touch_and_wait, (str(tmp_path / "here"), str(tmp_path / "go")))
        until((tmp_path / "here").exists, "it runs")
        w.signal(signal.SIGTERM)
        with peer(b, "admin") as admin:
            until(lambda: admin.ask()["workers"][0]["draining"], "it drains")
        (tmp_path / "go").touch()
        assert w.wait() == EX_OK
        assert result.get(10) == "went"


def test_a_second_sigterm_hands_back_at_once(keys: Path, temp: dict[str, str], tmp_path: Path) -> None:
    here, go = tmp_path / "here", tmp_path / "go"
    with broker(keys) as b, worker(b, "-c", 1, env=temp) as w, pool_on(b, 1) as pool:
        result = pool.apply_async(tasks.touch_and_wait, (str(here), str(go)))
        until(here.exists, "it runs")
        family = descendants(w.pid)
        w.signal(signal.SIGTERM)
        with peer(b, "admin") as admin:
            until(lambda: admin.ask()["workers"][0]["draining"], "it drains")
            w.signal(signal.SIGTERM)
            assert w.wait(3) == EX_OK
            assert not private(temp)
            assert not [pid for pid in family if alive(pid)]
            until(lambda: admin.ask()["ready"] == 1, "it is ready for another worker", 3)
            go.touch()
            with worker(b, "-c", 1):
                assert result.get(20) == "went"


def test_a_drain_ends_in_time(keys: Path, tmp_path: Path) -> None:
    with broker(keys) as b, worker(b, "-c", 1, "--drain-timeout", 0.5) as w, pool_on(b, 1) as pool:
        pool.apply_async(tasks.touch_and_nap, (str(tmp_path / "here"),))
        until((tmp_path / "here").exists, "it runs")
        w.signal(signal.SIGTERM)
        assert w.wait(4) == EX_OK


def test_kill_9_of_the_agent_leaves_no_process_and_no_file(
    keys: Path, temp: dict[str, str], tmp_path: Path
) -> None:
    with broker(keys) as b, worker(b, "-c", 2, env=temp) as w, pool_on(b, 2) as pool:
        for name in ("a", "b"):
            pool.apply_async(tasks.touch_and_nap, (str(tmp_path / name),))
            until((tmp_path / name).exists, "it runs")
        family = descendants(w.pid)
        assert len(family) >= 4 and private(temp)
        keeper = [pid for pid in family if "rmtree" in Path(f"/proc/{pid}/cmdline").read_text()]
        assert len(keeper) == 1
        w.signal(signal.SIGKILL)
        w.wait()
        working = [pid for pid in family if pid not in keeper]
        until(lambda: not any(map(alive, working)), "its processes are gone", 1)
        until(lambda: not private(temp), "its directory is gone", 3)
        until(lambda: not any(map(alive, family)), "the keeper is gone", 3)


# -- work ----------------------------------------------------------------------------------------------


def test_more_input_than_a_busy_child_can_take(keys: Path) -> None:
    data = [bytes(30_000)] * 1000
    with broker(keys) as b, worker(b, "-c", 1), pool_on(b, 1) as pool:
        assert pool.apply(time.sleep, (0.01,)) is None
        assert pool.map(tasks.size_after_nap, data, chunksize=1) == [30_000] * 1000


def test_a_child_over_the_memory_limit_is_ended(keys: Path) -> None:
    with broker(keys) as b, worker(b, "-c", 1, "--max-memory-per-child", "150M"), pool_on(b, 1) as pool:
        assert pool.apply(abs, (-1,)) == 1
        with pytest.raises(WorkerLostError, match="memory"):
            pool.apply(tasks.hoard, (400 << 20,))
        assert pool.apply(abs, (-2,)) == 2


def test_a_welcome_that_comes_together_with_the_end_leaves_it_without_a_broker(keys: Path) -> None:
    agent = Agent(Config(nobody_at(), find_token("worker", keys=keys), concurrency=1))
    try:
        agent.welcomed(Welcome(heartbeat=1.0))
        agent.parted("it has ended")
        agent._handle_all()
        assert not agent.core.books.connected
        # Else its children would never be orphans, and it would drain into nowhere when it is stopped.
        agent._events.append(Stop())
        agent._handle_all()
        assert agent._exit == EX_OK
    finally:
        agent.close()
