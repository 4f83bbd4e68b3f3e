"""What the agent holds: leased work that waits, and what each child was given."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from multihost_common.blocks import Block, Span
from multihost_common.messages import U64, Died, Lease, OpenJob, Result
from multihost_common.pace import Pace


class Work:
    """Items of one lease. ``isolate``: to be run alone in a fresh child."""

    __slots__ = ("attempt", "cancelled", "isolate", "job", "span")

    def __init__(self, job: int, span: Span, attempt: int, isolate: bool) -> None:
        self.job = job
        self.span = span
        self.attempt = attempt
        self.isolate = isolate
        #: Ranges of items that nobody wants any more.
        self.cancelled: list[tuple[int, int]] = []

    @classmethod
    def leased(cls, lease: Lease) -> Work | None:
        """The work of a Lease message, or None if it does not add up."""
        if len(lease.frames) < 2 or not lease.skip < lease.chunksize or lease.skip > lease.start:
            return None
        if lease.start + lease.count > U64[1]:
            return None
        chunks = -(-(lease.skip + lease.count) // lease.chunksize)
        if len(lease.frames[0]) != 4 * chunks or (len(lease.frames) > 2 and chunks != 1):
            return None
        block = Block(lease.start - lease.skip, lease.skip + lease.count, lease.chunksize, lease.frames)
        span = Span(block, lease.start, lease.start + lease.count)
        return cls(lease.job, span, lease.attempt, lease.isolate)

    def part(self, start: int, stop: int) -> Work:
        """The same lease, fewer items."""
        part = Work(self.job, self.span.sub(start, stop), self.attempt, self.isolate)
        part.cancelled = self.cancelled
        return part

    def cancel(self, start: int, stop: int) -> None:
        """Nobody wants these items any more."""
        self.cancelled = [*self.cancelled, (start, stop)]

    def overlaps(self, job: int, start: int, stop: int) -> bool:
        """Are some of these items in it?"""
        return self.job == job and self.span.start < stop and start < self.span.stop

    def is_cancelled(self, item: int) -> bool:
        """Nobody wants this item any more."""
        return any(start <= item < stop for start, stop in self.cancelled)

    def wanted(self) -> list[Work]:
        """Its items that are still wanted."""
        works: list[Work] = [self]
        for start, stop in self.cancelled:
            works = [part for work in works for part in work.without(start, stop)]
        return works

    def without(self, start: int, stop: int) -> list[Work]:
        """What is left of it outside ``start .. stop``."""
        span = self.span
        if stop <= span.start or span.stop <= start:
            return [self]
        rest = []
        if span.start < start:
            rest.append(self.part(span.start, start))
        if stop < span.stop:
            rest.append(self.part(stop, span.stop))
        return rest


class Given:
    """Work that a child has, at ``position`` of the child's own count."""

    __slots__ = ("position", "work")

    def __init__(self, position: int, work: Work) -> None:
        self.position = position
        self.work = work


class Kept:
    """An answer that cannot be sent yet; its payload may be on the disk."""

    __slots__ = ("asked", "message", "number", "size")

    def __init__(self, message: Result | Died, size: int) -> None:
        self.message = message
        #: Bytes of payload.
        self.size = size
        #: By which the spool knows its payload, 0: that is here; and whether it is to be read now.
        self.number = 0
        self.asked = False


class AgentJob:
    """What the agent knows of a job."""

    __slots__ = ("confirmed", "kept", "opened", "pace", "parked")

    def __init__(self, opened: OpenJob) -> None:
        self.opened = opened
        self.pace = Pace()
        #: Work that cannot begin because the function is not here yet.
        self.parked: list[Work] = []
        #: The broker of the present session knows it; else answers are kept until it does.
        self.confirmed = True
        self.kept: deque[Kept] = deque()


class WorkQueue:
    """Leased work of one pool that no child has, oldest first; what must run alone apart."""

    __slots__ = ("_works", "alone", "items")

    def __init__(self) -> None:
        self._works: deque[Work] = deque()
        self.alone: deque[Work] = deque()
        #: Items in the queue, those that must run alone not counted.
        self.items = 0

    def __bool__(self) -> bool:
        return bool(self._works)

    def __iter__(self) -> Iterator[Work]:
        yield from self.alone
        yield from self._works

    def put(self, work: Work, first: bool = False) -> None:
        """Enter work, at the end or ``first``."""
        if work.isolate:
            self.alone.append(work)
            return
        if first:
            self._works.appendleft(work)
        else:
            self._works.append(work)
        self.items += len(work.span)

    def head(self) -> Work:
        """The oldest work."""
        return self._works[0]

    def take(self, items: int) -> Work:
        """About ``items`` items from the front, whole chunks, at least one chunk."""
        work = self._works[0]
        span = work.span
        end = span.chunk_end(items)
        if end >= span.stop:
            self._works.popleft()
        else:
            self._works[0] = work.part(end, span.stop)
            work = work.part(span.start, end)
        self.items -= len(work.span)
        return work

    def take_last(self, items: int) -> Work | None:
        """About ``items`` items from the end, whole chunks, at least one; None when nothing waits."""
        if not self._works:
            return None
        work = self._works[-1]
        span = work.span
        size = span.block.chunksize
        keep = (span.stop - items - span.block.start) // size * size + span.block.start
        if keep <= span.start:
            self._works.pop()
        else:
            self._works[-1] = work.part(span.start, keep)
            work = work.part(keep, span.stop)
        self.items -= len(work.span)
        return work

    def drop(self, job: int, start: int = 0, stop: int = 1 << 64) -> None:
        """Items that are not wanted any more."""
        for queue in (self._works, self.alone):
            for _ in range(len(queue)):
                work = queue.popleft()
                queue.extend(work.without(start, stop) if work.job == job else (work,))
        self.items = sum(len(work.span) for work in self._works)

    def clear(self) -> list[Work]:
        """Take everything out."""
        works = [*self.alone, *self._works]
        self.alone.clear()
        self._works.clear()
        self.items = 0
        return works
