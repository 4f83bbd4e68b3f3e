"""Pools and who works for them: the books, and what follows from them at a glance."""

from __future__ import annotations

from multihost_broker.jobs import Job
from multihost_broker.sessions import Session
from multihost_common.messages import OpenPool


class Share:
    """What one worker does for one pool."""

    __slots__ = ("barren", "held", "pool", "slots", "worker")

    def __init__(self, pool: Pool, worker: Session) -> None:
        self.pool = pool
        self.worker = worker
        #: Child processes it may run for the pool, and items it holds.
        self.slots = 0
        self.held = 0
        #: It was asked to give work back, and nothing has changed since.
        self.barren = False

    def hold(self, items: int) -> None:
        """It holds so many items more (or less)."""
        self.held += items
        self.pool.held += items
        self.barren = False
        self.rank()

    def rank(self) -> None:
        """Book whether it has children without work, or work without children."""
        number = self.worker.number
        pool, surplus = self.pool, self.held - self.slots
        if surplus < 0 and not self.worker.draining:
            pool.spare[number] = self
            pool.rich.pop(number, None)
        elif surplus > 0 and not self.worker.draining:
            pool.rich[number] = self
            pool.spare.pop(number, None)
        else:
            pool.spare.pop(number, None)
            pool.rich.pop(number, None)


class Pool:
    """One pool: its jobs and the workers that have slots for it."""

    __slots__ = (
        "broken", "closing", "draining", "granted", "held", "hungry", "jobs", "kill", "leases", "number", "opened",
        "owner", "pending", "quiet_since", "revoke_at", "rich", "spare", "unconfirmed", "workers",
    )  # fmt: skip

    def __init__(self, number: int, owner: Session, opened: OpenPool) -> None:
        self.number = number
        self.owner = owner
        self.opened = opened
        self.jobs: dict[int, Job] = {}
        #: Jobs that have ready items, oldest first.
        self.pending: dict[int, Job] = {}
        #: Slots it has over all workers, and items they hold.
        self.granted = 0
        self.held = 0
        #: By the worker's number: all, those that could hold more, those that have more children
        #: than items, those that have more items than children.
        self.workers: dict[int, Share] = {}
        self.hungry: dict[int, Share] = {}
        self.spare: dict[int, Share] = {}
        self.rich: dict[int, Share] = {}
        #: It takes no more jobs and closes when the last one ends; it is being closed.
        self.draining = False
        self.closing = False
        self.kill = False
        #: Why its children cannot be, once one has failed to begin.
        self.broken = ""
        #: When work may be called back next.
        self.revoke_at = 0.0
        #: Leases made so far, and how many there were at the last look.
        self.leases = 0
        self.quiet_since = -1
        #: Workers that have not said yet that its children have ended.
        self.unconfirmed: set[int] = set()

    def may_grow(self) -> bool:
        """It is under its limit of slots."""
        return not self.closing and (self.opened.limit == 0 or self.granted < self.opened.limit)

    def wanted(self, most: int) -> int:
        """How many more slots could do something now, at most ``most``."""
        if self.opened.limit:
            most = min(most, self.opened.limit - self.granted)
        waiting = max(0, self.held - self.granted)
        for job in self.pending.values():
            if waiting >= most:
                break
            waiting += job.chunks()
        return min(waiting, most)

    def fell_quiet(self) -> bool:
        """Has it had nothing to do since the last time this was asked?"""
        quiet = not self.held and not self.pending and self.quiet_since == self.leases
        self.quiet_since = self.leases
        return quiet
