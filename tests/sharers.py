"""Peers that share objects and launch processes, honest and rude, for rules that are drawn by chance."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from stage import Client, Stage

from multihost_broker.core import Core
from multihost_common import messages as m
from multihost_common.blocks import pack_lengths
from multihost_common.shared import Pipes, Queues
from multihost_common.stream import STREAMED, Stream

#: Objects that everybody means, whoever has made them.
NAMES = tuple(bytes([48 + number]) * m.OBJECT for number in range(4))

KINDS = st.integers(1, 7)
OPERATIONS = st.integers(16, 25)
SMALL = st.integers(0, 3)


def any_act(draw: Any, number: int) -> m.Act:
    """Something that may be asked of some object, of whatever kind that is."""
    name = draw(st.sampled_from(NAMES))
    op = draw(st.one_of(st.sampled_from((m.MAKE, m.MAKE, m.CLOSE)), OPERATIONS, OPERATIONS, OPERATIONS))
    if op == m.MAKE:
        frames = [draw(SMALL).to_bytes(8, "little") for _ in range(3)]
        return m.Act(number, name, op, draw(KINDS), frames=frames)
    amount = draw(SMALL)
    if draw(st.booleans()):
        amount |= draw(SMALL) << draw(st.sampled_from((1, Queues.WINDOW_BITS, 32)))
    return m.Act(number, name, op, amount, draw(st.booleans()), frames=_frames(draw, op))


def _frames(draw: Any, op: int) -> list[bytes]:
    data = draw(st.lists(st.binary(max_size=3), min_size=1, max_size=3))
    kinds: list[list[bytes]] = [[], data[:1], [pack_lengths([*map(len, data)]), b"".join(data)]]
    if op == Pipes.SHIP:
        kinds.append([b"ticket", *data])
    return list(draw(st.sampled_from(kinds)))


def rude_word(draw: Any, core: Core, role: str) -> m.Message:
    """What somebody might say of objects and processes, though not of these, not now, or not twice."""
    numbers = [0, 1, 2, *core.processes.by_number]
    number = draw(st.sampled_from(numbers))
    if role == m.PRODUCER:
        act = any_act(draw, draw(SMALL))
        small = number & m.U32[1]
        words: list[m.Message] = [
            act,
            act,
            act,
            m.Signal(small, draw(SMALL)),
            m.Act(0, b"", m.WITHDRAW, small),
        ]
        words.append(m.Launch(draw(SMALL), name="rude", frames=(draw(st.sampled_from((b"", b"x"))),)))
    else:
        words = [
            m.Launched(number, "rude", 7),
            m.Exited(number, "rude", 3),
            m.Launched(number),
            m.Heard(number),
        ]
        inner = (
            m.Hello(m.PRODUCER, m.PROTOCOL_VERSION, "3.11", client=b"inner") if draw(st.booleans()) else None
        )
        said = inner or rude_word(draw, core, m.PRODUCER)
        words += [m.Via(draw(SMALL), number, frames=m.encode(said))] * 4
    word: m.Message = draw(st.sampled_from(words))
    if hasattr(word, "seq") and draw(st.sampled_from((False, False, True))):
        word.seq = draw(SMALL)
    return word


class Sharer(Client):
    """An honest peer whose numbered messages arrive once, as :mod:`multihost_common.session` has it."""

    def __init__(self, stage: Stage, name: str, role: str = m.PRODUCER) -> None:
        super().__init__(stage, name, role)
        self.stream = Stream()
        self.epoch = 0
        #: Requests without an answer; and processes that have not ended.
        self.asked: dict[int, m.Act] = {}
        self.launched: dict[int, m.Launch] = {}
        self._numbers = 0

    @property
    def heard(self) -> int:
        return self.stream.heard

    def tell(self, message: m.Message) -> None:
        """Say this once, now or when there is a session."""
        self.stream.stamp(message)
        if self.ready:
            self.say(m.decode(m.encode(message)))

    def hear(self, message: m.Message) -> None:
        if isinstance(message, m.Welcome) and not self.welcomed:
            self._begins(message)
        elif isinstance(message, m.Heard):
            self.stream.acknowledged(message.seq)
        elif type(message) not in STREAMED or (self.welcomed and self.stream.take(message)):
            super().hear(message)

    def _begins(self, welcome: m.Welcome) -> None:
        given_up = welcome.epoch == self.epoch
        fresh, again = welcome.fresh or not given_up, self.session != 0
        self.epoch = welcome.epoch
        if fresh:
            self.stream.reset()
        super().hear(welcome)
        for message in self.stream.again(welcome.heard):
            self.say(m.decode(m.encode(message)))
        if fresh and again:
            self.forgotten(given_up)
        if again and self.role == m.PRODUCER:
            self.say(m.Restated())

    def on_welcome(self, again: bool) -> None:
        """There is nothing to do."""

    def forgotten(self, given_up: bool) -> None:
        """The broker knows nothing of it; ``given_up``: it did once."""
        self.asked.clear()
        if given_up:
            self.launched.clear()
        for number in self.launched:
            self.tell(m.Launch(number, name="p", frames=(b"",)))

    def beat(self) -> None:
        """A sign of life, and how far the broker was heard."""
        super().beat()
        if self.ready and self.stream.due(now=True):
            self.say(m.Heard(self.stream.heard))

    # -- what it does --------------------------------------------------------------------------------

    def ask(self, draw: Any) -> None:
        """Ask something."""
        self._numbers += 1
        act = self.asked[self._numbers] = any_act(draw, self._numbers)
        self.tell(act)

    def withdraw(self, number: int) -> None:
        """It is not wanted any more."""
        self.tell(m.Act(0, b"", m.WITHDRAW, number))

    def launch(self) -> None:
        """Start a process."""
        self._numbers += 1
        launch = self.launched[self._numbers] = m.Launch(self._numbers, name="p", frames=(b"payload",))
        self.tell(launch)

    # -- what it hears -------------------------------------------------------------------------------

    def on_acted(self, acted: m.Acted) -> None:
        """An answer, one to each request."""
        assert acted.number in self.asked, f"{self.name} has asked no such thing, or was answered: {acted}"
        del self.asked[acted.number]

    def on_launched(self, launched: m.Launched) -> None:
        """A process runs."""

    def on_exited(self, exited: m.Exited) -> None:
        """A process has ended, once."""
        assert exited.process in self.launched, f"{self.name} knows of no such process: {exited}"
        del self.launched[exited.process]


class Inner(Sharer):
    """A child of a worker that is a producer: what it says goes through its worker."""

    def __init__(self, host: Host, child: int, root: int) -> None:
        super().__init__(host.stage, f"{host.name}/{child}")
        self.host = host
        self.child = child
        self.root = root
        self.usable = True
        self._through(m.Hello(m.PRODUCER, m.PROTOCOL_VERSION, "3.11", 5, self.name, client=self.client))

    def _through(self, message: m.Message) -> None:
        self.host.tell(m.Via(self.child, self.root, frames=[bytes(each) for each in m.encode(message)]))

    def tell(self, message: m.Message) -> None:
        if self.usable and self.welcomed:
            self._through(message)

    def ask(self, draw: Any) -> None:
        if self.usable and self.welcomed:
            super().ask(draw)

    def hear(self, message: m.Message) -> None:
        if type(message) is m.Refused:
            self.usable = False
            self.asked.clear()
        elif self.usable:
            self.welcomed = self.welcomed or type(message) is m.Welcome
            if type(message) in STREAMED:
                Client.hear(self, message)


class Host(Sharer):
    """An honest worker that runs processes, some of which are producers."""

    slots = 2

    def __init__(self, stage: Stage, name: str) -> None:
        super().__init__(stage, name, m.WORKER)
        self.running: set[int] = set()
        self.inner: dict[int, Inner] = {}
        self._children = 0

    def forgotten(self, given_up: bool) -> None:
        for inner in self.inner.values():
            inner.usable = False
        self.inner.clear()
        for process in sorted(self.running):
            self.tell(m.Launched(process, self.name, 1))

    def on_welcome(self, again: bool) -> None:
        self.say(m.Held((b"", b"")))

    def on_launch(self, launch: m.Launch) -> None:
        """A process begins, if it does not run."""
        self.running.add(launch.process)
        self.tell(m.Launched(launch.process, self.name, 1))

    def on_signal(self, signal: m.Signal) -> None:
        """A process is killed."""
        self.end(signal.process, -(signal.signal or 9))

    def on_via(self, via: m.Via) -> None:
        """Something for a child."""
        if via.child in self.inner:
            self.inner[via.child].hear(m.decode(via.frames))

    def on_closepool(self, close: m.ClosePool) -> None:
        """It has no children of any."""
        self.say(m.PoolClosed(close.pool))

    def begin(self, process: int) -> None:
        """A process turns out to be a producer."""
        self._children += 1
        self.inner[self._children] = Inner(self, self._children, process)

    def end(self, process: int, exitcode: int = 0) -> None:
        """A process ends."""
        if process not in self.running:
            return
        for child, inner in list(self.inner.items()):
            if inner.root == process:
                del self.inner[child]
                inner.usable = False
                bye = m.Bye(m.DIED if exitcode < 0 else "ended")
                self.tell(m.Via(child, process, frames=[bytes(each) for each in m.encode(bye)]))
        self.running.discard(process)
        self.tell(m.Exited(process, self.name, exitcode))
