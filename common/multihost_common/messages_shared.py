"""The messages of shared objects, of processes, and of producers that are children of a worker.

Part of the one table in :mod:`multihost_common.messages`.
"""

from __future__ import annotations

from collections.abc import Sequence

from multihost_common.blocks import Frame
from multihost_common.codec import MAX_FRAMES
from multihost_common.schema import (
    BROKER,
    I32,
    PRODUCER,
    TEXT,
    U8,
    U32,
    WORKER,
    Message,
    digest,
    flag,
    integer,
    message,
    payload,
    text,
)

#: Bytes of a shared object's name, which who makes it draws at random.
OBJECT = 16

#: The messages of this file that have ``seq`` are numbered by each end of a connection, from 1 on: they arrive once,
#: in order (see :mod:`multihost_common.stream`). 0: not numbered, within one process or inside of Via.


@message(67, PRODUCER, WORKER, BROKER)
class Heard(Message):
    """All numbered messages up to ``seq`` have come."""

    seq: int = integer()


# -- producers that are children of a worker -----------------------------------------------------------


@message(64, WORKER, BROKER, carries=(1, MAX_FRAMES + 1))
class Via(Message):
    """A message of, or to, a producer that is child number ``child`` of this worker: its header and its frames.

    ``root``: the pool or process that the child belongs to. The worker says Bye for a child that has ended."""

    child: int = integer()
    root: int = integer()
    seq: int = integer()
    frames: Sequence[Frame] = payload()


# -- shared objects ------------------------------------------------------------------------------------

#: What became of a request: it is done; it would have had to wait and was not to; it was withdrawn; there is no such object
#: (any more); it is not allowed, and ``text`` says why.
GRANTED, BUSY, WITHDRAWN, UNKNOWN, FORBIDDEN = 0, 1, 2, 3, 4

#: Operations that every object knows. WITHDRAW: request ``amount`` is not wanted any more, and is answered with
#: WITHDRAWN, unless it has been answered. CLOSE: the sender uses the object no more. OPEN: use an object that has a name
#: of its own and is nobody's; it is made if there is none. DELETE: such an object is no more.
MAKE, WITHDRAW, CLOSE, OPEN, DELETE = 0, 1, 2, 3, 4


@message(65, PRODUCER, carries=(0, MAX_FRAMES))
class Act(Message):
    """Do something with a shared object. ``number``: of the request, answered by Acted when it is done; 0: not
    answered. ``now``: if it had to wait it is answered with BUSY at once."""

    number: int = integer()
    object: bytes = digest(OBJECT)
    op: int = integer(U8)
    amount: int = integer()
    now: bool = flag()
    seq: int = integer()
    frames: Sequence[Frame] = payload()


@message(66, BROKER, carries=(0, MAX_FRAMES))
class Acted(Message):
    """Request ``number`` is over; what ``status``, ``amount`` and the frames say depends on what it was."""

    number: int = integer()
    status: int = integer(U8)
    amount: int = integer()
    text: str = text(TEXT)
    seq: int = integer()
    frames: Sequence[Frame] = payload()


# -- processes -----------------------------------------------------------------------------------------


@message(72, PRODUCER, BROKER, carries=(1, MAX_FRAMES))
class Launch(Message):
    """Start a process of its own, beside the slots. ``setup`` and ``code`` as in OpenPool; the frames are what it
    runs. Answered by Launched, or by Exited if there can be none."""

    process: int = integer()
    setup: bytes = digest()
    code: bytes = digest()
    name: str = text()
    seq: int = integer()
    frames: Sequence[Frame] = payload()


@message(73, WORKER, BROKER)
class Launched(Message):
    """The process runs, on this host under this number."""

    process: int = integer()
    host: str = text()
    pid: int = integer(U32)
    seq: int = integer()


@message(74, WORKER, BROKER)
class Exited(Message):
    """The process has ended: with ``exitcode``, or by a signal (``exitcode`` is minus its number)."""

    process: int = integer()
    host: str = text()
    exitcode: int = integer(I32)
    text: str = text(TEXT)
    seq: int = integer()


@message(75, PRODUCER, BROKER)
class Signal(Message):
    """Send the process a signal. Process 0: from a producer, whoever has started it; from the broker, who gets this."""

    process: int = integer()
    signal: int = integer(U8)
    seq: int = integer()


__all__ = [
    "BUSY",
    "CLOSE",
    "DELETE",
    "FORBIDDEN",
    "GRANTED",
    "MAKE",
    "OBJECT",
    "OPEN",
    "UNKNOWN",
    "WITHDRAW",
    "WITHDRAWN",
    "Act",
    "Acted",
    "Exited",
    "Launch",
    "Launched",
    "Signal",
    "Via",
]  # fmt: skip
