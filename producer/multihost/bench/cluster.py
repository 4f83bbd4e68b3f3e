"""A broker and a worker of their own on the loopback interface, with keys of their own."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from types import TracebackType
from typing import IO, Any, Self

from multihost_common.errors import BrokerLostError, NoWorkersError

#: Seconds until a broker listens, a worker has registered, or either has ended.
PATIENCE = 20.0

COMMAND = (sys.executable, "-m", "multihost")


class Cluster:
    """``with Cluster(2) as cluster``: a broker and, unless ``slots`` is 0, a worker. Both end with it."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.address = ""
        self.environment: dict[str, str] = {}
        self.broker: subprocess.Popen[str]
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            keys = stack.enter_context(tempfile.TemporaryDirectory(prefix="multihost-bench-"))
            kept = {name: value for name, value in os.environ.items() if not name.startswith("MULTIHOST_")}
            self.environment = {**kept, "MULTIHOST_KEYS": os.path.join(keys, "keys")}
            self.broker = self._start(stack, "broker", "--bind", "tcp://127.0.0.1:0")
            self.address = _announced(self.broker)
            self.environment["MULTIHOST_BROKER"] = self.address
            if self.slots:
                self._start(stack, "worker", "-c", str(self.slots))
                self._await_slots()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _start(self, stack: ExitStack, *words: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [*COMMAND, *words, "--log-level", "warning"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            env=self.environment,
            text=True,
        )
        stack.callback(_end, process)
        return process

    def ask(self, what: str) -> dict[str, Any]:
        """What the broker answers: ``status`` or ``health``."""
        done = subprocess.run(
            [*COMMAND, what, "--json", self.address],
            check=False,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        if done.returncode:
            raise BrokerLostError(f"the broker of the benchmark does not answer: {done.stderr.strip()}")
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    def _await_slots(self) -> None:
        deadline = time.monotonic() + PATIENCE
        while self.ask("status")["slots"] < self.slots:
            if time.monotonic() > deadline:
                raise NoWorkersError(f"the worker of the benchmark has not registered within {PATIENCE:g} s")
            time.sleep(0.05)


def _announced(broker: subprocess.Popen[str]) -> str:
    """The address in the broker's first line."""
    stream: IO[str] | None = broker.stdout
    assert stream is not None
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        line = stream.readline() if selector.select(PATIENCE) else ""
    words = [word for word in line.split() if word.startswith("tcp://")]
    if not words:
        raise BrokerLostError(f"the broker of the benchmark has not started within {PATIENCE:g} s")
    return words[0]


def _end(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()


def cpu_seconds(pid: int) -> float:
    """CPU time of a process with all its threads, to the nanosecond where Linux tells it."""
    folder = f"/proc/{pid}/task"
    try:
        total = 0
        for thread in os.listdir(folder):
            with open(f"{folder}/{thread}/schedstat") as file:
                total += int(file.read().split()[0])
        return total * 1e-9
    except (OSError, IndexError):
        import psutil

        times = psutil.Process(pid).cpu_times()
        return float(times.user + times.system)


def resident(pid: int) -> int:
    """Resident memory of a process, bytes."""
    import psutil

    return int(psutil.Process(pid).memory_info().rss)
