"""All children end together, whatever the items take, and say little: maps in virtual time.

The producer's own rule for chunks and windows feeds the cores, and nothing is said of how long an item
takes. The ideal is the sum of all items over the number of children.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import pytest
from cluster import Cluster

from multihost.jobs import MapJob, Options, Task
from multihost.sources import Calls, Items
from multihost_common import messages as m
from multihost_worker.outbox import FLUSH

ITEMS = 2000
#: Seconds: lognormal around 2 ms.
MEDIAN, SIGMA = 0.002, 1.0


class Counted:
    """A sink that keeps the results."""

    def __init__(self) -> None:
        self.results: dict[int, Any] = {}

    def consumed(self) -> int:
        return len(self.results)

    def put(self, start: int, values: list[Any], failed: bool, calls: Calls) -> None:
        assert not failed
        self.results.update(enumerate(values, start))

    def finish(self, total: int, calls: Calls) -> None:
        assert total == ITEMS


def local(cluster: Cluster) -> None:
    cluster.host("local", 2, local=True)
    cluster.pool(1, limit=2, eager=True)


def one_worker(cluster: Cluster) -> None:
    cluster.host("h0", 2)
    cluster.pool(1)


def two_workers(cluster: Cluster) -> None:
    cluster.host("h0", 1)
    cluster.host("h1", 1)
    cluster.pool(1)


def play(
    setting: Callable[[Cluster], None], costs: list[float], chunksize: int | None = None
) -> tuple[float, int]:
    """Seconds from the call of map to its last result, and how many messages with results came."""
    cluster = Cluster(latency=1e-5 if setting is local else 2e-4)
    cluster.cost = costs.__getitem__
    setting(cluster)
    cluster.run(0.1)
    sink = Counted()
    job = MapJob(1, Task(b"function", b"f" * 32), Options(), Items(range(ITEMS)), sink, chunksize)
    job.id, job.capacity = 1, 2

    def feed() -> None:
        while produced := job.produce():
            for message in produced:
                cluster.say(message)

    messages = 0

    def heard(message: m.Message) -> None:
        nonlocal messages
        messages += isinstance(message, m.Result)
        if isinstance(message, (m.Result, m.Failed, m.EndResults)):
            job.handle(message)
            feed()

    cluster.heard = heard
    begun = cluster.now
    for message in job.open():
        cluster.say(message)
    feed()
    cluster.run(until=lambda: len(sink.results) == ITEMS)
    assert [sink.results[item] for item in range(ITEMS)] == list(range(ITEMS))
    return cluster.now - begun, messages


@pytest.mark.parametrize("setting", [local, one_worker, two_workers])
@pytest.mark.parametrize("order", ["random", "rising", "falling"])
@pytest.mark.parametrize("seed", range(3))
def test_uneven_items_end_together(setting: Callable[[Cluster], None], order: str, seed: int) -> None:
    random = Random(seed)
    costs = [random.lognormvariate(0.0, SIGMA) * MEDIAN for _ in range(ITEMS)]
    if order != "random":
        costs.sort(reverse=order == "falling")
    ideal = sum(costs) / 2
    took, _ = play(setting, costs)
    assert took < 1.02 * ideal, f"{took / ideal:.4f} of the ideal"


@pytest.mark.parametrize("setting", [local, one_worker])
def test_a_child_at_short_items_sends_about_ten_messages_a_second(setting: Callable[[Cluster], None]) -> None:
    """Each takes some of the time of those who compute, at every station."""
    took, messages = play(setting, [0.0017] * ITEMS)
    assert took < 1.02 * ITEMS * 0.0017 / 2
    assert messages < 2 * (took / FLUSH + 10)
