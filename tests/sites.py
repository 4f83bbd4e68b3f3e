"""A broker that comes and goes, for tests, and what was run meanwhile."""

from __future__ import annotations

import signal
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import shells

from multihost.commands.asking import ask

#: Seconds that a test may wait for anything, on a busy machine.
PATIENCE = 60.0


class Site:
    """A broker that can be ended and started again at the same address, and its workers."""

    def __init__(self, keys: Path, stack: ExitStack) -> None:
        self._stack = stack
        self._keys = keys
        self.broker = self._stack.enter_context(shells.broker(keys))
        self.address = self.broker.address
        self.workers: list[shells.Shell] = []

    def worker(self, slots: int = 2, *options: object, address: str = "") -> shells.Shell:
        """A worker; ``address``: of what stands before the broker."""
        shell = shells.worker(self.broker, "-c", slots, *options, address=address)
        worker = self._stack.enter_context(shell)
        self.workers.append(worker)
        return worker

    def jobs(self) -> list[dict[str, Any]]:
        """The detached jobs that the broker tells of."""
        found: list[dict[str, Any]] = ask(self.address, "jobs")["jobs"]
        return found

    def end(self, number: int = signal.SIGKILL) -> None:
        self.broker.signal(number)
        self.broker.wait()

    def start(self) -> None:
        self.broker = self._stack.enter_context(shells.broker(self._keys, bind=self.address))

    def restart(self, number: int = signal.SIGKILL) -> None:
        self.end(number)
        self.start()


def runs(path: Path) -> Counter[int]:
    """How often each item was run."""
    return Counter(map(int, path.read_text().split()))


def until_some(path: Path, count: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while not path.exists() or len(path.read_text().split()) < count:
        assert time.monotonic() < deadline, "the work does not begin"
        time.sleep(0.01)
