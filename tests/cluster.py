"""A cluster in virtual time: the real cores, joined by a queue of messages, with imaginary children.

A child takes ``cost(item)`` seconds for an item and answers with the item's number as its result. What
an item costs, what it kills, which messages are lost and when a host vanishes is given as values, so
that a test of a lost host takes no second. After each step the broker's books can be audited.
"""

from __future__ import annotations

import heapq
import pickle
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from typing import Any

from simulation.children import VirtualChildren
from simulation.invariants import agent_is_empty, audit, broker_is_empty
from simulation.journals import VirtualJournal
from simulation.processes import VirtualChild, VirtualRun

from multihost_broker import core as broker
from multihost_broker import events as be
from multihost_common import messages as m
from multihost_common.blocks import pack_lengths
from multihost_worker import core as agent
from multihost_worker import events as ae

SETUP, FUNCTION = b"s" * 32, b"f" * 32


class Host(VirtualChildren):
    """One agent core with its children."""

    def __init__(self, cluster: Cluster, name: str, slots: int, local: bool = False) -> None:
        super().__init__()
        self.cluster = cluster
        self.name = name
        heartbeat = 0.0 if local else 1.0
        self.core = agent.Core(agent.CoreConfig(slots=0 if local else slots, host=name, heartbeat=heartbeat))
        self.local = local
        self.slots = slots
        self.registered = False
        #: No packet passes; what is sent meanwhile waits in ``held_up``.
        self.cut = False
        self.held_up: list[Callable[[], None]] = []
        self.exit: int | None = None

    def tell(self, event: ae.Event) -> None:
        if not self.alive:
            return
        events = deque((event,))
        while events:
            for action in self.core.handle(events.popleft(), self.cluster.now):
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

    def act(self, action: Any, events: deque[ae.Event]) -> None:
        if type(action) is ae.Send:
            if not self.cluster.lost(self.name, action.message):
                self._pass(partial(self.cluster.to_broker, self.name, m.WORKER, action.message))
        elif type(action) is ae.Exit:
            self.exit = action.code
            self.alive = False
            self.children.clear()
        else:
            self.do(action, events)

    # -- children ----------------------------------------------------------------------------------

    def time(self) -> float:
        return self.cluster.now

    def later(self, delay: float, call: Callable[[], None]) -> None:
        self.cluster.after(delay, call)

    def emit(self, child: VirtualChild, event: ae.Event) -> None:
        self.tell(event)

    def seconds(self, run: VirtualRun, item: int) -> float:
        return self.cluster.cost(item)

    def kills(self, run: VirtualRun, item: int) -> bool:
        return self.cluster.kills(item, self)

    def begins(self, run: VirtualRun, item: int) -> None:
        self.cluster.begun.append((run.job, item))

    def ended(self, run: VirtualRun, items: Sequence[int]) -> None:
        self.cluster.ran += items

    def answer(self, run: VirtualRun, items: list[int]) -> list[Any]:
        payload = pickle.dumps(items)
        return [pack_lengths([len(payload)]), payload]

    def crash(self) -> None:
        """Power loss: nobody hears of it."""
        self.alive = False
        self.children.clear()


class Cluster:
    """Broker core, hosts, one producer, and the time."""

    def __init__(self, latency: float = 0.0001, audited: bool = False) -> None:
        self.now = 100.0
        self.latency = latency
        self.core = broker.Core()
        self.journal = VirtualJournal()
        #: Seconds until what is written is durable.
        self.disk = 0.002
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
        self.audited = audited
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
        self._carry_out(self.core.handle(event, self.now))

    def _carry_out(self, actions: Sequence[be.Action]) -> None:
        core = self.core
        for action in actions:
            if isinstance(action, be.Send):
                self._deliver(str(action.peer), m.decode(m.encode(action.message)))
            elif isinstance(action, be.Note):
                self.notes.append(action.text)
            elif isinstance(action, be.Write):
                self.journal.write(action)
                self.after(self.disk, partial(self._sync, core))
            elif isinstance(action, be.Read):
                self.after(self.disk, partial(self._read, core, action))
        if self.audited:
            audit(self.core)
        deadline = self.core.deadline()
        if deadline is not None:
            self.at(deadline, lambda: self._tick(deadline))

    def _tick(self, due: float) -> None:
        if self.core.deadline() == due:
            self.tell_broker(be.Tick())

    def _sync(self, core: broker.Core) -> None:
        if core is self.core and self.journal.pending:
            self.tell_broker(self.journal.sync())

    def _read(self, core: broker.Core, action: be.Read) -> None:
        if core is self.core:
            self.tell_broker(self.journal.read(action))

    def restart(self) -> None:
        """The broker is killed, and another one begins with its journal; everybody dials anew."""
        self.journal.crash()
        epoch = self.core.config.epoch + 1000
        self.core = broker.Core(broker.CoreConfig(epoch=epoch, last_ticket=self.journal.last))
        self._carry_out(self.core.restore(self.journal.load(), self.now))
        for host in self.hosts.values():
            host.refused("E_HELLO")

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


def complete(cluster: Cluster, items: int, job: int = 1) -> None:
    """The job has ended, with one result for each item."""
    cluster.run(until=lambda: cluster.ended(job))
    assert cluster.ended(job)
    assert sorted(cluster.results(job)) == list(range(items))


def assert_empty(cluster: Cluster) -> None:
    """Everything was closed: nothing is left in the books of the broker or of any agent."""
    broker_is_empty(cluster.core)
    for host in cluster.hosts.values():
        if host.alive and not host.cut:
            agent_is_empty(host.core, host.name)
            assert not host.children, host.name
