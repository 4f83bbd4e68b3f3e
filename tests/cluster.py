"""A cluster in virtual time: the real cores, joined by a queue of messages, with imaginary children.

A child takes ``cost(item)`` seconds for an item and answers with the item's number as its result. What
an item costs, what it kills and when a host vanishes is given as values, so that a test of a lost host
takes no second.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from multihost_broker import core as broker
from multihost_broker import events as be
from multihost_common import messages as m
from multihost_common.blocks import pack_lengths
from multihost_worker import core as agent
from multihost_worker import events as ae

SETUP, FUNCTION = b"s" * 32, b"f" * 32


@dataclass
class FakeChild:
    """A child process that exists only as the items it was given."""

    number: int
    pid: int
    runs: list[list[int]] = field(default_factory=list)  # [position, job, item, stop]
    stopping: bool = False
    running_since: float = 0.0
    generation: int = 0
    ran: list[int] = field(default_factory=list)


class Host:
    """One agent core with its children."""

    def __init__(self, cluster: Cluster, name: str, slots: int) -> None:
        self.cluster = cluster
        self.name = name
        self.core = agent.Core(agent.CoreConfig(slots=slots, host=name))
        self.slots = slots
        self.children: dict[int, FakeChild] = {}
        self.alive = True
        self.cut = False
        self.exit: int | None = None
        self.started = 0

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

    def _tick(self, due: float) -> None:
        if self.alive and self.core.deadline() == due:
            self.tell(ae.Tick())

    def act(self, action: Any, events: list[ae.Event]) -> None:
        kind = type(action).__name__
        if kind == "Send":
            if not self.cut:
                self.cluster.to_broker(self.name, m.WORKER, action.message)
        elif kind == "StartChild":
            self.started += 1
            child = self.children[action.child] = FakeChild(action.child, 1000 + action.child)
            self.cluster.after(0.01, lambda: self._ready(child))
        elif kind == "Run":
            child = self.children[action.child]
            child.runs.append([action.position, action.job, action.start, action.start + action.count])
            if len(child.runs) == 1:
                self._begin(child)
        elif kind == "Reclaim":
            self._reclaim(self.children[action.child], events)
        elif kind == "Inspect":
            child = self.children[action.child]
            position = child.runs[0][0] if child.runs else -1
            events.append(ae.Progress(child.number, position, child.running_since))
        elif kind == "StopChild":
            child = self.children[action.child]
            child.stopping = True
            if not child.runs:
                self.cluster.after(0.001, lambda: self._die(child, 0, child.generation))
        elif kind == "KillChild":
            child = self.children[action.child]
            self.cluster.after(0.001, lambda: self._die(child, 9, None))
        elif kind == "Exit":
            self.exit = action.code

    def _ready(self, child: FakeChild) -> None:
        if child.number in self.children:
            self.tell(ae.ChildReady(child.number, child.pid))

    def _reclaim(self, child: FakeChild, events: list[ae.Event]) -> None:
        first = child.runs[0] if child.runs else None
        position = first[0] + 1 if first else 0
        if first:
            first[3] = first[2] + 1
        child.runs = child.runs[:1]
        events.append(ae.Reclaimed(child.number, position))

    def _begin(self, child: FakeChild) -> None:
        run = child.runs[0]
        child.running_since = self.cluster.now
        child.generation += 1
        generation = child.generation
        cost = self.cluster.cost(run[2])
        if self.cluster.kills(run[2], self):
            self.cluster.after(cost, lambda: self._die(child, 9, generation))
        else:
            self.cluster.after(cost, lambda: self._finish(child, cost, generation))

    def _finish(self, child: FakeChild, cost: float, generation: int) -> None:
        if not self.alive or child.generation != generation or child.number not in self.children:
            return
        run = child.runs[0]
        item = run[2]
        child.ran.append(item)
        self.cluster.ran.append(item)
        run[0] += 1
        run[2] += 1
        if run[2] == run[3]:
            child.runs.pop(0)
        payload = item.to_bytes(8, "little")
        frames = [pack_lengths([len(payload)]), payload]
        self.tell(ae.ChildResult(child.number, run[1], item, 1, int(cost * 1e6), m.VALUES, frames))
        if child.runs:
            self._begin(child)
        elif child.stopping:
            self._die(child, 0, None)

    def _die(self, child: FakeChild, signal: int, generation: int | None) -> None:
        if child.number not in self.children or (generation is not None and child.generation != generation):
            return
        del self.children[child.number]
        position = child.runs[0][0] if child.runs else -1
        self.tell(ae.ChildDied(child.number, position, child.pid, 0, signal, 1 << 20, False, "killed"))

    def crash(self) -> None:
        """Power loss: nobody hears of it."""
        self.alive = False
        self.children.clear()


class Cluster:
    """Broker core, hosts, one producer, and the time."""

    def __init__(self) -> None:
        self.now = 100.0
        self.core = broker.Core()
        self.hosts: dict[str, Host] = {}
        self.inbox: list[m.Message] = []
        self.notes: list[str] = []
        self.ran: list[int] = []
        self.cost: Callable[[int], float] = lambda item: 0.001
        self.kills: Callable[[int, Host], bool] = lambda item, host: False
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self.to_broker("producer", m.PRODUCER, m.Hello(m.PRODUCER, m.PROTOCOL_VERSION, "3.11", 5, "p"))

    # -- time --------------------------------------------------------------------------------------

    def at(self, when: float, call: Callable[[], None]) -> None:
        heapq.heappush(self._queue, (when, next(self._order), call))

    def after(self, delay: float, call: Callable[[], None]) -> None:
        self.at(self.now + delay, call)

    def run(self, seconds: float = 1e9, until: Callable[[], bool] | None = None, steps: int = 2_000_000) -> None:
        """Let so much time pass, or until something holds."""
        end = self.now + seconds
        for _ in range(steps):
            if (until is not None and until()) or not self._queue or self._queue[0][0] > end:
                break
            when, _, call = heapq.heappop(self._queue)
            self.now = max(self.now, when)
            call()
        else:
            raise AssertionError(f"not over after {steps} steps")
        if until is None:
            self.now = max(self.now, end) if seconds < 1e8 else self.now

    # -- messages ----------------------------------------------------------------------------------

    def to_broker(self, peer: str, role: str, message: m.Message) -> None:
        message = m.decode(m.encode(message))
        self.after(0.0001, lambda: self.tell_broker(be.Received(peer, role, message)))

    def tell_broker(self, event: be.Event) -> None:
        for action in self.core.handle(event, self.now):
            if isinstance(action, be.Send):
                self._deliver(str(action.peer), m.decode(m.encode(action.message)))
            elif isinstance(action, be.Note):
                self.notes.append(action.text)
        deadline = self.core.deadline()
        if deadline is not None:
            self.at(deadline, lambda: self._tick(deadline))

    def _tick(self, due: float) -> None:
        if self.core.deadline() == due:
            self.tell_broker(be.Tick())

    def _deliver(self, peer: str, message: m.Message) -> None:
        if peer == "producer":
            if type(message) is m.Beat:
                self.to_broker("producer", m.PRODUCER, m.Beat())
            self.inbox.append(message)
            return
        host = self.hosts.get(peer)
        if host is None or host.cut:
            return
        if type(message) is m.Welcome:
            self.after(0.0001, lambda: host.tell(ae.Connected()))
        elif type(message) is not m.Beat:
            self.after(0.0001, lambda: host.tell(ae.Received(message)))

    # -- the cast ----------------------------------------------------------------------------------

    def host(self, name: str, slots: int = 2) -> Host:
        """A worker joins."""
        host = self.hosts[name] = Host(self, name, slots)
        hello = m.Hello(m.WORKER, m.PROTOCOL_VERSION, "3.11", 5, name, 1, slots, name)
        self.to_broker(name, m.WORKER, hello)
        return host

    def say(self, message: m.Message) -> None:
        """The producer says this."""
        self.to_broker("producer", m.PRODUCER, message)

    def pool(self, number: int = 1, limit: int = 0, max_tasks: int = 0) -> None:
        self.say(m.Blob(SETUP, (b"setup",)))
        self.say(m.OpenPool(number, limit, SETUP, b"", max_tasks))

    def job(self, number: int, items: int, pool: int = 1, chunksize: int = 1, **options: Any) -> None:
        """A job of so many items, all fed at once."""
        self.say(m.Blob(FUNCTION, (b"function",)))
        self.say(m.OpenJob(number, pool, FUNCTION, **options))
        chunks = -(-items // chunksize)
        self.say(m.Feed(number, 0, items, chunksize, (pack_lengths([4] * chunks), b"item" * chunks)))
        self.say(m.EndJob(number, items))

    # -- what came of it ---------------------------------------------------------------------------

    def results(self, job: int = 1) -> list[int]:
        """Items that have a result, in the order of arrival."""
        found: list[int] = []
        for message in self.inbox:
            if isinstance(message, m.Result) and message.job == job:
                found.extend(range(message.start, message.start + message.count))
        return found

    def failures(self, job: int = 1) -> list[m.Failed]:
        return [each for each in self.inbox if isinstance(each, m.Failed) and each.job == job]

    def ended(self, job: int = 1) -> bool:
        return any(isinstance(each, m.EndResults) and each.job == job for each in self.inbox)
