"""The bytes of a value or an array."""

from __future__ import annotations

import struct

from multihost_broker.objects.machine import Machine, Party, Request
from multihost_common.shared import CELL, Cells

#: The most bytes of a number.
WIDEST = 8

#: The most bytes of one cell.
MAX_BYTES = 1 << 30


class Cell(Machine):
    """Made with one number, its size in bytes, and optionally the first of its bytes; the others are zero."""

    kind = CELL

    def __init__(self, make: Request) -> None:
        super().__init__(make)
        size = int.from_bytes(make.frames[0][:8], "little") if make.frames else 0
        first = make.frames[1] if len(make.frames) > 1 else b""
        if max(size, len(first)) > MAX_BYTES:
            raise ValueError(f"a value or an array has at most {MAX_BYTES:,} bytes")
        self.data = bytearray(first)
        self.data.extend(bytes(max(0, size - len(first))))

    def act(self, request: Request) -> None:
        """See :class:`multihost_common.shared.Cells`."""
        if request.op == Cells.READ:
            length, offset = divmod(request.amount, Cells.SPAN)
            # Immutable, since it is sent later.
            request.done(frames=(bytes(self.data[offset : offset + length]),))
        elif request.op == Cells.WRITE:
            self._write(request)
        elif request.op == Cells.ADD:
            self._add(request)
        else:
            request.refuse("a cell knows no such operation")

    def _write(self, request: Request) -> None:
        at = request.amount
        if at + sum(map(len, request.frames)) > len(self.data):
            request.refuse("this is beyond the end")
            return
        for frame in request.frames:
            self.data[at : at + len(frame)] = frame
            at += len(frame)
        request.done()

    def _add(self, request: Request) -> None:
        at, frames = request.amount, [bytes(each) for each in request.frames]
        size = len(frames[0]) if frames else 0
        floats = {4: "<f", 8: "<d"}.get(size) if len(frames) == 3 else ""
        fits = len(frames) in (2, 3) and 0 < size == len(frames[1]) <= WIDEST and floats is not None
        if not fits or at + size > len(self.data):
            request.refuse("this is no number of this cell")
            return
        now = bytes(self.data[at : at + size])
        old, new = frames[:2]
        self.data[at : at + size] = new if now == old else _sum(now, old, new, floats or "")
        request.done()

    def withdraw(self, request: Request) -> None:
        """Nothing waits here."""

    def depart(self, party: Party) -> None:
        """Nobody holds bytes."""

    def size(self) -> int:
        """Its bytes."""
        return len(self.data)


def _sum(now: bytes, old: bytes, new: bytes, floats: str) -> bytes:
    """``now`` and what ``new`` has more than ``old``."""
    if not floats:
        values = [int.from_bytes(each, "little") for each in (now, old, new)]
        return ((values[0] + values[2] - values[1]) % (1 << 8 * len(now))).to_bytes(len(now), "little")
    numbers = [struct.unpack(floats, each)[0] for each in (now, old, new)]
    try:
        return struct.pack(floats, numbers[0] + numbers[2] - numbers[1])
    except OverflowError:
        return new


__all__ = ["Cell"]
