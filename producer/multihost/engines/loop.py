"""Who runs the loop of an engine.

There is one loop per engine and it is run by one thread at a time, the *leader*, who holds ``_mutex``.
Usually that is the engine's background thread. But a thread that waits for a result takes the lead
itself while it waits: it sends, polls and receives in its own name, and no result is ever handed from
one thread to another on its way to a synchronous call. When such a caller is done the background
thread stays parked for ``LINGER`` seconds, since another call is likely; it takes over at once when
there is other work under way.

    wait() ---- lead: turn, turn, turn ... done ----> returns          (caller's thread)
    background thread: lead ... woken, steps aside, parks ... lead     (everything asynchronous)

Calls from other threads never touch what the loop works on: they append to ``_inbox`` and wake whoever
polls.
"""

from __future__ import annotations

import os
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from multihost.engines.base import Completion
from multihost_common.errors import MultihostError
from multihost_common.waiter import Alarm, Waiter

if TYPE_CHECKING:
    import signal
    from types import FrameType

    from multihost_common.messages import Message
else:
    # The C module: signal's own functions make an enum of each answer, which an apply() would feel.
    import _signal as signal

#: Seconds the background thread stays aside after a caller has led the loop ...
LINGER = 0.05

#: ... where nobody else needs the loop meanwhile, and where others do: who comes back sooner finds it free.
SHORTLY = 0.001

#: Seconds :meth:`Loop.close` waits for the background thread.
JOIN_TIMEOUT = 5.0


def _nothing() -> None:
    """Something to be carried out, so that who leads looks up."""


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


class Loop:
    """See the module. A subclass says what is sent and what is done with what comes."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._inbox: deque[Callable[[], None]] = deque()
        #: Callbacks of users, to be made without the mutex.
        self._calls: deque[Callable[[], object]] = deque()
        self._calling = threading.Lock()
        #: Some have been made since the leader last looked.
        self._called = False
        #: Who makes them while nobody else may.
        self._caller: threading.Thread | None = None
        self._waiters: list[tuple[Completion, threading.Lock]] = []
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
        self._wake_reader, self._wake_writer = os.pipe()
        os.set_blocking(self._wake_reader, False)
        os.set_blocking(self._wake_writer, False)
        self._interrupts = Interrupts(self._wake)
        self._waiter = Waiter()
        self._waiter.watch(self._wake_reader)
        self._alarm = Alarm(self._next_deadline)

    # -- for subclasses ----------------------------------------------------------------------------

    def _send(self, message: Message) -> None:
        """Say this to the broker. By who runs the loop."""
        raise NotImplementedError

    @property
    def reaches(self) -> bool:
        """What is said now may arrive."""
        return True

    def _number(self) -> int:
        """The next one of a pool, a job or a process."""
        raise NotImplementedError

    def _produce(self) -> bool:
        """Send what is to be sent. True: there is still more."""
        raise NotImplementedError

    def _poll(self, timeout: float | None) -> None:
        """Wait for what comes (:meth:`_ready` does), and take it in."""
        raise NotImplementedError

    def _patience(self, now: float, timeout: float | None) -> float | None:
        """``timeout``, or less where something is to be done before that."""
        raise NotImplementedError

    def _next_deadline(self) -> float | None:
        """When :meth:`_housekeeping` is due."""
        raise NotImplementedError

    def _housekeeping(self, now: float) -> None:
        raise NotImplementedError

    def _unsent(self) -> bool:
        """Is there something to produce?"""
        raise NotImplementedError

    def _pending(self, done: bool) -> bool:
        """Is there work under way? ``done``: what was waited for has come."""
        raise NotImplementedError

    def _fail(self, error: BaseException) -> None:
        """The loop cannot go on: whoever waits gets this error."""
        raise NotImplementedError

    def _shut(self) -> None:
        """Let go of everything."""
        raise NotImplementedError

    # -- calls from any thread ---------------------------------------------------------------------

    @property
    def usable(self) -> bool:
        """Nothing has ended it yet."""
        return self._failure is None and not self._closing

    def _do(self, command: Callable[[], None], kick: bool = True) -> None:
        """Have the leader carry this out. If nobody leads, that is done here and now. ``kick`` False: it is not
        to be waited for, or the caller does that next, so nobody need take the lead for it."""
        if self._closing:
            return
        self._inbox.append(command)
        if self._mutex.acquire(blocking=False):
            try:
                with self._interrupts:
                    self._drain_inbox()
                if self._waiters:
                    self._release_waiters()
            finally:
                self._mutex.release()
            self._ensure_thread()
            if not kick:
                return
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
        # Who has the background thread step aside comes first.
        if self._wanted:
            return False
        if self._mutex.acquire(blocking=False):
            return True
        if not self._background_leads:
            return False
        self._wanted = True
        try:
            self._wake()
            # Not for longer: another caller may have been faster, and lead until what it waits for is done.
            left = LINGER if deadline is None else max(0.0, min(LINGER, deadline - time.monotonic()))
            return self._mutex.acquire(timeout=left)
        finally:
            self._wanted = False

    def _lead(self, completion: Completion, deadline: float | None) -> None:
        """Run the loop in this thread until the completion is done. The mutex is held."""
        try:
            with self._interrupts:
                # Wanted: by a caller who took this one for the background thread. It would not notice else that
                # what it waits for is done.
                while not (completion.done or self._interrupts.pending or self._wanted or self._failure):
                    left = None if deadline is None else deadline - time.monotonic()
                    if left is not None and left <= 0:
                        break
                    self._turn(left)
                    if self._callable():
                        if completion.makes_calls:
                            break
                        self._have_calls_made()
        except (MultihostError, OSError) as error:
            self._fail(error)
        finally:
            self._led_at = time.monotonic()
            self._mutex.release()
            self._hand_over(completion.done)
        if completion.makes_calls:
            self._run_calls()
        elif self._callable():
            self._have_calls_made()

    def _hand_over(self, done: bool) -> None:
        """The caller leaves the lead: if there is work under way the background thread takes it."""
        if self._pending(done) or self._inbox or self._waiters:
            self._ensure_thread()
            self._unpark()

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
                    while not self._wanted and not self._closing and self._failure is None:
                        self._turn(None)
                        if self._callable():
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
        while not self._closing and (self._wanted or time.monotonic() - self._led_at < self._linger()):
            if self._park.acquire(timeout=self._linger()):
                return

    def _linger(self) -> float:
        """Seconds the background thread stays aside."""
        return LINGER

    # -- one turn of the loop ------------------------------------------------------------------------

    def _turn(self, timeout: float | None) -> None:
        """Send what is to be sent, wait for what comes, take it in. The mutex is held."""
        # A command may have done what is waited for: then do not wait.
        more = self._drain_inbox()
        more = self._produce() or more
        if more and self._waiters:
            # On the local engine it may have done what others wait for.
            self._release_waiters()
        self._polling = True
        called, self._called = self._called, False
        if more or called or self._inbox or self._wanted or self._unsent() or self._callable():
            timeout = 0.0
        try:
            self._poll(timeout)
        finally:
            self._polling = False
        now = time.monotonic()
        if self._alarm.rings(now):
            self._housekeeping(now)
        if self._waiters:
            self._release_waiters()

    def _ready(self, timeout: float | None) -> list[tuple[int, int]]:
        """(descriptor, events) of what is ready, after ``timeout`` seconds or a little more."""
        if timeout == 0.0:
            return self._waiter.wait(0)
        return self._waiter.wait_awake_first(lambda: self._left(timeout))

    def _left(self, timeout: float | None) -> float | None:
        now = time.monotonic()
        timeout = self._patience(now, timeout)
        due = self._alarm.patience(now)
        return due if timeout is None else timeout if due is None else min(timeout, due)

    def _drain_inbox(self) -> bool:
        drained = bool(self._inbox)
        while self._inbox:
            self._inbox.popleft()()
        return drained

    def drain_wakeups(self) -> None:
        """Empty the wake-up pipe."""
        with suppress(BlockingIOError):
            os.read(self._wake_reader, 4096)

    def _release_waiters(self) -> None:
        for completion, lock in self._waiters[:]:
            if completion.done or self._failure is not None:
                with suppress(RuntimeError):
                    lock.release()

    def _callable(self) -> bool:
        """Are there calls to make, and nobody who makes them?"""
        return bool(self._calls) and not self._calling.locked()

    def _have_calls_made(self) -> None:
        """Have a thread make the users' callbacks that nobody waits for. Until it does, they are :meth:`_callable`."""
        if self._caller is None or not self._caller.is_alive():
            self._caller = threading.Thread(target=self._run_calls, name="multihost-calls", daemon=True)
            self._caller.start()

    def _run_calls(self) -> None:
        """Make the users' callbacks, in order, without the mutex. A nested call finds them running."""
        while self._calls and self._calling.acquire(blocking=False):
            try:
                while self._calls:
                    try:
                        self._calls.popleft()()
                    except Exception:  # noqa: BLE001
                        traceback.print_exc()
                    self._let_look()
            finally:
                self._calling.release()
            # What the leader waits for may be done by that.
            self._called = True
            if self._polling:
                self._wake()

    def _let_look(self) -> None:
        """A callback has ended, and who leads meanwhile may wait for just that."""
        if self._mutex.locked():
            # In this order: who leads looks into the inbox once it is known to be polling.
            self._inbox.append(_nothing)
            if self._polling:
                self._wake()

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
