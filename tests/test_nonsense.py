"""Peers that send well-formed nonsense: unknown jobs, wrong states, huge counts, results never leased.

Neither core ever raises, and the broker's books hold after every message.
"""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from simulation.invariants import audit

from multihost_broker import core as broker
from multihost_broker import events as be
from multihost_common import messages as m
from multihost_common.blocks import pack_lengths
from multihost_common.tables import pack_rows
from multihost_worker import core as agent
from multihost_worker import events as ae

SEEDS = range(120)
MESSAGES = 400
ROLES = (m.PRODUCER, m.WORKER, m.ADMIN, "metrics")


def integer(random: Random, bounds: tuple[int, int], known: list[int]) -> int:
    """Mostly a number that means something, sometimes an end of the range."""
    low, high = bounds
    if random.random() < 0.05:
        return random.choice((low, high))
    return min(max(random.choice((0, 1, 1, 2, 2, 3, 5, *known)), low), high)


def value(random: Random, name: str, kind: type, bounds: Any, known: list[int]) -> Any:
    if kind is int:
        return integer(random, bounds, known if name in ("job", "pool") else [])
    if kind is float:
        return random.choice((0.0, 0.0, 0.5, 31_557_600.0))
    if kind is bool:
        return random.random() < 0.3
    if kind is bytes:
        return random.choice((b"", b"", b"", b"a" * min(16, bounds[1]), b"b" * min(16, bounds[1])))
    return random.choice(("", "3.11", "status", "health", "died", "timeout", "x" * bounds[1]))


def table(random: Random, known: list[int], width: int) -> bytes:
    """Rows of numbers, mostly of something that there is."""
    if random.random() < 0.05:
        return random.randbytes(random.choice((0, 7, 8, 8 * width)))
    rows = range(random.randrange(4))
    return pack_rows(
        [random.choice(known or [1]), *(random.choice((0, 1, 2, 5, 1 << 63)) for _ in range(width - 1))]
        for _ in rows
    )


def frames(random: Random, cls: type[m.Message], made: Any, known: list[int]) -> list[bytes]:
    low, high = cls.carries
    if cls is m.Held:
        return [table(random, known, 2), table(random, known, 4)]
    if cls is m.Known:
        return [table(random, [0, 1, 3], 2)]
    if low == 2 and random.random() < 0.9:
        # A block that adds up, as far as it is small.
        skip, size = getattr(made, "skip", 0), max(1, getattr(made, "chunksize", 1))
        chunks = -(-min(made.count + skip, 500) // size)
        return [pack_lengths([2] * chunks), b"ab" * chunks]
    if cls is m.Beat:
        return [random.randbytes(random.choice((0, 0, 7, 32, 64)))]
    return [random.randbytes(random.choice((0, 4, 8))) for _ in range(random.randint(low, min(high, 4)))]


#: These end things: with as many of them as of others nothing would ever be under way.
RARE = (m.Bye, m.Hello, m.ClosePool, m.CloseJob, m.Drain, m.PoolBroken, m.EndJob)


def anything(random: Random, sender: str, known: list[int]) -> m.Message:
    """A message of any kind this sender may send, as it comes out of the decoder."""
    kinds = [cls for cls in m.TABLE.values() if sender in cls.senders]
    if random.random() < 0.9:
        kinds = [cls for cls in kinds if cls not in RARE]
    cls = random.choice(kinds)
    made: Any = cls()
    for name, kind, bounds in m.schema(cls):
        setattr(made, name, value(random, name, kind, bounds, known))
    if cls.carries[1]:
        made.frames = frames(random, cls, made, known)
    return m.decode(m.encode(made))


def guess(random: Random, core: broker.Core, role: str) -> m.Message | None:
    """What an honest peer could say now, so that something is under way."""
    jobs = [job for pool in core.pools.values() for job in pool.jobs.values()]
    if not jobs:
        return None
    job = random.choice(jobs)
    count = random.randint(1, 9)
    block = (pack_lengths([2] * count), b"ab" * count)
    if role == m.PRODUCER:
        return m.Feed(job.number & 0xFFFF_FFFF, job.fed, count, 1, block)
    if role == m.WORKER and job.high:
        start, attempt = random.randrange(job.high), random.randint(0, job.attempts + 1)
        return random.choice(
            (
                m.Result(job.number, start, count, attempt, 5, 0, block),
                m.Returned(job.number, start, count, attempt),
                m.Died(job.number, start, attempt, random.choice(("died", "timeout", "?"))),
            )
        )
    return None


def lease(random: Random) -> m.Message:
    """Work that an honest broker could hand out."""
    count, size = random.randint(1, 12), random.choice((1, 1, 3))
    skip = random.randrange(size)
    chunks = -(-(skip + count) // size)
    block = (pack_lengths([2] * chunks), b"ab" * chunks)
    start = random.randint(skip, 40)
    return m.Lease(random.choice((1, 2)), start, count, size, skip, random.randint(1, 9), count == 1, block)


def hello(random: Random, kind: str) -> m.Hello:
    client = random.choice((b"", b"", b"c" * 16))
    session = random.choice((0, 0, 1, 2, 3))
    return m.Hello(
        kind,
        m.PROTOCOL_VERSION,
        "3.11",
        5,
        "h",
        1,
        random.randint(0, 3),
        "n",
        client,
        session,
        random.randint(0, 2),
    )


@pytest.mark.parametrize("seed", SEEDS)
def test_nothing_a_peer_sends_upsets_the_broker(seed: int) -> None:
    random = Random(seed)
    core = broker.Core()
    now = 100.0
    peers = [(f"p{number}", random.choice(ROLES[:3])) for number in range(5)]
    for peer, role in peers:
        core.handle(be.Received(peer, role, hello(random, role)), now)
        if role == m.PRODUCER:
            core.handle(be.Received(peer, role, m.OpenPool(1, random.randint(0, 3))), now)
            core.handle(be.Received(peer, role, m.OpenJob(1, 1, at_most_once=random.random() < 0.3)), now)
    for _ in range(MESSAGES):
        now += random.choice((0.0, 0.001, 0.5))
        deadline = core.deadline()
        if deadline is not None and deadline <= now:
            core.handle(be.Tick(), now)
            assert (core.deadline() or now + 1.0) > now, "a tick is not due again at once"
        peer, role = random.choice(peers)
        dice = random.random()
        event: be.Event
        if dice < 0.01:
            event = be.Gone(peer)
        elif dice < 0.04:
            event = be.Received(peer, role, hello(random, role))
        elif dice < 0.15:
            event = be.Tick()
        else:
            message = guess(random, core, role) if dice < 0.6 else None
            sender = role if random.random() < 0.95 else random.choice(ROLES[:3])
            known = list(core.owners) + list(core.pools)
            event = be.Received(peer, role, message or anything(random, sender, known))
        for action in core.handle(event, now):
            if isinstance(action, be.Send):
                # What it answers is always within the protocol, too.
                m.decode(m.encode(action.message))
        audit(core)
    for peer, role in peers:
        core.handle(be.Received(peer, role, m.Bye()), now)
    assert not core.sessions.by_number and not core.pools and not core.owners
    assert not core.blobs._uses and not core.scheduler.free


def event_of_a_child(random: Random, core: agent.Core) -> ae.Event:
    child, job = random.choice([0, 1, *core.children]), random.choice((0, 1, 2))
    start, count, position = random.randint(0, 5), random.randint(1, 6), random.choice((-1, 0, 1, 2, 5, 100))
    busy = [each for each in core.children.values() if each.given]
    if busy and random.random() < 0.7:
        given = random.choice(busy).given[0]
        job, start, count = given.work.job, given.work.span.start, len(given.work.span)
        position = given.position + random.randint(0, count)
    if random.random() < 0.02:
        return random.choice((ae.Disconnected(), ae.Connected(), ae.ChildFailed(child, "it raised")))
    return random.choice(
        (
            ae.ChildReady(child, 1),
            ae.ChildReady(child, 1),
            ae.ChildResult(child, job, start, count, 5, 0, (pack_lengths([1]), b"r")),
            ae.ChildDied(child, position, 1, 0, 9, 0, False, "killed"),
            ae.Reclaimed(child, position),
            ae.Progress(child, position, 99.0),
            ae.ChildMemory(child, random.choice((0, 1 << 40))),
            ae.Tick(),
        )
    )


@pytest.mark.parametrize("seed", SEEDS)
def test_nothing_the_broker_or_a_child_says_upsets_the_agent(seed: int) -> None:
    random = Random(seed)
    core = agent.Core(agent.CoreConfig(slots=random.randint(0, 3), host="h", max_memory=1 << 30))
    now = 100.0
    core.handle(ae.Connected(), now)
    for message in (m.OpenPool(1), m.OpenPool(2, max_tasks=2), m.Grant(1, 2), m.Grant(2, 1)):
        core.handle(ae.Received(message), now)
    for opened in (m.OpenJob(1, 1, timeout=1.0), m.OpenJob(2, 2)):
        core.handle(ae.Received(opened), now)
    for _ in range(MESSAGES):
        now += random.choice((0.0, 0.001, 0.5))
        event: ae.Event
        dice = random.random()
        if dice < 0.2:
            event = ae.Received(lease(random))
        elif dice < 0.4:
            event = ae.Received(anything(random, m.BROKER, []))
        else:
            event = event_of_a_child(random, core)
        for action in core.handle(event, now):
            if isinstance(action, ae.Send):
                m.decode(m.encode(action.message))
            if isinstance(action, ae.Run):
                assert action.count > 0 and action.position >= 0
        for pool in core.pools.values():
            assert pool.live == sum(child.live for child in pool.children.values())
            assert pool.queue.items == sum(len(w.span) for w in pool.queue if not w.isolate)
            for child in pool.children.values():
                assert child.items == sum(len(given.work.span) for given in child.given)
    core.handle(ae.Stop(), now)
    actions = core.handle(ae.Stop(), now)
    assert any(isinstance(each, ae.Exit) for each in actions)
