"""Getting items of a queue: some early while they are used fast, and back with them when another process waits."""

from __future__ import annotations

import threading
import time
from collections import deque
from queue import Empty
from typing import TYPE_CHECKING

from multihost.queues.base import Base
from multihost.queues.items import Piece, ShutDown, split
from multihost_common import messages as m
from multihost_common.shared import Queues

if TYPE_CHECKING:
    from multihost.engines.sharing import Ask

#: Items got at once are about as many as are used within so many seconds, and at most MOST.
AHEAD = 0.005
MOST = 1024

#: An item that is used within so many seconds is used fast. After so many of them some are got at once.
FAST = 0.001
SIGNS = 8

#: Seconds between two reports of what is taken while items are used fast.
REPORT = 0.002

#: Seconds that a reporter waits for something to do before it ends.
IDLE = 0.5


class Getting(Base):
    """What one process has got of one queue. Several threads that wait for an item share one request."""

    def reset(self) -> None:
        """Begin anew."""
        super().reset()
        self.items: deque[Piece] = deque()
        #: The number after that of the last item in ``items``; all below ``_told`` are known to be taken.
        self._end = 0
        self._told = 0
        #: Who takes an item has to say so: the reporter does not.
        self.quiet = True
        self._asking = threading.Lock()
        self._ask: Ask | None = None
        self._waiting = 0
        self._listen: Ask | None = None
        self._pace = Pace()

    def _show(self) -> None:
        """Send what this process has put, so that it is there when it asks for an item."""

    def get(self, block: bool, timeout: float | None) -> Piece:
        """The next item, asked for if there is none. Raises Empty, ShutDown, BrokerLostError."""
        deadline = None if timeout is None else time.monotonic() + max(0.0, timeout)
        if timeout is not None and timeout <= 0:
            block = False
        if not block:
            self._show()
        while True:
            with self._asking:
                if self.items:
                    piece = self._pop()
                    if piece is not None:
                        return piece
                ask = self._ask
                if ask is None:
                    ask = self._ask = self._begin_get(now=not block)
                elif not block and not ask.done:
                    # Another thread waits, so there is none.
                    raise Empty
                self._waiting += 1
            self._wait(ask, block, deadline)

    def _pop(self) -> Piece | None:
        try:
            piece = self.items.popleft()
        except IndexError:
            # Another thread was faster.
            return None
        if self.quiet:
            self.stir()
        return piece

    def _wait(self, ask: Ask, block: bool, deadline: float | None) -> None:
        """Wait for this answer, of which :meth:`get` then finds the items. Raises what there is to raise."""
        try:
            left = None if deadline is None or not block else max(0.0, deadline - time.monotonic())
            if self.sharing.wait(ask, left):
                # Who runs the loop may be about to do so.
                self._arrived(ask)
        finally:
            self._leave(ask)
        answer = ask.result() if ask.done else None
        if self.items:
            return
        if answer is not None and not answer.frames:
            raise ShutDown
        if not block or (deadline is not None and time.monotonic() >= deadline):
            raise Empty

    def _leave(self, ask: Ask) -> None:
        """This thread does not wait any more; the last one takes the request back."""
        with self._asking:
            self._waiting -= 1
            if not ask.done and not self._waiting:
                self.sharing.withdraw(ask)
                self.sharing.wait(ask)
            if self._ask is ask and (ask.done or not self._waiting):
                self._ask = None

    def _begin_get(self, now: bool) -> Ask:
        window = self._pace.window()
        if window > 1 and self._listen is None:
            self._listen = self.sharing.begin(self.name, Queues.LISTEN, then=self._recalled)
        amount = self._taken() << Queues.WINDOW_BITS | window
        return self.sharing.begin(self.name, Queues.GET, amount, now=now, then=self._arrived)

    def _taken(self) -> int:
        """The number of the first item that is not with its user; it is about to be told."""
        with self._lock:
            self._told = self._end - len(self.items)
            return self._told

    def _arrived(self, ask: Ask) -> None:
        if ask.status == m.GRANTED and ask.error is None and ask.frames:
            pieces = split(ask.frames)
            with self._lock:
                if ask.seen:
                    return
                ask.seen = True
                self.items.extend(pieces)
                self._end = ask.amount + len(pieces)
            self._pace.arrived(len(pieces))
            if len(pieces) > 1 or self._pace.fast():
                self._watch()

    def _recalled(self, ask: Ask) -> None:
        """Another process waits for what is here early."""
        self._listen = None
        if ask.status == m.GRANTED and ask.error is None:
            self.give_back()

    def give_back(self) -> None:
        """Whatever was got early goes back."""
        with self._lock:
            count = 0
            while self.items:
                try:
                    self.items.pop()
                except IndexError:
                    break
                count += 1
            self._end -= count
            first = self._end
        self._pace.rest()
        if count:
            self.sharing.say(self.name, Queues.GIVE_BACK, first << Queues.WINDOW_BITS | count)

    def stir(self) -> None:
        """An item was taken, and nobody would report it soon."""
        self.report()
        if self.items:
            self._watch()

    def _watch(self) -> None:
        """Have the reporter say what is taken."""
        self.quiet = False
        _reporter.watch(self)
        # Whoever hears of anything this process does with an item finds it taken.
        self.sharing.before = _reporter.report

    def report(self) -> bool:
        """Say what was taken, if that is not known. False: it is."""
        # Held until it is said: the reporter may have just begun to, and this process may be about to end.
        with self._lock:
            taken = self._end - len(self.items)
            if taken == self._told:
                return False
            self._told = taken
            if self._sharing is not None:
                self._sharing.say(self.name, Queues.TAKEN, taken)
        return True


class Pace:
    """How many items to get at once: as many as their users make use of within a moment."""

    def __init__(self) -> None:
        self._window = 1
        self._fast = 0
        self._got = 0
        self._got_at = 0.0

    def arrived(self, count: int) -> None:
        """So many have come."""
        self._got = count
        self._got_at = time.monotonic()

    def rest(self) -> None:
        """Others want some, too."""
        self._window = 1
        self._got = 0

    def fast(self) -> bool:
        """Are items used so fast that nobody says so each time?"""
        return self._fast >= SIGNS

    def window(self) -> int:
        """All that had come are used: how many to ask for now."""
        got, self._got = self._got, 0
        if got:
            spent = max(1e-6, time.monotonic() - self._got_at)
            self._fast = self._fast + 1 if spent < FAST * got else 0
            if self._fast < SIGNS:
                self._window = 1
            else:
                self._window = max(1, min(2 * self._window, int(AHEAD * got / spent), MOST))
        return self._window


class Reporter:
    """A thread that says what lines have taken, while they are too fast to say it each time."""

    def __init__(self) -> None:
        self._lines: set[Getting] = set()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._news = threading.Event()

    def watch(self, line: Getting) -> None:
        """Report what this line takes until it takes nothing for a while."""
        self._lines.add(line)
        if self._thread is None:
            with self._lock:
                if self._thread is None:
                    self._thread = threading.Thread(target=self._run, name="multihost-taken", daemon=True)
                    self._thread.start()
        self._news.set()

    def report(self) -> None:
        """Say what was taken so far."""
        for line in list(self._lines):
            line.report()

    def _run(self) -> None:
        while True:
            while self._lines:
                time.sleep(REPORT)
                for line in list(self._lines):
                    if not line.report():
                        self._lines.discard(line)
                        line.quiet = True
                        # It may have taken one just before it could see that.
                        line.report()
            idle = not self._news.wait(IDLE)
            self._news.clear()
            if idle and self._ends():
                return

    def _ends(self) -> bool:
        with self._lock:
            if not self._lines:
                self._thread = None
        return self._thread is None


def forked() -> None:
    """This process was forked: no thread reports."""
    global _reporter
    _reporter = Reporter()


_reporter = Reporter()

__all__ = ["Getting", "forked"]
