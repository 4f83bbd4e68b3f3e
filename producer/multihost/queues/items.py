"""Items of queues as they travel: packed together where they are small, with their buffers beside where they are large."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from multihost.reduction import BATCH_BYTES, dump_function, dump_item, dump_many
from multihost_common.blocks import Frame, pack_lengths, unpack_lengths
from multihost_common.messages import MAX_FRAMES

if sys.version_info >= (3, 13):
    from queue import ShutDown
else:

    class ShutDown(Exception):  # noqa: N818 - its name in Python 3.13
        """Raised by ``put`` and ``get`` of a queue that was shut down."""


#: An item as it came: its pickle, or that and its out-of-band buffers.
Piece = bytes | tuple[Frame, ...]

#: Bytes that the pickle of an item and its buffers may have together.
MAX_ITEM = 256 << 20

#: Buffers of one item that travel out of band: with more it travels as one pickle.
MAX_BUFFERS = MAX_FRAMES - 2


def pack(objs: Sequence[Any], onerror: Callable[[Exception, Any], object]) -> Iterator[Sequence[Frame]]:
    """Frames of PUTs that bring these objects. What cannot be pickled is left out, and told."""
    objs = list(objs)
    while objs:
        pieces = dump_many(objs, BATCH_BYTES)
        if pieces:
            yield [pack_lengths([len(piece) for piece in pieces]), b"".join(pieces)]
            objs = objs[len(pieces) :]
            continue
        obj = objs.pop(0)
        try:
            frames = pack_one(obj)
        except Exception as error:  # noqa: BLE001
            onerror(error, obj)
        else:
            yield frames


def pack_one(obj: Any) -> Sequence[Frame]:
    """Frames of one object. Raises what pickling it raises, ValueError if it is too large."""
    data, buffers = dump_item(obj)
    if len(buffers) > MAX_BUFFERS:
        data, buffers = dump_function(obj), []
    size = len(data) + sum(map(len, buffers))
    check_size(size)
    return [len(data).to_bytes(4, "little"), data, *buffers]


def check_size(size: int) -> None:
    """Raises ValueError if an item has more bytes than a queue takes."""
    if size > MAX_ITEM:
        raise ValueError(f"an item of {size} bytes is too large for a queue, which takes up to {MAX_ITEM}")


def split(frames: Sequence[Frame]) -> list[Piece]:
    """The items in the frames of an answer."""
    lengths, data = frames[0], frames[1]
    if len(lengths) == 4:
        if len(frames) == 2:
            return [data if type(data) is bytes else (data,)]
        return [(data, *frames[2:])]
    whole = bytes(data)
    pieces: list[Piece] = []
    begin = 0
    for length in unpack_lengths(lengths):
        end = begin + length
        pieces.append(whole[begin:end])
        begin = end
    return pieces


__all__ = ["MAX_ITEM", "Piece", "ShutDown", "check_size", "pack", "pack_one", "split"]
