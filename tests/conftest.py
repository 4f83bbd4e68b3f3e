"""Fixtures, and a check at the end of the whole run that nothing of multihost is left behind."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

import multihost
from multihost.engines.choosing import BROKER_VARIABLE, close_engines
from multihost.executor import Executor
from multihost.pool import Pool

if TYPE_CHECKING:
    from shells import Broker
    from sites import Site

    from multihost.connection import Connection

#: Seconds that processes and threads have to end after the last test.
GRACE_SECONDS = 5.0

#: Slots of the cluster: pools of a test share them.
SLOTS = 6

MakePool = Callable[..., Pool]
MakePipe = Callable[..., "tuple[Connection, Connection]"]
MakeExecutor = Callable[..., Executor]


# -- pools, of whatever engine -------------------------------------------------------------------------


def pytest_configure(config: pytest.Config) -> None:
    """A marker of ours, and Ctrl-C: a shell has what it runs in the background ignore it."""
    config.addinivalue_line("markers", "local: only makes sense on the local engine")
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """What uses pools runs on both engines, unless it is marked ``local``."""
    if "address" in metafunc.fixturenames:
        local = metafunc.definition.get_closest_marker("local") is not None
        metafunc.parametrize("address", ["local"] if local else ["local", "cluster"], indirect=True)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A broker that this process uses, and that a test may end and start again."""
    from sites import Site

    with ExitStack() as stack:
        made = Site(tmp_path / "keys", stack)
        for name, value in made.broker.settings().items():
            monkeypatch.setenv(name, value)
        yield made
        close_engines()


@pytest.fixture(scope="session")
def session_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A broker on loopback, with a worker of as many slots as any test needs."""
    # Here, since it imports much that other tests do not need.
    import shells

    with shells.cluster(tmp_path_factory.mktemp("cluster") / "keys", SLOTS) as (broker, _):
        yield broker
        close_engines()


@pytest.fixture
def cluster(session_broker: Broker, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of that broker, whose keys are at hand."""
    monkeypatch.setenv("MULTIHOST_KEYS", str(session_broker.keys))
    return session_broker.address


@pytest.fixture
def address(request: pytest.FixtureRequest) -> str:
    """Where pools run: "" is this machine."""
    return str(request.getfixturevalue("cluster")) if request.param == "cluster" else ""


@pytest.fixture
def pipe(address: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakePipe]:
    """Makes pipes at this address that are closed after the test."""
    monkeypatch.setenv(BROKER_VARIABLE, address)
    made: list[Connection] = []

    def make(duplex: bool = True) -> tuple[Connection, Connection]:
        ends = multihost.Pipe(duplex)
        made.extend(ends)
        return ends

    yield make
    for each in made:
        each.close()


@pytest.fixture
def make_pool(address: str) -> Iterator[MakePool]:
    """Makes pools that are gone after the test."""
    pools: list[Pool] = []

    def make(*args: Any, **kwds: Any) -> Pool:
        kwds.setdefault("address", address)
        pool = Pool(*args, **kwds)
        pools.append(pool)
        return pool

    yield make
    for pool in pools:
        pool.terminate()
        pool.join()


@pytest.fixture
def make_executor(address: str) -> Iterator[MakeExecutor]:
    """Makes executors that are gone after the test."""
    executors: list[Executor] = []

    def make(*args: Any, **kwds: Any) -> Executor:
        kwds.setdefault("address", address)
        executor = Executor(*args, **kwds)
        executors.append(executor)
        return executor

    yield make
    for executor in executors:
        executor.kill_workers()
        executor.shutdown()


# -- leaks ---------------------------------------------------------------------------------------------


class Leftovers:
    """What this process has and this machine holds on behalf of multihost, compared with the beginning."""

    def __init__(self) -> None:
        self.files = _files()
        self.descriptors = _descriptors()
        self.threads = set(threading.enumerate())

    def found(self) -> list[str]:
        """One line for each thing that was not there at the beginning."""
        lines = [f"process {text}" for text in _children()]
        lines += [f"thread {each.name}" for each in threading.enumerate() if each not in self.threads]
        lines += [f"file {each}" for each in sorted(_files() - self.files)]
        lines += [f"descriptor {each}" for each in _ours(_descriptors(), self.descriptors)]
        return lines

    def after(self, seconds: float) -> list[str]:
        """What is still found after so many seconds, or nothing as soon as there is nothing."""
        deadline = time.monotonic() + seconds
        while (lines := self.found()) and time.monotonic() < deadline:
            time.sleep(0.05)
        return lines


def _children() -> list[str]:
    lines = []
    for child in psutil.Process().children(recursive=True):
        try:
            command = " ".join(child.cmdline())
        except psutil.Error:
            continue
        # multiprocessing's own ends by itself, with this process.
        if command and "resource_tracker" not in command:
            lines.append(f"{child.pid} {command[:200]}")
    return lines


def _files() -> set[str]:
    """Of this run alone: other programs on this machine have files of their own."""
    return {str(each) for folder in (_folder, "/dev/shm") for each in Path(folder).glob("multihost-*")}


def _descriptors() -> dict[str, str]:
    """Number and target of each open descriptor, where the system tells."""
    found: dict[str, str] = {}
    for link in Path("/proc/self/fd").glob("*"):
        try:
            found[link.name] = str(link.readlink())
        except OSError:
            continue
    return found


def _ours(now: dict[str, str], before: dict[str, str]) -> list[str]:
    fresh = {number: target for number, target in now.items() if before.get(number) != target}
    return [
        f"{number} {target}"
        for number, target in fresh.items()
        if target.startswith(_KINDS) or "multihost" in target
    ]


def _stop_pyzmq() -> list[str]:
    """End the thread that pyzmq keeps for buffers on their way; none may be left by now."""
    garbage = sys.modules.get("zmq.utils.garbage")
    if garbage is None:
        return []
    lines = [f"buffer on its way: {each!r:.100}" for each in garbage.gc.refs.values()]
    garbage.gc.stop()
    return lines


#: What an engine opens.
_KINDS = ("socket:", "pipe:", "/memfd:", "/dev/shm/", "anon_inode:")

#: Temporary files of this run are in here, also those of the programs that tests start.
_folder = tempfile.mkdtemp(prefix="tests-of-multihost-")
os.environ["TMPDIR"] = tempfile.tempdir = _folder

_leftovers: list[Leftovers] = []


def pytest_sessionstart(session: pytest.Session) -> None:
    """Note what there is."""
    if not session.config.option.collectonly:
        _leftovers.append(Leftovers())


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """End the engines of this process; fail the run if anything stays."""
    if not _leftovers:
        return
    gc.collect()
    close_engines()
    lines = _stop_pyzmq() + _leftovers[0].after(GRACE_SECONDS)
    if lines:
        reporter: Any = session.config.pluginmanager.get_plugin("terminalreporter")
        if reporter is not None:
            reporter.section("left behind", red=True)
            for line in lines:
                reporter.line(line)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
    shutil.rmtree(_folder, ignore_errors=True)
