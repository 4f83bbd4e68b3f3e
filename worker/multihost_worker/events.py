"""What the agent core is told (events), and what it answers (actions)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from multihost_common.blocks import Frame
from multihost_common.messages import Message

# -- events ------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Received:
    """A message from the broker."""

    message: Message


@dataclass(slots=True)
class ChildReady:
    """The child has run the pool's initializer and waits for work."""

    child: int
    pid: int


@dataclass(slots=True)
class ChildFailed:
    """The pool's initializer raised in the child; ChildDied follows."""

    child: int
    text: str


@dataclass(slots=True)
class ChildResult:
    """Results of items ``start .. start + count``; ``spent`` in microseconds of the child's time."""

    child: int
    job: int
    start: int
    count: int
    spent: int
    encoding: int
    frames: Sequence[Frame]


@dataclass(slots=True)
class ChildDied:
    """The child has ended, and all it sent before was told. ``position``: of the item it was
    running, or -1; it was one of ``covers`` from there on. ``signal`` 0: it exited with ``exitcode``.
    ``rss``: peak in bytes, 0: unknown."""

    child: int
    position: int
    pid: int
    exitcode: int
    signal: int
    rss: int
    oom: bool
    text: str
    covers: int = 1


@dataclass(slots=True)
class Reclaimed:
    """From ``position`` on, no item given to the child has begun, nor will one."""

    child: int
    position: int


@dataclass(slots=True)
class Progress:
    """The child runs the item at ``position`` (-1: none) since the monotonic time ``since``; or, of
    items too short to be told apart, one of the ``covers`` from there on."""

    child: int
    position: int
    since: float
    covers: int = 1


@dataclass(slots=True)
class ChildMemory:
    """A sample of the child's resident memory, bytes."""

    child: int
    rss: int


@dataclass(slots=True)
class Connected:
    """The broker has welcomed this agent."""


@dataclass(slots=True)
class Disconnected:
    """The session is over; the shell dials again."""


@dataclass(slots=True)
class Stop:
    """The operator wants the agent to end: drain; the second time hand everything back at once."""


@dataclass(slots=True)
class Tick:
    """The deadline has come."""


Event: TypeAlias = (
    Received | ChildReady | ChildFailed | ChildResult | ChildDied | Reclaimed | Progress | ChildMemory
    | Connected | Disconnected | Stop | Tick
)  # fmt: skip

# -- actions -----------------------------------------------------------------------------------------


@dataclass(slots=True)
class Send:
    """A message to the broker."""

    message: Message


@dataclass(slots=True)
class StartChild:
    """Fork a child for the pool. ``setup`` and ``code`` are contents of blobs, or empty."""

    child: int
    pool: int
    setup: Frame
    code: Frame


@dataclass(slots=True)
class Define:
    """Tell the child the function of a job before the first Run of it."""

    child: int
    job: int
    function: Frame
    code: Frame
    call: int
    timeout: float
    retries: int
    at_most_once: bool


@dataclass(slots=True)
class Run:
    """Items ``start .. start + count`` of the job, at ``position`` of the child's own count."""

    child: int
    position: int
    job: int
    start: int
    count: int
    chunksize: int
    skip: int
    frames: Sequence[Frame]


@dataclass(slots=True)
class Forget:
    """The job is over; the child may drop its function."""

    child: int
    job: int


@dataclass(slots=True)
class StopChild:
    """The None sentinel: the child ends once it has run what it was given."""

    child: int


@dataclass(slots=True)
class KillChild:
    """SIGKILL, and whatever the child itself has started."""

    child: int


@dataclass(slots=True)
class Reclaim:
    """Take back from the child what has not begun. Answered by Reclaimed."""

    child: int


@dataclass(slots=True)
class Inspect:
    """What does the child run? Answered by Progress."""

    child: int


@dataclass(slots=True)
class Exit:
    """The agent is done; ``code`` is its exit status."""

    code: int


Action: TypeAlias = (
    Send | StartChild | Define | Run | Forget | StopChild | KillChild | Reclaim | Inspect | Exit
)
