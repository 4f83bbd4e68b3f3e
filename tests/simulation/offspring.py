"""Children of an agent that are processes of their own, or that use shared objects: what they say to the broker goes
through their agent."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from multihost_common import messages as m
from multihost_common.stream import STREAMED
from multihost_worker import events as e

from .partners import Partner
from .processes import VirtualChild

if TYPE_CHECKING:
    from .agents import Children
    from .scene import ProcessPlan, Scene

#: Signals that end a process, and those that do not.
SIGKILL, SIGTERM = 9, 15


class Child(Partner):
    """A child that is a producer: it says Hello when it first asks for something."""

    def __init__(self, children: Children, child: VirtualChild, plan: ProcessPlan, scene: Scene) -> None:
        self.world = children.world
        self.children = children
        self.child = child
        self.plan = plan
        self.alive = True
        self.name = f"{children.agent.name}/{child.number}"
        self.spoken = []
        self._told_at = 0.0
        self._orphan = False
        self.begin_sharing(scene)

    @property
    def client(self) -> bytes:
        """By which the broker knows it."""
        return self.name.encode()[:16].ljust(16)

    def begin(self) -> None:
        """It runs."""
        self.usable = True
        if self.plan.shares:
            self.tell_broker(
                m.Hello(m.PRODUCER, m.PROTOCOL_VERSION, "3.11", 5, self.name, 1, 0, self.name, self.client)
            )
        else:
            self._go_on()

    def _go_on(self) -> None:
        for program in self.plan.programs:
            self.start(program(self))
        self.start(self._lives())

    def _lives(self) -> Any:
        yield self.plan.seconds

    def rests(self) -> None:
        self.world.after(0.001, self.deliver, self._exit)

    def _exit(self) -> None:
        if not self.threads and self.child.number in self.children.children:
            self.children.exits(self.child, self.plan.exitcode)

    def tell_broker(self, message: m.Message) -> None:
        if not self.alive:
            return
        if type(message) in STREAMED:
            self.spoken.append(message)
        self.children.emit(
            self.child, e.ChildSays(self.child.number, [bytes(frame) for frame in m.encode(message)])
        )

    def deliver(self, call: Callable[..., None], *args: Any) -> None:
        if self.alive:
            call(*args)

    def told(self, frames: Any) -> None:
        """The agent hands this on. It takes a moment."""
        message = m.decode([bytes(frame) for frame in frames])
        world = self.world
        at = world.now + (0.0005 * world.random.random())
        self._told_at = at = max(at, self._told_at)
        world.at(at, self.deliver, self._take, message)

    def _take(self, message: m.Message) -> None:
        if not self.usable:
            return
        if type(message) is m.Welcome:
            self.era = self.scene.era_of(message)
            self._go_on()
        elif type(message) is m.Refused:
            self.world.counts[f"child is refused: {message.reason}"] += 1
            self.bereaved()
            self.rests()
        else:
            self.hears(message)

    def orphaned(self) -> None:
        """Whoever has started it is gone."""
        self.world.counts["child is an orphan"] += 1
        if not self._orphan and self.scene.random.random() < 0.5:
            self._orphan = True
            self.world.after(
                self.scene.random.uniform(0.0, 1.0),
                self.deliver,
                self.children.exits,
                self.child,
                self.plan.exitcode,
            )

    def ends(self) -> None:
        """It has ended."""
        self.alive = False
        self.perish()


class Offspring:
    """The children of one agent that are more than their items."""

    def __init__(self, children: Children) -> None:
        self._children = children
        self._begun: dict[int, ProcessPlan] = {}
        self._here: dict[int, Child] = {}

    def do(self, action: e.Action) -> None:
        """Carry out an action, if it is about one of these."""
        if type(action) is e.Begin:
            scene = self._children.world.scene
            assert scene is not None
            self._begun[action.child] = scene.begins(action.frames)
        elif type(action) is e.Tell and action.child in self._here:
            self._here[action.child].told(action.frames)
        elif type(action) is e.Orphan and action.child in self._here:
            self._here[action.child].orphaned()
        elif type(action) is e.SignalChild and action.child in self._children.children:
            child, signal = self._children.children[action.child], action.signal
            self._children.later(self._children.kill_seconds, lambda: self._children._die(child, signal))

    def ready(self, child: VirtualChild) -> None:
        """The child runs."""
        plan, scene = self._begun.get(child.number), self._children.world.scene
        if plan is not None and scene is not None and child.number in self._children.children:
            here = self._here[child.number] = Child(self._children, child, plan, scene)
            here.begin()

    def ended(self, child: int) -> None:
        """The child is no more."""
        self._begun.pop(child, None)
        here = self._here.pop(child, None)
        if here is not None:
            here.ends()
