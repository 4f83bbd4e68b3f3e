"""From items to blocks: chunks pickled end to end, large buffers out of band."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from multihost.functions import Refused
from multihost.reduction import dump_item, dump_many
from multihost_common.blocks import Frame, pack_lengths
from multihost_common.messages import MAX_FRAMES
from multihost_common.pickling import Carried

#: Chunks in one block: some 0.3 ms of pickling for small items, so the first ones are soon on the way.
BLOCK_CHUNKS = 1024
#: Bytes after which a block is full, so that neither a message nor a turn of the loop gets long.
BLOCK_BYTES = 1 << 20
#: Pickles a function once more, see :class:`~multihost.jobs.Task`.
Again: TypeAlias = "Callable[[], bytes | None] | None"

#: Items in one block: about 2 ms of pickling where chunks are large.
BLOCK_ITEMS = 1 << 16


@dataclass(slots=True)
class Packed:
    """A block's worth of the first items: ``count`` of them in chunks of ``chunksize``.

    ``refused``: errors of those that do not pickle, by offset; the block holds a place-holder instead.
    """

    count: int
    chunksize: int
    frames: list[Frame]
    size: int
    refused: dict[int, Exception] = field(default_factory=dict)


def pack(items: Sequence[Any], chunksize: int, again: Again = None) -> Packed:
    """Pickle leading items into one block; it may hold fewer than there are, but at least one. ``again``: see
    :class:`~multihost.jobs.Task`."""
    if chunksize == 1 and again is None:
        pickles = dump_many(items)
        if pickles:
            return _block(pickles, len(pickles), 1)
        return _single(items[0])
    return _chunked(items, chunksize, again)


def block_of(pickles: list[bytes]) -> Packed:
    """A block of items that are pickled already, one a chunk."""
    return _block(pickles, len(pickles), 1)


def alone(data: bytes, buffers: Sequence[Frame]) -> Packed:
    """A block of one item with out-of-band buffers."""
    return _with_buffers(data, buffers, 1, 1)


def _single(item: Any) -> Packed:
    try:
        return _alone(item, *dump_item(item))
    except Exception as error:  # noqa: BLE001
        made = _block([pickle.dumps(Refused(), 5)], 1, 1)
        made.refused[0] = error
        return made


def _alone(item: Any, data: bytes, buffers: Sequence[Frame]) -> Packed:
    if len(buffers) > MAX_FRAMES - 2:
        data, buffers = pickle.dumps(item, 5), []
    return _with_buffers(data, buffers, 1, 1)


def _payload(chunk: Sequence[Any], chunksize: int, again: Again) -> Any:
    """What is pickled of a chunk. Raises what pickling the function raises."""
    items: Any = chunk[0] if chunksize == 1 else chunk if type(chunk) is list else list(chunk)
    content = None if again is None else again()
    return items if content is None else Carried(content, items)


def _chunked(items: Sequence[Any], chunksize: int, again: Again) -> Packed:
    pickles: list[bytes] = []
    size = count = 0
    for at in range(0, len(items), chunksize):
        chunk = items[at : at + chunksize]
        try:
            data, buffers = dump_item(_payload(chunk, chunksize, again))
        except Exception:  # noqa: BLE001
            return _block(pickles, count, chunksize) if pickles else _one_by_one(chunk, again)
        if buffers:
            if pickles:
                break
            if len(buffers) > MAX_FRAMES - 2:
                return _one_by_one(chunk, again)
            return _with_buffers(data, buffers, len(chunk), chunksize)
        pickles.append(data)
        count += len(chunk)
        size += len(data)
        if size >= BLOCK_BYTES:
            break
    return _block(pickles, count, chunksize)


def _one_by_one(chunk: Sequence[Any], again: Again) -> Packed:
    """A chunk of which something does not pickle: only that is left out, the rest goes as single items."""
    pickles: list[bytes] = []
    refused: dict[int, Exception] = {}
    for offset, item in enumerate(chunk):
        payload = None
        try:
            payload = _payload([item], 1, again)
            data, buffers = dump_item(payload)
        except Exception as error:  # noqa: BLE001
            refused[offset] = error
            data, buffers = pickle.dumps(Refused(), 5), []
        if buffers:
            if not pickles:
                return _alone(payload, data, buffers)
            break
        pickles.append(data)
    made = _block(pickles, len(pickles), 1)
    made.refused = refused
    return made


def _block(pickles: list[bytes], count: int, chunksize: int) -> Packed:
    data = pickles[0] if len(pickles) == 1 else b"".join(pickles)
    return Packed(count, chunksize, [pack_lengths(list(map(len, pickles))), data], len(data))


def _with_buffers(data: bytes, buffers: Sequence[Frame], count: int, chunksize: int) -> Packed:
    size = len(data) + sum(memoryview(buffer).nbytes for buffer in buffers)
    return Packed(count, chunksize, [pack_lengths([len(data)]), data, *buffers], size)
