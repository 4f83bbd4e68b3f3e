"""What the broker's core costs, without sockets: by number of agents, per queued item, per item.

    python benchmarks/broker_core.py [--chunks 200000]

Agents are simulated by answering each lease, with the codec in between as on the wire, and only what the
broker would spend is counted: decoding, the core, encoding.
"""

from __future__ import annotations

import argparse
import statistics
import tracemalloc
from array import array
from collections import deque
from collections.abc import Sequence
from time import perf_counter

from multihost_broker.core import Core, CoreConfig
from multihost_broker.events import Received, Send, Tick
from multihost_common import messages as m
from multihost_common.blocks import Frame, pack_lengths

#: Chunks in one block of input, as the producer packs them.
BLOCK = 1024
#: Microseconds that a no-op item takes in a child.
SPENT = 0.5
PAYLOAD = b"K\x01."


class Broker:
    """The core, its queue of leases to answer, and the time spent in it."""

    def __init__(self) -> None:
        # As a broker has it: what is fed is counted.
        self.core = Core(CoreConfig(max_memory=1 << 36))
        self.now = 100.0
        self.seconds = 0.0
        self.bytes_out = 0
        self.leases: deque[tuple[str, m.Lease]] = deque()
        self.revoked: list[tuple[str, m.Revoke]] = []
        self.ended = False

    def tell(self, peer: str, role: str, message: m.Message) -> None:
        """One message arrives; what the broker sends is encoded, and kept if an agent must answer."""
        frames = [bytes(memoryview(each)) for each in m.encode(message)]
        begun = perf_counter()
        actions = self.core.handle(Received(peer, role, m.decode(frames)), self.now)
        sent = [
            (action.peer, m.encode(action.message), action.message)
            for action in actions
            if type(action) is Send
        ]
        self.seconds += perf_counter() - begun
        for to, _, out in sent:
            if type(out) is m.Lease:
                self.leases.append((str(to), out))
            elif type(out) is m.EndResults:
                self.ended = True

    def tick(self) -> None:
        """The clock."""
        begun = perf_counter()
        self.core.handle(Tick(), self.now)
        self.seconds += perf_counter() - begun


def feed(job: int, start: int, count: int) -> m.Feed:
    """A block of no-op items, one a chunk."""
    frames: Sequence[Frame] = (pack_lengths([len(PAYLOAD)] * count), PAYLOAD * count)
    return m.Feed(job, start, count, 1, frames)


def result(lease: m.Lease, start: int, count: int) -> m.Result:
    """What a child answers for some items of a lease."""
    frames = (pack_lengths([count]), b"r" * count)
    return m.Result(lease.job, start, count, lease.attempt, round(SPENT * count), m.VALUES, frames)


def cluster(agents: int, slots: int) -> Broker:
    """A broker with so many agents and one producer with an open job."""
    broker = Broker()
    broker.tell("producer", m.PRODUCER, m.Hello(m.PRODUCER, m.PROTOCOL_VERSION, "3.11", 5, "p"))
    for number in range(agents):
        hello = m.Hello(m.WORKER, m.PROTOCOL_VERSION, "3.11", 5, f"h{number}", 1, slots)
        broker.tell(f"w{number}", m.WORKER, hello)
    broker.tell("producer", m.PRODUCER, m.OpenPool(1))
    broker.tell("producer", m.PRODUCER, m.OpenJob(1, 1))
    return broker


def by_agents(agents: int, slots: int, chunks: int, cost: float, per_result: int) -> tuple[float, float]:
    """(microseconds a chunk with a full queue, microseconds a chunk with hungry agents).

    The first half of the chunks is fed as fast as it is taken. In the second half agents wait for input:
    each block finds hungry ones, as with a producer that is slower than the cluster.
    """
    broker = cluster(agents, slots)
    fed = answered = 0
    capacity = agents * slots

    def answer(most: int) -> None:
        nonlocal answered
        for _ in range(min(most, len(broker.leases))):
            peer, lease = broker.leases.popleft()
            for start in range(lease.start, lease.start + lease.count, per_result):
                count = min(per_result, lease.start + lease.count - start)
                spent = round(cost * count * 1e6)
                frames = (pack_lengths([count]), b"r" * count)
                broker.tell(
                    peer, m.WORKER, m.Result(lease.job, start, count, lease.attempt, spent, 0, frames)
                )
                answered += count

    # Every agent is at work, with its slots granted, before the clock starts.
    while fed < 2 * capacity + BLOCK:
        broker.tell("producer", m.PRODUCER, feed(1, fed, BLOCK))
        fed += BLOCK
    while answered < capacity:
        answer(64)
        while fed - answered < 2 * capacity + 8 * BLOCK:
            broker.tell("producer", m.PRODUCER, feed(1, fed, BLOCK))
            fed += BLOCK
    figures = []
    for hungry in (False, True):
        if hungry:
            while broker.leases:
                answer(1 << 20)
        broker.seconds, begun = 0.0, answered
        while answered - begun < chunks:
            broker.now += 0.0005
            ahead = BLOCK if hungry else 2 * capacity + 8 * BLOCK
            while fed - answered < ahead:
                broker.tell("producer", m.PRODUCER, feed(1, fed, BLOCK))
                fed += BLOCK
            answer(64)
        figures.append(broker.seconds / (answered - begun) * 1e6)
    return figures[0], figures[1]


def per_queued_item(items: int) -> float:
    """Bytes beyond the payload that an item costs while it waits for a worker."""
    broker = Broker()
    broker.tell("producer", m.PRODUCER, m.Hello(m.PRODUCER, m.PROTOCOL_VERSION, "3.11", 5, "p"))
    broker.tell("producer", m.PRODUCER, m.OpenPool(1))
    broker.tell("producer", m.PRODUCER, m.OpenJob(1, 1))
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for start in range(0, items, BLOCK):
            broker.tell("producer", m.PRODUCER, feed(1, start, min(BLOCK, items - start)))
        used = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    return used / items - len(PAYLOAD)


def per_item(items: int, slots: int = 2) -> float:
    """Microseconds of the broker for an item of a no-op map with one agent, as in W1."""
    broker = cluster(1, slots)
    fed = answered = 0
    while answered < items:
        broker.now += 0.0005
        while fed < items and fed - answered < 1_000_000:
            count = min(BLOCK, items - fed)
            broker.tell("producer", m.PRODUCER, feed(1, fed, count))
            fed += count
        for _ in range(len(broker.leases)):
            peer, lease = broker.leases.popleft()
            # A child is given at most 2048 items in one go, and answers them together.
            for start in range(lease.start, lease.start + lease.count, 2048):
                count = min(2048, lease.start + lease.count - start)
                broker.tell(peer, m.WORKER, result(lease, start, count))
                answered += count
    broker.tell("producer", m.PRODUCER, m.EndJob(1, items))
    assert broker.ended
    return broker.seconds / items * 1e6


def beats(agents: int, slots: int) -> float:
    """Milliseconds of the broker for one beat of every agent, each naming two leases a slot."""
    broker = cluster(agents, slots)
    named = array("Q", [1, 1, 1, 1] * (2 * slots)).tobytes()
    broker.seconds = 0.0
    for number in range(agents):
        broker.tell(f"w{number}", m.WORKER, m.Beat((named,)))
    return broker.seconds * 1e3


def main(argv: Sequence[str] | None = None) -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--chunks", type=int, default=200_000)
    parser.add_argument("--repeat", type=int, default=3)
    chosen = parser.parse_args(argv)
    for name, cost, per_result in (("no-op chunks", 5e-7, 1024), ("20 ms chunks", 0.02, 1)):
        runs = [
            [by_agents(agents, 64, chosen.chunks, cost, per_result) for agents in (10, 1000)]
            for _ in range(chosen.repeat)
        ]
        for phase, what in enumerate(("full queue", "hungry agents")):
            few, many = (statistics.median(run[side][phase] for run in runs) for side in (0, 1))
            print(
                f"{name}, {what:13}: 10 agents {few:7.3f} us/chunk, 1000 agents {many:7.3f} us/chunk, "
                f"ratio {many / few:.2f}"
            )
    print(f"queued no-op item: {per_queued_item(1_000_000):.1f} bytes beyond the payload")
    print(
        f"item of W1: {statistics.median(per_item(200_000) for _ in range(chosen.repeat)):.3f} us (core and msgpack)"
    )
    print(f"one beat of 1000 agents: {beats(1000, 64):.1f} ms a second")


if __name__ == "__main__":
    main()
