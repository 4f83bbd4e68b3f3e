"""The agent's children and the pools they belong to."""

from __future__ import annotations

from collections import deque

from multihost_common.messages import OpenPool
from multihost_worker.work import Given, Work, WorkQueue

STARTING, READY, STOPPING = "starting", "ready", "stopping"

#: So many children in a row that end before they are ready mean that none ever will be.
MAX_FAILED_STARTS = 3


class Child:
    """One child process as the core knows it."""

    __slots__ = (
        "alone", "check_at", "defined", "given", "killed_for", "number", "pid", "pool", "position", "reclaiming",
        "state", "suspect", "tasks",
    )  # fmt: skip

    def __init__(self, number: int, pool: ChildPool) -> None:
        self.number = number
        self.pool = pool
        self.pid = 0
        self.state = STARTING
        #: What it was given and has not answered, in order.
        self.given: deque[Given] = deque()
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
        #: When to look whether its item has been running for too long.
        self.check_at: float | None = None
        self.reclaiming = False
        #: Items were cancelled while it had them: kill it if it runs one of them.
        self.suspect = False

    def items(self) -> int:
        """How many items it has."""
        return sum(len(given.work.span) for given in self.given)

    def find(self, position: int) -> Given | None:
        """What lies at this position, if it has not been answered."""
        for given in self.given:
            if given.position <= position < given.position + len(given.work.span):
                return given
        return None

    def answered(self, job: int, start: int, count: int) -> Work | None:
        """Take out what it has answered; the work it belonged to, or None if it was never given."""
        for index, given in enumerate(self.given):
            span = given.work.span
            if given.work.job == job and span.start <= start and start + count <= span.stop:
                rest = given.work.part(start + count, span.stop) if start + count < span.stop else None
                before = given.work.part(span.start, start) if span.start < start else None
                del self.given[index]
                if rest is not None:
                    self.given.insert(index, Given(given.position + start + count - span.start, rest))
                if before is not None:
                    self.given.insert(index, Given(given.position, before))
                return given.work
        return None

    def cut_off(self, position: int) -> list[Work]:
        """Take out all that lies from ``position`` on."""
        back: list[Work] = []
        while self.given:
            given = self.given[-1]
            span = given.work.span
            end = given.position + len(span)
            if end <= position:
                break
            self.given.pop()
            keep = max(0, position - given.position)
            if keep:
                self.given.append(Given(given.position, given.work.part(span.start, span.start + keep)))
                back.append(given.work.part(span.start + keep, span.stop))
            else:
                back.append(given.work)
        return back


class ChildPool:
    """One pool on this host."""

    __slots__ = (
        "broken",
        "children",
        "closing",
        "failed_starts",
        "granted",
        "number",
        "opened",
        "owed",
        "queue",
    )

    def __init__(self, opened: OpenPool) -> None:
        self.number = opened.pool
        self.opened = opened
        #: How many children it may have.
        self.granted = 0
        self.children: dict[int, Child] = {}
        self.queue = WorkQueue()
        self.closing = False
        self.broken = False
        self.failed_starts = 0
        #: Items the broker wants back once they are reclaimed.
        self.owed = 0

    def live(self) -> int:
        """Children that are not about to end."""
        return sum(1 for child in self.children.values() if child.state != STOPPING and not child.killed_for)

    def busy(self) -> int:
        """Children that have work."""
        return sum(1 for child in self.children.values() if child.given)
