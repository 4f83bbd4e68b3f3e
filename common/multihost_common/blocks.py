"""Payload of a run of chunks, and windows onto it.

A :class:`Block` is what a producer fed in one message: consecutive items of one job, cut into
chunks of ``chunksize`` items, each chunk pickled by itself. The pickles lie end to end in one
buffer, so a thousand no-op items cost one message, and because their lengths are known the broker
can split a block anywhere between two chunks without unpickling anything.

A :class:`Span` is a window onto a block. All bookkeeping (ready, leased, given back) is done on
spans; bytes are cut out only when a span is sent.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from itertools import accumulate
from sys import byteorder
from typing import TypeAlias

#: Anything that offers the buffer protocol and goes over a wire as one frame.
Frame: TypeAlias = "bytes | bytearray | memoryview"


def pack_lengths(lengths: Sequence[int]) -> bytes:
    """Lengths in bytes, each below 4 GiB, as little-endian 32-bit integers."""
    return _little(array("I", lengths)).tobytes()


def unpack_lengths(frame: Frame) -> array[int]:
    """The inverse of :func:`pack_lengths`. Raises ValueError for a torn frame."""
    lengths: array[int] = array("I")
    lengths.frombytes(frame)
    return _little(lengths)


def _little(numbers: array[int]) -> array[int]:
    if byteorder == "big":
        numbers.byteswap()
    return numbers


#: Items that a job has at most: their numbers travel as 64 bits.
MOST_ITEMS = (1 << 64) - 1

#: Fewer chunks than this are not rounded up: each may be long, and begin elsewhere meanwhile.
FEW = 4


class Block:
    """Consecutive items ``start .. start + count`` of one job, as pickled chunks.

    ``frames[0]`` holds the chunks' lengths, ``frames[1]`` their pickles end to end, and what
    follows are pickle-5 out-of-band buffers; a block with such buffers has exactly one chunk.
    """

    __slots__ = ("_offsets", "chunksize", "count", "frames", "start")

    def __init__(self, start: int, count: int, chunksize: int, frames: Sequence[Frame]) -> None:
        self.start = start
        self.count = count
        self.chunksize = chunksize
        self.frames = frames
        self._offsets: array[int] | None = None

    def check(self) -> str | None:
        """What is wrong with this block as it came from a peer, or None."""
        if len(self.frames) < 2:
            return "a block has at least two frames"
        lengths = self.frames[0]
        chunks = -(-self.count // self.chunksize)
        if len(lengths) != 4 * chunks:
            return f"{self.count} items in chunks of {self.chunksize} need {chunks} lengths"
        total = int.from_bytes(lengths, "little") if chunks == 1 else sum(unpack_lengths(lengths))
        if total != len(self.frames[1]):
            return "the lengths do not add up to the payload"
        if len(self.frames) > 2 and chunks != 1:
            return "a block with out-of-band buffers has one chunk"
        if self.start + self.count > MOST_ITEMS:
            return "items are numbered with 64 bits"
        return None

    def span(self) -> Span:
        """The window onto all of it."""
        return Span(self, self.start, self.start + self.count)

    def offsets(self) -> array[int]:
        """Where each chunk begins in ``frames[1]``, and where the last one ends."""
        if self._offsets is None:
            self._offsets = array("Q", accumulate(unpack_lengths(self.frames[0]), initial=0))
        return self._offsets


class Span:
    """Items ``start .. stop`` of one block."""

    __slots__ = ("block", "start", "stop")

    def __init__(self, block: Block, start: int, stop: int) -> None:
        self.block = block
        self.start = start
        self.stop = stop

    def __len__(self) -> int:
        return self.stop - self.start

    def __repr__(self) -> str:
        return f"Span({self.start}, {self.stop})"

    def sub(self, start: int, stop: int) -> Span:
        """The part ``start .. stop`` of this span."""
        return Span(self.block, start, stop)

    def chunk_end(self, items: int) -> int:
        """Where a piece of about ``items`` items ends that does not cut a chunk (at least one)."""
        block = self.block
        size = block.chunksize
        if size == 1:
            return min(self.stop, self.start + max(1, items))
        chunk = (self.start - block.start + max(items, size)) // size
        first = (self.start - block.start) // size
        return min(self.stop, block.start + max(chunk, first + 1) * size)

    def rounded(self, items: int) -> int:
        """``items``, or a few more if what they leave of this span would be too little for a message."""
        left = self.stop - self.start - items
        return items + left if items >= FEW * self.block.chunksize and 0 < left < items // 2 else items

    def cut(self) -> tuple[int, Sequence[Frame]]:
        """(skip, frames): the frames of the chunks it touches, and how many of the first chunk's
        items come before it."""
        block = self.block
        if self.start == block.start and self.stop == block.start + block.count:
            return 0, block.frames
        size = block.chunksize
        first = (self.start - block.start) // size
        last = -(-(self.stop - block.start) // size)
        skip = self.start - block.start - first * size
        if len(block.frames) > 2:
            return skip, block.frames
        offsets = block.offsets()
        data = memoryview(block.frames[1])[offsets[first] : offsets[last]]
        lengths = memoryview(block.frames[0])[4 * first : 4 * last]
        return skip, [lengths, data]
