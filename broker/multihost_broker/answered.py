"""Which items have an answer, as few, disjoint, sorted intervals: a million items fed in order cost a handful of entries."""

from __future__ import annotations

from bisect import bisect_left, bisect_right


class Answered:
    """The items of a job that have an answer, as disjoint sorted intervals."""

    __slots__ = ("_starts", "_stops", "total")

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._stops: list[int] = []
        #: How many items have an answer.
        self.total = 0

    def add(self, start: int, stop: int) -> list[tuple[int, int]]:
        """Enter ``start .. stop``; the parts of it that are new."""
        starts, stops = self._starts, self._stops
        if stops and stops[-1] == start:
            # Most answers come in order.
            stops[-1] = stop
            self.total += stop - start
            return [(start, stop)]
        low = bisect_left(stops, start)
        high = bisect_right(starts, stop)
        if low == high:
            starts.insert(low, start)
            stops.insert(low, stop)
            self.total += stop - start
            return [(start, stop)]
        fresh = []
        at = start
        for index in range(low, high):
            if at < starts[index]:
                fresh.append((at, starts[index]))
            at = max(at, stops[index])
        if at < stop:
            fresh.append((at, stop))
        starts[low:high] = [min(start, starts[low])]
        stops[low:high] = [max(stop, stops[high - 1])]
        self.total += sum(end - begin for begin, end in fresh)
        return fresh

    def missing(self, start: int, stop: int) -> list[tuple[int, int]]:
        """The parts of ``start .. stop`` that have no answer yet."""
        starts, stops = self._starts, self._stops
        found = []
        at = start
        for index in range(bisect_right(stops, start), len(starts)):
            if starts[index] >= stop:
                break
            if at < starts[index]:
                found.append((at, starts[index]))
            at = stops[index]
        if at < stop:
            found.append((at, stop))
        return found

    def within(self, start: int, stop: int) -> list[tuple[int, int]]:
        """The parts of ``start .. stop`` that have an answer."""
        found, at = [], start
        for low, high in [*self.missing(start, stop), (stop, stop)]:
            if at < low:
                found.append((at, low))
            at = high
        return found

    def discard(self, start: int, stop: int) -> list[tuple[int, int]]:
        """Take ``start .. stop`` out; the parts of it that were in."""
        found = self.within(start, stop)
        for low, high in found:
            index = bisect_right(self._starts, low) - 1
            first, last = self._starts[index], self._stops[index]
            self._starts[index : index + 1] = [first] * (first < low) + [high] * (high < last)
            self._stops[index : index + 1] = [low] * (first < low) + [last] * (high < last)
            self.total -= high - low
        return found

    def ranges(self) -> list[tuple[int, int]]:
        """The intervals."""
        return list(zip(self._starts, self._stops, strict=True))

    def copy(self) -> Answered:
        """The same items, apart."""
        other = Answered()
        other._starts, other._stops, other.total = self._starts[:], self._stops[:], self.total
        return other

    def __len__(self) -> int:
        return len(self._starts)
