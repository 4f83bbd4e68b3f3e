"""The sides take turns at each workload, round after round; all figures are kept."""

from __future__ import annotations

import json
import os
import selectors
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from types import TracebackType
from typing import IO, Any, Self

from multihost.bench.cluster import Cluster, cpu_seconds, resident
from multihost.bench.side import LOCAL, MP, TCP
from multihost_common.errors import MultihostError

#: Processes of each pool.
PROCESSES = 2

#: Seconds that one turn may take before the side is taken for stuck.
PATIENCE = 300.0

#: Chunk sizes of which multiprocessing's best one counts in W8, and how far off the best of the first
#: round another one may be to be tried again.
CHUNKSIZES = (1, 2, 4, 8)
HOPELESS = 1.05

#: What W9 runs, from the start of the interpreter to the first result.
COLD = {
    MP: "import multiprocessing as m; p = m.get_context('forkserver').Pool(2); "
    "print(p.map(abs, [-1]), flush=True); p.terminate(); p.join()",
    LOCAL: "from multihost.pool import Pool; p = Pool(2, address=''); "
    "print(p.map(abs, [-1]), flush=True); p.terminate(); p.join()",
}

#: Share of the machine's CPUs that something else takes, above which figures are not to be trusted.
NOISE = 0.1


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much work there is in each workload."""

    many: int = 100_000
    most: int = 1_000_000
    calls: int = 2_000
    #: Bursts of calls in each round: who calls apply() has something else to do in between.
    batches: int = 20
    futures: int = 10_000
    arrays: int = 50
    fibs: int = 400
    sleeps: int = 2_000
    starts: int = 3
    #: Items through a queue, and through one of a manager's; round trips; processes, in one of the rounds.
    items: int = 100_000
    managed: int = 5_000
    trips: int = 2_000
    processes: int = 200
    queued: int = 1_000_000
    #: How often what takes about a second is done in each round: one hiccup of the machine is as long.
    times: int = 3


QUICK = Sizes(20_000, 200_000, 500, 2, 2_000, 10, 100, 300, 1, 10_000, 500, 200, 10, 200_000, 1)

#: Figures of all rounds, by what was measured and side.
Figures = dict[tuple[str, str], list[float]]


@dataclass(slots=True)
class Run:
    """What was measured, and how much else the machine had to do: a share of its CPUs before each round."""

    figures: Figures = field(default_factory=lambda: defaultdict(list))
    noise: list[float] = field(default_factory=list)


class Side:
    """A process with one pool; see :mod:`multihost.bench.side`."""

    def __init__(self, name: str, environment: dict[str, str]) -> None:
        self.name = name
        self._process = subprocess.Popen(
            [sys.executable, "-m", "multihost.bench.side", name, str(PROCESSES)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin and self._process.stdout
        if kind is not None:
            self._process.terminate()
        try:
            self._process.stdin.close()
            self._process.wait(10)
        except (subprocess.TimeoutExpired, BrokenPipeError):
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def ask(self, load: str, **keywords: Any) -> dict[str, Any]:
        """Run one workload; its figures."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps([load, keywords]) + "\n")
        self._process.stdin.flush()
        line = _line(self._process.stdout, PATIENCE)
        if not line:
            raise MultihostError(
                f"the benchmark's side {self.name} has failed at {load}; see its error above"
            )
        answer: dict[str, Any] = json.loads(line)
        return answer


def _line(stream: IO[str], patience: float) -> str:
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        return stream.readline() if selector.select(patience) else ""


class Measure:
    """Runs workloads on all sides in turns. ``note`` is told what goes on."""

    def __init__(self, sizes: Sizes, note: Callable[[str], None]) -> None:
        self.sides: Sequence[Side] = ()
        self.cluster: Cluster | None = None
        self.sizes = sizes
        self.note = note
        self.run = Run()
        self._chunksizes = {False: list(CHUNKSIZES), True: list(CHUNKSIZES)}
        self._turn = 0

    def _in_turn(self) -> Iterator[Side]:
        """The sides, another one first each time."""
        self._turn += 1
        first = self._turn % len(self.sides)
        yield from (*self.sides[first:], *self.sides[:first])

    def _put(self, what: str, side: str, value: float) -> None:
        self.run.figures[what, side].append(value)

    def _repeat(self, what: str, measured: Callable[[Side], float]) -> None:
        """Put the median of some ``measured``, the sides in turns."""
        values: dict[str, list[float]] = defaultdict(list)
        for _ in range(self.sizes.times):
            for side in self._in_turn():
                values[side.name].append(measured(side))
        for name, each in values.items():
            self._put(what, name, statistics.median(each))

    def round(self, only: Sequence[str], sides: Sequence[Side], cluster: Cluster | None) -> None:
        """Each of the workloads once on each side. These may be others than in the last round."""
        self.sides, self.cluster = sides, cluster
        self._warm_up()
        self.run.noise.append(busy())
        for name in only:
            self.note(name)
            getattr(self, f"_{name.lower()}")()

    def _warm_up(self) -> None:
        """Children are there, functions are known, clocks are up."""
        for side in self.sides:
            side.ask("many", items=2_000, chunksize=1)

    def _w1(self) -> None:
        for side in self._in_turn():
            broker = self.cluster.broker.pid if self.cluster and side.name == TCP else 0
            used = cpu_seconds(broker) if broker else 0.0
            answer = side.ask("many", items=self.sizes.many, chunksize=1)
            self._put("W1", side.name, answer["rate"])
            self._put("producer CPU", side.name, answer["cpu"] * 1e6)
            if broker:
                self._put("broker CPU", TCP, (cpu_seconds(broker) - used) / self.sizes.many * 1e6)

    def _w2(self) -> None:
        self._repeat("W2", lambda side: side.ask("many", items=self.sizes.most, chunksize=None)["rate"])

    def _w3(self) -> None:
        times: dict[str, list[float]] = defaultdict(list)
        for _ in range(self.sizes.batches):
            for side in self._in_turn():
                times[side.name] += side.ask("calls", number=self.sizes.calls // self.sizes.batches)["times"]
        for name, each in times.items():
            each.sort()
            self._put("W3 p50", name, each[len(each) // 2] * 1e6)
            self._put("W3 p99", name, each[len(each) * 99 // 100] * 1e6)

    def _w4(self) -> None:
        for side in self._in_turn():
            self._put("W4", side.name, side.ask("futures", number=self.sizes.futures)["rate"])

    def _w5(self) -> None:
        # Several times: memory that the machine has not given to anybody yet costs whoever is first the most.
        for what, load in (("W5 in", "arrays_in"), ("W5 out", "arrays_out")):
            self._repeat(what, lambda side, load=load: side.ask(load, number=self.sizes.arrays)["rate"])  # type: ignore[misc]

    def _w6(self) -> None:
        items = self.sizes.fibs
        self._repeat("W6", lambda side: items / side.ask("compute", items=items)["seconds"])

    def _w7(self) -> None:
        for what, size in (("W7 ints", 0), ("W7 1 KiB", 1024)):
            for side in self._in_turn():
                self._put(what, side.name, side.ask("queue", number=self.sizes.items, size=size)["rate"])
        for side in self._in_turn():
            if side.name == MP:
                rate = side.ask("queue", number=self.sizes.managed, size=0, manager=True)["rate"]
                self._put("W7 manager", MP, rate)
            elif side.name == TCP:
                self._put("W7 manager", TCP, self.run.figures["W7 ints", TCP][-1])

    def _pipe(self) -> None:
        for what, two in (("PIPE", False), ("PIPE between", True)):
            self._repeat(what, lambda side, two=two: self._trip(side, two))  # type: ignore[misc]

    def _trip(self, side: Side, two: bool) -> float:
        return float(side.ask("pipe", number=self.sizes.trips, two=two)["seconds"]) * 1e6

    def _lock(self) -> None:
        self._repeat("LOCK", lambda side: side.ask("lock", number=self.sizes.trips)["trips"])

    def _process(self) -> None:
        if ("PROCESS", MP) in self.run.figures:
            # multiprocessing takes half a minute for it.
            return
        for side in self._in_turn():
            answer = side.ask("processes", number=self.sizes.processes, method="spawn")
            self._put("PROCESS", side.name, answer["seconds"])

    def _w8(self) -> None:
        for rising in (False, True):
            for side in self._in_turn():
                self._uneven(side, rising)

    def _uneven(self, side: Side, rising: bool) -> None:
        sizes: list[int | None] = [*self._chunksizes[rising]] if side.name == MP else [None]
        took = {
            size: side.ask("uneven", items=self.sizes.sleeps, rising=rising, chunksize=size)["seconds"]
            for size in sizes
        }
        best = min(took.values())
        self._chunksizes[rising] = [
            size for size in self._chunksizes[rising] if took.get(size, 0.0) < best * HOPELESS
        ]
        self._put("W8 rising" if rising else "W8 random", side.name, best)

    def _w9(self) -> None:
        names = [side.name for side in self.sides if side.name in COLD]
        times: dict[str, list[float]] = defaultdict(list)
        for at in range(self.sizes.starts):
            for name in names if at % 2 else names[::-1]:
                times[name].append(cold_start(name))
        for name, each in times.items():
            self._put("W9", name, statistics.median(each) * 1e3)


def cold_start(side: str) -> float:
    """Seconds from the start of an interpreter to the first result of a pool."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MULTIHOST_")}
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-c", COLD[side]], stdout=subprocess.PIPE, env=environment, text=True
    )
    assert process.stdout
    with process.stdout as stream:
        line = _line(stream, PATIENCE)
        took = time.monotonic() - began
        process.wait(PATIENCE)
    if line.strip() != "[1]":
        raise MultihostError(f"a fresh process of the side {side} has answered {line!r}, not [1]")
    return took


def busy(seconds: float = 0.25) -> float:
    """Share of this machine's CPUs in use, while the sides are idle; by load where /proc does not tell."""
    try:
        before = _cpu_ticks()
        time.sleep(seconds)
        after = _cpu_ticks()
    except OSError:
        return os.getloadavg()[0] / (os.cpu_count() or 1)
    idle, total = (late - early for early, late in zip(before, after, strict=True))
    return 1.0 - idle / max(1, total)


def _cpu_ticks() -> tuple[int, int]:
    """(idle, all) ticks of all CPUs."""
    with open("/proc/stat") as file:
        ticks = [int(word) for word in file.readline().split()[1:9]]
    return ticks[3] + ticks[4], sum(ticks)


QUEUE = """
import sys, time
from multihost.bench.work import no_op
from multihost.pool import Pool
number = int(sys.argv[1])
pool = Pool(1)
results = pool.imap(no_op, range(number), buffersize=number)
print("queued", flush=True)
sys.stdin.read()
pool.terminate()
pool.join()
"""


def queue_memory(items: int) -> float:
    """Bytes by which a broker's resident memory grows per queued no-op item, beyond the item's pickle."""
    import pickle

    payload = sum(len(pickle.dumps(each)) for each in range(items)) / items
    with Cluster(0) as cluster:
        before = resident(cluster.broker.pid)
        process = subprocess.Popen(
            [sys.executable, "-c", QUEUE, str(items)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=cluster.environment,
        )
        try:
            _await_queue(cluster, items)
            return (resident(cluster.broker.pid) - before) / items - payload
        finally:
            process.kill()
            process.communicate()


def _await_queue(cluster: Cluster, items: int) -> None:
    deadline = time.monotonic() + 60.0
    while (ready := cluster.ask("status")["ready"]) < items:
        if time.monotonic() > deadline:
            raise MultihostError(f"only {ready} of {items} items were queued within a minute")
        time.sleep(0.2)


ALL = ("W1", "W2", "W3", "W4", "W5", "W6", "W7", "W8", "W9", "PIPE", "LOCK", "PROCESS")


def measure(
    only: Sequence[str], rounds: int, sides: Sequence[str], sizes: Sizes, note: Callable[[str], None]
) -> Run:
    """Run ``rounds`` rounds of the workloads on multiprocessing and on ``sides``.

    Each round has processes of its own: where its memory happens to lie makes an interpreter some percent
    faster or slower for as long as it lives.
    """
    local = {name: value for name, value in os.environ.items() if not name.startswith("MULTIHOST_")}
    measured = Measure(sizes, note)
    for number in range(rounds):
        note(f"round {number + 1} of {rounds}:")
        with ExitStack() as stack:
            cluster = stack.enter_context(Cluster(PROCESSES)) if TCP in sides else None
            started = [
                stack.enter_context(Side(name, cluster.environment if name == TCP and cluster else local))
                for name in (MP, *sides)
            ]
            measured.round(only, started, cluster)
    if TCP in sides and "W1" in only:
        note("broker memory")
        measured.run.figures["broker memory", TCP].append(queue_memory(sizes.queued))
    return measured.run


__all__ = ["ALL", "NOISE", "QUICK", "Figures", "Measure", "Run", "Side", "Sizes", "measure", "queue_memory"]
