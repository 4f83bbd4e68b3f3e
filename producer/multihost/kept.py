"""Input that was sent and has no answer yet, kept for a broker that may have to be told again."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from typing import TYPE_CHECKING

from multihost.sources import Ranges

if TYPE_CHECKING:
    from multihost_common.blocks import Frame
    from multihost_common.messages import Cancel, Feed

#: The first of a Feed's frames that may be memory of the caller's; those before it are made here.
BUFFERS = 2


class Kept:
    """The Feeds of one job some of whose items have no answer, oldest first."""

    __slots__ = ("_answered", "_feeds")

    def __init__(self) -> None:
        #: By their first item; and the items of each that have an answer.
        self._feeds: dict[int, Feed] = {}
        self._answered: dict[int, Ranges] = {}

    def keep(self, feed: Feed) -> None:
        """It is to be sent; it begins where the last one ended."""
        # Its caller goes on with the arrays in it: what is sent again is what was handed in.
        feed.frames = [*feed.frames[:BUFFERS], *map(_apart, feed.frames[BUFFERS:])]
        self._feeds[feed.start] = feed

    def answered(self, start: int, stop: int) -> None:
        """These items have an answer now."""
        feed = self._feeds.get(start)
        if feed is not None and feed.count == stop - start:
            # Most often that is a whole Feed.
            self._drop(start)
            return
        starts = list(self._feeds)
        for first in starts[max(0, bisect_right(starts, start) - 1) :]:
            if first >= stop:
                return
            feed = self._feeds[first]
            low, high = max(start, first), min(stop, first + feed.count)
            if low < high:
                done = self._answered.setdefault(first, Ranges())
                done.add(low, high)
                if done.count == feed.count:
                    self._drop(first)

    def _drop(self, first: int) -> None:
        del self._feeds[first]
        self._answered.pop(first, None)

    def unanswered(self, cancels: list[Cancel]) -> list[Cancel]:
        """Those of these that are about items of a kept Feed."""
        starts = list(self._feeds)
        found = []
        for cancel in cancels:
            at = bisect_right(starts, cancel.start + cancel.count - 1) - 1
            if at >= 0 and cancel.start < starts[at] + self._feeds[starts[at]].count:
                found.append(cancel)
        return found

    def feeds(self) -> list[Feed]:
        """Those that are kept."""
        return list(self._feeds.values())

    def known(self) -> Iterator[tuple[int, int]]:
        """(start, count) of the items of kept Feeds that have an answer."""
        for done in self._answered.values():
            for start, stop in done.ranges():
                yield start, stop - start


def _apart(frame: Frame) -> Frame:
    return frame if memoryview(frame).readonly else bytes(frame)
