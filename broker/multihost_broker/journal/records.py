"""What the journal is given: records, and the two ways of saying that some are not needed any more.

A change has a *number*, which is its ticket, too: they rise by one from change to change and go on rising over
broker starts. The journal looks into no record; kinds, headers and payloads mean something to the core alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from multihost_common.blocks import Frame


@dataclass(frozen=True, slots=True)
class Spooled:
    """A large payload that is kept beside the records, and what is needed to tell it from a damaged one."""

    #: Chosen by the store.
    name: str
    #: Bytes of each frame.
    lengths: tuple[int, ...]
    #: BLAKE2b-256 of the frames end to end.
    digest: bytes


@dataclass(frozen=True, slots=True)
class Record:
    """Something that must be known again after a restart."""

    kind: int
    #: Records of one job go together (:class:`Forget`); empty: of none.
    job: bytes
    header: bytes = b""
    #: Frames, or where they are: large ones come back as :class:`Spooled`.
    payload: tuple[Frame, ...] | Spooled = ()


@dataclass(frozen=True, slots=True)
class Erase:
    """The records with these numbers are not needed any more."""

    numbers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Forget:
    """No record of this job that came before is needed any more."""

    job: bytes


Change: TypeAlias = Record | Erase | Forget

#: Bytes that a change takes beyond what it carries, about.
OVERHEAD = 200


def size_of(change: Change) -> int:
    """Bytes of memory, about, that a change takes."""
    if type(change) is Record:
        frames = change.payload
        carried = 0 if type(frames) is Spooled else sum(map(len, frames))  # type: ignore[arg-type]
        return OVERHEAD + len(change.job) + len(change.header) + carried
    return OVERHEAD + (8 * len(change.numbers) if type(change) is Erase else 0)
