"""Named queues of real processes: whatever is killed, what was confirmed is there, once."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from queue import Empty, Full
from typing import Any

import pytest
import shells
from sites import Site

import multihost
from multihost.queues.named import NamedQueue
from multihost_common.errors import BrokerLostError, ConfigError


@pytest.fixture
def cluster_broker(cluster: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A broker that all tests of this file may share."""
    monkeypatch.setenv("MULTIHOST_BROKER", cluster)
    return cluster


@pytest.fixture
def queue(cluster_broker: str, request: pytest.FixtureRequest) -> Iterator[NamedQueue]:
    """A queue of this test's own, whose items are acknowledged."""
    made = opened(name=request.node.name, ack="manual")
    yield made
    made.delete()


def opened(maxsize: int = 0, *, name: str, ack: Any = "auto") -> NamedQueue:
    """The queue of this name."""
    queue = multihost.Queue(maxsize, name=name, ack=ack)
    assert isinstance(queue, NamedQueue)
    return queue


def script(text: str, *words: object) -> shells.Shell:
    """A Python program that uses the broker that this one does."""
    names = ("MULTIHOST_BROKER", "MULTIHOST_KEYS")
    env = {name: os.environ[name] for name in names}
    return shells.Shell([sys.executable, "-c", f"import multihost, sys\n{text}", *map(str, words)], env=env)


# -- what is killed ----------------------------------------------------------------------------------


def test_what_was_confirmed_is_there_once_after_the_broker_was_killed(site: Site) -> None:
    queue = opened(name="frontier")
    for number in range(5):
        queue.put(number, confirm=True)
    for number in range(5, 300):
        queue.put(number)
    assert [queue.get() for _ in range(3)] == [0, 1, 2]
    queue.flush()
    site.restart()
    for number in range(300, 310):
        queue.put(number)
    assert [queue.get(timeout=20) for _ in range(307)] == list(range(3, 310))
    with pytest.raises(Empty):
        queue.get_nowait()
    site.restart()
    assert queue.empty()


def test_who_waits_for_an_item_goes_on_waiting_with_the_next_broker(site: Site) -> None:
    queue = opened(name="frontier")
    got: list[Any] = []
    thread = threading.Thread(target=lambda: got.append(queue.get()))
    thread.start()
    shells.until(lambda: queue._line._ask is not None, "it waits")
    site.end()
    putting = threading.Thread(target=queue.put, args=("late",), kwargs={"confirm": True})
    putting.start()
    site.start()
    putting.join(shells.PATIENCE)
    thread.join(shells.PATIENCE)
    assert got == ["late"]


def test_what_a_killed_consumer_held_goes_to_another_in_front(site: Site) -> None:
    queue = opened(name="frontier")
    for number in range(4):
        queue.put(number, confirm=True)
    holds = "q = multihost.Queue(name='frontier'); q.get(); q.get(); print('has', q.get(), flush=True)"
    with script(holds + "; import time; time.sleep(60)") as shell:
        shell.wait_for("has 2")
        assert queue.qsize() == 1
        shell.signal(signal.SIGKILL)
        shell.wait()
        shells.until(lambda: queue.qsize() == 2, "its death is noticed")
        # The first two were accepted by getting the next one.
        assert [queue.get(timeout=20) for _ in range(2)] == [2, 3]


def test_scripts_come_and_go_and_a_broker_that_was_stopped_keeps_all(site: Site) -> None:
    with script("q = multihost.Queue(name='frontier')\nfor n in range(100): q.put(n)") as shell:
        assert shell.wait() == 0, shell
    site.restart(signal.SIGTERM)
    with script("q = multihost.Queue(name='frontier'); print(sum(q.get() for _ in range(60)))") as shell:
        assert shell.wait() == 0, shell
        assert int(shell.stdout) == sum(range(60))
    queue = opened(name="frontier")
    assert [queue.get(timeout=20) for _ in range(40)] == list(range(60, 100))


def work(queue: Any, log: str) -> None:
    """A process that gets items until the sentinel."""
    with open(log, "a") as file:
        while (item := queue.get()) is not None:
            print(item, file=file, flush=True)


def test_processes_on_workers_go_on_with_the_next_broker(site: Site, tmp_path: Path) -> None:
    site.worker(2)
    queue = opened(name="frontier")
    log = tmp_path / "log"
    process = multihost.Process(target=work, args=(queue, str(log)))
    process.start()
    queue.put("first", confirm=True)
    shells.until(lambda: log.exists() and "first" in log.read_text(), "the process has an item")
    site.restart()
    for item in ("second", "third", None):
        queue.put(item, confirm=True)
    process.join(shells.PATIENCE)
    assert process.exitcode == 0
    assert log.read_text().split() == ["first", "second", "third"]


_open: list[Any] = []


def relay(source: Any, target: Any) -> int:
    """A task that moves an item from one queue to another; its process has them open for good."""
    _open.append((source, target))
    item: int = source.get(timeout=shells.PATIENCE)
    target.put(item + 1, confirm=True)
    source.task_done()
    source.flush()
    return item


def test_tasks_of_a_pool_use_them_before_and_after_a_broker_was_killed(site: Site) -> None:
    site.worker(1)
    source, target = opened(name="source"), opened(name="target")
    for number in range(6):
        source.put(number, confirm=True)
    with multihost.Pool(1) as pool:
        for number in range(6):
            if number % 2:
                # While the child has the queues open, and nothing to do.
                site.restart()
            assert pool.apply(relay, (source, target)) == number
    assert [target.get(timeout=20) for _ in range(6)] == [1, 2, 3, 4, 5, 6]
    with pytest.raises(Empty):
        source.get(timeout=0.1)


# -- acknowledging -----------------------------------------------------------------------------------


def test_an_item_that_was_acknowledged_is_gone_and_another_one_comes_back(queue: NamedQueue) -> None:
    for item in ("a", "b", [1]):
        queue.put(item, confirm=True)
    first, second = queue.get(), queue.get()
    third, token = queue.get_with_token()
    queue.ack(second, confirm=True)
    queue.ack(token)
    with pytest.raises(ValueError, match="does not have"):
        queue.ack(third)
    queue.nack(first)
    assert queue.get() == "a"
    queue.task_done()
    queue.join()
    with pytest.raises(ValueError, match="too many"):
        queue.task_done()


def test_an_item_that_a_script_did_not_acknowledge_is_there_when_it_has_ended(queue: NamedQueue) -> None:
    queue.put("a", confirm=True)
    with script("print(multihost.Queue(name=sys.argv[1], ack='manual').get())", queue.name) as shell:
        assert shell.wait() == 0, shell
    assert queue.get(timeout=20) == "a"


# -- the rest of the interface -----------------------------------------------------------------------


def test_a_queue_with_a_bound_has_who_puts_wait(cluster_broker: str) -> None:
    queue = opened(2, name="bounded")
    queue.put(1)
    queue.put(2)
    assert queue.full() and queue.qsize() == 2
    with pytest.raises(Full):
        queue.put(3, block=False)
    with pytest.raises(Full):
        queue.put(3, timeout=0.05)
    thread = threading.Thread(target=queue.put, args=(4,))
    thread.start()
    assert [queue.get() for _ in range(3)] == [1, 2, 4]
    thread.join(shells.PATIENCE)
    with pytest.raises(ValueError, match="room for 2"):
        opened(3, name="bounded")
    assert opened(name="bounded").empty()
    queue.delete()


def test_large_items_and_items_with_buffers_come_as_they_were(queue: NamedQueue) -> None:
    numpy = pytest.importorskip("numpy")
    array = numpy.arange(200_000)
    queue.put(array)
    queue.put(b"x" * 3_000_000)
    assert (queue.get(timeout=20) == array).all()
    assert len(queue.get(timeout=20)) == 3_000_000


def test_what_cannot_be_pickled_is_told_and_the_queue_goes_on(
    queue: NamedQueue, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(Exception, match="pickle"):
        queue.put(threading.Lock(), confirm=True)
    queue.put(threading.Lock())
    queue.put("fine", confirm=True)
    assert queue.get() == "fine"
    assert "pickle" in capfd.readouterr().err


def test_a_queue_that_was_deleted_is_told_to_who_uses_it(queue: NamedQueue) -> None:
    errors: list[BaseException] = []

    def wait() -> None:
        try:
            other.get()
        except BrokerLostError as error:
            errors.append(error)

    other = opened(name="deleted")
    thread = threading.Thread(target=wait)
    thread.start()
    shells.until(lambda: other._line._ask is not None, "it waits")
    shells.command(
        "queue", "delete", "deleted", "--broker", os.environ["MULTIHOST_BROKER"], env=dict(os.environ)
    )
    thread.join(shells.PATIENCE)
    assert "no more" in str(errors[0])
    other.close()
    again = opened(name="deleted")
    again.put("anew", confirm=True)
    again.delete()
    with pytest.raises(BrokerLostError):
        again.put(1, confirm=True)


def test_the_command_line_lists_shows_purges_and_deletes(queue: NamedQueue) -> None:
    for number in range(3):
        queue.put(number, confirm=True)
    assert queue.get() == 0

    def told(*words: str) -> str:
        shell = shells.command("queue", *words, env=dict(os.environ))
        assert shell.process.returncode == 0, shell
        return shell.stdout

    assert queue.name in told("list")
    shown = json.loads(told("show", queue.name, "--json"))
    assert (shown["items"], shown["waiting"], shown["users"][0]["holds"]) == (3, 2, 1)
    assert "2 items" in told("purge", queue.name)
    assert queue.qsize() == 0
    queue.ack(0)
    refused = shells.command("queue", "show", "no such queue", env=dict(os.environ))
    assert refused.process.returncode and "no such queue" in refused.stderr


def test_without_a_broker_there_are_no_named_queues(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MULTIHOST_BROKER", raising=False)
    with pytest.raises(ConfigError, match="needs a broker"):
        opened(name="frontier")


def test_names_that_cannot_be_printed_and_other_ways_to_acknowledge_are_refused(cluster_broker: str) -> None:
    for name in ("", "a\nb", "x" * 257):
        with pytest.raises(ValueError, match="name has"):
            opened(name=name)
    with pytest.raises(ValueError, match="auto"):
        opened(name="frontier", ack="never")
