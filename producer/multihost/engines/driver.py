"""The part that the local and the remote engine share: pools and jobs, and the messages about them.

Calls from any thread (``start``, ``poke``, ``cancel`` ...) hand a command to whoever runs the
:mod:`loop <multihost.engines.loop>`; everything else here is done by that thread alone.
"""

from __future__ import annotations

import sys
import threading
import time

from multihost.engines.base import Completion, Job, PoolSpec
from multihost.engines.launching import Launching, take_signal
from multihost.engines.loop import Loop
from multihost.engines.sharing import Sharing
from multihost.kept import Kept
from multihost.logs import log
from multihost_common import errors, shipments
from multihost_common import messages as m
from multihost_common.blobs import digest_of
from multihost_common.errors import MultihostError, NoWorkersError
from multihost_common.tables import unpack_rows

#: Seconds with work and no worker at all before a warning says so.
NO_WORKERS_WARNING = 3.0


class Driver(Loop):
    """An engine (see :class:`multihost.engines.base.Engine`) but for what carries the messages.

    A subclass offers ``_send(message)`` to the broker, ``_poll(timeout)`` which waits and feeds what
    comes to :meth:`_take`, ``_housekeeping(now)`` and ``_shut()``.
    """

    #: Whether pools start their children when they are made.
    eager = False

    #: Whether children are on this machine.
    local = False

    #: Whether the broker may have to be told again what has no answer.
    keeps = False

    def __init__(self) -> None:
        super().__init__()
        self.capacity = 0
        self.sharing = Sharing(self)
        self.launching = Launching(self)
        #: In the order in which they were poked: who asked first is served first.
        self._poked: dict[Job, None] = {}
        self._jobs: dict[int, Job] = {}
        self._limits: dict[int, int] = {}
        self._closed_pools: dict[int, Completion] = {}
        self._blobs: dict[int, dict[bytes, bytes]] = {}
        self._promises: dict[int, list[shipments.Void]] = {}
        #: Pools whose children may not have ended yet: how each was opened, and closed (``kill``).
        self._opened: dict[int, m.OpenPool] = {}
        self._closing_pools: dict[int, bool] = {}
        #: Parts of jobs that are not wanted any more.
        self._cancelled: dict[int, list[m.Cancel]] = {}
        self._next_number = 0
        self._numbers = threading.Lock()
        #: Pools whose initializer failed, and how.
        self.broken_pools: dict[int, BaseException] = {}
        self._idle_since: float | None = None
        #: The broker has no room for more input now.
        self._holding = False

    # -- for subclasses ----------------------------------------------------------------------------

    def _describe(self) -> str:
        raise NotImplementedError

    # -- calls from any thread ---------------------------------------------------------------------

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
        self._promises[number] = spec.promises

        def send() -> None:
            # Not before: who leads may be stating all pools anew just now, and would open it twice.
            self._blobs[number] = {setup: spec.setup, code: spec.code}
            self._opened[number] = opened
            for digest, content in ((setup, spec.setup), (code, spec.code)):
                if digest:
                    self._send(m.Blob(digest, (content,)))
            self._send(opened)

        self._do(send)
        return number

    def close(self) -> None:
        """End everything of this engine in this process."""
        super().close()
        self.sharing.given.clear()

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
                self._closing_pools[pool] = kill or self._closing_pools.get(pool, False)
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
        if self.keeps:
            job.kept = Kept()

        def begin() -> None:
            failure = self._failure or self.broken_pools.get(job.pool)
            if failure is not None:
                self._calls.extend(job.abort(failure))
                return
            self._jobs[job.id] = job
            job.held = self._holding
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
                cancel = m.Cancel(job.id, start, count, kill)
                self._send(cancel)
                if count == 0:
                    self._forget(job)
                elif job.kept is not None:
                    self._remember(job.kept, cancel)

        self._do(cancel)

    def _remember(self, kept: Kept, cancel: m.Cancel) -> None:
        """It is to be said again to another broker, until the items have their answer."""
        cancels = self._cancelled.setdefault(cancel.job, [])
        cancels.append(cancel)
        if len(cancels) & (len(cancels) - 1) == 0:
            # Seldom enough not to be felt, and often enough not to fill memory.
            cancels[:] = kept.unanswered(cancels)

    def pids(self, pool: int) -> list[int]:
        """Process ids of the pool's children, where they are known."""
        return []

    # -- what there is to do -----------------------------------------------------------------------

    def _unsent(self) -> bool:
        return bool(self._poked)

    def _pending(self, done: bool) -> bool:
        for job in list(self._poked):
            # A stream whose calls are all answered has nothing to send. Taken out before it is looked
            # at: whoever submits a call meanwhile then pokes anew.
            self._poked.pop(job, None)
            if not job.idle():
                self._poked[job] = None
        return bool(self._poked) or (done and self._busy()) or self.sharing.attended > 0

    def _busy(self) -> bool:
        return any(not job.idle() for job in list(self._jobs.values()))

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
        elif isinstance(message, m.Acted):
            self.sharing.take(message)
        elif isinstance(message, (m.Launched, m.Exited)):
            self.launching.take(message)
        elif isinstance(message, m.Signal):
            take_signal(message.signal)
        elif isinstance(message, m.PoolClosed):
            self._pool_has_closed(message.pool)
        elif isinstance(message, m.PoolBroken):
            self._pool_has_broken(message)
        elif isinstance(message, m.Capacity):
            self._resize(message.slots, message.workers)
        elif isinstance(message, m.Output):
            self._calls.append(lambda: _show(message))
        elif isinstance(message, m.Need):
            self._give_blob(message.digest)
        elif isinstance(message, m.Hold):
            self._heed(message)
        elif isinstance(message, m.Refused):
            log().error("the broker refused: %s (%s)", message.text, message.reason)

    def _give_blob(self, digest: bytes) -> None:
        for blobs in self._blobs.values():
            if digest in blobs:
                self._send(m.Blob(digest, (blobs[digest],)))
                return
        for content in self.launching.contents():
            if content and digest_of(content) == digest:
                self._send(m.Blob(digest, (content,)))
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
        shipments.void(self._promises.pop(pool, []))
        self._opened.pop(pool, None)
        self._closing_pools.pop(pool, None)

    def _heed(self, hold: m.Hold) -> None:
        """Feed nothing new until there is room at the broker; then first what it had none for."""
        self._hold(hold.hold)
        rows = unpack_rows(hold.frames[0], 2) if hold.frames else ()
        for number, start in rows or ():
            job = self._jobs.get(number)
            if job is not None:
                self._state(job, start)

    def _hold(self, held: bool) -> None:
        self._holding = held
        for job in self._jobs.values():
            job.held = held
            if not held:
                self._poked[job] = None

    def _state(self, job: Job, start: int = 0) -> None:
        """State the job anew, from this item on."""
        for message in (*job.resume(), *self._cancelled.get(job.id, ())):
            # What cannot be sent ends the job meanwhile.
            if job.id not in self._jobs:
                return
            if type(message) is not m.Feed or message.start >= start:
                self._send(message)

    def _restate(self) -> None:
        """State everything anew to a broker that may know all, some or nothing of it."""
        self._hold(False)
        for number, opened in self._opened.items():
            if not self._closing_pools.get(number, False):
                self._send(opened)
        for job in list(self._jobs.values()):
            self._state(job)
        for number, kill in self._closing_pools.items():
            self._send(m.ClosePool(number, kill))
        self._send(m.Restated())

    def _let_go(self) -> None:
        """No broker will say soon that pools have closed: those that lack no answer are not waited for. It is
        told of them when it is back."""
        at_work = {job.pool for job in self._jobs.values() if not job.idle()}
        for number in self._closing_pools:
            if number not in at_work:
                self._closed_pools[number].done = True

    def _pool_has_broken(self, broken: m.PoolBroken) -> None:
        error = errors.RemoteError(f"the pool's initializer failed:\n{broken.text}")
        self._abort([job for job in self._jobs.values() if job.pool == broken.pool], error)
        self.broken_pools[broken.pool] = error

    def _resize(self, slots: int, workers: int) -> None:
        self.capacity = slots
        for job in self._jobs.values():
            job.capacity = self._capacity_of(job)
            self._poked[job] = None

    def _capacity_of(self, job: Job) -> int:
        limit = self._limits.get(job.pool, 0)
        # Without any worker, what is sent ahead is for the first one to come.
        return max(1, min(limit, self.capacity) if limit else self.capacity)

    def _forget(self, job: Job) -> None:
        self._jobs.pop(job.id, None)
        self._cancelled.pop(job.id, None)
        self._poked.pop(job, None)

    def _abort(self, jobs: list[Job], error: BaseException) -> None:
        for job in jobs:
            self._calls.extend(job.abort(error))
            self._forget(job)

    def _fail(self, error: BaseException) -> None:
        """The engine cannot go on: whoever waits gets this error."""
        self._failure = error
        self._abort(list(self._jobs.values()), error)
        self.sharing.fail(error)
        self.launching.fail(error)
        for completion in self._closed_pools.values():
            completion.done = True

    def _patience(self, now: float, timeout: float | None) -> float | None:
        """Work and no worker: say so after a while, once, and go on waiting."""
        if self.capacity or not (self._busy() or self.launching.alive):
            self._idle_since = None
            return timeout
        if self._idle_since is None:
            self._idle_since = now
        left = self._idle_since + NO_WORKERS_WARNING - now
        if self._idle_since < 0:
            return timeout
        if left <= 0:
            self._idle_since = float("-inf")
            log().warning(
                "no worker has joined %s yet; waiting. Start one with: multihost worker %s",
                self._describe(),
                self._describe(),
            )
            return timeout
        return left if timeout is None else min(timeout, left)


def _show(output: m.Output) -> None:
    """Print what a child on another host has printed."""
    stream = sys.stdout if output.stream == 1 else sys.stderr
    if stream is not None:
        stream.write(bytes(output.frames[0]).decode(errors="replace"))
        stream.flush()
