"""The messages of detached jobs. Part of the one table in :mod:`multihost_common.messages`."""

from __future__ import annotations

from collections.abc import Sequence

from multihost_common.blocks import Frame
from multihost_common.codec import MAX_FRAMES
from multihost_common.schema import (
    ADMIN,
    BROKER,
    COUNT,
    PRODUCER,
    TEXT,
    U32,
    Message,
    digest,
    flag,
    integer,
    message,
    payload,
    seconds,
    text,
)

#: Bytes of a detached job's key, which who submits it draws at random.
KEY = 16


@message(48, PRODUCER, ADMIN, carries=(0, 4))
class Submit(Message):
    """A job that outlives who submits it; one function over a stream of items, as OpenPool and OpenJob have it.

    The frames are the contents that it names (``setup``, ``code``, ``function``), in that order, without those
    that are empty and without repetitions. Sent again it is the question how much of the job has been stored.
    Answered by Stored or Denied."""

    key: bytes = digest(KEY)
    limit: int = integer(U32)
    setup: bytes = digest()
    code: bytes = digest()
    max_tasks: int = integer(U32)
    function: bytes = digest()
    call: int = integer((0, 2))
    timeout: float = seconds()
    retries: int = integer(U32)
    retention: float = seconds()
    name: str = text()
    frames: Sequence[Frame] = payload()


@message(49, PRODUCER, ADMIN, carries=(2, MAX_FRAMES))
class Put(Message):
    """A block of a detached job's input, as Feed. Answered by Stored, some of them together, or Denied."""

    key: bytes = digest(KEY)
    start: int = integer()
    count: int = integer(COUNT)
    chunksize: int = integer(COUNT, 1)
    frames: Sequence[Frame] = payload()


@message(50, PRODUCER, ADMIN)
class Seal(Message):
    """The sentinel of a detached job's input: it has ``count`` items. Answered by Stored or Denied."""

    key: bytes = digest(KEY)
    count: int = integer()


@message(51, BROKER)
class Stored(Message):
    """The job's first ``fed`` items are in the journal, and that these are all if ``sealed``: whatever is killed,
    they will be run."""

    key: bytes = digest(KEY)
    fed: int = integer()
    sealed: bool = flag()


@message(52, BROKER)
class Denied(Message):
    """What was asked of a detached job is not done; ``text`` is one sentence for a person. ``after``: seconds
    after which it may be, 0.0: it never will. What came behind it is dropped: to go on, send Submit again."""

    key: bytes = digest(KEY)
    reason: str = text(32)
    text: str = text(TEXT)
    after: float = seconds()


@message(53, PRODUCER, ADMIN)
class Fetch(Message):
    """Answers of a detached job from number ``cursor`` on (0: the first). ``wait``: if there is none yet, then
    when there is, or when the job ends. Answered by Parts and then Fetched, or by Denied."""

    key: bytes = digest(KEY)
    cursor: int = integer()
    wait: bool = flag()


@message(54, BROKER, carries=(1, MAX_FRAMES + 1))
class Part(Message):
    """One answer of a detached job: the frames are a Result's or a Failed's, its header the first one."""

    key: bytes = digest(KEY)
    cursor: int = integer()
    frames: Sequence[Frame] = payload()


#: What has become of a detached job: it gets its input still, it runs, it is done, its initializer failed, it
#: was cancelled.
FILLING, RUNNING, DONE, BROKEN, STOPPED = "filling", "running", "done", "broken", "cancelled"


@message(55, BROKER)
class Fetched(Message):
    """The answers asked for have been sent; ``cursor`` is that of the next one. ``answered`` of ``count`` items (0
    before it is sealed) have an answer. ``over``: no answer will come behind these, and ``text`` is why if that is
    for an initializer that failed."""

    key: bytes = digest(KEY)
    cursor: int = integer()
    count: int = integer()
    answered: int = integer()
    state: str = text(16)
    over: bool = flag()
    text: str = text(TEXT)
