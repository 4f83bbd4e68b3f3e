"""The bytes of a value or an array."""

from __future__ import annotations

from multihost_broker.objects.machine import Machine, Party, Request
from multihost_common.shared import CELL, Cells

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

    def withdraw(self, request: Request) -> None:
        """Nothing waits here."""

    def depart(self, party: Party) -> None:
        """Nobody holds bytes."""

    def size(self) -> int:
        """Its bytes."""
        return len(self.data)


__all__ = ["Cell"]
