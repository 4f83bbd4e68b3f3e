"""Which items a worker holds, as few, disjoint, sorted spans."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from typing import TYPE_CHECKING

from multihost_common.blocks import Span

if TYPE_CHECKING:
    from multihost_broker.jobs import Job
    from multihost_broker.pools import Share


#: Seconds between two beats that count, when beats come every second.
APART = 0.5


class Lease:
    """A span that one worker holds."""

    __slots__ = ("attempt", "doubtful", "isolate", "looked", "missed", "span")

    def __init__(self, span: Span, attempt: int, isolate: bool = False, now: float = 0.0) -> None:
        self.span = span
        self.attempt = attempt
        self.isolate = isolate
        #: Beats in a row that did not name it.
        self.missed = 0
        #: When it was made, or the last of those beats was heard.
        self.looked = now
        #: The connection it went over has ended, and the worker has not named it since.
        self.doubtful = False

    def part(self, start: int, stop: int) -> Lease:
        """The same lease on a part of its span."""
        part = Lease(self.span.sub(start, stop), self.attempt, self.isolate, self.looked)
        part.missed, part.doubtful = self.missed, self.doubtful
        return part

    def miss(self, now: float) -> int:
        """A beat does not name it: how many in a row did not. Those that have waited together, such as while
        this process stood still, count as one, and were sent before the lease if it is as young."""
        if now - self.looked >= APART:
            self.looked = now
            self.missed += 1
        return self.missed


class Leases:
    """What one worker holds of one job."""

    __slots__ = ("_leases", "_starts", "items", "job", "share")

    def __init__(self, job: Job, share: Share) -> None:
        self.job = job
        self.share = share
        self._starts: list[int] = []
        self._leases: list[Lease] = []
        #: How many items are held.
        self.items = 0

    def __bool__(self) -> bool:
        return bool(self._starts)

    def __iter__(self) -> Iterator[Lease]:
        return iter(self._leases)

    def add(self, lease: Lease) -> None:
        """Enter a lease; it does not overlap another one."""
        start = lease.span.start
        at = bisect_left(self._starts, start)
        self._starts.insert(at, start)
        self._leases.insert(at, lease)
        self.items += len(lease.span)

    def take(self, start: int, stop: int, attempt: int | None = None) -> list[Lease]:
        """Remove ``start .. stop`` (of this attempt only, if given) and answer the parts that were
        held; what sticks out of the range stays held."""
        taken: list[Lease] = []
        at = max(0, bisect_right(self._starts, start) - 1)
        while at < len(self._starts) and self._starts[at] < stop:
            lease = self._leases[at]
            span = lease.span
            if span.stop <= start or (attempt is not None and lease.attempt != attempt):
                at += 1
                continue
            if start <= span.start and span.stop <= stop:
                taken.append(lease)
                del self._starts[at], self._leases[at]
                self.items -= span.stop - span.start
                continue
            low, high = max(start, span.start), min(stop, span.stop)
            rest = []
            if span.start < low:
                rest.append(lease.part(span.start, low))
            if high < span.stop:
                rest.append(lease.part(high, span.stop))
            taken.append(lease.part(low, high))
            self._starts[at : at + 1] = [each.span.start for each in rest]
            self._leases[at : at + 1] = rest
            at += len(rest)
            self.items -= high - low
        return taken

    def covers(self, start: int, stop: int) -> list[tuple[int, int]]:
        """The parts of ``start .. stop`` that are held."""
        spans = (lease.span for lease in self._leases if lease.span.start < stop and start < lease.span.stop)
        return [(max(start, span.start), min(stop, span.stop)) for span in spans]

    def clear(self) -> list[Lease]:
        """Remove all."""
        leases, self._leases, self._starts, self.items = self._leases, [], [], 0
        return leases
