"""Large frames travel in parts.

ZeroMQ encrypts, sends and decrypts a frame as one piece. One of many megabytes goes through fresh memory
at each of these steps and through none of the processor's caches, which takes twice as long; and nobody
else on that connection's I/O thread is served meanwhile.

A frame of ``PART`` bytes and more goes as parts of exactly ``PART`` bytes and a last one that is shorter,
perhaps empty. So a part says by its length whether another follows, and smaller frames are as they were.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import cast

from multihost_common.blocks import Frame
from multihost_common.errors import ProtocolError
from multihost_common.rope import Rope, parts_of

#: Bytes of each part but the last.
PART = 1 << 20

#: Bytes of one frame. The lengths inside a block are 32-bit numbers.
MAX_FRAME = 0xFFFF_FFFF


def cut(frames: Sequence[Frame]) -> Sequence[Frame]:
    """``frames`` as they travel; nothing is copied."""
    if len(frames) == 1 or max(map(len, frames)) < PART:
        # What is alone is a header.
        return frames
    return [part for frame in frames for part in _parts(frame)]


def _parts(frame: Frame | Rope) -> Iterable[Frame]:
    if isinstance(frame, Rope) or len(frame) < PART:
        return parts_of(frame)
    view = memoryview(frame)
    return (view[start : start + PART] for start in range(0, len(view) + 1, PART))


def join(travelled: Sequence[Frame], apart: int = 0) -> Sequence[Frame]:
    """The inverse of :func:`cut`. ``apart``: the number of the frame from which on each large one is a
    :class:`~multihost_common.rope.Rope`, and may be asked for its length alone; 0: none is.

    Raises ProtocolError for a torn frame, and one above ``MAX_FRAME``.
    """
    if len(travelled) == 1 or max(map(len, travelled)) < PART:
        return travelled
    frames: list[Frame] = []
    parts: list[Frame] = []
    for part in travelled:
        parts.append(part)
        if len(part) < PART:
            frames.append(parts[0] if len(parts) == 1 else _joined(parts, 0 < apart <= len(frames)))
            parts = []
    if parts:
        raise ProtocolError("E_FRAMES", "the last part of a frame is missing")
    return frames


def _joined(parts: list[Frame], apart: bool) -> Frame:
    rope = Rope(parts)
    if len(rope) > MAX_FRAME:
        raise ProtocolError("E_SIZE", f"a frame of {len(rope)} bytes; {MAX_FRAME} are taken")
    return cast("Frame", rope) if apart else b"".join(parts)
