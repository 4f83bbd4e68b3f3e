"""The agent's core in virtual time, as ``multihost_worker.agent`` runs it, with children that are not there."""

from __future__ import annotations

import pickle
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from multihost_common import messages as m
from multihost_common.blocks import pack_lengths, unpack_lengths
from multihost_common.session import SILENT
from multihost_worker import events as e
from multihost_worker.core import Core, CoreConfig

from .children import VirtualChildren
from .invariants import audit_agent
from .offspring import Offspring
from .plans import BROKEN, Plan, plan_of
from .processes import VirtualChild, VirtualRun
from .streaming import Streaming
from .world import ViolationError

if TYPE_CHECKING:
    from .network import Connection
    from .world import World

#: What answers a lease, and may be said again over a new connection.
ANSWERS = frozenset({m.Result, m.Returned, m.Died})

#: Seconds between two looks at how the broker does.
PULSE = 1.0


class Children(VirtualChildren):
    """The children of one agent. What they say takes a moment until the agent has read it."""

    def __init__(self, agent: Agent) -> None:
        super().__init__()
        self.agent = agent
        self.world = agent.world
        self._broken: set[int] = set()
        self.offspring = Offspring(self)
        self.start_seconds = self.world.random.uniform(0.005, 0.05)
        self.kill_seconds = self.world.random.uniform(0.0002, 0.005)

    def time(self) -> float:
        return self.world.now

    def clock(self) -> float:
        return self.agent.clock()

    def later(self, delay: float, call: Callable[[], None]) -> None:
        self.world.after(delay, call)

    def emit(self, child: VirtualChild, event: e.Event) -> None:
        world, agent = self.world, self.agent
        if world.trace is not None:
            world.note(f"{agent.name} child:", event)
        delay = world.random.random()
        at = world.now + (0.001 * delay if delay < 0.5 else 0.0)
        child.heard_at = at = max(at, child.heard_at)
        if at > world.now:
            world.at(at, agent.deliver, agent.tell, event)
        else:
            agent.deliver(agent.tell, event)

    def do(self, action: Any, events: deque[e.Event]) -> None:
        """Carry out an action; the pool's set-up may be one that no child survives."""
        if type(action) is e.StartChild and bytes(action.setup) == BROKEN:
            self._broken.add(action.child)
        super().do(action, events)
        self.offspring.do(action)

    def _ready(self, child: VirtualChild) -> None:
        if child.number not in self._broken:
            super()._ready(child)
            self.offspring.ready(child)
        elif child.number in self.children:
            self.emit(child, e.ChildFailed(child.number, "the initializer raised"))
            self.exits(child, 1)

    def _end(self, child: VirtualChild, signal: int, exitcode: int, item: int | None) -> None:
        if self.alive and child.number in self.children:
            self.offspring.ended(child.number)
        super()._end(child, signal, exitcode, item)

    def plan(self, run: VirtualRun) -> Plan:
        """Of the job that the run belongs to."""
        return plan_of(self.world, run.values[0])

    def seconds(self, run: VirtualRun, item: int) -> float:
        return self.plan(run).seconds[item]

    def kills(self, run: VirtualRun, item: int) -> bool:
        return self.plan(run).kills(item)

    def begins(self, run: VirtualRun, item: int) -> None:
        plan = self.plan(run)
        plan.begins(item)
        if self.most_running > self.agent.slots:
            raise ViolationError(f"{self.agent.name} runs more children than it has slots")

    def died(self, child: VirtualChild, suspects: list[tuple[VirtualRun, int]]) -> None:
        for run, item in suspects:
            plan = self.plan(run)
            # Killed by the agent for the sake of another item it is innocent, but may not run again.
            if not child.killed or plan.at_most_once:
                plan.deaths[item] += 1

    def unheard(self, run: e.Run) -> None:
        # As of a death before the first note, nobody can tell that it was not this item's doing.
        self.world.counts["run given to a dead child"] += 1
        values = self.values(run)
        plan_of(self.world, values[0]).deaths[run.start] += 1

    def values(self, run: e.Run) -> Sequence[int]:
        """The items themselves: the frames hold those that the numbers say, or a block was cut wrongly."""
        found: list[int] = []
        data, begin = memoryview(run.frames[1]), 0
        for length in unpack_lengths(run.frames[0]):
            piece = pickle.loads(data[begin : begin + length])
            found += (piece,) if run.chunksize == 1 else piece
            begin += length
        found = found[run.skip : run.skip + run.count]
        plan = plan_of(self.world, found[0]) if found else None
        if plan is None or found != [plan.value(item) for item in range(run.start, run.start + run.count)]:
            raise ViolationError(f"items {run.start} + {run.count} of job {run.job} are {found}")
        return found

    def answer(self, run: VirtualRun, items: list[int]) -> list[Any]:
        payload = pickle.dumps([-run.values[item - run.first] for item in items])
        return [pack_lengths([len(payload)]), payload]


class Agent(Streaming):
    """One start of the agent on a host."""

    role = m.WORKER

    def __init__(
        self, world: World, name: str, slots: int, latency: float, drain_timeout: float = 25.0
    ) -> None:
        super().__init__(world, name, latency)
        self.slots = slots
        self.core = Core(CoreConfig(slots=slots, host=name, drain_timeout=drain_timeout))
        self.children = Children(self)
        self.heard = 0.0
        #: When Hello was said over the present connection; 0.0: it was not.
        self.greeted = 0.0
        self.stops = 0
        #: What it has said of items lately, for who says it twice.
        self.said: deque[m.Message] = deque(maxlen=6)
        self._pulse_at = 0.0
        self._events: deque[e.Event] = deque()
        self._busy = False

    def begin(self, delay: float) -> None:
        """The process starts."""
        self.heard = self.clock()
        self._pulse_at = self.clock() + PULSE
        self.world.network.dial(self, delay)
        self.wake_by(self._pulse_at)

    # -- the loop ------------------------------------------------------------------------------------

    def tell(self, event: e.Event, now: float = 0.0) -> None:
        """Tell the core, and do what it says until there is nothing more."""
        now = now or self.clock()
        self._events.append(event)
        if self._busy:
            return
        self._busy = True
        while self._events and self.alive:
            for action in self.core.handle(self._events.popleft(), now):
                if type(action) is e.Send:
                    self._send(action.message)
                elif type(action) is e.Exit:
                    self._exit()
                    break
                else:
                    if self.world.trace is not None:
                        self.world.note(f"{self.name} does:", action)
                    self.children.do(action, self._events)
        self._busy = False
        if type(event) is not e.Tick and not (type(event) is e.Received and type(event.message) is m.Beat):
            audit_agent(self.core)
        self.wake_by(self.core.deadline())

    def _send(self, message: m.Message) -> None:
        self.say(message)
        if not self.registered:
            return
        if type(message) in ANSWERS:
            self.said.append(message)
            if self.world.network.repeat_rate > self.world.random.random():
                self._say_later(message)

    def due(self) -> float | None:
        due = self.core.deadline()
        return self._pulse_at if due is None else min(due, self._pulse_at)

    def on_time(self, now: float) -> None:
        due = self.core.deadline()
        if due is not None and due <= now:
            self.tell(e.Tick(), now)
        if self.alive and now >= self._pulse_at:
            self._pulse(now)

    def _pulse(self, now: float) -> None:
        self._pulse_at = now + PULSE
        self.acknowledge(now=True)
        if not self.registered:
            if self.greeted and now - self.greeted > SILENT:
                self._redial()
        elif now - self.heard > SILENT:
            self.world.counts["agent dials anew: silence"] += 1
            self._redial()

    # -- the broker ----------------------------------------------------------------------------------

    def connected(self, connection: Connection) -> None:
        self.connection = connection
        self._greet()

    def _greet(self) -> None:
        self.heard = self.greeted = self.clock()
        self.send(self.hello(self.slots))

    def ended(self, connection: Connection) -> None:
        if connection is not self.connection:
            return
        # ZeroMQ dials again by itself; what it has received already is still to be read.
        self.connection = None
        self.greeted = 0.0
        self._lost()
        self.world.network.dial(self, self.world.random.uniform(0.1, 2.0))

    def take(self, connection: Connection, message: m.Message) -> None:
        self.heard = self.clock()
        if type(message) is m.Welcome and self.crosses(message):
            self._lost()
            self._greet()
        elif type(message) is m.Welcome:
            self.tell(e.Connected(self.welcomes(message)))
            self._say_twice()
        elif type(message) is m.Refused:
            self._refused(message)
        elif self.is_news(message):
            self.tell(e.Received(message))
        self.acknowledge()

    def _refused(self, refused: m.Refused) -> None:
        if refused.reason == "E_HELLO":
            if self.registered:
                self.world.counts["agent registers anew: unknown"] += 1
                self._lost()
                self._greet()
        elif not self.registered:
            raise ViolationError(f"{self.name} was refused: {refused}")
        elif not refused.text.startswith("that content"):
            raise ViolationError(f"the broker refused what {self.name} said: {refused}")

    def _lost(self) -> None:
        if self.registered:
            self.registered = False
            self.tell(e.Disconnected())

    def _redial(self) -> None:
        self._lost()
        self.hang_up(flush=False)
        self.greeted = 0.0
        self.world.network.dial(self, 0.0)

    def _say_twice(self) -> None:
        """Over a new connection comes again what was said over an old one."""
        if self.world.network.repeat_rate:
            for message in self.said:
                self._say_later(message)

    def _say_later(self, message: m.Message) -> None:
        self.world.after(self.world.random.uniform(0.0, 0.3), self._say_again, message)

    def _say_again(self, message: m.Message) -> None:
        if self.registered:
            self.world.counts["said twice"] += 1
            self.send(message)

    # -- the end -------------------------------------------------------------------------------------

    def stop(self) -> None:
        """The operator wants it to end."""
        self.stops += 1
        self.deliver(self.tell, e.Stop())

    def _exit(self) -> None:
        self.world.counts["agent has drained"] += 1
        self.hang_up()
        self._end()

    def crash(self, power: bool = False) -> None:
        super().crash(power)
        self._end()

    def _end(self) -> None:
        self.alive = self.children.alive = False
        for number in list(self.children.children):
            self.children.offspring.ended(number)
        self.children.children.clear()
