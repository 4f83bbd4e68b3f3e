"""The agent's children and the pools they belong to."""

from __future__ import annotations

from collections import deque

from multihost_common.messages import OpenPool
from multihost_worker.work import Given, Work, WorkQueue

STARTING, READY, STOPPING = "starting", "ready", "stopping"

#: So many children in a row that end before they are ready mean that none ever will be.
MAX_FAILED_STARTS = 3

#: A child has at most so many runs: the one it works on and the next.
RUNS = 2


class Child:
    """One child process as the core knows it. After a change its pool's ``update`` is called."""

    __slots__ = (
        "alone", "check_at", "claimed", "defined", "given", "items", "killed_for", "late", "live", "number", "pid", "pool",
        "position", "reclaiming", "state", "suspect", "tasks",
    )  # fmt: skip

    def __init__(self, number: int, pool: ChildPool) -> None:
        self.number = number
        self.pool = pool
        self.pid = 0
        self.state = STARTING
        #: It takes up one of the pool's slots.
        self.live = False
        #: What it was given and has not answered, in order; items in all of it.
        self.given: deque[Given] = deque()
        self.items = 0
        #: Position of the next item it will be given.
        self.position = 0
        #: Chunks it was given in its life.
        self.tasks = 0
        #: Jobs whose function it has.
        self.defined: set[int] = set()
        #: It runs a suspect: nothing else is given to it meanwhile.
        self.alone = False
        #: Why the agent has killed it, once it has.
        self.killed_for = ""
        #: Positions of what ran for too long, if it was killed for that.
        self.late = range(0)
        #: When to look whether its item has been running for too long.
        self.check_at: float | None = None
        #: It is being asked for what it has not begun; it has begun all that it has.
        self.reclaiming = False
        self.claimed = False
        #: Items were cancelled while it had them: kill it if it runs one of them.
        self.suspect = False

    def unbegun(self) -> int:
        """Items that it may not have begun."""
        return 0 if self.claimed else self.items

    def find(self, position: int) -> Given | None:
        """What lies at this position, if it has not been answered."""
        for given in self.given:
            if given.position <= position < given.position + len(given.work.span):
                return given
        return None

    def find_first(self, position: int, count: int) -> Given | None:
        """The first that lies at one of ``count`` positions."""
        for each in range(position, position + count):
            given = self.find(each)
            if given is not None:
                return given
        return None

    def give(self, work: Work) -> int:
        """It is given this; answers the position of the first item."""
        position = self.position
        count = len(work.span)
        self.given.append(Given(position, work))
        self.items += count
        self.position += count
        self.tasks += -(-count // work.span.block.chunksize)
        self.claimed = False
        return position

    def answered(self, job: int, start: int, count: int) -> Work | None:
        """Take out what it has answered; the work it belonged to, or None if it was never given."""
        stop = start + count
        for index, given in enumerate(self.given):
            span = given.work.span
            if given.work.job != job or start < span.start or span.stop < stop:
                continue
            del self.given[index]
            if stop < span.stop:
                rest = Given(given.position + stop - span.start, given.work.part(stop, span.stop))
                self.given.insert(index, rest)
            if span.start < start:
                self.given.insert(index, Given(given.position, given.work.part(span.start, start)))
            self.items -= count
            return given.work
        return None

    def cut_off(self, position: int) -> list[Work]:
        """Take out all that lies from ``position`` on, last first."""
        back: list[Work] = []
        while self.given:
            given = self.given[-1]
            span = given.work.span
            if given.position + len(span) <= position:
                break
            self.given.pop()
            keep = max(0, position - given.position)
            self.items -= len(span) - keep
            if keep:
                self.given.append(Given(given.position, given.work.part(span.start, span.start + keep)))
                back.append(given.work.part(span.start + keep, span.stop))
            else:
                back.append(given.work)
        return back

    def clear(self) -> None:
        """What it has is nobody's business any more."""
        self.given.clear()
        self.items = 0


class ChildPool:
    """One pool on this host."""

    __slots__ = (
        "broken", "busy", "children", "closing", "failed_starts", "granted", "idle", "live", "number", "opened",
        "owed", "queue", "starting",
    )  # fmt: skip

    def __init__(self, opened: OpenPool) -> None:
        self.number = opened.pool
        self.opened = opened
        #: How many children it may have.
        self.granted = 0
        self.children: dict[int, Child] = {}
        #: Children that have nothing to do, and those that can take one more run.
        self.idle: dict[int, Child] = {}
        self.busy: dict[int, Child] = {}
        #: Children that take up a slot, and those of them that are not ready yet.
        self.live = 0
        self.starting = 0
        self.queue = WorkQueue()
        self.closing = False
        #: Why it can have no children, once one has failed to begin.
        self.broken = ""
        self.failed_starts = 0
        #: Items the broker wants back once they are reclaimed.
        self.owed = 0

    def enter(self, child: Child) -> None:
        """A child is being started."""
        self.children[child.number] = child
        self.starting += 1
        self.update(child)

    def leave(self, child: Child) -> None:
        """The child has ended."""
        if self.children.pop(child.number, None) is None:
            return
        self.set_state(child, STOPPING)
        child.clear()
        self.update(child)

    def set_state(self, child: Child, state: str) -> None:
        """The child's state changes."""
        self.starting += (state is STARTING) - (child.state is STARTING)
        child.state = state
        self.update(child)

    def update(self, child: Child) -> None:
        """Book anew what the child can take, and whether it takes up a slot."""
        number, runs = child.number, len(child.given)
        live = not child.killed_for and (runs > 0 or child.state is not STOPPING)
        if live is not child.live:
            child.live = live
            self.live += 1 if live else -1
        able = live and child.state is READY and not (child.alone or child.reclaiming)
        if able and runs == 0:
            self.idle[number] = child
        else:
            self.idle.pop(number, None)
        if able and 0 < runs < RUNS:
            self.busy[number] = child
        else:
            self.busy.pop(number, None)

    def waiting(self) -> int:
        """How many children more than there are could do something now."""
        # An idle child that has run something is of no use to what must run in a fresh one.
        waiting = len(self.queue.alone) - self.starting
        if self.queue:
            waiting += -(-self.queue.items // self.queue.head().span.block.chunksize) - len(self.idle)
        return waiting

    def done(self) -> bool:
        """It is closing and has no work left."""
        return self.closing and not self.queue and not self.queue.alone
