"""Lost connections and broker restarts: nobody gets an exception, nothing is lost, nothing is run twice."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest
import shells
from sites import PATIENCE, Site, runs, until_some
from tasks import double, nap, note_and_nap, pid_after_nap, touch_and_wait

from multihost.engines.choosing import close_engines
from multihost.engines.remote import RemoteEngine
from multihost.executor import Executor
from multihost.pool import Pool
from multihost.results import AsyncResult
from multihost_broker.returns import GRACE
from multihost_common.errors import BrokerLostError, WorkerLostError


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("MULTIHOST_KEYS", str(tmp_path / "keys"))
    with ExitStack() as stack:
        yield Site(tmp_path / "keys", stack)
        close_engines()


@pytest.fixture
def pool(site: Site) -> Iterator[Pool]:
    site.worker()
    with Pool(address=site.address) as made:
        yield made


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("chunksize", [1, 7, None])
def test_a_map_goes_on_when_the_broker_is_started_again(
    site: Site, pool: Pool, tmp_path: Path, number: int, chunksize: int | None
) -> None:
    log = tmp_path / "log"
    result = pool.map_async(note_and_nap, [(str(log), item, 0.003) for item in range(1000)], chunksize)
    for restart in range(3):
        until_some(log, 100 + 250 * restart)
        site.restart(number)
    assert result.get(PATIENCE) == list(range(1000))
    ran = runs(log)
    assert set(ran) == set(range(1000))
    if number == signal.SIGTERM:
        assert max(ran.values()) == 1


def test_results_that_come_while_the_broker_is_away_are_kept(site: Site, pool: Pool, tmp_path: Path) -> None:
    log = tmp_path / "log"
    result = pool.map_async(note_and_nap, [(str(log), item, 0.2) for item in range(2)], 1)
    until_some(log, 2)
    site.end()
    time.sleep(0.5)
    site.start()
    assert result.get(PATIENCE) == [0, 1]
    assert set(runs(log).values()) == {1}


def test_children_keep_running_across_a_restart(site: Site, pool: Pool) -> None:
    before = set(pool.map(pid_after_nap, [0.02] * 8, 1))
    site.restart()
    assert set(pool.map(pid_after_nap, [0.02] * 8, 1)) <= before


def test_idle_children_do_not_keep_others_from_working_after_a_restart(site: Site) -> None:
    site.worker(1)
    with Pool(address=site.address) as one, Pool(address=site.address) as other:
        assert one.apply(double, (1,)) == 2
        assert other.apply(double, (1,)) == 2
        site.restart()
        # The worker's only slot is taken by a child of the other pool.
        began = time.monotonic()
        assert one.apply(double, (2,)) == 4
        assert other.apply(double, (2,)) == 4
        assert time.monotonic() - began < GRACE / 2


def test_workers_that_are_not_back_yet_are_not_forgotten(site: Site, pool: Pool) -> None:
    site.worker(1)
    engine = pool._engine
    assert isinstance(engine, RemoteEngine)
    hello = engine._session.hello
    shells.until(lambda: hello.workers == 2, "both workers are known")
    site.workers[1].signal(signal.SIGSTOP)
    site.restart()
    shells.until(lambda: engine.capacity == 2, "one worker is back")
    # The broker may end again just now, and the second worker holds something.
    assert hello.workers == 2
    # One that does not come back is not waited for at each restart from now on.
    engine._settled_at = 0.0
    shells.until(lambda: hello.workers == 1, "the other one is given up")


def test_calls_made_while_the_broker_is_away_are_answered_when_it_is_back(site: Site, pool: Pool) -> None:
    assert pool.apply(double, (1,)) == 2
    site.end()
    results = [pool.apply_async(double, (item,)) for item in range(20)]
    mapped = pool.map_async(double, range(100))
    with Pool(1, address=site.address) as other:
        late = other.apply_async(double, (21,))
        site.start()
        assert [each.get(PATIENCE) for each in results] == [2 * item for item in range(20)]
        assert mapped.get(PATIENCE) == [2 * item for item in range(100)]
        assert late.get(PATIENCE) == 42


def test_a_call_that_waits_gets_its_result(site: Site, pool: Pool) -> None:
    timer = threading.Timer(0.3, site.restart)
    timer.start()
    assert pool.apply(nap, (1.5,)) == 1.5
    timer.join()


def test_a_lazy_iterator_goes_on(site: Site, pool: Pool, tmp_path: Path) -> None:
    log = tmp_path / "log"
    jobs = ((str(log), item, 0.002) for item in range(600))
    seen = []
    for value in pool.imap(note_and_nap, jobs):
        seen.append(value)
        if value in (100, 300):
            site.restart()
    assert seen == list(range(600))


def test_an_executor_goes_on(site: Site) -> None:
    site.worker()
    with Executor(address=site.address) as executor:
        futures = [executor.submit(nap, 0.01 + item / 1e6) for item in range(100)]
        site.restart()
        assert [each.result(PATIENCE) for each in futures] == [0.01 + item / 1e6 for item in range(100)]


def test_a_pool_can_be_closed_while_the_broker_is_away(site: Site, pool: Pool) -> None:
    pool.map(double, range(10))
    site.end()
    pool.terminate()
    threading.Timer(0.5, site.start).start()
    pool.join()


def test_who_has_all_results_does_not_wait_for_a_broker_that_has_gone(site: Site) -> None:
    site.worker()
    with Pool(address=site.address) as pool, Executor(address=site.address) as executor:
        assert pool.apply(double, (1,)) == 2
        assert executor.submit(double, 1).result(PATIENCE) == 2
        site.end()
        pool.close()
        pool.join()
    # Now the executor was shut down, too.
    assert site.broker.process.poll() is not None


def test_a_terminated_pools_work_ends_on_the_workers_when_the_broker_is_back(
    site: Site, pool: Pool, tmp_path: Path
) -> None:
    here = tmp_path / "here"
    pool.apply_async(touch_and_wait, (str(here), str(tmp_path / "never")))
    deadline = time.monotonic() + PATIENCE
    while not here.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    site.end()
    pool.terminate()
    site.start()
    pool.join()


def test_what_a_worker_has_is_not_given_to_others_before_it_is_back(
    site: Site, pool: Pool, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    # None of them ends while the worker stands still: what it says then would be lost with the connection.
    result = pool.map_async(note_and_nap, [(str(log), item, 4.0) for item in range(4)], 1)
    until_some(log, 2)
    site.workers[0].signal(signal.SIGSTOP)
    site.restart()
    site.worker()
    time.sleep(1.0)
    site.workers[0].signal(signal.SIGCONT)
    assert result.get(PATIENCE) == list(range(4))
    assert set(runs(log).values()) == {1}


@pytest.mark.long
def test_what_a_worker_holds_that_does_not_come_back_is_run_elsewhere(
    site: Site, pool: Pool, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    result = pool.map_async(note_and_nap, [(str(log), item, 0.05) for item in range(40)], 1)
    until_some(log, 4)
    site.end()
    site.workers[0].signal(signal.SIGKILL)
    site.start()
    site.worker()
    assert result.get(PATIENCE) == list(range(40))


def test_at_most_once_is_kept_across_a_restart(site: Site, tmp_path: Path) -> None:
    log = tmp_path / "log"
    site.worker()
    with Pool(address=site.address, at_most_once=True) as pool:
        pool.map(double, range(4))
        results = [pool.apply_async(note_and_nap, ((str(log), item, 0.3),)) for item in range(20)]
        until_some(log, 2)
        site.restart()
        answers = [outcome(each) for each in results]
    assert max(runs(log).values()) == 1
    # Those that were under way came through, or could not be told from such.
    assert all(answer in (item, WorkerLostError) for item, answer in enumerate(answers))
    assert answers[:2] == [0, 1]


def outcome(result: AsyncResult) -> object:
    try:
        return result.get(PATIENCE)
    except WorkerLostError:
        return WorkerLostError


def test_patience_can_be_bounded(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MULTIHOST_BROKER_LOST_AFTER", "1.5")
    site.worker()
    with Pool(address=site.address) as pool:
        result = pool.map_async(nap, [30.0] * 2)
        site.end()
        began = time.monotonic()
        with pytest.raises(BrokerLostError, match=r"for more than 1\.5 s; run the work again"):
            result.get(PATIENCE)
        assert 1.0 < time.monotonic() - began < 6.0


def test_a_worker_without_a_broker_goes_on_and_registers_again(site: Site) -> None:
    worker = site.worker()
    site.end()
    worker.wait_for("connection to the broker is lost")
    site.start()
    worker.wait_for("registered with the broker", times=2)


def test_without_a_broker_for_too_long_a_worker_ends_its_children(site: Site, tmp_path: Path) -> None:
    worker = site.worker(1, "--orphan-timeout", 1)
    with Pool(address=site.address) as pool:
        here = tmp_path / "here"
        result = pool.apply_async(touch_and_wait, (str(here), str(tmp_path / "go")))
        until_some(here, 1)
        child = int(here.read_text())
        site.end()
        deadline = time.monotonic() + PATIENCE
        while psutil.pid_exists(child):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        (tmp_path / "go").touch()
        site.start()
        assert result.get(PATIENCE) == "went"
        assert worker.process.poll() is None


@pytest.mark.long
def test_a_frozen_broker_is_waited_for(site: Site, pool: Pool, tmp_path: Path) -> None:
    log = tmp_path / "log"
    result = pool.map_async(note_and_nap, [(str(log), item, 0.01) for item in range(300)], 1)
    until_some(log, 10)
    site.broker.signal(signal.SIGSTOP)
    time.sleep(12.0)
    site.broker.signal(signal.SIGCONT)
    assert result.get(PATIENCE) == list(range(300))
