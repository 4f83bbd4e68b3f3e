"""What the journal has of a named queue, and what of it is in memory.

A *block* is what one PUT brought: one record. Its items are numbered from its ticket on, see :data:`PLACE_BITS`. Its
frames are here while some of its items are soon to be handed out, and on the disk alone otherwise.
"""

from __future__ import annotations

import struct
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate

from multihost_broker.journal.records import Record, Spooled
from multihost_common.blocks import Frame, unpack_lengths
from multihost_common.named import PLACE_BITS

#: Kinds of records in the journal, from where those of detached jobs end. Never change what a number means.
OPENED, ITEMS, PROGRESS, MARK, CONSUMER = range(32, 37)

#: What their headers begin with: maxsize, behind it the name; (PUT's number at its sender, items), behind it the sender;
#: block, behind it a bit for each item that is gone; (PUT's number, wall clock), behind it the sender.
QUEUE, PUT, GONE, LAST = map(struct.Struct, ("<Q", "<QI", "<Q", "<Qd"))

#: Bytes that an item takes beyond its payload, about.
OVERHEAD = 16


class Block:
    """Items of one PUT. ``ticket``: its record's; ``sender``: who has put them."""

    __slots__ = (
        "_offsets",
        "alone",
        "count",
        "frames",
        "gone",
        "left",
        "noted",
        "ready",
        "sender",
        "size",
        "ticket",
    )

    def __init__(self, ticket: int, count: int, size: int, sender: bytes, alone: bool) -> None:
        self.ticket = ticket
        self.count = self.left = count
        self.size = size + OVERHEAD * count
        self.sender = sender
        #: It is one item with out-of-band buffers.
        self.alone = alone
        #: A bit for each item that was accepted, and the record that says so.
        self.gone = 0
        self.noted = 0
        #: How many of its items wait to be handed out.
        self.ready = 0
        self.frames: Sequence[Frame] | None = None
        self._offsets: array[int] | None = None

    @classmethod
    def restored(cls, ticket: int, record: Record) -> Block:
        """As an earlier start of the broker has written it. Raises struct.error for what is none."""
        _, count = PUT.unpack_from(record.header)
        payload = record.payload
        lengths = payload.lengths if isinstance(payload, Spooled) else [len(frame) for frame in payload]
        return cls(ticket, count, sum(lengths[1:]), record.header[PUT.size :], len(lengths) > 2)

    def load(self, frames: Sequence[Frame]) -> None:
        """Here they are."""
        self.frames = frames

    def unload(self) -> None:
        """They are on the disk."""
        self.frames = self._offsets = None

    def starts(self) -> array[int]:
        """Where each item begins in its second frame."""
        if self._offsets is None:
            assert self.frames is not None
            self._offsets = array("Q", accumulate(unpack_lengths(self.frames[0]), initial=0))
        return self._offsets

    def take(self, first: int, count: int) -> int:
        """So many items from this one on are accepted; how many of them were not before."""
        stop = min(first + count, self.count)
        if stop <= first:
            return 0
        fresh = ((1 << stop) - (1 << first)) & ~self.gone
        self.gone |= fresh
        self.left -= fresh.bit_count()
        return fresh.bit_count()

    def present(self, first: int, last: int) -> Iterator[Span]:
        """What of these items was not accepted."""
        at = first
        while at < last:
            rest = self.gone >> at
            if not rest:
                yield Span(self, at, last)
                return
            # The next item that is gone, and the next one after it that is not.
            stop = min(last, at + (rest & -rest).bit_length() - 1)
            if stop > at:
                yield Span(self, at, stop)
            rest = ~self.gone >> stop
            at = stop + (rest & -rest).bit_length() - 1


class Span:
    """Consecutive items of one block."""

    __slots__ = ("block", "first", "last")

    def __init__(self, block: Block, first: int, last: int) -> None:
        self.block = block
        self.first = first
        self.last = last

    def __len__(self) -> int:
        return self.last - self.first

    def __repr__(self) -> str:
        return f"Span({self.block.ticket}, {self.first}..{self.last})"

    @property
    def number(self) -> int:
        """Of its first item."""
        return self.block.ticket << PLACE_BITS | self.first

    @property
    def size(self) -> int:
        """Bytes that it takes, about if its block is not here."""
        if self.block.frames is None or len(self) == self.block.count:
            return self.block.size * len(self) // self.block.count
        starts = self.block.starts()
        return starts[self.last] - starts[self.first] + OVERHEAD * len(self)

    def within(self, size: int) -> int:
        """How many of its first items have a payload of ``size`` bytes or less together."""
        if self.size <= size:
            return len(self)
        if len(self) == 1:
            return 0
        starts = self.block.starts()
        upto = bisect_right(starts, starts[self.first] + size, self.first + 1, self.last + 1)
        return upto - 1 - self.first

    def cut(self, count: int) -> Span:
        """Take the first ``count`` items out; they are the span that is answered."""
        head = Span(self.block, self.first, self.first + count)
        self.first += count
        return head

    def frames(self) -> Sequence[Frame]:
        """Frames of these items alone. Their block is here."""
        frames = self.block.frames
        assert frames is not None
        if len(self) == self.block.count:
            return frames
        starts = self.block.starts()
        lengths = memoryview(frames[0])[4 * self.first : 4 * self.last]
        return [lengths, memoryview(frames[1])[starts[self.first] : starts[self.last]]]


def joined(spans: Sequence[Span]) -> Sequence[Frame]:
    """Frames of all items of these spans, one after the other; none of several is of a block that is alone."""
    if len(spans) == 1:
        return spans[0].frames()
    parts = [span.frames() for span in spans]
    return [b"".join([part[0] for part in parts]), b"".join([part[1] for part in parts])]


class Sender:
    """One end of the queue that puts items, as far as it is told from what it has put before."""

    __slots__ = ("halted", "mark", "newest", "round", "stored", "when", "written")

    def __init__(self) -> None:
        #: The last PUT that is durable, and the last one that was written.
        self.stored = 0
        self.written = 0
        #: The block of the last one, while it is there; else the record that remembers its number, and of when.
        self.newest = 0
        self.mark = 0
        self.when = 0.0
        #: A PUT of it was refused: what it had sent behind that is refused, too, until it opens the queue anew.
        self.halted = False
        self.round = 0

    def reopened(self) -> None:
        """It states anew what is not durable."""
        if self.halted:
            self.halted = False
            self.round += 1
            self.written = self.stored


__all__ = [
    "CONSUMER",
    "GONE",
    "ITEMS",
    "LAST",
    "MARK",
    "OPENED",
    "OVERHEAD",
    "PROGRESS",
    "PUT",
    "QUEUE",
    "Block",
    "Sender",
    "Span",
    "joined",
]
