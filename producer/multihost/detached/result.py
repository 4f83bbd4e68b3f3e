"""Jobs that outlive who submits them: the broker keeps their input and their answers on its disk.

:func:`submit` hands one in and returns once it is durable; a :class:`DetachedResult` gets at the answers, in any
process that knows the key.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING, Any

from multihost.detached.client import Client
from multihost.detached.fetching import Fetching
from multihost.detached.storing import Storing
from multihost.engines.choosing import resolve_address
from multihost.failures import Raised
from multihost.iterators import Inbox
from multihost.jobs import Options
from multihost.packing import BLOCK_BYTES, BLOCK_CHUNKS, BLOCK_ITEMS, Packed, pack
from multihost.results import AsyncResult, run_callback
from multihost.sources import Calls
from multihost_common.blobs import digest_of
from multihost_common.errors import JobError
from multihost_common.messages import CALL_APPLY, KEY, NAME, SECONDS, Submit

if TYPE_CHECKING:
    from multihost.handle import PoolHandle

#: Seconds that a job is kept after its end, unless it is told otherwise: a week.
RETENTION = 7 * 86_400.0

#: Bytes of answers that :meth:`DetachedResult.outcomes` takes in before it hands them on.
ROUND_BYTES = 8 << 20


# -- handing one in ----------------------------------------------------------------------------------


def submit(
    handle: PoolHandle,
    function: Callable[..., Any],
    style: int,
    items: Iterable[Any],
    options: Options,
    chunksize: int | None = None,
    retention: float | None = None,
    name: str | None = None,
    key: str | bytes | None = None,
) -> DetachedResult:
    """Hand a job in that runs ``function`` over ``items`` in children as those of the pool ``handle``.

    Returns once all of it is on the broker's disk. ``retention``: seconds that it is kept after its end. ``key``:
    under which it may have been handed in before, or in part; then the rest is. Raises ValueError where there can be
    no such job, JobError if the broker refuses it, and what the iterable or the pickling of an item raises.
    """
    if handle.local:
        raise ValueError("a detached job needs a broker: give the pool an address, or set MULTIHOST_BROKER")
    if options.at_most_once:
        raise ValueError("a detached job cannot be at_most_once: what ran when a broker ended is run again")
    if retention is not None and not 0 < retention <= SECONDS[1]:
        raise ValueError(f"retention must be a number of seconds, up to {SECONDS[1]:g}")
    opened = _opened(handle, function, style, options, name)
    opened.key = parse_key(key) if key is not None else os.urandom(KEY)
    opened.retention = float(RETENTION if retention is None else retention)
    # The pool has met the broker.
    with Client(handle.address, known=True) as client:
        _store(client, opened, items, chunksize or 1, resumable=key is not None)
        result = DetachedResult(opened.key, client.address, style == CALL_APPLY, options.timeout)
    result._known = True
    return result


def _opened(
    handle: PoolHandle, function: Callable[..., Any], style: int, options: Options, name: str | None
) -> Submit:
    """The job as it is handed in, but for its key and its retention."""
    from multihost.code import bundle, roots

    task, spec = handle.task(function, style), handle.spec
    code = task.code
    if spec.code and spec.code != code:
        # One bundle has to do for the initializer and for the function.
        code = bundle(roots(function, task.function) | roots(handle.initializer))
    contents: dict[bytes, bytes] = {}
    digests = []
    for content in (spec.setup, code, task.function):
        digests.append(digest_of(content) if content else b"")
        if content:
            contents[digests[-1]] = content
    return Submit(
        b"",
        spec.limit,
        digests[0],
        digests[1],
        spec.max_tasks,
        digests[2],
        task.call,
        options.timeout,
        options.retries,
        0.0,
        (name or task.name)[:NAME],
        list(contents.values()),
    )


def _store(client: Client, opened: Submit, items: Iterable[Any], chunksize: int, resumable: bool) -> None:
    storing = Storing(opened)
    client.begin(storing)
    try:
        client.until(lambda: storing.known)
        if storing.over:
            storing.compare(sum(1 for _ in items))
        else:
            for packed in blocks(items, chunksize, storing.fed):
                client.send(storing.put(packed))
                client.until(lambda: not storing.full)
            client.send(storing.seal())
            client.until(lambda: storing.over)
    except BaseException:
        # Nobody knows its key: the rest of it will never come.
        if not resumable:
            client.tell("collect", opened.key.hex())
        raise


def blocks(items: Iterable[Any], chunksize: int, skip: int = 0) -> Iterator[Packed]:
    """Items behind the first ``skip``, in blocks of about 1 MiB, read no further ahead than that.

    Raises what pickling an item raises: nobody would be there to be told of it later.
    """
    source = islice(iter(items), skip, None)
    waiting: list[Any] = []
    most = chunksize
    while True:
        waiting += islice(source, max(0, most - len(waiting)))
        if not waiting:
            return
        packed = pack(waiting, chunksize)
        if packed.refused:
            raise packed.refused[min(packed.refused)]
        del waiting[: packed.count]
        yield packed
        fitting = int(BLOCK_BYTES * packed.count / packed.size)
        most = min(max(fitting, 1), BLOCK_CHUNKS * chunksize, BLOCK_ITEMS)
        # Whole chunks, so that those in the middle are as long as they were asked for.
        most = max(most - most % chunksize, chunksize)


# -- getting at one ----------------------------------------------------------------------------------


def parse_key(key: str | bytes) -> bytes:
    """The 16 bytes of a key, from themselves or from their 32 hexadecimal digits. Raises ValueError."""
    try:
        found = bytes.fromhex(key) if isinstance(key, str) else bytes(key)
    except ValueError:
        found = b""
    if len(found) != KEY:
        raise ValueError(f"the key of a detached job has {2 * KEY} hexadecimal digits, unlike {key!r}")
    return found


def detached_result(key: str | bytes, address: str | None = None) -> DetachedResult:
    """The result of the detached job with this ``key`` (see :attr:`DetachedResult.key`), of this or another process.

    ``address``: of the broker (None: ``MULTIHOST_BROKER``). Raises ValueError for what is no key, and without a broker.
    """
    found = resolve_address(address)
    if not found:
        raise ValueError("a detached job needs a broker: name its address, or set MULTIHOST_BROKER")
    return DetachedResult(parse_key(key), found)


class _Gathered:
    """All answers of a job, as a list."""

    def __init__(self) -> None:
        self.values: list[Any] = []
        self.failed = False

    def consumed(self) -> int:
        """They take up room for good."""
        return 0

    def put(self, start: int, values: list[Any], failed: bool, calls: Calls) -> None:
        """Answers from ``start`` on."""
        missing = start - len(self.values)
        if missing > 0:
            self.values += [None] * missing
        self.values[start : start + len(values)] = values
        self.failed = self.failed or failed

    def finish(self, total: int, calls: Calls) -> None:
        """These are all."""

    def outcome(self, single: bool) -> Any:
        """The list, or the first error by index."""
        if self.failed:
            for value in self.values:
                if type(value) is Raised:
                    return value
        return self.values[0] if single and self.values else self.values


class DetachedResult(AsyncResult):
    """The result of a detached job: what ``map_async(..., detach=True)`` returns, and :func:`detached_result`.

    It can be pickled: whoever has it, or :attr:`key`, can fetch the answers. They are fetched once: :meth:`get` has
    the broker forget the job when it has them all, unless one is an error or it is told to keep it.
    """

    __slots__ = (
        "_collected",
        "_fetching",
        "_gathered",
        "_id",
        "_known",
        "_lock",
        "_single",
        "_timeout",
        "_where",
        "address",
    )

    def __init__(
        self,
        key: bytes,
        address: str,
        single: bool = False,
        timeout: float = 0.0,
        token_file: str | None = None,
        keys: str | None = None,
    ) -> None:
        super().__init__(None, None)  # type: ignore[arg-type]
        self._id = key
        #: Of the broker.
        self.address = address
        self._where = (token_file, keys)
        #: The answer is one value, not a list.
        self._single = single
        self._timeout = timeout
        self._lock = threading.Lock()
        self._fetching: Fetching | None = None
        self._gathered = _Gathered()
        self._collected = False
        #: The broker was there before.
        self._known = False

    def __repr__(self) -> str:
        return f"<DetachedResult {self.key} at {self.address}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return DetachedResult, (self._id, self.address, self._single, self._timeout)

    @property
    def key(self) -> str:
        """What names the job, wherever it is asked for: 32 hexadecimal digits."""
        return self._id.hex()

    # -- as AsyncResult has them

    def ready(self) -> bool:
        """Has the job ended? Asks the broker."""
        return self.done or self._fetch(None, patient=False)

    def get(self, timeout: float | None = None, *, keep: bool = False) -> Any:
        """The results, in order; raises the first error by index once all have ended, or
        multiprocessing.TimeoutError. ``keep``: the broker goes on keeping the job, until its retention is over.

        Raises JobError if there is no such job (any more), and BrokerLostError without a broker.
        """
        value = super().get(timeout)
        if not keep and not self._collected:
            self.collect()
        return value

    def _await(self, timeout: float | None) -> bool:
        deadline = None if timeout is None else time.monotonic() + timeout
        return self._fetch(deadline, patient=True)

    # -- as a job has them

    def cancel(self) -> None:
        """End it: what has no answer yet gets ``CancelledError``; the other answers can be fetched."""
        with self._client() as client:
            client.order("cancel", self.key)

    def collect(self) -> None:
        """Have the broker forget it, done or not. Nothing happens if that is so already."""
        # It was collected by somebody else, or the answer to the first time was lost.
        with self._client() as client, suppress(JobError):
            client.order("collect", self.key)
        self._collected = True

    def outcomes(self) -> Iterator[Any]:
        """The answers in order, as they come; in the place of a value a :class:`Raised`, if there is an error. Nothing
        is kept of them here, and nothing is collected."""
        inbox = Inbox(ordered=True)
        fetching = Fetching(self._id, inbox, self._timeout)
        fetching.pause_bytes = ROUND_BYTES
        with self._client() as client:
            client.begin(fetching)
            while not fetching.over or inbox.ready:
                client.until(lambda: inbox.ready or fetching.over or fetching.paused)
                while inbox.ready:
                    yield inbox.ready.popleft()
                if fetching.paused and not fetching.over:
                    client.send(fetching.begin())

    # -- how

    def _client(self) -> Client:
        client = Client(self.address, self._known, *self._where)
        self._known = True
        return client

    def _fetch(self, deadline: float | None, patient: bool) -> bool:
        """Take in what is there, or all of it. False: the job has not ended, or it is past ``deadline``."""
        left = -1.0 if deadline is None else max(0.0, deadline - time.monotonic())
        if not self._lock.acquire(timeout=left):
            return False
        try:
            return self.done or self._fetch_alone(deadline, patient)
        except BaseException:
            # It may have been in the middle of taking something in.
            self._fetching = None
            raise
        finally:
            self._lock.release()

    def _fetch_alone(self, deadline: float | None, patient: bool) -> bool:
        fetching = self._fetching
        if fetching is None:
            self._gathered = _Gathered()
            fetching = self._fetching = Fetching(self._id, self._gathered, self._timeout)
        fetching.patient = patient
        with self._client() as client:
            client.begin(fetching)
            client.until(lambda: fetching.over or (fetching.paused and not patient), deadline)
        if fetching.over:
            self._value = self._gathered.outcome(self._single)
            self._gathered, self._fetching = _Gathered(), None
            self.done = True
        return self.done

    def call_back(
        self,
        callback: Callable[[Any], object] | None,
        error_callback: Callable[[BaseException], object] | None,
    ) -> None:
        """Have one of these called from another thread once the job has ended, while this process lasts."""
        if callback is None and error_callback is None:
            return

        def wait() -> None:
            try:
                value = self.get()
            except BaseException as error:  # noqa: BLE001
                if error_callback is not None:
                    run_callback(error_callback, error)
            else:
                if callback is not None:
                    run_callback(callback, value)

        threading.Thread(target=wait, daemon=True, name=f"multihost-{self.key[:8]}").start()


__all__ = ["DetachedResult", "detached_result", "submit"]
