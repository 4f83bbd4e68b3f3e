"""Managers: objects in a process of their own, used through proxies; on both engines."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.managers import ListProxy, RemoteError
from typing import Any

import pytest

import multihost as mp
from multihost.managers import BaseManager, SyncManager
from multihost.process import Process

#: No wait of these tests lasts that long unless something is wrong, seconds.
LONG = 20.0


@pytest.fixture(autouse=True)
def here(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Managers are started where the test runs."""
    monkeypatch.setenv("MULTIHOST_BROKER", address)


@pytest.fixture
def manager() -> Iterator[SyncManager]:
    with mp.Manager() as made:
        yield made


def eventually(holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + LONG
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.002)


class Counter:
    def __init__(self, start: int = 0) -> None:
        self.value = start

    def add(self, number: int) -> int:
        self.value += number
        return self.value

    def fail(self) -> None:
        raise KeyError("none")

    def pid(self) -> int:
        return os.getpid()


class Counters(BaseManager):
    """A manager of one's own."""


Counters.register("Counter", Counter)


class Clients(BaseManager):
    """One that connects to it."""


Clients.register("Counter")


def fill(numbers: Any, into: Any, number: int) -> Any:
    with into["lock"]:
        numbers.append(number)
    into["queue"].put(number)
    return numbers


def add_by_address(address: Any, key: bytes) -> int:
    clients = Clients(address=address, authkey=key)
    clients.connect()
    made = clients.Counter(3)  # type: ignore[attr-defined]
    return int(made.add(4))


def twice(proxy: Any) -> list[Any]:
    return [proxy, proxy]


def fail() -> None:
    raise ValueError("not here")


def test_tasks_and_processes_share_what_a_manager_has(manager: SyncManager) -> None:
    numbers = manager.list([0])
    shared: Any = manager.dict(lock=manager.Lock(), queue=manager.Queue(), numbers=numbers)
    with mp.Pool(2) as pool:
        # A proxy comes back, too, and is one more user of the list.
        back = pool.apply(fill, (numbers, shared, 1))
        pool.starmap(fill, [(numbers, shared, number) for number in range(2, 5)])
    process = Process(target=fill, args=(numbers, shared, 5))
    process.start()
    process.join(LONG)
    assert process.exitcode == 0
    assert type(back) is ListProxy
    assert sorted(back) == sorted(shared["numbers"]) == [0, 1, 2, 3, 4, 5]
    assert sorted(shared["queue"].get() for _ in range(5)) == [1, 2, 3, 4, 5]


def test_proxies_that_come_back_are_counted_in_good_time(manager: SyncManager) -> None:
    pairs: list[Any] = []
    with mp.Pool(2) as pool:
        for _ in range(20):
            # Nothing else refers to it once they are here.
            pairs = pool.map(twice, [manager.dict()] * 3)
            assert [len(each) for pair in pairs for each in pair] == [0] * 6
        pairs.clear()
    eventually(lambda: manager._number_of_objects() == 0)  # type: ignore[attr-defined]


def test_a_process_may_be_the_only_one_that_refers_to_an_object(manager: SyncManager) -> None:
    process = Process(target=len, args=(manager.list([1]),))
    process.start()
    process.join(LONG)
    assert process.exitcode == 0
    del process
    gc.collect()
    eventually(lambda: manager._number_of_objects() == 0)  # type: ignore[attr-defined]


def test_an_object_is_gone_when_nobody_refers_to_it_any_more(manager: SyncManager) -> None:
    count = manager._number_of_objects  # type: ignore[attr-defined]
    numbers, table = manager.list(), manager.dict()
    process = Process(target=str, args=([numbers, table],))
    process.start()
    process.join(LONG)
    assert count() == 2
    del process, numbers
    gc.collect()
    eventually(lambda: count() == 1)
    table["more"] = manager.list()
    assert len(table["more"]) == 0


def test_clients_of_a_killed_manager_are_told_at_once(manager: SyncManager) -> None:
    numbers, queue = manager.list(), manager.Queue()
    raised: list[BaseException] = []

    def wait() -> None:
        try:
            queue.get()
        except (ConnectionError, EOFError) as error:
            raised.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    eventually(lambda: len(numbers) == 0)
    manager._process.kill()
    waiting.join(LONG)
    assert len(raised) == 1
    with pytest.raises((ConnectionError, EOFError)):
        numbers.append(1)
    with pytest.raises(ConnectionRefusedError):
        manager.list()


def test_a_manager_of_ones_own_is_reached_by_its_address_from_anywhere() -> None:
    key = b"our own"
    with Counters(authkey=key) as manager:
        counter = manager.Counter(1)  # type: ignore[attr-defined]
        assert counter.add(2) == 3
        assert counter.pid() == manager._process.pid
        with pytest.raises(KeyError):
            counter.fail()
        with pytest.raises(RemoteError, match="exposed"):
            counter._callmethod("value")
        with mp.Pool(1) as pool:
            assert pool.apply(add_by_address, (manager.address, key)) == 7
        with pytest.raises(mp.AuthenticationError):
            add_by_address(manager.address, b"another")
    assert manager._process.exitcode == 0
    with pytest.raises(ConnectionRefusedError):
        add_by_address(manager.address, key)


def test_a_process_can_serve_objects_itself() -> None:
    key = b"our own"
    server = Counters(authkey=key).get_server()

    def serve() -> None:
        with pytest.raises(SystemExit):
            server.serve_forever()

    serving = threading.Thread(target=serve)
    serving.start()
    try:
        with mp.Pool(1) as pool:
            assert pool.apply(add_by_address, (server.address, key)) == 7
        assert add_by_address(server.address, key) == 7
    finally:
        server.stop_event.set()
        serving.join(LONG)
        del mp.current_process()._manager_server  # type: ignore[attr-defined]
    with pytest.raises((ConnectionError, EOFError)):
        add_by_address(server.address, key)


def test_a_manager_with_an_address_of_a_socket_runs_on_this_host() -> None:
    with Counters(address=("127.0.0.1", 0), authkey=b"our own") as manager:
        assert manager.address[0] == "127.0.0.1"  # type: ignore[index]
        counter = manager.Counter(1)  # type: ignore[attr-defined]
        assert counter.add(2) == 3
        assert os.path.isdir(f"/proc/{counter.pid()}")


def test_pools_of_a_manager_run_tasks(manager: SyncManager) -> None:
    with manager.Pool(2) as pool:
        assert pool.map(abs, [-1, -2, -3]) == [1, 2, 3]
        assert sorted(pool.imap_unordered(abs, [-1, -2])) == [1, 2]
        with pytest.raises(TypeError):
            pool.apply(abs, ("one",))


def test_a_manager_whose_initializer_fails_does_not_start(capfd: pytest.CaptureFixture[str]) -> None:
    manager = SyncManager()
    with pytest.raises(EOFError, match="exit code 1"):
        manager.start(fail)
    with pytest.raises(TypeError):
        SyncManager().start(1)  # type: ignore[arg-type]


LATE = """
import multihost as mp

def add(numbers):
    numbers.append(1)

if __name__ == "__main__":
    with mp.Pool(1) as pool:
        numbers = mp.Manager().list()
        pool.apply(add, (numbers,))
        print(numbers)
"""


@pytest.mark.local
def test_a_pool_that_is_older_than_the_manager_has_its_key(tmp_path: Any) -> None:
    script = tmp_path / "late.py"
    script.write_text(LATE)
    ran = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=LONG, check=False)
    assert (ran.stdout, ran.stderr) == ("[1]\n", "")
