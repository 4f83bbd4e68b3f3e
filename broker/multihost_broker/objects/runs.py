"""Items of a queue as they travel, and windows onto them.

Frames of items are ``[lengths, pickles end to end, buffer, ...]``, as those of a :class:`~multihost_common.blocks.Block`
are; an item with out-of-band buffers travels alone.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

from multihost_common.blocks import Frame, unpack_lengths

#: Bytes that an item takes beyond its payload, about.
OVERHEAD = 16


class Run:
    """Consecutive items of one PUT. ``serial``: of the first one, in the order in which the queue took them;
    ``number``: of the first one at the process that it was handed to."""

    __slots__ = ("_first", "_frames", "_last", "_offsets", "number", "serial", "size")

    def __init__(self, frames: Sequence[Frame], count: int, serial: int) -> None:
        self._frames = frames
        self._offsets: array[int] | None = None
        self._first = 0
        self._last = count
        self.serial = serial
        self.number = 0
        #: Bytes it takes.
        self.size = count * OVERHEAD + sum(map(len, frames[1:]))

    def __len__(self) -> int:
        return self._last - self._first

    def __repr__(self) -> str:
        return f"Run({self.serial}, {len(self)} items)"

    @property
    def alone(self) -> bool:
        """It is one item with out-of-band buffers."""
        return len(self._frames) > 2

    def _starts(self) -> array[int]:
        if self._offsets is None:
            self._offsets = array("Q", accumulate(unpack_lengths(self._frames[0]), initial=0))
        return self._offsets

    def within(self, size: int) -> int:
        """How many of its first items have a payload of ``size`` bytes or less together."""
        if self.size <= size:
            return len(self)
        if self._last - self._first == 1:
            return 0
        starts = self._starts()
        return (
            bisect_right(starts, starts[self._first] + size, self._first + 1, self._last + 1)
            - 1
            - self._first
        )

    def cut(self, count: int) -> Run:
        """Take the first ``count`` items out, fewer than there are; they are the run that is answered."""
        starts = self._starts()
        head = Run.__new__(Run)
        middle = self._first + count
        head._frames, head._offsets = self._frames, starts
        head._first, head._last = self._first, middle
        head.serial, head.number = self.serial, self.number
        head.size = count * OVERHEAD + starts[middle] - starts[self._first]
        self._first = middle
        self.serial += count
        self.number += count
        self.size -= head.size
        return head

    def frames(self) -> Sequence[Frame]:
        """Frames of these items alone."""
        frames = self._frames
        if self._last - self._first == 1 and len(frames[0]) == 4:
            return frames
        starts = self._starts()
        if self._last - self._first == len(starts) - 1:
            return frames
        lengths = memoryview(frames[0])[4 * self._first : 4 * self._last]
        return [lengths, memoryview(frames[1])[starts[self._first] : starts[self._last]]]


def count_of(frames: Sequence[Frame]) -> int:
    """How many items there are in the frames of a PUT. Raises ValueError if they do not fit together."""
    if len(frames) < 2 or not len(frames[0]) or len(frames[0]) % 4:
        raise ValueError("items come with their lengths")
    count = len(frames[0]) // 4
    total = int.from_bytes(frames[0], "little") if count == 1 else sum(unpack_lengths(frames[0]))
    if total != len(frames[1]):
        raise ValueError("the lengths of the items do not add up to what they take")
    if len(frames) > 2 and count > 1:
        raise ValueError("an item with buffers of its own travels alone")
    return count


def joined(runs: Sequence[Run]) -> Sequence[Frame]:
    """Frames of all items of these runs, one after the other; none of several is :attr:`Run.alone`."""
    if len(runs) == 1:
        return runs[0].frames()
    parts = [run.frames() for run in runs]
    return [b"".join([part[0] for part in parts]), b"".join([part[1] for part in parts])]


__all__ = ["OVERHEAD", "Run", "count_of", "joined"]
