"""One job: what is ready to run, what has an answer, who died of it."""

from __future__ import annotations

from collections import deque

from multihost_broker.answered import Answered
from multihost_common.blocks import Block, Span
from multihost_common.messages import OpenJob
from multihost_common.pace import Pace

#: An item that took this many child processes along is not run again.
MAX_DEATHS = 3


class Job:
    """State of one job in the broker. Every fed item is in exactly one of: ready (``ready`` or
    ``suspects``), leased (the worker's books), answered."""

    __slots__ = (
        "answered", "attempts", "base", "count", "deaths", "dropped", "fed", "high", "lost", "number", "opened",
        "pace", "ready", "ready_items", "stale", "suspects", "waits", "workers",
    )  # fmt: skip

    def __init__(self, number: int, opened: OpenJob, base: int = 0) -> None:
        #: Unique over all producers: session << 32 | the producer's number.
        self.number = number
        self.opened = opened
        self.ready: deque[Span] = deque()
        self.ready_items = 0
        #: Items that have killed a child: leased one at a time, isolated.
        self.suspects: deque[Span] = deque()
        self.answered = Answered()
        self.deaths: dict[int, int] = {}
        #: Items fed so far, and in all (-1: the input goes on).
        self.fed = 0
        self.count = -1
        #: Input behind that was dropped, and is not stated anew yet.
        self.dropped = False
        self.pace = Pace()
        #: The last lease's number; unless it is stated anew all of its own are above ``base``.
        self.attempts = self.base = base
        #: No item from here on was ever leased.
        self.high = 0
        #: It is not to be run before those who may have parts of it have come back.
        self.waits = False
        #: What had an answer when its producer's connection ended: those on their way then are lost.
        self.stale = Answered()
        #: Items that may have been run, in vain, and must not be run again.
        self.lost = Answered()
        #: Workers that know the job.
        self.workers: set[int] = set()

    def feed(self, block: Block) -> bool:
        """Take a block of input. False: it is not the next one (a repetition, or a gap)."""
        if block.start != self.fed or self.count >= 0:
            return False
        self.fed += block.count
        self.put(block.span())
        return True

    def refeed(self, block: Block) -> bool:
        """Take a block that is stated anew: the producer has all the answers that lie before and between
        such blocks, and lacks some of each block's. False: it is none of this job's."""
        start, stop = block.start, block.start + block.count
        if start >= self.fed:
            if start > self.fed:
                self.answered.add(self.fed, start)
                self.fed = start
            return self.feed(block)
        if stop > self.fed:
            return False
        for low, high in self.stale.discard(start, stop):
            for begin, end in self.answered.discard(low, high):
                if self.opened.at_most_once:
                    self.lost.add(begin, end)
                else:
                    self.put(Span(block, begin, end))
        return True

    def end(self, count: int) -> bool:
        """The input ends with ``count`` items. False: that cannot be."""
        if self.opened.resumed and count > self.fed:
            self.answered.add(self.fed, count)
            self.fed = count
        if count != self.fed:
            return False
        self.count = count
        return True

    def put(self, span: Span, first: bool = False) -> None:
        """Make a span ready."""
        if first:
            self.ready.appendleft(span)
        else:
            self.ready.append(span)
        self.ready_items += len(span)

    def put_back(self, span: Span, isolate: bool) -> None:
        """Make ready again what a worker held; what has an answer meanwhile stays answered."""
        for start, stop in reversed(self.answered.missing(span.start, span.stop)):
            if isolate:
                self.suspect(span.sub(start, stop))
            else:
                self.put(span.sub(start, stop), first=True)

    def suspect(self, span: Span) -> None:
        """Run this item again, but alone."""
        self.suspects.append(span)
        self.ready_items += len(span)

    def take(self, items: int) -> tuple[Span, bool]:
        """(span, isolate): about ``items`` ready items that lie together, at least a chunk. There are
        ready items."""
        isolate = bool(self.suspects)
        span = self.suspects.popleft() if isolate else self._take_ready(items)
        self.ready_items -= len(span)
        # A suspect may be one of before this start of the broker, and not have been leased by it.
        self.high = max(self.high, span.stop)
        return span, isolate

    def _take_ready(self, items: int) -> Span:
        span = self.ready[0]
        end = span.chunk_end(items)
        if end >= span.stop:
            return self.ready.popleft()
        self.ready[0] = span.sub(end, span.stop)
        return span.sub(span.start, end)

    def chunks(self) -> int:
        """About how many children could do something with what is ready."""
        size = self.ready[0].block.chunksize if self.ready else 1
        return -(-self.ready_items // size)

    def forget_deaths(self, start: int, stop: int) -> None:
        """These items have an answer: who died of them does not matter any more."""
        for item in [item for item in self.deaths if start <= item < stop]:
            del self.deaths[item]

    def leased(self, stop: int, attempt: int) -> bool:
        """May there be, or have been, such a lease of an item before ``stop``?"""
        floor = 0 if self.opened.resumed else self.base
        return stop <= self.high and floor < attempt <= self.attempts

    def take_out(self, start: int, stop: int) -> list[tuple[Span, bool]]:
        """Take out what is ready of ``start .. stop``: it has an answer from elsewhere, is not wanted, or a worker
        has it. (span, isolate) of each part."""
        taken = []
        for queue in (self.ready, self.suspects):
            for _ in range(len(queue)):
                span = queue.popleft()
                low, high = max(start, span.start), min(stop, span.stop)
                if low >= high:
                    queue.append(span)
                    continue
                if span.start < low:
                    queue.append(span.sub(span.start, low))
                if high < span.stop:
                    queue.append(span.sub(high, span.stop))
                self.ready_items -= high - low
                taken.append((span.sub(low, high), queue is self.suspects))
        return taken

    def done(self) -> bool:
        """Every item has an answer and no more will come."""
        return 0 <= self.count == self.answered.total
