"""Queues that have a name: how they are addressed, and how their items are told apart."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from multihost_common.blake2 import blake2b
from multihost_common.blocks import Frame
from multihost_common.messages import NAME, OBJECT
from multihost_common.tables import pack_rows, unpack_rows

#: Bytes that tell one process's end of a queue from all others, drawn by chance.
CLIENT = 16

#: Items that one PUT brings at most, and bits of an item's number that say which of them it is. Above them is the PUT's
#: number, which rises over all starts of a broker: so an item keeps its number for as long as it is there.
MOST_AT_ONCE = 1 << 10
PLACE_BITS = 16

#: (first item, how many).
Rows = list[tuple[int, int]]


def check_name(name: str) -> str:
    """The name, if a queue can have it. Raises ValueError."""
    if not 0 < len(name) <= NAME or not name.isprintable():
        raise ValueError(
            f"a queue's name has 1 to {NAME} characters that can be printed, unlike {name!r:.300}"
        )
    return name


def object_of(name: str) -> bytes:
    """What messages call the queue of this name."""
    return blake2b(b"queue " + name.encode(errors="surrogatepass"), digest_size=OBJECT).digest()


def rows_of(items: Iterable[int]) -> bytes:
    """A table of these items' numbers; those in a row take little room."""
    rows: list[list[int]] = []
    for item in items:
        if rows and item == rows[-1][0] + rows[-1][1]:
            rows[-1][1] += 1
        else:
            rows.append([item, 1])
    return pack_rows(rows)


def items_of(rows: Iterable[Sequence[int]]) -> list[int]:
    """The numbers one by one."""
    return [item for first, count in rows for item in range(first, first + count)]


def unpack_items(frame: Frame) -> Rows:
    """The table that a peer sent. Raises ValueError if it is none, or names more than can be of one PUT in one row."""
    rows = unpack_rows(frame, 2)
    if rows is None or any(not 0 < count <= MOST_AT_ONCE for _, count in rows):
        raise ValueError("items are named by their numbers")
    return [(first, count) for first, count in rows]


def unpack_pair(frame: Frame) -> tuple[int, int]:
    """A table of one row of two numbers that a peer sent. Raises ValueError if it is none."""
    rows = unpack_rows(frame, 2)
    if rows is None or len(rows) != 1:
        raise ValueError("two numbers are wanted")
    return rows[0][0], rows[0][1]


__all__ = [
    "CLIENT",
    "MOST_AT_ONCE",
    "PLACE_BITS",
    "Rows",
    "check_name",
    "items_of",
    "object_of",
    "rows_of",
    "unpack_items",
    "unpack_pair",
]
