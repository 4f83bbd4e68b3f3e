"""When to look at which child: items that may run for too long, or that nobody wants any more."""

from __future__ import annotations

from heapq import heappop, heappush

from multihost_worker.slots import Child


class Watch:
    """Times at which children are to be inspected. A child has one such time at most; a look that
    turns out to be too early costs less than moving it with every result."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Child]] = []

    def look_at(self, child: Child, when: float) -> None:
        """Look at the child then, or earlier if that is planned."""
        if child.check_at is None or when < child.check_at:
            child.check_at = when
            heappush(self._heap, (when, child.number, child))

    def deadline(self) -> float | None:
        """When the next look is due."""
        heap = self._heap
        while heap and heap[0][2].check_at != heap[0][0]:
            heappop(heap)
        return heap[0][0] if heap else None

    def due(self, now: float) -> list[Child]:
        """The children to look at now."""
        found = []
        while (when := self.deadline()) is not None and when <= now:
            child = heappop(self._heap)[2]
            child.check_at = None
            found.append(child)
        return found
