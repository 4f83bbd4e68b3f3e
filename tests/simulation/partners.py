"""Processes that use shared objects. What each of their threads does is a generator: it yields what it asks for, or how
long it sleeps, and is sent the answer."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from multihost_common import messages as m
from multihost_common.blobs import digest_of
from multihost_common.stream import STREAMED

from .scene import Era
from .world import ViolationError

if TYPE_CHECKING:
    from .scene import ProcessPlan, Scene
    from .world import World


class GoneError(Exception):
    """The object is no more, or the broker that had it."""


class Ask:
    """A request, and once it is ``done`` its answer. ``then`` is called with it when it is."""

    __slots__ = (
        "amount", "done", "frames", "name", "number", "op", "said", "status", "text", "then", "thread",
    )  # fmt: skip

    def __init__(self, number: int, name: bytes, op: int, said: int) -> None:
        self.number = number
        self.name = name
        self.op = op
        #: What was asked with it, and what was answered.
        self.said = said
        self.status = m.GRANTED
        self.amount = 0
        self.text = ""
        self.frames: Sequence[Any] = ()
        self.done = False
        self.thread: Thread | None = None
        self.then: Callable[[Ask], None] | None = None

    @property
    def granted(self) -> bool:
        """It was done."""
        return self.status == m.GRANTED


#: Yields seconds to sleep, or a request to wait for.
Program: TypeAlias = Generator["Ask | float", Any, None]


class Thread:
    """One thread of a process."""

    __slots__ = ("asleep", "era", "over", "partner", "program")

    def __init__(self, partner: Partner, program: Program, era: Era | None) -> None:
        self.partner = partner
        self.program = program
        #: In which it has begun, if it does not outlive it.
        self.era = era
        self.over = False
        #: It sleeps; else it waits for an answer.
        self.asleep = False


class Launched:
    """A process that a partner has launched."""

    __slots__ = ("exitcode", "number", "pid", "plan", "sent", "signal", "text")

    def __init__(self, number: int, plan: ProcessPlan) -> None:
        self.number = number
        self.plan = plan
        self.pid = 0
        self.exitcode: int | None = None
        #: The broker may have heard of it.
        self.sent = False
        #: What it was sent last.
        self.signal = 0
        self.text = ""

    def message(self) -> m.Launch:
        """What launches it, or asks whether it is still there."""
        setup = digest_of(self.plan.content) if self.plan.content else b""
        return m.Launch(self.number, setup, b"", "p", frames=(b"" if self.pid else self.plan.payload,))


class Partner:
    """One process that uses shared objects. A subclass says how it reaches the broker."""

    world: World
    name: str
    alive: bool
    #: What it has said that is numbered, since the broker knows it.
    spoken: list[m.Message]

    def begin_sharing(self, scene: Scene) -> None:
        """Whatever a partner has, from its beginning."""
        self.scene = scene
        self.usable = False
        #: Its session, as the broker knows it.
        self.era = Era()
        self.threads: list[Thread] = []
        self.launches: dict[int, Launched] = {}
        #: Numbered messages that have come in this era.
        self.heard = 0
        self._asked: dict[int, Ask] = {}
        self._numbers = 0
        self._serial = 0
        scene.partners.append(self)
        scene.voices[self.name] = self

    # -- of the subclass -----------------------------------------------------------------------------

    def tell_broker(self, message: m.Message) -> None:
        """Say this to the broker."""
        raise NotImplementedError

    def deliver(self, call: Callable[..., None], *args: Any) -> None:
        """Something has come for it."""
        raise NotImplementedError

    def reaches(self) -> bool:
        """What is said now may arrive."""
        return True

    def rests(self) -> None:
        """Its last thread has ended."""

    # -- threads -------------------------------------------------------------------------------------

    def start(self, program: Program, delay: float = 0.0, lasts: bool = False) -> Thread:
        """One thread more. ``lasts``: what it does goes on when the broker has forgotten this process."""
        thread = Thread(self, program, None if lasts else self.era)
        self.threads.append(thread)
        self._sleep(thread, delay)
        return thread

    def _sleep(self, thread: Thread, seconds: float) -> None:
        thread.asleep = True
        self.world.after(seconds, self.deliver, self._wake_up, thread)

    def _wake_up(self, thread: Thread) -> None:
        thread.asleep = False
        self._advance(thread, None, thread.era is not None and thread.era is not self.era)

    def _advance(self, thread: Thread, value: Ask | None = None, gone: bool = False) -> None:
        if thread.over:
            return
        try:
            step = thread.program.throw(GoneError) if gone else thread.program.send(value)
        except (StopIteration, GoneError) as end:
            self.world.counts["thread lost what it used"] += type(end) is GoneError
            self._end_thread(thread)
            return
        if isinstance(step, Ask):
            self._await(thread, step)
        else:
            self._sleep(thread, step)

    def _await(self, thread: Thread, ask: Ask) -> None:
        if ask.done:
            self._advance(thread, ask, ask.status == m.UNKNOWN)
        else:
            ask.thread = thread

    def _end_thread(self, thread: Thread) -> None:
        thread.over = True
        if thread in self.threads:
            self.threads.remove(thread)
        if not self.threads:
            self.rests()

    def perish(self) -> None:
        """The process has ended, and each of its threads."""
        self.usable = False
        for thread in self.threads:
            thread.over = True
        self.threads = []
        self._asked = {}
        self.launches = {}

    # -- requests ------------------------------------------------------------------------------------

    def ask(
        self,
        name: bytes,
        op: int,
        amount: int = 0,
        frames: Sequence[bytes] = (),
        *,
        now: bool = False,
        timeout: float | None = None,
    ) -> Ask:
        """Ask; to be yielded by who waits. ``timeout``: it is withdrawn after so many seconds."""
        self._numbers += 1
        ask = Ask(self._numbers, name, op, amount)
        if not self.usable:
            ask.done, ask.status = True, m.UNKNOWN
            return ask
        self._asked[ask.number] = ask
        self._say(m.Act(ask.number, name, op, amount, now, frames=tuple(frames)))
        if timeout is not None:
            self.world.after(timeout, self.deliver, self._expire, ask)
        return ask

    def _expire(self, ask: Ask) -> None:
        if not ask.done and self._asked.get(ask.number) is ask:
            self.world.counts["request is withdrawn"] += 1
            self._say(m.Act(0, b"", m.WITHDRAW, ask.number))

    def tell(self, name: bytes, op: int, amount: int = 0, frames: Sequence[bytes] = ()) -> None:
        """Say something that is not answered."""
        if self.usable:
            self._say(m.Act(0, name, op, amount, False, frames=tuple(frames)))

    def _say(self, message: m.Message) -> None:
        self.tell_broker(message)

    # -- processes -----------------------------------------------------------------------------------

    def launch(self, plan: ProcessPlan) -> Launched:
        """Start a process."""
        self._serial += 1
        launched = Launched(self._serial, plan)
        if not self.usable:
            launched.exitcode = -9
            return launched
        self.launches[launched.number] = launched
        launched.sent = self.reaches()
        if plan.content and self.scene.random.random() < 0.5:
            self._say(m.Blob(digest_of(plan.content), (plan.content,)))
        self._say(launched.message())
        return launched

    def signal(self, launched: Launched, number: int) -> None:
        """Send the process a signal."""
        if self.usable and launched.number in self.launches:
            launched.signal = number
            self._say(m.Signal(launched.number, number))

    # -- what comes ----------------------------------------------------------------------------------

    def hears(self, message: m.Message) -> None:
        """Something for the engine of this process."""
        if type(message) in STREAMED:
            self.scene.hears(self, message)
            self.heard += 1
        if type(message) is m.Acted:
            self._answered(message)
        elif type(message) is m.Launched:
            launched = self.launches.get(message.process)
            if launched is not None:
                launched.pid = message.pid
        elif type(message) is m.Exited:
            self._exited(message)
        elif type(message) is m.Need:
            for launched in self.launches.values():
                content = launched.plan.content
                if content and digest_of(content) == message.digest:
                    self._say(m.Blob(message.digest, (content,)))

    def _answered(self, acted: m.Acted) -> None:
        ask = self._asked.pop(acted.number, None)
        if ask is None:
            raise ViolationError(f"{self.name} has asked no such thing, or was answered: {acted}")
        if acted.status == m.FORBIDDEN:
            raise ViolationError(f"{self.name} was refused {ask.op}: {acted.text}")
        ask.status, ask.amount, ask.text, ask.frames = acted.status, acted.amount, acted.text, acted.frames
        self._end_ask(ask)

    def _end_ask(self, ask: Ask) -> None:
        ask.done = True
        if ask.then is not None:
            ask.then(ask)
        thread, ask.thread = ask.thread, None
        if thread is not None:
            self._advance(thread, ask, ask.status == m.UNKNOWN)

    def _exited(self, exited: m.Exited) -> None:
        launched = self.launches.pop(exited.process, None)
        if launched is None:
            raise ViolationError(f"{self.name} was told of an end that it knows, or of no process: {exited}")
        launched.exitcode, launched.text = exited.exitcode, exited.text

    def forgotten(self) -> None:
        """The broker knows nothing of what was asked."""
        asked, self._asked = self._asked, {}
        for ask in asked.values():
            ask.status = m.UNKNOWN
            self._end_ask(ask)

    def waits_for(self) -> str:
        """What has not come."""
        asked = [f"{ask.op} of {ask.name[:2].hex()} (its {ask.number})" for ask in self._asked.values()]
        running = [str(each.number) for each in self.launches.values()]
        sleeping = sum(each.asleep for each in self.threads)
        return f"{self.name} for {asked}, processes {running}, and {sleeping} sleep"

    def bereaved(self) -> None:
        """There will be no broker for it any more."""
        self.usable = False
        for launched in self.launches.values():
            launched.exitcode = -9
        self.launches = {}
        self.forgotten()
