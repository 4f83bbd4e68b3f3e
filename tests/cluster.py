"""A cluster in virtual time: the real cores, joined by a queue of messages, with imaginary children.

A child takes ``cost(item)`` seconds for an item and answers with the item's number as its result. What
an item costs, what it kills, which messages are lost and when a host vanishes is given as values, so
that a test of a lost host takes no second. After each step the broker's books can be audited.
"""

from __future__ import annotations

import heapq
import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Any

from multihost_broker import core as broker
from multihost_broker import events as be
from multihost_common import messages as m
from multihost_common.blocks import pack_lengths
from multihost_worker import core as agent
from multihost_worker import events as ae

SETUP, FUNCTION = b"s" * 32, b"f" * 32

#: As the real children do it: seconds that one claim lasts, and between two messages of results.
CLAIM, FLUSH = 0.0005, 0.03


@dataclass
class FakeRun:
    """Items that a child was given in one go."""

    position: int
    job: int
    #: First item, the next one, and the end.
    first: int
    item: int
    stop: int
    #: First item of the block's first chunk.
    base: int
    chunksize: int
    single: bool


@dataclass
class FakeChild:
    """A child process that exists only as the items it was given."""

    number: int
    pid: int
    runs: list[FakeRun] = field(default_factory=list)
    given: int = 0
    stopping: bool = False
    generation: int = 0
    sent: float = 0.0
    #: The claim that runs: its items and when each of them ends.
    claim: list[tuple[int, float]] = field(default_factory=list)
    begun: float = 0.0
    done: list[tuple[int, float]] = field(default_factory=list)
    once: set[int] = field(default_factory=set)
    ran: list[int] = field(default_factory=list)


class Host:
    """One agent core with its children."""

    def __init__(self, cluster: Cluster, name: str, slots: int, local: bool = False) -> None:
        self.cluster = cluster
        self.name = name
        heartbeat = 0.0 if local else 1.0
        self.core = agent.Core(agent.CoreConfig(slots=0 if local else slots, host=name, heartbeat=heartbeat))
        self.local = local
        self.slots = slots
        self.children: dict[int, FakeChild] = {}
        self.alive = True
        self.registered = False
        #: No packet passes; what is sent meanwhile waits in ``held_up``.
        self.cut = False
        self.held_up: list[Callable[[], None]] = []
        self.exit: int | None = None
        self.started = 0
        self.most_running = 0

    def tell(self, event: ae.Event) -> None:
        if not self.alive:
            return
        events = [event]
        while events:
            for action in self.core.handle(events.pop(0), self.cluster.now):
                self.act(action, events)
        deadline = self.core.deadline()
        if deadline is not None:
            self.cluster.at(deadline, lambda: self._tick(deadline))

    def hello(self) -> None:
        hello = m.Hello(
            m.WORKER, m.PROTOCOL_VERSION, "3.11", 5, self.name, 1, 0 if self.local else self.slots
        )
        self.cluster.to_broker(self.name, m.WORKER, hello)

    def _pass(self, send: Callable[[], None]) -> None:
        if self.cut:
            self.held_up.append(send)
        else:
            send()

    def deliver(self, message: m.Message) -> None:
        """The broker has sent this."""
        self._pass(lambda: self.cluster.after(self.cluster.latency, lambda: self.take(message)))

    def mend(self, redial: bool = False) -> None:
        """Packets pass again: what was held up arrives, or the agent has given up and dials anew."""
        self.cut = False
        held_up, self.held_up = self.held_up, []
        if redial:
            self.refused("E_HELLO")
        else:
            for send in held_up:
                send()

    def refused(self, reason: str) -> None:
        """As the shell does it: without a session, begin anew."""
        if reason == "E_HELLO" and self.alive:
            if self.registered:
                self.registered = False
                self.tell(ae.Disconnected())
            self.hello()

    def take(self, message: m.Message) -> None:
        if type(message) is m.Welcome:
            self.registered = True
            self.tell(ae.Connected())
        elif type(message) is m.Refused:
            self.refused(message.reason)
        elif self.registered and type(message) is not m.Beat:
            self.tell(ae.Received(message))

    def _tick(self, due: float) -> None:
        if self.alive and self.core.deadline() == due:
            self.tell(ae.Tick())

    def act(self, action: Any, events: list[ae.Event]) -> None:
        kind = type(action).__name__
        if kind == "Send":
            if not self.cluster.lost(self.name, action.message):
                self._pass(partial(self.cluster.to_broker, self.name, m.WORKER, action.message))
            return
        if kind == "Exit":
            self.exit = action.code
            self.alive = False
            self.children.clear()
            return
        if kind == "StartChild":
            self.started += 1
            child = self.children[action.child] = FakeChild(action.child, 1000 + action.child)
            self.cluster.after(0.01, lambda: self._ready(child))
            return
        if action.child in self.children:
            self._act_on(self.children[action.child], kind, action, events)

    def _act_on(self, child: FakeChild, kind: str, action: Any, events: list[ae.Event]) -> None:
        if kind == "Define":
            if action.at_most_once:
                child.once.add(action.job)
        elif kind == "Run":
            self._run(child, action)
        elif kind == "Reclaim":
            events.append(ae.Reclaimed(child.number, self._reclaim(child)))
        elif kind == "Inspect":
            events.append(self._progress(child))
        elif kind == "StopChild":
            child.stopping = True
            if not child.runs:
                self.cluster.after(0.001, lambda: self._die(child, 0))
        elif kind == "KillChild":
            self.cluster.after(0.001, lambda: self._die(child, 9))

    def _ready(self, child: FakeChild) -> None:
        if child.number in self.children and not child.stopping:
            self.tell(ae.ChildReady(child.number, child.pid))

    # -- running -----------------------------------------------------------------------------------

    def _run(self, child: FakeChild, run: ae.Run) -> None:
        assert run.position >= child.given, "positions go up"
        base = run.start - run.skip
        chunks = -(-(run.skip + run.count) // run.chunksize)
        assert len(run.frames[0]) == 4 * chunks, "the frames hold the chunks of the items"
        child.given = run.position + run.count
        stop, single = run.start + run.count, run.job in child.once
        child.runs.append(
            FakeRun(run.position, run.job, run.start, run.start, stop, base, run.chunksize, single)
        )
        if len(child.runs) == 1:
            child.sent = self.cluster.now
            self._claim(child)

    def _claim(self, child: FakeChild) -> None:
        """Begin the next few items: whole chunks, about half a millisecond of them."""
        run, cluster = child.runs[0], self.cluster
        child.generation += 1
        generation = child.generation
        child.claim, child.begun = [], cluster.now
        busy = sum(1 for each in self.children.values() if each.runs)
        self.most_running = max(self.most_running, busy)
        at, item = 0.0, run.item
        while item < run.stop:
            at += cluster.cost(item)
            child.claim.append((item, cluster.now + at))
            cluster.begun.append((run.job, item))
            if cluster.kills(item, self):
                cluster.after(at, partial(self._killed, child, generation, item))
                return
            item += 1
            whole = (item - run.base) % run.chunksize == 0
            if run.single or (whole and at >= CLAIM):
                break
        cluster.after(at, lambda: self._claim_done(child, generation))

    def _killed(self, child: FakeChild, generation: int, killer: int) -> None:
        if child.generation == generation and child.number in self.children:
            self.ran(child, [item for item, _ in child.claim if item != killer])
            self._die(child, 9, killer)

    def ran(self, child: FakeChild, items: Sequence[int]) -> None:
        child.ran += items
        self.cluster.ran += items

    def _claim_done(self, child: FakeChild, generation: int) -> None:
        if not self.alive or child.generation != generation or child.number not in self.children:
            return
        run, now = child.runs[0], self.cluster.now
        self.ran(child, [item for item, _ in child.claim])
        child.done += child.claim
        child.claim = []
        run.item = child.done[-1][0] + 1
        over = run.item >= run.stop
        if over or run.single or now - child.sent >= FLUSH:
            self._flush(child, run)
        if child.number not in self.children or not self.alive:
            return
        if run.item >= run.stop:
            child.runs.pop(0)
        if child.runs:
            self._claim(child)
        elif child.stopping:
            self._die(child, 0)

    def _flush(self, child: FakeChild, run: FakeRun) -> None:
        items = [item for item, _ in child.done]
        child.done.clear()
        child.sent = self.cluster.now
        payload = pickle.dumps(items)
        frames = [pack_lengths([len(payload)]), payload]
        spent = int(sum(map(self.cluster.cost, items)) * 1e6)
        self.tell(ae.ChildResult(child.number, run.job, items[0], len(items), spent, m.VALUES, frames))

    def _reclaim(self, child: FakeChild) -> int:
        if not child.runs:
            return child.given
        run = child.runs[0]
        run.stop = child.claim[-1][0] + 1 if child.claim else run.item
        del child.runs[1:]
        return run.position + run.stop - run.first

    def _progress(self, child: FakeChild) -> ae.Progress:
        now, since = self.cluster.now, child.begun
        for item, end in child.claim:
            if now < end or item == child.claim[-1][0]:
                run = child.runs[0]
                return ae.Progress(child.number, run.position + item - run.first, since)
            since = end
        return ae.Progress(child.number, -1, now)

    # -- ending ------------------------------------------------------------------------------------

    def _die(self, child: FakeChild, signal: int, item: int | None = None) -> None:
        """The child ends; what it had finished and not sent is lost with it."""
        if not self.alive or self.children.pop(child.number, None) is None:
            return
        position = -1
        if child.runs:
            progress = self._progress(child).position
            run = child.runs[0]
            position = progress if item is None else run.position + item - run.first
        text = f"killed by signal {signal}" if signal else "it exited"
        self.tell(ae.ChildDied(child.number, position, child.pid, 0, signal, 1 << 20, False, text))

    def crash(self) -> None:
        """Power loss: nobody hears of it."""
        self.alive = False
        self.children.clear()


class Cluster:
    """Broker core, hosts, one producer, and the time."""

    def __init__(self, latency: float = 0.0001) -> None:
        self.now = 100.0
        self.latency = latency
        self.core = broker.Core()
        self.hosts: dict[str, Host] = {}
        self.inbox: list[m.Message] = []
        self.notes: list[str] = []
        #: Items in the order in which they were run to their end.
        self.ran: list[int] = []
        #: (job, item) in the order in which they were begun.
        self.begun: list[tuple[int, int]] = []
        self.cost: Callable[[int], float] = lambda item: 0.001
        self.kills: Callable[[int, Host], bool] = lambda item, host: False
        #: Is this message lost? Asked with the name of the host that it comes from or goes to.
        self.lost: Callable[[str, m.Message], bool] = lambda peer, message: False
        #: Called with what the producer gets.
        self.heard: Callable[[m.Message], None] = self.inbox.append
        self.audited = False
        self.producer_lives = True
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self.to_broker("producer", m.PRODUCER, m.Hello(m.PRODUCER, m.PROTOCOL_VERSION, "3.11", 5, "p"))

    # -- time --------------------------------------------------------------------------------------

    def at(self, when: float, call: Callable[[], None]) -> None:
        heapq.heappush(self._queue, (when, next(self._order), call))

    def after(self, delay: float, call: Callable[[], None]) -> None:
        self.at(self.now + delay, call)

    def run(
        self, seconds: float = 1e4, until: Callable[[], bool] | None = None, steps: int = 500_000
    ) -> None:
        """Let so much time pass, or until something holds."""
        end = self.now + seconds
        for _ in range(steps):
            if (until is not None and until()) or not self._queue or self._queue[0][0] > end:
                break
            when, _, call = heapq.heappop(self._queue)
            self.now = max(self.now, when)
            call()
        else:
            raise AssertionError(f"not over after {steps} steps, at {self.now:.3f} s")
        if until is None:
            self.now = end

    # -- messages ----------------------------------------------------------------------------------

    def to_broker(self, peer: str, role: str, message: m.Message) -> None:
        message = m.decode(m.encode(message))
        self.after(self.latency, lambda: self.tell_broker(be.Received(peer, role, message)))

    def tell_broker(self, event: be.Event) -> None:
        for action in self.core.handle(event, self.now):
            if isinstance(action, be.Send):
                self._deliver(str(action.peer), m.decode(m.encode(action.message)))
            elif isinstance(action, be.Note):
                self.notes.append(action.text)
        if self.audited:
            audit(self.core)
        deadline = self.core.deadline()
        if deadline is not None:
            self.at(deadline, lambda: self._tick(deadline))

    def _tick(self, due: float) -> None:
        if self.core.deadline() == due:
            self.tell_broker(be.Tick())

    def _deliver(self, peer: str, message: m.Message) -> None:
        if peer == "producer":
            if type(message) is m.Beat and self.producer_lives:
                self.say(m.Beat())
            self.after(self.latency, lambda: self.heard(message))
            return
        host = self.hosts.get(peer)
        if host is not None and not self.lost(peer, message):
            host.deliver(message)

    # -- the cast ----------------------------------------------------------------------------------

    def host(self, name: str, slots: int = 2, local: bool = False) -> Host:
        """A worker joins; ``local``: as the engine inside a script has it, which needs no network."""
        host = self.hosts[name] = Host(self, name, slots, local)
        host.hello()
        return host

    def say(self, message: m.Message) -> None:
        """The producer says this."""
        self.to_broker("producer", m.PRODUCER, message)

    def pool(self, number: int = 1, limit: int = 0, max_tasks: int = 0, eager: bool = False) -> None:
        self.say(m.Blob(SETUP, (b"setup",)))
        self.say(m.OpenPool(number, limit, SETUP, b"", max_tasks, eager))

    def job(self, number: int, items: int, pool: int = 1, chunksize: int = 1, **options: Any) -> None:
        """A job of so many items, all fed at once."""
        self.say(m.Blob(FUNCTION, (b"function",)))
        self.say(m.OpenJob(number, pool, FUNCTION, **options))
        chunks = -(-items // chunksize)
        self.say(m.Feed(number, 0, items, chunksize, (pack_lengths([4] * chunks), b"item" * chunks)))
        self.say(m.EndJob(number, items))

    # -- what came of it ---------------------------------------------------------------------------

    def of_job(self, kinds: type | tuple[type, ...], job: int) -> list[Any]:
        return [each for each in self.inbox if isinstance(each, kinds) and getattr(each, "job", 0) == job]

    def results(self, job: int = 1) -> list[int]:
        """Items that have a result, in the order of arrival."""
        return [
            item for each in self.of_job(m.Result, job) for item in range(each.start, each.start + each.count)
        ]

    def failures(self, job: int = 1) -> list[m.Failed]:
        return self.of_job(m.Failed, job)

    def ended(self, job: int = 1) -> bool:
        return bool(self.of_job(m.EndResults, job))

    def closed(self, pool: int = 1) -> bool:
        return any(type(each) is m.PoolClosed and each.pool == pool for each in self.inbox)


# -- the books -------------------------------------------------------------------------------------


def audit(core: broker.Core) -> None:
    """What must hold in the broker after every single event."""
    workers = core.sessions.of_kind(m.WORKER)
    for pool in core.pools.values():
        shares = list(pool.workers.values())
        assert pool.granted == sum(share.slots for share in shares)
        assert pool.held == sum(share.held for share in shares)
        assert not pool.opened.limit or pool.granted <= pool.opened.limit
        assert set(pool.pending) <= set(pool.jobs)
        assert all(job.ready_items for job in pool.pending.values())
        for share in shares:
            assert share.worker.shares[pool.number] is share and share.slots >= 0 and share.held >= 0
        for job in pool.jobs.values():
            _audit_job(job, workers)
    for worker in workers:
        granted = sum(share.slots for share in worker.shares.values())
        assert worker.draining or not worker.slots or worker.free + granted == worker.slots
        for share in worker.shares.values():
            held = [leases.items for leases in worker.leases.values() if leases.share is share]
            assert share.held == sum(held)


def _audit_job(job: Any, workers: list[Any]) -> None:
    """Each fed item is in exactly one place: ready, leased once, or answered."""
    places: list[int] = []
    for span in (*job.ready, *job.suspects):
        places += range(span.start, span.stop)
    assert len(places) == job.ready_items
    for worker in workers:
        for lease in worker.leases.get(job.number, ()):
            places += range(lease.span.start, lease.span.stop)
    for start, stop in _answered(job):
        places += range(start, stop)
    assert sorted(places) == list(range(job.fed)), f"job {job.number}"


def _answered(job: Any) -> Iterator[tuple[int, int]]:
    at = 0
    for low, high in job.answered.missing(0, job.fed):
        if at < low:
            yield at, low
        at = high
    if at < job.fed:
        yield at, job.fed


def assert_empty(cluster: Cluster) -> None:
    """Everything was closed: nothing is left in the books of the broker or of any agent."""
    core = cluster.core
    assert not core.pools and not core.owners and not core.ledger.awaited and not core.scheduler.needy
    assert not core.blobs._uses
    for worker in core.sessions.of_kind(m.WORKER):
        assert not worker.shares and not worker.leases
        assert worker.draining or worker.number in core.scheduler.free
        assert worker.draining or not worker.slots or worker.free == worker.slots
    for host in cluster.hosts.values():
        if host.alive and not host.cut:
            assert not host.core.pools and not host.core.jobs and not host.core.children, host.name
            assert not host.children and not host.core.blobs._uses, host.name
