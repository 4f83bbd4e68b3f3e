"""Children that exist only as the items they were given: what a host's real children do, in virtual time.

The agent core's actions go in (:meth:`VirtualChildren.do`), its events come out (:meth:`~VirtualChildren.emit`).
As the real ones do, a child claims some half a millisecond of items before it begins them, so that what it has
not claimed can be taken back from it at once; it sends results now and then; and when it dies, what it had
done and not sent is lost.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from math import fsum
from typing import Any

from multihost_worker import events as e
from multihost_worker.child import CLAIM, GROUP, SHORT
from multihost_worker.outbox import FLUSH, SLOW, SOON
from multihost_worker.prompter import INTERVAL

from .processes import VirtualChild, VirtualRun


class VirtualChildren:
    """All children of one host. A subclass tells what time it is, what items cost, and whom they kill."""

    #: Seconds from StartChild to ChildReady, and from a kill to the end.
    start_seconds = 0.01
    kill_seconds = 0.001

    def __init__(self) -> None:
        self.children: dict[int, VirtualChild] = {}
        self.alive = True
        self.started = 0
        self.most_running = 0

    # -- of the subclass -----------------------------------------------------------------------------

    def time(self) -> float:
        """Virtual time."""
        raise NotImplementedError

    def clock(self) -> float:
        """What this host's clock says."""
        return self.time()

    def later(self, delay: float, call: Callable[[], None]) -> None:
        """Call after so many seconds."""
        raise NotImplementedError

    def emit(self, child: VirtualChild, event: e.Event) -> None:
        """The child's event is on its way to the core."""
        raise NotImplementedError

    def seconds(self, run: VirtualRun, item: int) -> float:
        """What the item takes."""
        raise NotImplementedError

    def kills(self, run: VirtualRun, item: int) -> bool:
        """Does the item, begun now, end its child?"""
        raise NotImplementedError

    def begins(self, run: VirtualRun, item: int) -> None:
        """The item begins."""

    def ended(self, run: VirtualRun, items: Sequence[int]) -> None:
        """The items have run to their end."""

    def died(self, child: VirtualChild, suspects: list[tuple[VirtualRun, int]]) -> None:
        """The child has ended, and not in its own time; what ran then."""

    def unheard(self, run: e.Run) -> None:
        """The run was given to a child that had died, which the core did not know."""

    def values(self, run: e.Run) -> Sequence[Any]:
        """What the items of the run are; empty: nobody looks."""
        return ()

    def answer(self, run: VirtualRun, items: list[int]) -> list[Any]:
        """Frames of the results of these items."""
        raise NotImplementedError

    # -- actions -------------------------------------------------------------------------------------

    def do(self, action: Any, events: deque[e.Event]) -> None:
        """Carry out an action; what is answered at once is put into ``events``."""
        kind = type(action)
        if kind is e.StartChild:
            self.started += 1
            child = self.children[action.child] = VirtualChild(action.child, 1000 + action.child)
            self.later(self.start_seconds, lambda: self._ready(child))
        elif action.child in self.children:
            self._do(self.children[action.child], kind, action, events)
        elif kind is e.Run:
            self.unheard(action)

    def _do(self, child: VirtualChild, kind: type, action: Any, events: deque[e.Event]) -> None:
        if kind is e.Run:
            self._run(child, action)
        elif kind is e.Define:
            child.defined.add(action.job)
            if action.at_most_once:
                child.once.add(action.job)
            if action.timeout:
                child.timed.add(action.job)
        elif kind is e.Forget:
            child.defined.discard(action.job)
        elif kind is e.Reclaim:
            events.append(e.Reclaimed(child.number, self._reclaim(child)))
        elif kind is e.Inspect:
            events.append(self._progress(child))
        elif kind is e.StopChild:
            child.stopping = True
            if not child.runs:
                self.later(self.kill_seconds, lambda: self._die(child, 0))
        elif kind is e.KillChild:
            child.killed = True
            self.later(self.kill_seconds, lambda: self._die(child, 9))

    def _ready(self, child: VirtualChild) -> None:
        if child.number in self.children and not child.stopping:
            child.ready = True
            self.emit(child, e.ChildReady(child.number, child.pid))

    # -- running -------------------------------------------------------------------------------------

    def _run(self, child: VirtualChild, run: e.Run) -> None:
        assert run.position >= child.given, "positions go up"
        assert run.job in child.defined, "the function was told before"
        base = run.start - run.skip
        chunks = -(-(run.skip + run.count) // run.chunksize)
        assert len(run.frames[0]) == 4 * chunks, "the frames hold the chunks of the items"
        child.given = run.position + run.count
        child.runs.append(
            VirtualRun(
                run.position, run.job, run.start, run.start, run.start + run.count, base, run.chunksize,
                run.job in child.once, run.job in child.timed, self.values(run),
            )
        )  # fmt: skip
        if len(child.runs) == 1:
            child.sent = self.time()
            self._claim(child)

    def _claim(self, child: VirtualChild) -> None:
        """Begin the next few items: whole chunks, about half a millisecond of them."""
        run, now = child.runs[0], self.time()
        child.generation += 1
        generation = child.generation
        child.claim, child.begun, child.clock = [], now, self.clock()
        busy = [each for each in self.children.values() if each.runs and not each.killed]
        self.most_running = max(self.most_running, len(busy))
        at, item = 0.0, run.item
        while item < run.stop:
            at += self.seconds(run, item)
            child.claim.append((item, now + at))
            self.begins(run, item)
            if self.kills(run, item):
                self.later(at, partial(self._killed, child, generation, item))
                return
            item += 1
            whole = (item - run.base) % run.chunksize == 0
            if run.single or (whole and at >= CLAIM):
                break
        if at > 2 * INTERVAL:
            self.later(2 * INTERVAL, lambda: self._prompted(child, generation))
        self.later(at, lambda: self._claim_done(child, generation))

    def _prompted(self, child: VirtualChild, generation: int) -> None:
        """What it runs takes long: what was done before is sent."""
        if not self.alive or child.generation != generation or child.number not in self.children:
            return
        now = self.time()
        while child.claim and child.claim[0][1] <= now:
            item, end = child.claim.pop(0)
            self._ran(child, [item])
            child.done.append((item, end))
            child.clock += end - child.begun
            child.begun = end
        if child.done:
            self._flush(child, child.runs[0])

    def _killed(self, child: VirtualChild, generation: int, killer: int) -> None:
        if child.generation == generation and child.number in self.children:
            self._ran(child, [item for item, _ in child.claim if item != killer])
            self._die(child, 9, killer)

    def _ran(self, child: VirtualChild, items: Sequence[int]) -> None:
        child.ran += items
        self.ended(child.runs[0], items)

    def _claim_done(self, child: VirtualChild, generation: int) -> None:
        if not self.alive or child.generation != generation or child.number not in self.children:
            return
        run = child.runs[0]
        self._ran(child, [item for item, _ in child.claim])
        child.done += child.claim
        took = self.time() - child.begun
        each = took / len(child.claim)
        child.claim = []
        run.item = child.done[-1][0] + 1
        late = self.time() - child.sent >= FLUSH and each * (run.stop - run.item) >= SOON
        if run.item >= run.stop or run.single or took >= SLOW or late:
            self._flush(child, run)
        if child.number not in self.children or not self.alive:
            return
        if run.item >= run.stop:
            child.runs.pop(0)
        if child.runs:
            self._claim(child)
        elif child.stopping:
            self._die(child, 0)

    def _flush(self, child: VirtualChild, run: VirtualRun) -> None:
        items = [item for item, _ in child.done]
        child.done.clear()
        child.sent = self.time()
        # Not sum(): it rounds in another way from Python 3.12 on.
        spent = int(fsum(self.seconds(run, item) for item in items) * 1e6)
        frames = self.answer(run, items)
        self.emit(child, e.ChildResult(child.number, run.job, items[0], len(items), spent, 0, frames))

    def _reclaim(self, child: VirtualChild) -> int:
        if not child.runs:
            return child.given
        run = child.runs[0]
        run.stop = child.claim[-1][0] + 1 if child.claim else run.item
        del child.runs[1:]
        return run.position + run.stop - run.first

    def _progress(self, child: VirtualChild) -> e.Progress:
        position, since, covers = self._running(child)
        return e.Progress(child.number, position, since, covers)

    def _running(self, child: VirtualChild) -> tuple[int, float, int]:
        """(position, since, covers) of the item that runs, or of the group of short ones."""
        now, at = self.time(), child.begun
        for item, end in child.claim:
            if now < end or item == child.claim[-1][0]:
                run = child.runs[0]
                since = child.clock + at - child.begun
                if end - at >= SHORT or run.single or run.timed or len(child.claim) == 1:
                    return run.position + item - run.first, since, 1
                first, last = child.claim[0][0], child.claim[-1][0]
                group = first + (item - first) // GROUP * GROUP
                return run.position + group - run.first, since, min(GROUP, last + 1 - group)
            at = end
        return -1, self.clock(), 1

    # -- ending --------------------------------------------------------------------------------------

    def _die(self, child: VirtualChild, signal: int, item: int | None = None) -> None:
        """The child is killed, or ends (0)."""
        self._end(child, signal, 0, item)

    def exits(self, child: VirtualChild, exitcode: int) -> None:
        """The child exits."""
        self._end(child, 0, exitcode, None)

    def _end(self, child: VirtualChild, signal: int, exitcode: int, item: int | None) -> None:
        """The child ends; what it had finished and not sent is lost with it."""
        if not self.alive or self.children.pop(child.number, None) is None:
            return
        position, covers = -1, 1
        if child.runs:
            position, _, covers = self._running(child)
            run = child.runs[0]
            if item is not None and covers == 1:
                position = run.position + item - run.first
        if signal or exitcode:
            self.died(child, self._suspects(child, position, covers))
        text = f"killed by signal {signal}" if signal else "it exited"
        self.emit(
            child,
            e.ChildDied(child.number, position, child.pid, exitcode, signal, 1 << 20, False, text, covers),
        )

    def _suspects(self, child: VirtualChild, position: int, covers: int) -> list[tuple[VirtualRun, int]]:
        """What may be blamed: what was running, or, where nothing was noted, anything it had."""
        found = []
        for run in child.runs:
            for item in range(run.first, run.stop):
                at = run.position + item - run.first
                if position < 0 or position <= at < position + covers:
                    found.append((run, item))
        return found
