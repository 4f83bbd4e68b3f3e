"""Detached jobs end to end: they outlive who submits them, and the broker."""

from __future__ import annotations

import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import pytest
import scripts
import shells
from sites import PATIENCE, Site, runs, until_some
from tasks import (
    die_while_there,
    double,
    nap,
    note_and_nap,
    raise_if_error,
    remainder,
    remember,
    remembered_and_pid,
    same,
    touch_and_wait,
    touch_and_wait_for,
)

import multihost as mp
from multihost.commands.asking import ask
from multihost.detached.result import DetachedResult, detached_result
from multihost.failures import Raised
from multihost.pool import Pool
from multihost.results import AsyncResult
from multihost_common.errors import BrokerLostError, JobError, RemoteError, WorkerLostError

KEY = "00112233445566778899aabbccddeeff"


@pytest.fixture
def pool(site: Site) -> Iterator[Pool]:
    site.worker()
    with Pool() as made:
        yield made


def state(site: Site) -> str:
    (job,) = site.jobs()
    return str(job["state"])


def in_background(call: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    """Run this in a thread of its own, which puts what it returns, or raises, into the list."""
    found: list[Any] = []

    def run() -> None:
        try:
            found.append(call())
        except BaseException as error:  # noqa: BLE001
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, found


# -- what it is for --------------------------------------------------------------------------------


def test_one_process_submits_and_another_one_fetches(site: Site, tmp_path: Path) -> None:
    text = """
        import multihost as mp

        def cube(number):
            return number ** 3

        if __name__ == "__main__":
            with mp.Pool() as pool:
                print(pool.map_async(cube, range(1000), detach=True).key)
    """
    key = scripts.script(tmp_path, text, env=site.broker.settings()).strip()
    assert len(key) == 32
    # Nobody was there to run it.
    assert state(site) == "running"
    site.worker()
    assert detached_result(key).get(PATIENCE) == [number**3 for number in range(1000)]
    assert not site.jobs()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_what_was_confirmed_is_there_after_the_broker_has_ended(site: Site, number: int) -> None:
    with Pool() as pool:
        result = pool.map_async(double, range(1000), 10, detach=True)
    site.restart(number)
    site.worker()
    assert result.get(PATIENCE) == [2 * item for item in range(1000)]


def test_it_goes_on_while_the_broker_is_killed_again_and_again(
    site: Site, pool: Pool, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    result = pool.map_async(note_and_nap, [(str(log), item, 0.003) for item in range(600)], detach=True)
    thread, found = in_background(lambda: result.get(PATIENCE))
    for restart in range(3):
        until_some(log, 100 + 150 * restart)
        site.restart()
    thread.join()
    assert found == [list(range(600))]
    assert not site.jobs()


def test_results_of_before_and_after_a_restart_are_fetched_together(
    site: Site, pool: Pool, tmp_path: Path
) -> None:
    here, go = tmp_path / "here", tmp_path / "go"
    result = pool.starmap_async(touch_and_wait_for, [("", ""), (str(here), str(go))], 1, detach=True)
    until_some(here, 1)
    with pytest.raises(mp.TimeoutError):
        result.get(0.5)
    site.restart()
    assert not result.ready()
    go.touch()
    assert result.get(PATIENCE) == ["went", "went"]
    assert result.ready() and result.successful()


SUBMITTER = """
import sys, time
from pathlib import Path
import multihost as mp
from tasks import note_and_nap

def items(log, stop):
    for item in range(3000):
        if item == stop:
            Path(log + ".stopped").write_text("here")
            time.sleep(600)
        yield log, item, 0.0

if __name__ == "__main__":
    log, key, stop = sys.argv[1:]
    with mp.Pool() as pool:
        print(pool.map_async(note_and_nap, items(log, int(stop)), 3, detach=True, key=key).key)
"""


def test_a_submitter_that_was_killed_half_way_is_gone_on_from(site: Site, tmp_path: Path) -> None:
    site.worker()
    log = tmp_path / "log"
    env = {**site.broker.settings(), "PYTHONPATH": os.pathsep.join(sys.path)}
    argv = [sys.executable, "-c", SUBMITTER, str(log), KEY]
    with shells.Shell([*argv, "2500"], env=env) as first:
        until_some(Path(f"{log}.stopped"), 1)
        # Something is run before all of it is there.
        until_some(log, 1)
        first.signal(signal.SIGKILL)
        first.wait()
    (job,) = site.jobs()
    assert job["state"] == "filling" and job["count"] is None and 0 < job["fed"] <= 2500
    for _ in range(2):
        # The second time, there is nothing left to do.
        with shells.Shell([*argv, "-1"], env=env) as again:
            assert again.wait() == 0, again
            assert again.stdout.strip() == KEY
    assert detached_result(KEY).get(PATIENCE) == list(range(3000))
    assert set(runs(log).values()) == {1}


def test_results_are_fetched_once(site: Site, pool: Pool) -> None:
    result = pool.map_async(double, range(10), detach=True)
    other = detached_result(result.key)
    assert other.get(PATIENCE, keep=True) == result.get(PATIENCE)
    with pytest.raises(JobError, match="collected"):
        detached_result(result.key).get(PATIENCE)
    # Who has them has them.
    assert result.get() == other.get() == [2 * item for item in range(10)]


# -- as an AsyncResult -----------------------------------------------------------------------------


def test_it_is_an_async_result(pool: Pool, tmp_path: Path) -> None:
    go = tmp_path / "go"
    result = pool.starmap_async(touch_and_wait, [(str(tmp_path / "here"), str(go))], detach=True)
    assert isinstance(result, AsyncResult) and isinstance(result, DetachedResult)
    assert not result.ready()
    with pytest.raises(ValueError, match="not ready"):
        result.successful()
    result.wait(0.1)
    go.touch()
    result.wait(PATIENCE)
    assert result.successful() and result.get() == ["went"]


def test_a_result_travels_by_pickle(pool: Pool) -> None:
    result = pool.apply_async(remainder, (20,), {"by": 7}, detach=True)
    assert isinstance(result, DetachedResult)
    again = pickle.loads(pickle.dumps(result))
    assert again.key == result.key
    assert again.get(PATIENCE) == 6


def test_calls_of_every_style(pool: Pool) -> None:
    assert pool.map_async(double, range(5), 2, detach=True).get(PATIENCE) == [0, 2, 4, 6, 8]
    assert pool.map_async(double, (each for each in (1, 2)), detach=True).get(PATIENCE) == [2, 4]
    assert pool.starmap_async(divmod, [(7, 2), (9, 4)], detach=True).get(PATIENCE) == [(3, 1), (2, 1)]
    assert pool.map_async(double, [], detach=True).get(PATIENCE) == []
    assert pool.map_async(lambda item: item + 1, [1], detach=True).get(PATIENCE) == [2]


def test_large_arrays(pool: Pool) -> None:
    numpy = pytest.importorskip("numpy")
    arrays = [numpy.full(300_000, number) for number in range(10)]
    found = pool.map_async(same, arrays, detach=True).get(PATIENCE)
    assert all((one == other).all() for one, other in zip(found, arrays, strict=True))
    # As multiprocessing's would be.
    found[0][0] = 7


def test_more_than_a_window_of_input(pool: Pool) -> None:
    pieces = [bytes([number]) * (1 << 20) for number in range(30)]
    assert pool.map_async(len, pieces, detach=True).get(PATIENCE) == [1 << 20] * 30
    assert pool.map_async(same, pieces, detach=True).get(PATIENCE) == pieces


def test_callbacks(pool: Pool) -> None:
    values: list[Any] = []
    done = threading.Event()

    def note(value: Any) -> None:
        values.append(value)
        done.set()

    pool.map_async(double, [1, 2], None, note, detach=True)
    assert done.wait(PATIENCE)
    done.clear()
    pool.map_async(raise_if_error, [KeyError(3)], None, None, note, detach=True)
    assert done.wait(PATIENCE)
    assert values[0] == [2, 4]
    assert isinstance(values[1], KeyError)


def test_what_makes_a_pool_makes_a_detached_jobs_children(site: Site) -> None:
    site.worker()
    with Pool(1, remember, (1, "two"), maxtasksperchild=2) as pool:
        result = pool.map_async(remembered_and_pid, range(6), 1, detach=True)
    found = result.get(PATIENCE)
    assert {each for each, _ in found} == {(1, "two")}
    assert len({pid for _, pid in found}) == 3


def test_modules_of_initializer_and_function_travel_together(site: Site, tmp_path: Path) -> None:
    site.worker()
    scripts.write(
        tmp_path,
        {
            "shelf.py": "BOOKS = []\n",
            "fills.py": "import shelf\ndef fill(book):\n    shelf.BOOKS.append(book)\n",
            "reads.py": "import shelf\ndef read(at):\n    return shelf.BOOKS[at]\n",
        },
    )
    text = """
        import multihost as mp
        from fills import fill
        from reads import read

        if __name__ == "__main__":
            with mp.Pool(initializer=fill, initargs=("tome",)) as pool:
                print(pool.map_async(read, [0], detach=True).get(60))
    """
    assert scripts.script(tmp_path, text, env=site.broker.settings()) == "['tome']\n"


# -- when things go wrong --------------------------------------------------------------------------


def test_a_call_that_raises(site: Site, pool: Pool) -> None:
    items = [1, LookupError("no"), KeyError(2), 3]
    result = pool.map_async(raise_if_error, items, detach=True)
    with pytest.raises(LookupError, match="no") as caught:
        result.get(PATIENCE)
    assert "RemoteTraceback" in type(caught.value.__cause__).__name__
    assert not result.successful()
    # The others are not lost: the job is kept.
    values = list(detached_result(result.key).outcomes())
    assert [type(value) is Raised for value in values] == [False, True, True, False]
    result.collect()
    assert not site.jobs()
    result.collect()


def test_a_poison_item_is_a_dead_letter_until_its_cause_is_gone(
    site: Site, pool: Pool, tmp_path: Path
) -> None:
    deadly = tmp_path / "deadly"
    deadly.touch()
    items = [(str(deadly) if item == 3 else str(tmp_path / "no"), item) for item in range(6)]
    result = pool.map_async(die_while_there, items, 1, detach=True)
    with pytest.raises(WorkerLostError, match="item 3 ended 3 times"):
        result.get(PATIENCE)
    (letter,) = ask(site.address, "dead")["dead"]
    assert (letter["key"], letter["item"], letter["reason"], letter["deaths"]) == (result.key, 3, "died", 3)
    site.restart()
    deadly.unlink()
    assert ask(site.address, "retry", about=f"{result.key}:3") == {"key": result.key, "count": 1}
    assert detached_result(result.key).get(PATIENCE) == list(range(6))
    assert not ask(site.address, "dead")["dead"]


def test_cancelled_half_way(site: Site, pool: Pool, tmp_path: Path) -> None:
    here = tmp_path / "here"
    items = [("", "")] * 4 + [(str(here), str(tmp_path / "never"))] * 4
    result = pool.starmap_async(touch_and_wait_for, items, 1, detach=True)
    until_some(here, 1)
    result.cancel()
    result.cancel()
    values = list(result.outcomes())
    assert values[:4] == ["went"] * 4
    assert [type(value.error) for value in values[4:]] == [CancelledError] * 4
    with pytest.raises(CancelledError):
        result.get(PATIENCE)
    assert state(site) == "cancelled"
    # Its slots are free.
    assert pool.apply(double, (1,)) == 2


def test_an_initializer_that_fails(site: Site) -> None:
    site.worker()
    with Pool(1, raise_if_error, (ZeroDivisionError("of the initializer"),)) as pool:
        result = pool.map_async(double, range(10), detach=True)
        with pytest.raises(RemoteError, match=r"initializer failed(.|\n)*of the initializer"):
            result.get(PATIENCE)
    assert state(site) == "broken"


def test_input_that_breaks_off_leaves_nothing_behind(site: Site, pool: Pool) -> None:
    def broken() -> Iterator[int]:
        yield from range(5000)
        raise LookupError("no more")

    with pytest.raises(LookupError, match="no more"):
        pool.map_async(double, broken(), detach=True)
    with pytest.raises(Exception, match="pickle"):
        pool.map_async(same, [*range(5000), threading.Lock()], detach=True)
    shells.until(lambda: not site.jobs(), "both are forgotten")


def test_a_job_without_a_broker() -> None:
    with Pool(1, address="local") as pool:
        with pytest.raises(ValueError, match="a detached job needs a broker"):
            pool.map_async(double, [1], detach=True)
        with pytest.raises(TypeError, match="retention: only with detach=True"):
            pool.apply_async(double, (1,), retention=3.0)
    with pytest.raises(ValueError, match="a detached job needs a broker"):
        detached_result(KEY, "")
    with pytest.raises(ValueError, match="32 hexadecimal digits"):
        detached_result("xyz", "tcp://127.0.0.1:1")


def test_what_a_detached_job_cannot_be(site: Site, pool: Pool) -> None:
    with pytest.raises(ValueError, match="cannot be at_most_once"):
        pool.options(at_most_once=True).map_async(double, [1], detach=True)
    for retention in (0, -1, 1e12):
        with pytest.raises(ValueError, match="retention must be"):
            pool.map_async(double, [1], detach=True, retention=retention)
    with pytest.raises(ValueError, match="Chunksize"):
        pool.map_async(double, [1], 0, detach=True)
    with pytest.raises(JobError, match="no such job"):
        detached_result(KEY).get(PATIENCE)
    assert not site.jobs()


def test_an_item_that_takes_too_long(site: Site) -> None:
    site.worker()
    with Pool(timeout=0.5) as pool:
        result = pool.map_async(nap, [0.0, 600.0], 1, detach=True)
    with pytest.raises(mp.TimeoutError, match="item 1 was stopped"):
        result.get(PATIENCE)


def test_patience_with_a_broker_that_is_away_can_be_bounded(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Pool() as pool:
        result = pool.map_async(nap, [600.0], detach=True)
        monkeypatch.setenv("MULTIHOST_BROKER_LOST_AFTER", "1.5")
        thread, found = in_background(result.get)
        site.end()
        thread.join(PATIENCE)
        assert isinstance(found[0], BrokerLostError)
        with pytest.raises(BrokerLostError, match=r"for more than 1\.5 s"):
            result.get()


@pytest.mark.parametrize("away", [False, True])
def test_ctrl_c_ends_a_wait_at_once(site: Site, away: bool) -> None:
    with Pool() as pool:
        result = pool.map_async(nap, [600.0], detach=True)
    code = (
        "import signal, sys, multihost; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"result = multihost.detached_result({result.key!r})\n"
        "print(result.ready(), flush=True)\n"
        "result.get()"
    )
    env = {**site.broker.settings(), "PYTHONPATH": os.pathsep.join(sys.path)}
    with shells.Shell([sys.executable, "-c", code], env=env) as waiting:
        waiting.wait_for("False")
        if away:
            site.end()
            waiting.wait_for("lost the broker|no broker answers")
        else:
            time.sleep(0.3)
        waiting.signal(signal.SIGINT)
        began = time.monotonic()
        waiting.wait()
        assert time.monotonic() - began < 2.0
        assert "KeyboardInterrupt" in waiting.stderr


def test_two_threads_wait_for_one_result(pool: Pool, tmp_path: Path) -> None:
    go = tmp_path / "go"
    result = pool.starmap_async(touch_and_wait, [(str(tmp_path / "here"), str(go))], detach=True)
    waits = [in_background(lambda: result.get(PATIENCE)) for _ in range(3)]
    go.touch()
    for thread, _ in waits:
        thread.join()
    assert [found for _, found in waits] == [[["went"]]] * 3
