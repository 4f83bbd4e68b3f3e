"""Tables of numbers in a payload frame: rows of unsigned 64-bit little-endian integers."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable, Sequence

from multihost_common.blocks import Frame

#: Rows that a table may have.
MAX_ROWS = 1 << 20


def pack_rows(rows: Iterable[Sequence[int]]) -> bytes:
    """The rows, one after the other."""
    numbers = array("Q")
    for row in rows:
        numbers.extend(row)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers.tobytes()


def unpack_rows(frame: Frame, width: int) -> list[tuple[int, ...]] | None:
    """Its rows of ``width`` numbers; None if it is no such table."""
    if len(frame) % (8 * width) or len(frame) > 8 * width * MAX_ROWS:
        return None
    numbers = array("Q")
    numbers.frombytes(frame)
    if sys.byteorder == "big":
        numbers.byteswap()
    return list(zip(*(numbers[at::width] for at in range(width)), strict=True))
