"""Where the items of a job come from, where its results go, and which have been answered."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from typing import Any, Protocol

#: Calls to make once the engine's lock is free: the callbacks of users.
Calls = list[Callable[[], object]]


class Source(Protocol):
    """Where the items of a map come from."""

    #: Number of all items, None while unknown.
    total: int | None

    def ready(self) -> int:
        """Items that can be taken now."""
        raise NotImplementedError

    def peek(self, count: int) -> Sequence[Any]:
        """The next ``count`` items, which stay."""
        raise NotImplementedError

    def drop(self, count: int) -> None:
        """Forget the next ``count`` items."""

    def allow(self, taken: int) -> None:
        """Whoever fills the source may go on until ``taken`` items have been put in, over all."""

    def stop(self) -> None:
        """No more items are wanted."""


class Items:
    """A source that has all its items: a list, a tuple, a range."""

    def __init__(self, items: Sequence[Any]) -> None:
        self.total: int | None = len(items)
        self.error: BaseException | None = None
        self._items = items
        self._at = 0

    def ready(self) -> int:
        """Items that can be taken now."""
        return len(self._items) - self._at

    def peek(self, count: int) -> Sequence[Any]:
        """The next ``count`` items, which stay."""
        return self._items[self._at : self._at + count]

    def drop(self, count: int) -> None:
        """Forget the next ``count`` items."""
        self._at += count
        if self._at >= len(self._items):
            # What the user handed in must not live as long as the results.
            self._items, self._at = (), 0

    def allow(self, taken: int) -> None:
        """Nobody fills it."""

    def stop(self) -> None:
        """No more items are wanted."""
        self._items, self._at = (), 0


class Sink(Protocol):
    """Who takes the results of a map."""

    def consumed(self) -> int:
        """Results that take up no room any more."""
        raise NotImplementedError

    def put(self, start: int, values: list[Any], failed: bool, calls: Calls) -> None:
        """Results of items from ``start`` on; ``failed``: some are :class:`Raised`."""

    def finish(self, total: int, calls: Calls) -> None:
        """All of ``total`` results have been put. May be called twice."""


class Receiver(Protocol):
    """Who takes the result of one call."""

    def claim(self, item: int) -> bool:
        """The call is about to be sent as this item; False: it is not wanted any more."""
        raise NotImplementedError

    def take(self, value: Any) -> Callable[[], object] | None:
        """The result, or a :class:`Raised`; may answer a call to make without the engine's lock."""
        raise NotImplementedError


class Ranges:
    """A set of integers as sorted, disjoint, half-open ranges."""

    __slots__ = ("_bounds", "count")

    def __init__(self) -> None:
        self._bounds: list[int] = []
        self.count = 0

    def add(self, start: int, stop: int) -> list[tuple[int, int]]:
        """Add ``start .. stop``; answers the parts that were not in it yet."""
        bounds = self._bounds
        if bounds and bounds[-1] == start:
            bounds[-1] = stop
            self.count += stop - start
            return [(start, stop)]
        low = bisect_left(bounds, start)
        high = bisect_right(bounds, stop)
        # An even index lies outside of the ranges, so that edge is a new bound.
        edges = bounds[low:high]
        if low % 2 == 0:
            edges.insert(0, start)
        if high % 2 == 0:
            edges.append(stop)
        bounds[low:high] = ([start] if low % 2 == 0 else []) + ([stop] if high % 2 == 0 else [])
        fresh = [(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True) if a < b]
        self.count += sum(b - a for a, b in fresh)
        return fresh

    def ranges(self) -> list[tuple[int, int]]:
        """What is in it."""
        return list(zip(self._bounds[::2], self._bounds[1::2], strict=True))

    def missing(self, stop: int) -> list[tuple[int, int]]:
        """The parts of ``0 .. stop`` that are not in it, without adding them."""
        edges = [0, *self._bounds, stop]
        return [(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True) if a < b]


def fresh_parts(answered: Ranges, start: int, values: list[Any]) -> list[tuple[int, list[Any]]]:
    """(start, values) of those of ``values``, results from ``start`` on, whose items had none before; ``answered``
    knows of them from now on."""
    fresh = answered.add(start, start + len(values))
    return [(a, values if b - a == len(values) else values[a - start : b - start]) for a, b in fresh]
