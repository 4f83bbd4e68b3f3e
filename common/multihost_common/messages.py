"""Every message of the protocol, in one table. ``PROTOCOL.md`` beside this package tells the story.

A message is a dataclass; :mod:`multihost_common.codec` takes it to the wire and back. Inside one process
the cores exchange the dataclasses themselves, and nothing is encoded at all.
"""

from __future__ import annotations

from collections.abc import Sequence

from multihost_common.blocks import Frame
from multihost_common.codec import MAX_FRAMES as MAX_FRAMES
from multihost_common.codec import MAX_HEADER_BYTES as MAX_HEADER_BYTES
from multihost_common.codec import decode as decode
from multihost_common.codec import encode as encode
from multihost_common.messages_detached import BROKEN as BROKEN
from multihost_common.messages_detached import DONE as DONE
from multihost_common.messages_detached import FILLING as FILLING
from multihost_common.messages_detached import KEY as KEY
from multihost_common.messages_detached import RUNNING as RUNNING
from multihost_common.messages_detached import STOPPED as STOPPED
from multihost_common.messages_detached import Denied as Denied
from multihost_common.messages_detached import Fetch as Fetch
from multihost_common.messages_detached import Fetched as Fetched
from multihost_common.messages_detached import Part as Part
from multihost_common.messages_detached import Put as Put
from multihost_common.messages_detached import Seal as Seal
from multihost_common.messages_detached import Stored as Stored
from multihost_common.messages_detached import Submit as Submit
from multihost_common.messages_shared import BUSY as BUSY
from multihost_common.messages_shared import CLOSE as CLOSE
from multihost_common.messages_shared import DELETE as DELETE
from multihost_common.messages_shared import FORBIDDEN as FORBIDDEN
from multihost_common.messages_shared import GRANTED as GRANTED
from multihost_common.messages_shared import MAKE as MAKE
from multihost_common.messages_shared import OBJECT as OBJECT
from multihost_common.messages_shared import OPEN as OPEN
from multihost_common.messages_shared import UNKNOWN as UNKNOWN
from multihost_common.messages_shared import WITHDRAW as WITHDRAW
from multihost_common.messages_shared import WITHDRAWN as WITHDRAWN
from multihost_common.messages_shared import Act as Act
from multihost_common.messages_shared import Acted as Acted
from multihost_common.messages_shared import Exited as Exited
from multihost_common.messages_shared import Heard as Heard
from multihost_common.messages_shared import Launch as Launch
from multihost_common.messages_shared import Launched as Launched
from multihost_common.messages_shared import Signal as Signal
from multihost_common.messages_shared import Via as Via
from multihost_common.schema import ADMIN as ADMIN
from multihost_common.schema import BROKER as BROKER
from multihost_common.schema import COUNT as COUNT
from multihost_common.schema import DIGEST as DIGEST
from multihost_common.schema import I32 as I32
from multihost_common.schema import NAME as NAME
from multihost_common.schema import PRODUCER as PRODUCER
from multihost_common.schema import SECONDS as SECONDS
from multihost_common.schema import TABLE as TABLE
from multihost_common.schema import TEXT as TEXT
from multihost_common.schema import U8 as U8
from multihost_common.schema import U32 as U32
from multihost_common.schema import U64 as U64
from multihost_common.schema import WORKER as WORKER
from multihost_common.schema import Message as Message
from multihost_common.schema import digest, flag, integer, message, payload, seconds, text
from multihost_common.schema import schema as schema

#: Raised with every change that an older peer would misread. Checked at the handshake.
PROTOCOL_VERSION = 5

# -- session ---------------------------------------------------------------------------------------


@message(1, PRODUCER, WORKER, ADMIN)
class Hello(Message):
    """First message of a connection. Answered by Welcome or Refused.

    ``client`` names the process for its whole life; ``session`` is the number it had before, 0: none;
    ``era``: what its Welcome said; ``workers``: how many a producer knew of then; ``heard``: the last numbered message of
    the broker's that came."""

    kind: str = text(16)
    protocol: int = integer(U32)
    python: str = text(16)
    pickle: int = integer(U8)
    host: str = text()
    pid: int = integer(U32)
    slots: int = integer(U32)
    name: str = text()
    client: bytes = digest(16)
    session: int = integer(U32)
    workers: int = integer(U32)
    heard: int = integer()
    era: int = integer()


@message(2, BROKER)
class Welcome(Message):
    """The session is open. ``heartbeat`` is the interval in seconds between beats. ``fresh``: the broker knows nothing
    of the peer; else ``heard`` is the last of its numbered messages that came. ``era``: no other session of this broker's
    has it, whatever its number."""

    epoch: int = integer()
    session: int = integer(U32)
    heartbeat: float = seconds()
    max_frame: int = integer()
    slots: int = integer(U32)
    workers: int = integer(U32)
    fresh: bool = flag()
    heard: int = integer()
    era: int = integer()


@message(3, BROKER)
class Refused(Message):
    """What was asked is not done; ``text`` is one sentence for a person."""

    reason: str = text(32)
    text: str = text(TEXT)


@message(4, PRODUCER, WORKER, ADMIN, BROKER, carries=(0, 1))
class Beat(Message):
    """A sign of life. A worker's carries one frame: (job, start, count, attempt) of each lease it
    holds, as unsigned 64-bit little-endian integers."""

    frames: Sequence[Frame] = payload()


@message(5, PRODUCER, WORKER, ADMIN, BROKER)
class Bye(Message):
    """The sender leaves in good order; or, where ``reason`` is DIED, its worker says that it was killed."""

    reason: str = text()


@message(37, PRODUCER)
class Restated(Message):
    """After a lost connection: the pools and jobs stated since Hello are all there are."""


@message(39, PRODUCER, carries=(1, 1))
class Known(Message):
    """Of a job that is stated anew: (start, count) of items that have their answer, though not all of their
    Feed have."""

    job: int = integer()
    frames: Sequence[Frame] = payload()


@message(38, WORKER, carries=(2, 2))
class Held(Message):
    """After Welcome: what the worker still has. The first frame: (pool, children) of each pool; the second:
    (job, start, count, attempt) of each lease and of each result that is not sent yet, as in Beat."""

    frames: Sequence[Frame] = payload()


# -- content by digest -------------------------------------------------------------------------------


@message(6, PRODUCER, BROKER, carries=(1, 1))
class Blob(Message):
    """Content by digest: a pickled function, a pool's set-up, a bundle of modules."""

    digest: bytes = digest()
    frames: Sequence[Frame] = payload()


@message(7, WORKER, BROKER)
class Need(Message):
    """The sender has to have this content. Answered by Blob."""

    digest: bytes = digest()


# -- pools -----------------------------------------------------------------------------------------


@message(8, PRODUCER, BROKER)
class OpenPool(Message):
    """A pool of children. ``limit`` is how many may run at once over all hosts (0: every slot). ``nested``: the broker
    says that its producer is a child itself, so one child of it may run beside the slots."""

    pool: int = integer()
    limit: int = integer(U32)
    setup: bytes = digest()
    code: bytes = digest()
    max_tasks: int = integer(U32)
    eager: bool = flag()
    name: str = text()
    nested: bool = flag()


@message(9, PRODUCER, BROKER)
class ClosePool(Message):
    """No more jobs. Children end when they are idle, or now (``kill``)."""

    pool: int = integer()
    kill: bool = flag()


@message(10, WORKER, BROKER)
class PoolClosed(Message):
    """All children of the pool have ended."""

    pool: int = integer()


@message(11, WORKER, BROKER)
class PoolBroken(Message):
    """The pool's initializer failed; ``text`` is its traceback."""

    pool: int = integer()
    text: str = text(TEXT)


@message(12, BROKER)
class Grant(Message):
    """How many children of the pool this worker may run from now on."""

    pool: int = integer()
    slots: int = integer(U32)


# -- jobs ------------------------------------------------------------------------------------------

#: How a child calls the function with an item.
CALL_MAP, CALL_STAR, CALL_APPLY = 0, 1, 2


@message(16, PRODUCER, BROKER)
class OpenJob(Message):
    """One function over a stream of items. ``call``: 0 f(x), 1 f(*x), 2 f(*x[0], **x[1]).

    ``resumed``: stated anew after a lost connection; its Feeds are those without all of their answers (see
    Known), and what lies between them has been answered."""

    job: int = integer()
    pool: int = integer()
    function: bytes = digest()
    code: bytes = digest()
    call: int = integer((0, 2))
    timeout: float = seconds()
    retries: int = integer(U32)
    at_most_once: bool = flag()
    name: str = text()
    resumed: bool = flag()


@message(17, PRODUCER, carries=(2, MAX_FRAMES))
class Feed(Message):
    """A block of the job's input (see :mod:`multihost_common.blocks`)."""

    job: int = integer()
    start: int = integer()
    count: int = integer(COUNT)
    chunksize: int = integer(COUNT, 1)
    frames: Sequence[Frame] = payload()


@message(18, PRODUCER)
class EndJob(Message):
    """The sentinel of the input stream: the job has ``count`` items."""

    job: int = integer()
    count: int = integer()


@message(19, PRODUCER, BROKER)
class Cancel(Message):
    """Items ``start .. start + count`` (count 0: the whole job) are not wanted any more.
    ``kill``: also those that run."""

    job: int = integer()
    start: int = integer()
    count: int = integer()
    kill: bool = flag()


@message(20, BROKER)
class CloseJob(Message):
    """The job is over: forget its function."""

    job: int = integer()


# -- work and its results ----------------------------------------------------------------------------


@message(24, BROKER, carries=(2, MAX_FRAMES))
class Lease(Message):
    """Run items ``start .. start + count``. The frames hold whole chunks of ``chunksize`` items;
    ``skip`` items of the first chunk come before ``start``. ``isolate``: alone, in a fresh child."""

    job: int = integer()
    start: int = integer()
    count: int = integer(COUNT)
    chunksize: int = integer(COUNT, 1)
    skip: int = integer()
    attempt: int = integer()
    isolate: bool = flag()
    frames: Sequence[Frame] = payload()


@message(25, BROKER)
class Revoke(Message):
    """Give back about ``count`` items of the pool that have not begun."""

    pool: int = integer()
    count: int = integer(COUNT)


@message(26, WORKER)
class Returned(Message):
    """These items of a lease have not begun and are not held any more."""

    job: int = integer()
    start: int = integer()
    count: int = integer(COUNT)
    attempt: int = integer()


#: Encoding of result frames: pickled lists of values, or one pickled outcome an item.
VALUES, OUTCOMES = 0, 1


@message(27, WORKER, BROKER, carries=(2, MAX_FRAMES))
class Result(Message):
    """Results of items ``start .. start + count``: ``frames[0]`` holds the lengths of the pickles
    in ``frames[1]``, the rest are out-of-band buffers. ``spent``: microseconds a child took."""

    job: int = integer()
    start: int = integer()
    count: int = integer(COUNT)
    attempt: int = integer()
    spent: int = integer()
    encoding: int = integer((0, 1))
    frames: Sequence[Frame] = payload()


#: Why an item has no result of its own.
DIED, TIMED_OUT, LOST, CANCELLED, MEMORY = "died", "timeout", "lost", "cancelled", "memory"
REASONS = frozenset({DIED, TIMED_OUT, LOST, CANCELLED, MEMORY})


@message(28, WORKER)
class Died(Message):
    """The child that ran item ``item`` ended. ``rss``: bytes at its peak; ``signal`` 0: it exited."""

    job: int = integer()
    item: int = integer()
    attempt: int = integer()
    reason: str = text(16)
    host: str = text()
    pid: int = integer(U32)
    signal: int = integer(U8)
    exitcode: int = integer(I32)
    rss: int = integer()
    oom: bool = flag()
    text: str = text(TEXT)


@message(29, BROKER)
class Failed(Message):
    """Items ``start .. start + count`` have no result and will have none."""

    job: int = integer()
    start: int = integer()
    count: int = integer(COUNT)
    reason: str = text(16)
    deaths: int = integer(U32)
    host: str = text()
    pid: int = integer(U32)
    signal: int = integer(U8)
    exitcode: int = integer(I32)
    rss: int = integer()
    oom: bool = flag()
    text: str = text(TEXT)


@message(30, BROKER)
class EndResults(Message):
    """The sentinel of the result stream: every one of ``count`` items has been answered."""

    job: int = integer()
    count: int = integer()


# -- operators ---------------------------------------------------------------------------------------


@message(56, BROKER)
class Leave(Message):
    """To a worker: end as by SIGTERM. Somebody has asked for it."""


@message(57, BROKER, carries=(0, 1))
class Hold(Message):
    """To a producer: feed nothing new for now (``hold``), or go on. The frame: (job, start) of each job whose Feeds from item
    ``start`` on were dropped, as unsigned 64-bit little-endian integers; it is to be stated anew from there."""

    hold: bool = flag()
    frames: Sequence[Frame] = payload()


# -- the rest ----------------------------------------------------------------------------------------


@message(32, WORKER, BROKER, carries=(1, 1))
class Output(Message):
    """What a child wrote to ``stream`` (1 standard output, 2 standard error)."""

    pool: int = integer()
    host: str = text()
    pid: int = integer(U32)
    stream: int = integer((1, 2), 1)
    frames: Sequence[Frame] = payload()


@message(33, BROKER)
class Capacity(Message):
    """How many slots and workers there are now."""

    slots: int = integer(U32)
    workers: int = integer(U32)


@message(34, WORKER, BROKER)
class Drain(Message):
    """Send no more work; what has not begun follows as Returned. The broker answers with the same: no more
    comes."""


@message(35, ADMIN, PRODUCER)
class Ask(Message):
    """A question about the broker's state, or an operator's order, ``about`` something. Answered by Answer, an order
    once it is in the journal, or by Refused."""

    what: str = text(32)
    about: str = text()


@message(36, BROKER, carries=(1, 1))
class Answer(Message):
    """The answer to Ask, one frame of UTF-8 JSON."""

    what: str = text(32)
    frames: Sequence[Frame] = payload()
