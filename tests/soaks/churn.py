"""Workers join and leave under load: nothing is lost, nothing runs twice, and the rate stays what it was."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import shells
from tasks import note_and_nap

from multihost.pool import Pool

#: Workers at any time, slots of each, and seconds that an item takes: the load is of sleeps, so that what a worker's
#: start and end cost this machine's processors is not taken for what they cost the others.
WORKERS, SLOTS, NAP = 4, 4, 0.02


class Turnover:
    """A thread in which a worker joins and another one leaves, ``every`` so many seconds."""

    def __init__(self, broker: shells.Broker, every: float) -> None:
        self._broker = broker
        self._every = every
        self._stack = ExitStack()
        self._workers: deque[shells.Shell] = deque()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.joined = self.left = 0
        #: Exit statuses of those that left, other than 0.
        self.wrong: list[int] = []
        for _ in range(WORKERS):
            self._join()

    def _join(self) -> None:
        worker = shells.worker(self._broker, "-c", SLOTS)
        self._workers.append(self._stack.enter_context(worker))

    def _run(self) -> None:
        due = time.monotonic()
        while not self._stop.wait(max(0.0, due - time.monotonic())):
            due += self._every
            self._join()
            self.joined += 1
            leaver = self._workers.popleft()
            leaver.signal(15)
            status = leaver.wait()
            self.wrong += [status] if status else []
            self.left += 1

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """No more of it."""
        self._stop.set()
        self._thread.join()

    def close(self) -> None:
        """All leave."""
        self._stack.close()


def churn(folder: Path, minutes: float, per_minute: float, steady: float) -> bool:
    """Whether nothing was lost and the rate within a tenth of that without joins and leaves, which is measured for
    ``steady`` seconds before and after."""
    log, keys = folder / "log", folder / "keys"
    os.environ["MULTIHOST_KEYS"] = str(keys)
    with ExitStack() as stack:
        broker = stack.enter_context(shells.broker(keys))
        turnover = Turnover(broker, 60 / per_minute)
        stack.callback(turnover.close)
        pool = stack.enter_context(Pool(address=broker.address))
        over = threading.Event()
        given = 0

        def items() -> Iterator[tuple[str, int, float]]:
            nonlocal given
            while not over.is_set():
                yield str(log), given, NAP
                given += 1

        results = Counter[int]()
        stream = pool.imap_unordered(note_and_nap, items())

        def take(seconds: float) -> float:
            """Results a second."""
            began, before = time.monotonic(), results.total()
            while time.monotonic() < began + seconds:
                results[next(stream)] += 1
            return (results.total() - before) / (time.monotonic() - began)

        take(5)
        first = take(steady)
        turnover.start()
        under = take(minutes * 60)
        turnover.stop()
        take(5)
        second = take(steady)
        over.set()
        for value in stream:
            results[value] += 1
    ran = Counter(map(int, log.read_text().split()))
    lost = given - len(results)
    again = sum(count - 1 for count in ran.values())
    doubled = sum(count > 1 for count in results.values())
    rate = under / ((first + second) / 2)
    print(
        f"{turnover.joined} workers joined and {turnover.left} left in {minutes:g} min: {given} items, {lost} lost, "
        f"{doubled} results twice, {again} runs more than items; {first:.0f} items/s before, {under:.0f} meanwhile, "
        f"{second:.0f} after: {rate:.1%}" + (f"; exit statuses {turnover.wrong}" if turnover.wrong else "")
    )
    return not lost and not doubled and not turnover.wrong and rate >= 0.9
