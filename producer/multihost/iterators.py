"""Iterators over results, and the thread that feeds them from any iterable."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from multihost.engines.base import Completion, Engine
from multihost.failures import Raised
from multihost.functions import Refused
from multihost.results import closed_error, pool_timeout
from multihost.sources import Calls

if TYPE_CHECKING:
    from multihost.jobs import MapJob

#: How often a thread that fills a source looks whether anybody still wants it.
FILLER_CHECK_SECONDS = 1.0


class Inbox:
    """Results between the engine, which puts them, and an iterator, which takes them."""

    def __init__(self, ordered: bool) -> None:
        self.ready: deque[Any] = deque()
        self.ended = False
        #: Nobody waits for room any more: results are kept however many they are.
        self.unbounded = False
        self._dropped = False
        self._ordered = ordered
        self._early: dict[int, list[Any]] = {}
        self._next = 0
        self._delivered = 0
        self._waiters: list[Completion] = []

    def consumed(self) -> int:
        """Results that the iterator has given out, or that take up no room."""
        return self._delivered if self.unbounded else self._delivered - len(self.ready)

    def drop(self) -> None:
        """Nobody will ever take a result."""
        self.unbounded = self._dropped = True
        self.ready.clear()

    def put(self, start: int, values: list[Any], failed: bool, calls: Calls) -> None:
        """Results from ``start`` on; in order, those after a gap wait for it."""
        if not self._ordered:
            self._deliver(values)
        elif start != self._next:
            self._early[start] = values
        else:
            piece: list[Any] | None = values
            while piece is not None:
                self._next += len(piece)
                self._deliver(piece)
                piece = self._early.pop(self._next, None) if self._early else None
        if self.ready:
            self._wake()

    def _deliver(self, values: list[Any]) -> None:
        # In this order consumed() is at most too small for a moment, never too large.
        if not self._dropped:
            self.ready.extend(values)
        self._delivered += len(values)

    def finish(self, total: int, calls: Calls) -> None:
        """No results will follow."""
        self.ended = True
        self._wake()

    def _wake(self) -> None:
        while self._waiters:
            self._waiters.pop().done = True

    def wait(self, engine: Engine, timeout: float | None) -> bool:
        """Until there is a result, or there will be none. False: timeout."""
        completion = Completion()
        self._waiters.append(completion)
        if self.ready or self.ended:
            return True
        if engine.wait(completion, timeout):
            return True
        if completion in self._waiters:
            self._waiters.remove(completion)
        return bool(self.ready) or self.ended


class IMapIterator:
    """The iterator that ``imap`` and ``imap_unordered`` return.

    Dropped half-way, it ends its work. Dropped before anything was taken, its work goes on: whoever
    does that wants what the function does, not what it returns.
    """

    def __init__(self, pool: Any, engine: Engine, inbox: Inbox, job: MapJob | None) -> None:
        self._pool = pool
        self._engine = engine
        self._inbox = inbox
        self._job = job
        self._begun = False

    def __iter__(self) -> Iterator[Any]:
        return self

    def next(self, timeout: float | None = None) -> Any:
        """The next result; multiprocessing.TimeoutError when it does not come in time."""
        self._begun = True
        inbox = self._inbox
        deadline = None
        while True:
            try:
                value = inbox.ready.popleft()
                break
            except IndexError:
                if inbox.ended and not inbox.ready:
                    self._pool = self._job = None
                    raise StopIteration from None
            if timeout is not None:
                now = time.monotonic()
                deadline = now + timeout if deadline is None else deadline
                timeout = max(0.0, deadline - now)
            if not inbox.wait(self._engine, timeout):
                raise (closed_error() if timeout is None else pool_timeout()) from None
        job = self._job
        if job is not None and job.resume_at is not None:
            self._resume(job)
        if type(value) is Raised:
            try:
                raise value.error
            finally:
                del value, self
        return value

    __next__ = next

    def _resume(self, job: MapJob) -> None:
        resume_at = job.resume_at
        if resume_at is not None and (self._inbox.consumed() >= resume_at or not self._inbox.ready):
            job.resume_at = None
            self._engine.poke(job)

    def close(self) -> None:
        """Nothing more is wanted: what has not begun is dropped."""
        job, self._job = self._job, None
        if job is not None and not job.over:
            job.stop()
            self._engine.cancel(job)
        self._inbox.ended = True
        self._pool = None

    def feed(self) -> None:
        """The source has more items, or will have no more."""
        if self._job is not None:
            self._engine.poke(self._job)

    def seal(self) -> None:
        """The pool is closed: who reads its iterable on demand must not do so any more."""
        job = self._job
        if job is not None and isinstance(job.source, Pulled):
            job.source.seal()
            self.feed()

    def release(self) -> None:
        """The pool is waited for: results nobody takes must not hold back the rest of the work."""
        self._inbox.unbounded = True
        self.feed()

    def __del__(self) -> None:
        if self._begun:
            self.close()
        else:
            self._inbox.drop()
            self.seal()
            self.feed()


class Pulled:
    """A source that the thread which takes the results fills, some items ahead of them."""

    def __init__(self, iterator: Iterator[Any], ahead: int, chunksize: int) -> None:
        self.total: int | None = None
        self._iterator = iterator
        self._ahead = ahead
        self._chunksize = chunksize
        self._items: list[Any] = []
        self._put = 0
        self._sealed = False
        self._read(ahead)

    @property
    def window(self) -> int:
        """Items that are on the way at most."""
        return self._ahead + 2 * self._chunksize

    def pull(self, iterator: IMapIterator) -> None:
        """One result is about to be taken: read as much ahead of it as allowed."""
        if self.total is None or self._sealed:
            self._ahead += 1
            self._read(self._ahead)
            iterator.feed()

    def _read(self, count: int) -> None:
        # Whole chunks: others are not sent before the end is known.
        count = -(-count // self._chunksize) * self._chunksize
        while self._put < count:
            try:
                item = next(self._iterator)
            except StopIteration:
                self.total, self._sealed = self._put, False
                return
            if self._sealed:
                raise RuntimeError("cannot schedule new futures after shutdown")
            self._items.append(item)
            self._put += 1

    def seal(self) -> None:
        """What was read is all there is."""
        if self.total is None:
            self.total, self._sealed = self._put, True

    def ready(self) -> int:
        """Items that can be taken now."""
        return len(self._items)

    def peek(self, count: int) -> list[Any]:
        """The next ``count`` items, which stay."""
        return self._items[:count]

    def drop(self, count: int) -> None:
        """Forget the next ``count`` items."""
        del self._items[:count]

    def allow(self, taken: int) -> None:
        """It reads as far ahead as it was told."""

    def stop(self) -> None:
        """No more items are wanted."""
        self._items.clear()


class Filler:
    """A source that one thread fills from any iterable, no further ahead than it is allowed to."""

    def __init__(self, iterable: Iterable[Any], engine: Engine, chunksize: int) -> None:
        self.total: int | None = None
        self._iterator: Iterator[Any] | None = iter(iterable)
        self._engine = engine
        self._chunksize = chunksize
        self._items: list[Any] = []
        self._put = 0
        self._allowed = 0
        self._stopped = False
        self._waiting = False
        self._changed = threading.Condition(threading.Lock())

    def start(self, job: MapJob) -> None:
        """Begin to fill the source of this job."""
        threading.Thread(target=self._run, args=(job,), name="multihost-filler", daemon=True).start()

    def ready(self) -> int:
        """Items that can be taken now."""
        return len(self._items)

    def peek(self, count: int) -> list[Any]:
        """The next ``count`` items, which stay."""
        return self._items[:count]

    def drop(self, count: int) -> None:
        """Forget the next ``count`` items."""
        del self._items[:count]

    def allow(self, taken: int) -> None:
        """The thread may go on until ``taken`` items have been put in, over all."""
        self._allowed = taken
        if self._waiting and taken > self._put:
            self._notify()

    def stop(self) -> None:
        """No more items are wanted; the thread ends as soon as the iterable lets go of it."""
        self._stopped = True
        if self._waiting:
            self._notify()

    def _notify(self) -> None:
        # The thread holds this lock only to look and to sleep, never while it runs foreign code.
        with self._changed:
            self._changed.notify()

    def _run(self, job: MapJob) -> None:
        error: BaseException | None = None
        iterator = self._iterator
        self._iterator = None
        try:
            while iterator is not None and self._has_room():
                self._items.append(next(iterator))
                self._put += 1
                if job.starving and len(self._items) >= self._chunksize:
                    self._engine.poke(job)
        except StopIteration:
            pass
        except BaseException as raised:  # noqa: BLE001
            error = raised
        if not self._stopped:
            self._finish(job, error)

    def _has_room(self) -> bool:
        if self._put < self._allowed:
            return not self._stopped
        with self._changed:
            self._waiting = True
            while self._put >= self._allowed and not self._stopped:
                self._changed.wait(FILLER_CHECK_SECONDS)
            self._waiting = False
        return not self._stopped

    def _finish(self, job: MapJob, error: BaseException | None) -> None:
        if error is not None:
            # As multiprocessing does: the chunk that the iterable did not complete is lost.
            while self._put % self._chunksize:
                self._items.pop()
                self._put -= 1
            job.refuse(self._put, error)
            self._items.append(Refused())
            self._put += 1
        self.total = self._put
        self._engine.poke(job)
