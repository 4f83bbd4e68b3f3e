"""Real ``multihost broker`` and ``multihost worker`` processes, on loopback or on hosts of a testbed.

    with broker(tmp_path / "keys") as b, worker(b, "-c", "2") as w:
        w.wait_for("registered")
        with peer(b, "producer") as producer: ...      # speaks the protocol, message by message

Every wait has a deadline; what was started is gone when its ``with`` ends. ``launch`` starts a command
elsewhere: ``launch=bed["w1"].run`` for a host of a testbed (see :data:`Launch`).
"""

from __future__ import annotations

import json
import os
import pickle
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import zmq

import multihost
import multihost_broker
import multihost_common
import multihost_worker
from multihost_common import messages as m
from multihost_common.keys import find_token
from multihost_common.waiter import milliseconds
from multihost_common.wire import CONNECTED, Dealer

#: Seconds that anything here may take on a busy machine.
PATIENCE = 20.0

#: Starts a command: ``launch(argv, env={...more variables...}, **options of Popen)``.
Launch = Callable[..., "subprocess.Popen[bytes]"]

M = TypeVar("M", bound=m.Message)

_PACKAGES = (multihost, multihost_worker, multihost_broker, multihost_common)
#: Where the packages are, and the functions that tests run in children.
_FOLDERS = [str(Path(package.__path__[0]).resolve().parent) for package in _PACKAGES]
_FOLDERS.append(str(Path(__file__).resolve().parent))


def here(argv: list[str], env: Mapping[str, str], **options: Any) -> subprocess.Popen[bytes]:
    """Start a command on this host, with nothing of multihost in its environment but ``env``."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("MULTIHOST_")}
    return subprocess.Popen(argv, env={**inherited, **env}, **options)


class Shell:
    """A process and all it has written."""

    def __init__(
        self, argv: list[str], *, env: Mapping[str, str] | None = None, launch: Launch = here
    ) -> None:
        self.argv = argv
        variables = {"PYTHONPATH": os.pathsep.join(_FOLDERS), "PYTHONUNBUFFERED": "1", **(env or {})}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL}
        self.process = launch(argv, env=variables, **pipes)
        self._data = {"stdout": b"", "stderr": b""}
        self._news = threading.Condition()
        self._open = 2
        self._threads = [
            threading.Thread(target=self._read, args=(name,), daemon=True, name=f"shell-{name}")
            for name in self._data
        ]
        for thread in self._threads:
            thread.start()

    def _read(self, name: str) -> None:
        pipe = getattr(self.process, name)
        while data := os.read(pipe.fileno(), 65_536):
            with self._news:
                self._data[name] += data
                self._news.notify_all()
        with self._news:
            self._open -= 1
            self._news.notify_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- what it says ------------------------------------------------------------------------------

    @property
    def stdout(self) -> str:
        """All of its standard output so far."""
        return self._data["stdout"].decode(errors="replace")

    @property
    def stderr(self) -> str:
        """All of its standard error so far."""
        return self._data["stderr"].decode(errors="replace")

    def wait_for(self, pattern: str, timeout: float = PATIENCE, times: int = 1) -> re.Match[str]:
        """The match of ``pattern`` in its output or its log, once there are so many of them."""

        def look() -> list[re.Match[str]]:
            text = f"{self.stdout}\n{self.stderr}"
            return list(re.finditer(pattern, text, re.MULTILINE))

        with self._news:
            met = self._news.wait_for(lambda: len(look()) >= times or not self._open, timeout)
        found = look()
        if len(found) < times:
            why = f"not within {timeout} s" if not met else f"ended with {self.process.poll()}"
            raise AssertionError(f"no {pattern!r} x {times} ({why}) from {self}")
        return found[times - 1]

    def __str__(self) -> str:
        return f"{' '.join(self.argv)}\n--- stdout\n{self.stdout}\n--- stderr\n{self.stderr}"

    # -- what becomes of it ------------------------------------------------------------------------

    @property
    def pid(self) -> int:
        """Its process id, as this host sees it."""
        return self.process.pid

    def signal(self, number: int) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    def wait(self, timeout: float = PATIENCE) -> int:
        """Its exit status, once it has ended and all it wrote is here."""
        try:
            status = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still runs after {timeout} s: {self}") from None
        with self._news:
            self._news.wait_for(lambda: not self._open, timeout)
        return status

    def cpu(self) -> float:
        """Seconds of CPU it has used, in all its threads."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def rss(self) -> int:
        """Its resident memory, bytes."""
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def descriptors(self) -> int:
        """How many file descriptors it has open."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def close(self) -> None:
        """End it: with SIGTERM, twice, then by force."""
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGKILL):
            if self.process.poll() is not None:
                break
            with suppress(ProcessLookupError):
                self.process.send_signal(signal.SIGCONT)
                self.process.send_signal(number)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(5)
        for thread in self._threads:
            thread.join(5)
        for pipe in (self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()


def multihost_argv(*args: object) -> list[str]:
    """The command line of a ``multihost`` command."""
    return [sys.executable, "-m", "multihost", *map(str, args)]


class Broker(Shell):
    """A running broker: its ``address``, and where its ``keys`` are."""

    address = ""
    keys = Path()

    def settings(self) -> dict[str, str]:
        """The environment of a script that uses it."""
        return {"MULTIHOST_BROKER": self.address, "MULTIHOST_KEYS": str(self.keys)}


@contextmanager
def broker(
    keys: Path,
    *options: object,
    bind: str = "tcp://127.0.0.1:0",
    env: Mapping[str, str] | None = None,
    launch: Launch = here,
) -> Iterator[Broker]:
    """A ``multihost broker`` that can be reached."""
    argv = multihost_argv("broker", "--bind", bind, "--keys", keys, *options)
    with Broker(argv, env=env, launch=launch) as b:
        b.address = b.wait_for(r"^multihost broker listening on (\S+) ")[1]
        b.keys = keys
        yield b


@contextmanager
def worker(
    of: Broker,
    *options: object,
    address: str = "",
    env: Mapping[str, str] | None = None,
    launch: Launch = here,
    registered: bool = True,
) -> Iterator[Shell]:
    """A ``multihost worker`` of this broker; by default it has registered when this begins."""
    argv = multihost_argv("worker", address or of.address, "--keys", of.keys, *options)
    with Shell(argv, env=env, launch=launch) as shell:
        if registered:
            shell.wait_for(r"registered with the broker at .*")
        yield shell


@contextmanager
def cluster(keys: Path, *concurrency: int) -> Iterator[tuple[Broker, list[Shell]]]:
    """A broker, and a worker of so many child processes for each of ``concurrency``."""
    with broker(keys) as b:
        workers: list[Shell] = []
        try:
            for number in concurrency:
                argv = multihost_argv("worker", b.address, "--keys", keys, "-c", number)
                workers.append(Shell(argv))
            for each in workers:
                each.wait_for("registered with the broker")
            yield b, workers
        finally:
            for each in workers:
                each.close()


def command(
    *args: object, env: Mapping[str, str] | None = None, timeout: float = PATIENCE, launch: Launch = here
) -> Shell:
    """Run ``multihost ARGS`` to its end: ``.process.returncode``, ``.stdout``, ``.stderr``."""
    with Shell(multihost_argv(*args), env=env, launch=launch) as shell:
        shell.wait(timeout)
    return shell


# -- peers that speak the protocol -------------------------------------------------------------------


def hello(kind: str, /, **changes: Any) -> m.Hello:
    """What a peer of this kind says first."""
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    facts = {
        "kind": kind,
        "protocol": m.PROTOCOL_VERSION,
        "python": python,
        "pickle": pickle.HIGHEST_PROTOCOL,
        "host": "testhost",
        "pid": os.getpid(),
        "slots": 1 if kind == m.WORKER else 0,
        "name": f"test {kind}",
    }
    return m.Hello(**{**facts, **changes})


class Peer:
    """A producer, worker or administrator in the test's own hands."""

    def __init__(self, of: Broker, kind: str, role: str = "") -> None:
        self.kind = kind
        self.dealer = Dealer(of.address, find_token(role or kind, keys=of.keys))
        self.heard: list[m.Message] = []

    def connect(self, **changes: Any) -> m.Welcome:
        """Say Hello and be welcomed."""
        return self.dealer.handshake(hello(self.kind, **changes))

    def open(self) -> None:
        """Connect, and say nothing."""
        deadline = time.monotonic() + PATIENCE
        while CONNECTED not in self.dealer.signals():
            left = deadline - time.monotonic()
            assert left > 0 and self.dealer.monitor.poll(milliseconds(left)), "there is no connection"

    def send(self, *messages: m.Message) -> None:
        """Send messages."""
        for each in messages:
            self.dealer.send(each)

    def raw(self, *frames: bytes) -> None:
        """Send frames as they are."""
        self.dealer.socket.send_multipart(frames, zmq.NOBLOCK)

    def expect(self, kind: type[M], timeout: float = PATIENCE) -> M:
        """The next message of this kind; those before it are passed over, those after it kept."""
        deadline = time.monotonic() + timeout
        while True:
            while self.heard:
                message = self.heard.pop(0)
                if type(message) is kind:
                    return message
                if type(message) is m.Refused and kind is not m.Refused:
                    raise AssertionError(f"refused: {message.reason} {message.text}")
            left = deadline - time.monotonic()
            assert left > 0 and self.dealer.socket.poll(milliseconds(left)), (
                f"no {kind.__name__} in {timeout} s"
            )
            self.heard += self.dealer.receive()

    def refused(self) -> str:
        """The code of the next refusal."""
        return self.expect(m.Refused).reason

    def ask(self, what: str = "status") -> dict[str, Any]:
        """The broker's answer to a question."""
        self.send(m.Ask(what))
        answer: dict[str, Any] = json.loads(bytes(self.expect(m.Answer).frames[0]))
        return answer

    def close(self) -> None:
        """Hang up without a word."""
        self.dealer.close()


@contextmanager
def peer(of: Broker, kind: str, role: str = "", connect: bool = True, **changes: Any) -> Iterator[Peer]:
    """A :class:`Peer` of this kind with the token of ``role``, welcomed unless not ``connect``."""
    made = Peer(of, kind, role)
    try:
        if connect:
            made.connect(**changes)
        yield made
    finally:
        made.close()


def nobody_at() -> str:
    """An address of this host that is free now."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return f"tcp://127.0.0.1:{held.getsockname()[1]}"


def settle() -> None:
    """End the thread that pyzmq keeps for frames it sends without a copy. No socket may be open."""
    from zmq.utils.garbage import gc

    gc.stop()


# -- the ends of things --------------------------------------------------------------------------------


def until(condition: Callable[[], Any], what: str, timeout: float = PATIENCE) -> Any:
    """Look again and again until ``condition()`` is true; for what nothing tells of."""
    deadline = time.monotonic() + timeout
    while not (met := condition()):
        assert time.monotonic() < deadline, f"not within {timeout} s: {what}"
        select.select([], [], [], 0.01)
    return met


def descendants(pid: int) -> list[int]:
    """All processes below ``pid``."""
    import psutil

    return [each.pid for each in psutil.Process(pid).children(recursive=True)]


def alive(pid: int) -> bool:
    """Whether this process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False
