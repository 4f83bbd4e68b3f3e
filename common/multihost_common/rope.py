"""A large frame in the parts that it came in, for those who pass it on without looking into it.

To join the parts costs memory and a copy at each station: a broker sends them on as they are, an agent copies
them into the segment that its child reads.
"""

from __future__ import annotations

# Children import this: nothing that takes time.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from multihost_common.blocks import Frame


class Rope:
    """Has a length, as every frame, and ``parts``; what wants to look into it asks for :func:`whole`."""

    __slots__ = ("_size", "parts")

    def __init__(self, parts: Sequence[Frame]) -> None:
        self.parts = parts
        self._size = sum(map(len, parts))

    def __len__(self) -> int:
        return self._size


def parts_of(frame: Frame | Rope) -> Sequence[Frame]:
    """What lies end to end in ``frame``."""
    return frame.parts if isinstance(frame, Rope) else (frame,)


def whole(frame: Frame | Rope) -> Frame:
    """``frame`` as one buffer, which can be written to if it was a rope."""
    return bytearray().join(frame.parts) if isinstance(frame, Rope) else frame
