"""What a child has computed, on its way to the agent: values become pieces, pieces messages."""

from __future__ import annotations

import os
import sys
from time import perf_counter

from multihost_common.pickling import (
    DONE,
    NO_PICKLE,
    REPR,
    dumps,
    dumps_outcome,
    dumps_value,
    keeper,
    pieces_frames,
)
from multihost_worker.link import RESULT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, NoReturn

    from multihost_common.blocks import Frame
    from multihost_worker.link import Link

VALUES, OUTCOMES = 0, 1

#: Results of a block are sent before it is done, once in so many seconds on average ...
FLUSH = 0.1
#: ... but at once, up to so many times, by a child that has sent little lately ...
BURST = 2
#: ... but not when the block is done so soon ...
SOON = FLUSH / 2
#: ... and whenever the last claim has taken so long: the next may take even longer.
SLOW = 0.01

#: Pickled results of one message, about, bytes.
MESSAGE = 1 << 20

#: The longest piece whose length can be told, bytes.
LONGEST = 0xFFFF_FFFF

#: Values of these types share nothing when they are pickled together.
_SIMPLE = {type(None), bool, int, float, str, bytes}


class Failure:
    """Stands in the list of values where an item has none."""

    __slots__ = ("outcome",)

    def __init__(self, outcome: tuple[Any, ...]) -> None:
        self.outcome = outcome

    def __reduce__(self) -> NoReturn:
        # So that values among which there is one are not taken for results.
        raise TypeError("a failure is sent as an outcome")


class Outbox:
    """Values of consecutive items that have not been sent."""

    def __init__(self, link: Link) -> None:
        self.link = link
        #: Emptied in place: the loops hold it.
        self.values: list[Any] = []
        self._block = (0, 0, 0, 0)
        #: Values of this block that have been sent.
        self._gone = 0
        #: Users' code runs, so that ``prompted`` may send.
        self.waits = False
        #: Items that are noted together: a prompt cuts what follows, which gets a note of its own.
        #: And how many values of the block came before them.
        self.group: list[Any] = []
        self.group_at = 0
        #: Since when time is to be added to ``spent``.
        self.begun = 0.0
        #: Seconds that went into the values since results were last sent.
        self.spent = 0.0
        self._credit = float(BURST)
        self._counted = perf_counter()

    def due(self, now: float, took: float, left: float) -> bool:
        """Is it time to send, though the block is not done? ``took``: seconds of the last claim; ``left``: of the
        rest of the block, about."""
        self._count(now)
        return took >= SLOW or (self._credit >= 1.0 and left >= SOON)

    def _count(self, now: float) -> None:
        self._credit = min(BURST, self._credit + (now - self._counted) / FLUSH)
        self._counted = now

    def begin(self, job: int, start: int, chunksize: int, position: int) -> None:
        """The values to come are of items of this job from ``start`` on, at ``position`` and beyond."""
        self._block = job, start, chunksize, position
        self._gone = 0

    def noted(self) -> int:
        """How many items of the block have their value."""
        waits, self.waits = self.waits, False
        count = self._gone + len(self.values)
        self.waits = waits
        return count

    def prompted(self, *_: object) -> None:
        """A signal's handler: this item takes long, so send what was done before it."""
        if not self.waits:
            return
        guard = self.link.guard
        if guard is not None:
            if not guard.acquire(blocking=False):
                # Perhaps by the very code that was interrupted here. It will be prompted again.
                return
            guard.release()
        del self.group[self._gone + len(self.values) - self.group_at + 1 :]
        if not self.values:
            return
        self.waits = False
        try:
            now = perf_counter()
            self.spent += now - self.begun
            self.begun = now
            self.flush()
        except BaseException as error:  # noqa: BLE001
            # Raised by another signal's handler. Values may be lost: their items must run again.
            sys.excepthook(type(error), error, error.__traceback__)
            os._exit(1)
        self.waits = True

    def flush(self) -> None:
        """Send all there are."""
        if not self.values:
            # A prompt came in between and has sent them.
            return
        # Also at the end of a block: where blocks are short, that is often enough.
        self._count(perf_counter())
        self._credit = max(0.0, self._credit - 1.0)
        job, start, chunksize, position = self._block
        values = self.values[:]
        self.values.clear()
        start += self._gone
        self._gone += len(values)
        position += self._gone
        _flush_output()
        # Of one chunk, or of values that share nothing: one pickle does for all of them.
        if len(values) <= chunksize or set(map(type, values)) <= _SIMPLE:
            made = _pickled(values)
            if made is not None and (
                len(made[0]) <= MESSAGE or (len(values) <= chunksize and len(made[0]) <= LONGEST)
            ):
                self.send(job, start, len(values), VALUES, position, [made[0]], made[1])
                return
            del made
        batch = _Batch(self, job, start, position)
        if Failure in set(map(type, values)):
            batch.outcomes(values)
        else:
            batch.chunks(values, chunksize)
        values.clear()
        batch.send()

    def send(
        self,
        job: int,
        start: int,
        count: int,
        encoding: int,
        position: int,
        pieces: list[bytes],
        buffers: Sequence[Frame],
    ) -> None:
        """One message."""
        spent, self.spent = round(self.spent * 1e6), 0.0
        args = (job, start, count, spent, encoding, position)
        self.link.send(RESULT, args, pieces_frames(pieces, buffers))


class _Batch:
    """Pieces on their way into as few messages as the rules allow: one encoding a message, a piece
    with buffers alone, none far larger than it must be."""

    def __init__(self, outbox: Outbox, job: int, start: int, position: int) -> None:
        self.outbox, self.job, self.start, self.position = outbox, job, start, position
        self.encoding = VALUES
        self.count = 0
        self.size = 0
        self.pieces: list[bytes] = []

    def outcomes(self, values: list[Any]) -> None:
        for value in values:
            outcome = value.outcome if type(value) is Failure else (DONE, value)
            piece, buffers = dumps_outcome(outcome)
            if len(piece) > LONGEST:
                text = (
                    f"ValueError: pickled it has {len(piece)} bytes, and {LONGEST} is the limit: return less"
                )
                piece, buffers = dumps((NO_PICKLE, text, repr(type(value))[:REPR]), 5), []
            self.add(OUTCOMES, 1, piece, buffers)

    def chunks(self, values: list[Any], chunksize: int) -> None:
        for begin in range(0, len(values), chunksize):
            part = values[begin : begin + chunksize]
            try:
                piece, buffers = dumps_value(part)
            except BaseException:  # noqa: BLE001
                self.outcomes(part)
                continue
            if len(piece) > LONGEST:
                del piece, buffers
                self.outcomes(part)
            else:
                self.add(VALUES, len(part), piece, buffers)

    def add(self, encoding: int, count: int, piece: bytes, buffers: Sequence[Frame]) -> None:
        full = self.size + len(piece) > MESSAGE
        if self.pieces and (buffers or encoding != self.encoding or full):
            self.send()
        self.encoding = encoding
        self.count += count
        self.size += len(piece)
        self.pieces.append(piece)
        if buffers:
            self.send(buffers)

    def send(self, buffers: Sequence[Frame] = ()) -> None:
        if not self.pieces:
            return
        self.outbox.send(self.job, self.start, self.count, self.encoding, self.position, self.pieces, buffers)
        self.start += self.count
        self.count = self.size = 0
        self.pieces = []


def _pickled(values: list[Any]) -> tuple[bytes, list[memoryview]] | None:
    buffers: list[memoryview] = []
    try:
        return dumps(values, 5, buffer_callback=keeper(buffers)), buffers
    except BaseException:  # noqa: BLE001
        # Which of them it is, and what to say of it, is found out one by one.
        return None


def _flush_output() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:  # noqa: BLE001, S112
            # Whatever it is that took its place: a result is not lost because of it.
            continue
