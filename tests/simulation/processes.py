"""What a virtual child is, and what it was given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class VirtualRun:
    """Items that a child was given in one go."""

    position: int
    job: int
    #: First item, the next one, and the end.
    first: int
    item: int
    stop: int
    #: First item of the block's first chunk.
    base: int
    chunksize: int
    #: One item at a time, and its result at once; each item noted by itself, however short.
    single: bool
    timed: bool
    #: What the items are, if anybody has looked.
    values: Sequence[Any] = ()


@dataclass(slots=True)
class VirtualChild:
    """One child process."""

    number: int
    pid: int
    runs: list[VirtualRun] = field(default_factory=list)
    #: Position after the last item it was given.
    given: int = 0
    ready: bool = False
    stopping: bool = False
    #: The core wants it dead.
    killed: bool = False
    #: Of the claims: an older one's end does not concern it any more.
    generation: int = 0
    sent: float = 0.0
    #: The claim that runs: its items and when each of them ends.
    claim: list[tuple[int, float]] = field(default_factory=list)
    #: When it began, and by the host's clock.
    begun: float = 0.0
    clock: float = 0.0
    #: Done and not sent.
    done: list[tuple[int, float]] = field(default_factory=list)
    #: Jobs whose function it has, those of them that are ``at_most_once``, and that have a timeout.
    defined: set[int] = field(default_factory=set)
    once: set[int] = field(default_factory=set)
    timed: set[int] = field(default_factory=set)
    ran: list[int] = field(default_factory=list)
    #: When the last of what it has said is heard.
    heard_at: float = 0.0
