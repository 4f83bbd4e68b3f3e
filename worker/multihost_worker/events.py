"""What the agent core is told (events), and what it answers (actions)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from multihost_common.blocks import Frame
from multihost_common.messages import Message
from multihost_common.structs import Struct, struct

#: Payload of a message.
Frames: TypeAlias = Sequence[Frame]

# -- events ------------------------------------------------------------------------------------------


@struct
class Received(Struct):
    """A message from the broker."""

    message: Message


@struct
class ChildReady(Struct):
    """The child has run the pool's initializer and waits for work."""

    child: int
    pid: int


@struct
class ChildFailed(Struct):
    """The pool's initializer raised in the child; ChildDied follows."""

    child: int
    text: str


@struct
class ChildResult(Struct):
    """Results of items ``start .. start + count``; ``spent`` in microseconds of the child's time."""

    child: int
    job: int
    start: int
    count: int
    spent: int
    encoding: int
    frames: Sequence[Frame]


@struct
class ChildSays(Struct):
    """What the child runs is a producer, too, and says this to the broker: header and frames of a message."""

    child: int
    frames: Frames


@struct
class ChildDied(Struct):
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


@struct
class Reclaimed(Struct):
    """From ``position`` on, no item given to the child has begun, nor will one."""

    child: int
    position: int


@struct
class Progress(Struct):
    """The child runs the item at ``position`` (-1: none) since the monotonic time ``since``; or, of
    items too short to be told apart, one of the ``covers`` from there on."""

    child: int
    position: int
    since: float
    covers: int = 1


@struct
class ChildMemory(Struct):
    """A sample of the child's resident memory, bytes."""

    child: int
    rss: int


@struct
class Connected(Struct):
    """The broker has welcomed this agent; ``fresh``: it knows nothing of it."""

    fresh: bool = True


@struct
class Disconnected(Struct):
    """The session is over; the shell dials again."""


@struct
class NotSpooled(Struct):
    """There is no room on the disk for this; ``frames`` as they were."""

    number: int
    frames: Frames


@struct
class Unspooled(Struct):
    """What was spooled under this number, and is on the disk no more. None: it could not be read."""

    number: int
    frames: Frames | None


@struct
class Stop(Struct):
    """The operator wants the agent to end: drain; the second time hand everything back at once."""


@struct
class Tick(Struct):
    """The deadline has come."""


Event: TypeAlias = (
    Received | ChildReady | ChildFailed | ChildResult | ChildSays | ChildDied | Reclaimed | Progress | ChildMemory
    | Connected | Disconnected | NotSpooled | Unspooled | Stop | Tick
)  # fmt: skip

# -- actions -----------------------------------------------------------------------------------------


@struct
class Send(Struct):
    """A message to the broker."""

    message: Message


@struct
class Tell(Struct):
    """The broker says this to the producer that the child is: header and frames of a message."""

    child: int
    frames: Frames


@struct
class StartChild(Struct):
    """Fork a child for the pool, or for what is a process of its own. ``setup`` and ``code`` are contents of blobs, or
    empty."""

    child: int
    pool: int
    setup: Frame
    code: Frame
    process: bool = False


@struct
class Begin(Struct):
    """What this child runs, in its main thread: it ends when that does."""

    child: int
    frames: Frames


@struct
class SignalChild(Struct):
    """Send the child a signal."""

    child: int
    signal: int


@struct
class Orphan(Struct):
    """Whoever started the process that this child is, is gone: let it know."""

    child: int


@struct
class Define(Struct):
    """Tell the child the function of a job before the first Run of it."""

    child: int
    job: int
    function: Frame
    code: Frame
    call: int
    timeout: float
    retries: int
    at_most_once: bool


@struct
class Run(Struct):
    """Items ``start .. start + count`` of the job, at ``position`` of the child's own count."""

    child: int
    position: int
    job: int
    start: int
    count: int
    chunksize: int
    skip: int
    frames: Sequence[Frame]


@struct
class Forget(Struct):
    """The job is over; the child may drop its function."""

    child: int
    job: int


@struct
class StopChild(Struct):
    """The None sentinel: the child ends once it has run what it was given."""

    child: int


@struct
class KillChild(Struct):
    """SIGKILL, and whatever the child itself has started."""

    child: int


@struct
class Reclaim(Struct):
    """Take back from the child what has not begun. Answered by Reclaimed."""

    child: int


@struct
class Inspect(Struct):
    """What does the child run? Answered by Progress."""

    child: int


@struct
class Spool(Struct):
    """Put these frames on the disk. Answered by NotSpooled if that cannot be."""

    number: int
    frames: Frames


@struct
class Unspool(Struct):
    """What was spooled is to be sent next. Answered by Unspooled when there is room for it on the way."""

    number: int


@struct
class Unlink(Struct):
    """What was spooled is not needed any more."""

    number: int


@struct
class Exit(Struct):
    """The agent is done; ``code`` is its exit status."""

    code: int


Action: TypeAlias = (
    Send | Tell | StartChild | Define | Run | Forget | StopChild | KillChild | Reclaim | Inspect | Spool | Unspool | Unlink
    | Begin | SignalChild | Orphan | Exit
)  # fmt: skip
