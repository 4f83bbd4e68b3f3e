"""This process's way to the shared objects of its broker: ask something of one, and wait for the answer.

    sharing = get_sharing()
    name = sharing.make(QUEUE, amount=3)
    ask = sharing.ask(name, queue.GET, timeout=2.0)         # waits; None: not within two seconds

What is asked is answered once, whatever happens. A request that waits too long is withdrawn, and it may have been
answered just then: that answer counts.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from multihost.engines.base import Completion
from multihost_common import messages as m
from multihost_common.errors import BrokerLostError

if TYPE_CHECKING:
    from multihost.engines.loop import Loop
    from multihost_common.blocks import Frame

#: Why an object is not known: usually, and in a fork that has no broker.
UNKNOWN = "this object is no more: the process that made it has ended, or its broker was started anew"
FORKED = (
    "this object is of another process: without a broker one made by os.fork() cannot use those of its parent; "
    "start it as a multihost.Process"
)


class Ask(Completion):
    """A request, and once it is ``done`` its answer. ``then`` is called when it is, by who runs the loop: it must
    not wait, and not ask anything."""

    __slots__ = ("amount", "era", "error", "frames", "number", "seen", "status", "text", "then")

    makes_calls = False

    def __init__(self, number: int, then: Callable[[Ask], None] | None = None) -> None:
        super().__init__()
        self.number = number
        self.status = m.GRANTED
        self.amount = 0
        self.text = ""
        self.frames: Sequence[Frame] = ()
        #: Why there will be no answer.
        self.error: BaseException | None = None
        self.then = then
        #: Of :attr:`Sharing.era`, when it was sent.
        self.era = 0
        #: Its answer was made use of: who waits for it and ``then`` may both be about to.
        self.seen = False

    def result(self) -> Ask | None:
        """The request, if it was done; None: it would have had to wait, or was withdrawn.

        Raises BrokerLostError if the object is no more, ValueError for what is not allowed."""
        if self.error is not None:
            raise self.error
        if self.status == m.FORBIDDEN:
            raise ValueError(self.text)
        if self.status == m.UNKNOWN:
            raise BrokerLostError(self.text)
        return self if self.status == m.GRANTED else None


class Sharing:
    """The requests of one engine that have no answer yet."""

    def __init__(self, engine: Loop) -> None:
        self._engine = engine
        self._asked: dict[int, Ask] = {}
        #: How often a broker has forgotten this process.
        self.era = 0
        self._numbers = 0
        #: Requests whose answers somebody waits for outside of the loop, in a selector: it has to go on meanwhile.
        self.attended = 0
        self._lock = threading.Lock()
        #: What others may open as long as this engine goes on.
        self.given: set[object] = set()
        #: Why an object is not known.
        self.unknown = UNKNOWN
        #: Called before anything is said, for what has to be known by then.
        self.before: Callable[[], None] | None = None

    @property
    def connected(self) -> bool:
        """Is there a broker to be heard of?"""
        session = getattr(self._engine, "_session", None)
        return self._engine.usable and (session is None or bool(session.up))

    @property
    def usable(self) -> bool:
        """Nothing has ended its engine yet."""
        return self._engine.usable

    def check(self) -> None:
        """Raises what has ended its engine."""
        self._engine._check_alive()

    # -- for everybody -----------------------------------------------------------------------------

    def make(self, kind: int, amount: int = 0, frames: Sequence[Frame] = ()) -> bytes:
        """A new object; its name. Raises ValueError for what makes no object of this kind."""
        name = os.urandom(m.OBJECT)
        first = amount.to_bytes(8, "little")
        self.ask(name, m.MAKE, kind, (first, *frames))
        return name

    def ask(
        self,
        name: bytes,
        op: int,
        amount: int = 0,
        frames: Sequence[Frame] = (),
        *,
        now: bool = False,
        timeout: float | None = None,
    ) -> Ask | None:
        """Ask and wait; the answered request. None: it was not done within ``timeout`` seconds, or at once (``now``).

        Raises BrokerLostError, ValueError: see :meth:`Ask.result`.
        """
        if timeout is not None and timeout <= 0:
            now = True
        ask = self.begin(name, op, amount, frames, now=now, kick=False)
        return self.finish(ask, None if now else timeout)

    def begin(
        self,
        name: bytes,
        op: int,
        amount: int = 0,
        frames: Sequence[Frame] = (),
        *,
        now: bool = False,
        then: Callable[[Ask], None] | None = None,
        kick: bool = True,
    ) -> Ask:
        """Ask, and do not wait. ``kick`` False: the caller waits for it next."""
        self._engine._check_alive()
        if self.before is not None:
            self.before()
        with self._lock:
            self._numbers += 1
            ask = Ask(self._numbers, then)
        act = m.Act(ask.number, name, op, amount, now, frames=frames)

        def send() -> None:
            failure = self._engine._failure
            if failure is not None:
                self._end(ask, failure)
                return
            ask.era = self.era
            self._asked[ask.number] = ask
            self._engine._send(act)

        self._engine._do(send, kick)
        return ask

    def finish(
        self, ask: Ask, timeout: float | None = None, undo: Callable[[Ask], None] | None = None
    ) -> Ask | None:
        """Wait for the answer; after ``timeout`` seconds the request is withdrawn.

        Where the wait is broken off, by Ctrl-C say, it is withdrawn, too; ``undo`` is called if it was done
        nevertheless. It may be called by who runs the loop, as ``then``."""
        engine = self._engine
        try:
            if not engine.wait(ask, timeout) and engine.usable:
                self.withdraw(ask)
                engine.wait(ask)
        except BaseException:
            # Ctrl-C, say: nobody waits for it any more.
            if undo is not None:
                self.undo(ask, undo)
            self.withdraw(ask)
            raise
        if not ask.done:
            engine._check_alive()
        return ask.result()

    @staticmethod
    def undo(ask: Ask, undo: Callable[[Ask], None]) -> None:
        """Have ``undo`` called if the request is done, or was."""
        once = [undo]

        def then(ask: Ask) -> None:
            # Both threads may come here when it is done just now; pop() is atomic.
            with suppress(IndexError):
                call = once.pop()
                if ask.error is None and ask.status == m.GRANTED:
                    call(ask)

        ask.then = then
        if ask.done:
            then(ask)

    def withdraw(self, ask: Ask) -> None:
        """The answer is not wanted any more; one comes nevertheless."""
        self.tell(b"", m.WITHDRAW, ask.number)

    def tell(self, name: bytes, op: int, amount: int = 0, frames: Sequence[Frame] = ()) -> None:
        """Say something that is not answered. It neither waits nor raises."""
        if self.before is not None:
            self.before()
        self.say(name, op, amount, frames)

    def say(self, name: bytes, op: int, amount: int = 0, frames: Sequence[Frame] = ()) -> None:
        """The same for what :attr:`before` says itself."""
        act = m.Act(0, name, op, amount, False, frames=frames)
        if self._engine.usable:
            self._engine._do(lambda: self._engine._send(act), kick=False)

    def tell_later(self, name: bytes, op: int, amount: int = 0) -> None:
        """The same from wherever the garbage collector may call: it leaves the sending to who runs the loop, since
        this thread may be sending something just now."""
        act = m.Act(0, name, op, amount)
        self.later(lambda: self._engine._send(act))

    def later(self, call: Callable[[], None]) -> None:
        """Have this done by who runs the loop, if it goes on; it must not wait. From wherever the garbage collector may
        call."""
        engine = self._engine
        if engine.usable:
            engine._inbox.append(call)
            engine._kick()

    def wait(self, ask: Completion, timeout: float | None = None) -> bool:
        """Wait until it is done. False: it was not within ``timeout`` seconds."""
        return self._engine.wait(ask, timeout)

    # -- for who runs the loop ---------------------------------------------------------------------

    def take(self, acted: m.Acted) -> None:
        """An answer has come."""
        ask = self._asked.pop(acted.number, None)
        if ask is not None:
            ask.status, ask.amount, ask.text, ask.frames = (
                acted.status,
                acted.amount,
                acted.text if acted.status != m.UNKNOWN else self.unknown,
                acted.frames,
            )
            self._end(ask, None)

    def fail(self, error: BaseException) -> None:
        """No answer will come any more, and what this process held is not its own any more."""
        self.era += 1
        asked, self._asked = self._asked, {}
        for ask in asked.values():
            self._end(ask, error)

    def _end(self, ask: Ask, error: BaseException | None) -> None:
        ask.error = error
        ask.done = True
        if ask.then is not None:
            ask.then(ask)


__all__ = ["Ask", "Sharing"]
