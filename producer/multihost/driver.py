"""Who runs the loop: the part that the local and the remote engine share.

There is one loop per engine and it is run by one thread at a time, the *leader*, who holds ``_mutex``.
Usually that is the engine's background thread. But a thread that waits for a result takes the lead
itself while it waits: it sends, polls and receives in its own name, and no result is ever handed from
one thread to another on its way to a synchronous call. When such a caller is done the background
thread stays parked for ``LINGER`` seconds, since another call is likely; it takes over at once when
there is other work under way.

    wait() ---- lead: turn, turn, turn ... done ----> returns          (caller's thread)
    background thread: lead ... woken, steps aside, parks ... lead     (everything asynchronous)

Calls from other threads (``start``, ``poke``, ``cancel`` ...) never touch the cores: they append to
``_inbox`` and wake whoever polls.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from multihost.engine import Completion, Job, PoolSpec
from multihost_common import messages as m
from multihost_common.errors import MultihostError, NoWorkersError, RemoteError

if TYPE_CHECKING:
    import signal
    from types import FrameType
else:
    # The C module: signal's own functions make an enum of each answer, which an apply() would feel.
    import _signal as signal

log = logging.getLogger("multihost")

#: Seconds the background thread stays aside after a caller has led the loop.
LINGER = 0.05

#: Seconds with work and no worker at all before a warning says so.
NO_WORKERS_WARNING = 3.0

#: Seconds :meth:`Driver.close` waits for the background thread.
JOIN_TIMEOUT = 5.0


def digest_of(content: bytes) -> bytes:
    """Content digest by which blobs are known."""
    return blake2b(content, digest_size=m.DIGEST).digest()


class Interrupts:
    """Holds Ctrl-C back while the main thread is inside the loop, where it would tear the books."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._previous: Any = None
        self._main = threading.main_thread().ident
        self.pending = False

    def __enter__(self) -> None:
        self.pending = False
        if threading.get_ident() == self._main:
            self._previous = signal.getsignal(signal.SIGINT)
            if callable(self._previous):
                signal.signal(signal.SIGINT, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.pending = True
        self._wake()

    def __exit__(self, *exc_info: object) -> None:
        previous, self._previous = self._previous, None
        if callable(previous):
            signal.signal(signal.SIGINT, previous)
            if self.pending and exc_info[0] is None:
                previous(signal.SIGINT, None)


class Driver:
    """An engine (see :class:`multihost.engine.Engine`) but for what carries the messages.

    A subclass offers ``_send(message)`` to the broker, ``_poll(timeout)`` which waits and feeds what
    comes to :meth:`_take`, ``_housekeeping(now)`` and ``_shut(...)``.
    """

    #: Whether pools start their children when they are made.
    eager = False

    def __init__(self) -> None:
        self.capacity = 0
        self._mutex = threading.Lock()
        self._inbox: deque[Callable[[], None]] = deque()
        #: In the order in which they were poked: who asked first is served first.
        self._poked: dict[Job, None] = {}
        self._jobs: dict[int, Job] = {}
        self._limits: dict[int, int] = {}
        self._closed_pools: dict[int, Completion] = {}
        self._blobs: dict[int, dict[bytes, bytes]] = {}
        self._calls: deque[Callable[[], object]] = deque()
        self._calling = threading.Lock()
        self._waiters: list[tuple[Completion, threading.Lock]] = []
        self._next_number = 0
        self._numbers = threading.Lock()
        self._park = threading.Lock()
        self._park.acquire()
        self._thread: threading.Thread | None = None
        self._background_leads = False
        self._wanted = False
        self._polling = False
        self._led_at = 0.0
        self._closing = False
        self._failure: BaseException | None = None
        self._pid = os.getpid()
        #: Pools whose initializer failed, and how.
        self.broken_pools: dict[int, BaseException] = {}
        self._idle_since: float | None = None
        self._wake_reader, self._wake_writer = os.pipe()
        os.set_blocking(self._wake_reader, False)
        os.set_blocking(self._wake_writer, False)
        self._interrupts = Interrupts(self._wake)

    # -- for subclasses ----------------------------------------------------------------------------

    def _send(self, message: m.Message) -> None:
        raise NotImplementedError

    def _poll(self, timeout: float | None) -> None:
        raise NotImplementedError

    def _next_deadline(self) -> float | None:
        raise NotImplementedError

    def _housekeeping(self, now: float) -> None:
        raise NotImplementedError

    def _shut(self) -> None:
        raise NotImplementedError

    def _describe(self) -> str:
        raise NotImplementedError

    # -- calls from any thread ---------------------------------------------------------------------

    @property
    def usable(self) -> bool:
        """Nothing has ended it yet."""
        return self._failure is None and not self._closing

    def open_pool(self, spec: PoolSpec) -> int:
        """Make a pool; answers its handle number. Raises NoWorkersError after ``start_timeout``."""
        self._check_alive()
        if spec.start_timeout is not None:
            self._await_workers(spec.start_timeout)
        number = self._number()
        setup = digest_of(spec.setup) if spec.setup else b""
        code = digest_of(spec.code) if spec.code else b""
        opened = m.OpenPool(
            number, self._limit(spec.limit), setup, code, spec.max_tasks, self.eager, spec.name[: m.NAME]
        )
        self._limits[number] = opened.limit
        self._closed_pools[number] = Completion()
        self._blobs[number] = {setup: spec.setup, code: spec.code}

        def send() -> None:
            for digest, content in ((setup, spec.setup), (code, spec.code)):
                if digest:
                    self._send(m.Blob(digest, (content,)))
            self._send(opened)

        self._do(send)
        return number

    def _limit(self, limit: int) -> int:
        return limit

    def _number(self) -> int:
        with self._numbers:
            self._next_number += 1
            return self._next_number

    def _await_workers(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while self.capacity == 0:
            left = deadline - time.monotonic()
            if left <= 0:
                raise NoWorkersError(f"no worker has joined {self._describe()} within {timeout:g} s")
            self.wait(Completion(), min(left, 0.05))

    def close_pool(self, pool: int, kill: bool = False) -> None:
        """No more jobs: children end when idle, or now (``kill``: its jobs are aborted)."""

        def close() -> None:
            if kill:
                gone = MultihostError("the pool was terminated")
                self._abort([job for job in self._jobs.values() if job.pool == pool], gone)
            if not self._closed_pools[pool].done:
                self._send(m.ClosePool(pool, kill))

        if pool in self._closed_pools:
            self._do(close)

    def pool_closed(self, pool: int) -> Completion:
        """Done when every child of the pool has ended."""
        return self._closed_pools[pool]

    def start(self, job: Job) -> None:
        """Run this job: numbers it and sends what it produces."""
        self._check_alive()
        job.id = self._number()
        job.capacity = self._capacity_of(job)

        def begin() -> None:
            failure = self._failure or self.broken_pools.get(job.pool)
            if failure is not None:
                self._calls.extend(job.abort(failure))
                return
            self._jobs[job.id] = job
            for message in job.open():
                self._send(message)
            self._poked[job] = None

        self._do(begin)

    def poke(self, job: Job, kick: bool = True) -> None:
        """The job has more input, or room in its window. ``kick`` False: the caller waits next."""
        if job not in self._poked:
            self._poked[job] = None
            if kick:
                self._kick()

    def cancel(self, job: Job, start: int = 0, count: int = 0, kill: bool = False) -> None:
        """These items (count 0: all) are not wanted; ``kill``: also those that run."""

        def cancel() -> None:
            if job.id in self._jobs:
                self._send(m.Cancel(job.id, start, count, kill))
                if count == 0:
                    self._forget(job)

        self._do(cancel)

    def pids(self, pool: int) -> list[int]:
        """Process ids of the pool's children, where they are known."""
        return []

    def _do(self, command: Callable[[], None]) -> None:
        """Have the leader carry this out. If nobody leads, that is done here and now."""
        if self._closing:
            return
        self._inbox.append(command)
        if self._mutex.acquire(blocking=False):
            try:
                with self._interrupts:
                    self._drain_inbox()
            finally:
                self._mutex.release()
            self._ensure_thread()
        self._kick()

    def _kick(self) -> None:
        """Make sure that somebody looks at the inbox soon."""
        if self._closing:
            return
        if self._polling:
            self._wake()
        elif not self._mutex.locked():
            self._ensure_thread()
            self._unpark()

    def _wake(self) -> None:
        # BlockingIOError: the pipe is full of wake-ups. OSError: the engine was closed meanwhile.
        with suppress(OSError):
            os.write(self._wake_writer, b"w")

    def _unpark(self) -> None:
        # RuntimeError: it was not parked.
        with suppress(RuntimeError):
            self._park.release()

    def _check_alive(self) -> None:
        if self._failure is not None:
            raise self._failure
        if self._closing:
            raise MultihostError("the engine is closed: this process is ending")

    # -- waiting -----------------------------------------------------------------------------------

    def wait(self, completion: Completion, timeout: float | None = None) -> bool:
        """Wait until ``completion.done``, leading the loop if possible. False: the time was over."""
        if completion.done:
            return True
        deadline = None if timeout is None else time.monotonic() + timeout
        while not completion.done and self.usable:
            if self._take_lead(deadline):
                self._lead(completion, deadline)
            else:
                self._wait_beside(completion, deadline)
            if deadline is not None and time.monotonic() >= deadline:
                break
        return completion.done

    def _take_lead(self, deadline: float | None) -> bool:
        if self._mutex.acquire(blocking=False):
            return True
        if not self._background_leads or self._wanted:
            return False
        self._wanted = True
        try:
            self._wake()
            left = -1.0 if deadline is None else max(0.0, deadline - time.monotonic())
            return self._mutex.acquire(timeout=left)
        finally:
            self._wanted = False

    def _lead(self, completion: Completion, deadline: float | None) -> None:
        """Run the loop in this thread until the completion is done. The mutex is held."""
        try:
            with self._interrupts:
                while not completion.done and not self._interrupts.pending:
                    left = None if deadline is None else deadline - time.monotonic()
                    if left is not None and left <= 0:
                        break
                    self._turn(left)
                    if self._calls and not self._calling.locked():
                        break
        except (MultihostError, OSError) as error:
            self._fail(error)
        finally:
            self._led_at = time.monotonic()
            self._mutex.release()
            if self._jobs or self._inbox or self._poked or self._waiters:
                self._hand_over(completion.done)
        self._run_calls()

    def _hand_over(self, done: bool) -> None:
        """The caller leaves the lead: if there is work under way the background thread takes it."""
        for job in list(self._poked):
            # A stream whose calls are all answered has nothing to send. Taken out before it is looked
            # at: whoever submits a call meanwhile then pokes anew.
            self._poked.pop(job, None)
            if not job.idle():
                self._poked[job] = None
        if self._inbox or self._poked or self._waiters or (done and self._busy()):
            self._ensure_thread()
            self._unpark()

    def _busy(self) -> bool:
        return any(not job.idle() for job in list(self._jobs.values()))

    def _wait_beside(self, completion: Completion, deadline: float | None) -> None:
        """Another thread leads: it will release this lock when the completion is done."""
        lock = threading.Lock()
        lock.acquire()
        entry = (completion, lock)
        self._waiters.append(entry)
        try:
            if completion.done:
                return
            self._kick()
            # The bound is a liveness check: a leader that leaves hands over to the background thread.
            left = 0.2 if deadline is None else max(0.0, min(0.2, deadline - time.monotonic()))
            lock.acquire(timeout=left)
        finally:
            if entry in self._waiters:
                self._waiters.remove(entry)

    # -- the background thread ---------------------------------------------------------------------

    def _ensure_thread(self) -> None:
        if self._thread is None and not self._closing:
            self._thread = threading.Thread(target=self._background, name="multihost", daemon=True)
            self._thread.start()

    def _background(self) -> None:
        while not self._closing:
            with self._mutex:
                self._background_leads = True
                try:
                    while not self._wanted and not self._closing:
                        self._turn(None)
                        if self._calls and not self._calling.locked():
                            break
                except MultihostError as error:
                    self._fail(error)
                except BaseException as error:  # noqa: BLE001
                    self._fail(error)
                    traceback.print_exc()
                finally:
                    self._background_leads = False
            self._run_calls()
            if self._failure is not None:
                self._release_waiters()
                return
            self._step_aside()

    def _step_aside(self) -> None:
        """Let a caller lead, and stay parked while callers come back soon."""
        while not self._closing and (self._wanted or time.monotonic() - self._led_at < LINGER):
            if self._park.acquire(timeout=LINGER):
                return

    # -- one turn of the loop ------------------------------------------------------------------------

    def _turn(self, timeout: float | None) -> None:
        """Send what is to be sent, wait for what comes, take it in. The mutex is held."""
        # A command may have done what is waited for: then do not wait.
        more = self._drain_inbox()
        more = self._produce() or more
        now = time.monotonic()
        due = self._next_deadline()
        if due is not None:
            left = max(0.0, due - now)
            timeout = left if timeout is None else min(timeout, left)
        timeout = self._warn_without_workers(now, timeout)
        self._polling = True
        if more or self._inbox or self._poked or self._wanted or (self._calls and not self._calling.locked()):
            timeout = 0.0
        try:
            self._poll(timeout)
        finally:
            self._polling = False
        if due is not None and time.monotonic() >= due:
            self._housekeeping(time.monotonic())
        if self._waiters:
            self._release_waiters()

    def _drain_inbox(self) -> bool:
        drained = bool(self._inbox)
        while self._inbox:
            self._inbox.popleft()()
        return drained

    def _produce(self) -> bool:
        """Let every job that was poked send more. True: some have still more to send."""
        more = False
        for job in list(self._poked):
            self._poked.pop(job, None)
            if job.id not in self._jobs:
                continue
            messages = job.produce()
            for message in messages:
                self._send(message)
            if messages:
                if job.has_more():
                    self._poked[job] = None
                    more = True
            elif job.over:
                self._forget(job)
        return more

    def drain_wakeups(self) -> None:
        """Empty the wake-up pipe."""
        with suppress(BlockingIOError):
            os.read(self._wake_reader, 4096)

    def _take(self, message: m.Message) -> None:
        """A message from the broker."""
        if isinstance(message, (m.Result, m.Failed, m.EndResults)):
            job = self._jobs.get(message.job)
            if job is not None:
                self._calls.extend(job.handle(message))
                if job.over:
                    self._forget(job)
                elif job.has_more():
                    self._poked[job] = None
        elif isinstance(message, m.PoolClosed):
            self._pool_has_closed(message.pool)
        elif isinstance(message, m.PoolBroken):
            self._pool_has_broken(message)
        elif isinstance(message, m.Capacity):
            self._resize(message.slots)
        elif isinstance(message, m.Output):
            self._calls.append(lambda: _show(message))
        elif isinstance(message, m.Need):
            self._give_blob(message.digest)
        elif isinstance(message, m.Refused):
            log.error("the broker refused: %s (%s)", message.text, message.reason)

    def _give_blob(self, digest: bytes) -> None:
        for blobs in self._blobs.values():
            if digest in blobs:
                self._send(m.Blob(digest, (blobs[digest],)))
                return
        for job in self._jobs.values():
            for message in job.open():
                if isinstance(message, m.Blob) and message.digest == digest:
                    self._send(message)
                    return

    def _pool_has_closed(self, pool: int) -> None:
        completion = self._closed_pools.get(pool)
        if completion is not None:
            completion.done = True
        self._blobs.pop(pool, None)

    def _pool_has_broken(self, broken: m.PoolBroken) -> None:
        error = RemoteError(f"the pool's initializer failed:\n{broken.text}")
        self._abort([job for job in self._jobs.values() if job.pool == broken.pool], error)
        self.broken_pools[broken.pool] = error

    def _resize(self, slots: int) -> None:
        self.capacity = slots
        for job in self._jobs.values():
            job.capacity = self._capacity_of(job)
            self._poked[job] = None

    def _capacity_of(self, job: Job) -> int:
        limit = self._limits.get(job.pool, 0)
        return min(limit, self.capacity) if limit else self.capacity

    def _forget(self, job: Job) -> None:
        self._jobs.pop(job.id, None)
        self._poked.pop(job, None)

    def _abort(self, jobs: list[Job], error: BaseException) -> None:
        for job in jobs:
            self._calls.extend(job.abort(error))
            self._forget(job)

    def _fail(self, error: BaseException) -> None:
        """The engine cannot go on: whoever waits gets this error."""
        self._failure = error
        self._abort(list(self._jobs.values()), error)
        for completion in self._closed_pools.values():
            completion.done = True

    def _warn_without_workers(self, now: float, timeout: float | None) -> float | None:
        """Work and no worker: say so after a while, once, and go on waiting."""
        if self.capacity or not self._busy():
            self._idle_since = None
            return timeout
        if self._idle_since is None:
            self._idle_since = now
        left = self._idle_since + NO_WORKERS_WARNING - now
        if self._idle_since < 0:
            return timeout
        if left <= 0:
            self._idle_since = float("-inf")
            log.warning(
                "no worker has joined %s yet; waiting. Start one with: multihost worker %s",
                self._describe(),
                self._describe(),
            )
            return timeout
        return left if timeout is None else min(timeout, left)

    def _release_waiters(self) -> None:
        for completion, lock in self._waiters[:]:
            if completion.done or self._failure is not None:
                with suppress(RuntimeError):
                    lock.release()

    def _run_calls(self) -> None:
        """Make the users' callbacks, in order, without the mutex. A nested call finds them running."""
        while self._calls and self._calling.acquire(blocking=False):
            try:
                while self._calls:
                    try:
                        self._calls.popleft()()
                    except Exception:  # noqa: BLE001
                        traceback.print_exc()
            finally:
                self._calling.release()

    # -- the end -----------------------------------------------------------------------------------

    def disown(self) -> None:
        """This is a forked process: connections and children are its parent's, and locks may be held."""
        self._failure = MultihostError("this pool belongs to the parent process; make a new one after a fork")
        self._closing = True

    def close(self) -> None:
        """End everything of this engine in this process."""
        if self._closing or os.getpid() != self._pid:
            return
        self._closing = True
        self._wanted = True
        self._wake()
        self._unpark()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(JOIN_TIMEOUT)
        self._shut()
        os.close(self._wake_reader)
        os.close(self._wake_writer)


def _show(output: m.Output) -> None:
    """Print what a child on another host has printed."""
    stream = sys.stdout if output.stream == 1 else sys.stderr
    if stream is not None:
        stream.write(bytes(output.frames[0]).decode(errors="replace"))
        stream.flush()
