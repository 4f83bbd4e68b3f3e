"""A broker that is killed again and again, and how far those who need it have come meanwhile."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path

import shells


class Doomed:
    """A broker that is killed now and then, and started anew at the same address. ``stack`` ends the last one."""

    def __init__(self, stack: ExitStack, keys: Path, seed: int) -> None:
        self._stack = stack
        self._keys = keys
        self._source = random.Random(seed)
        self.broker = stack.enter_context(shells.broker(keys))
        self.address = self.broker.address
        self.killed = 0
        #: Seconds until it was back, at most.
        self.longest = 0.0

    def strike(self, before: float = 0.2, after: float = 0.2) -> None:
        """Kill it within so many seconds, and have it gone for up to so many."""
        time.sleep(self._source.uniform(0.0, before))
        self.broker.signal(signal.SIGKILL)
        self.broker.wait()
        self.broker.close()
        time.sleep(self._source.uniform(0.0, after))
        started = time.monotonic()
        self.broker = self._stack.enter_context(shells.broker(self._keys, bind=self.address))
        self.longest = max(self.longest, time.monotonic() - started)
        self.killed += 1


def progress(folder: Path, pattern: str, running: Iterable[shells.Shell], lines: int) -> Iterator[float]:
    """How much of all ``lines`` is in the files, again and again until those who write them have ended."""
    read: dict[Path, int] = {}
    seen = 0
    while any(each.process.poll() is None for each in running):
        for history in folder.glob(pattern):
            with history.open("rb") as file:
                file.seek(read.get(history, 0))
                data = file.read()
            read[history] = read.get(history, 0) + len(data)
            seen += data.count(b"\n")
        yield seen / lines
        time.sleep(0.02)
