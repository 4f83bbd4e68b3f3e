"""Locks, semaphores, conditions, events and barriers that processes on any host share.

The counterpart of :mod:`multiprocessing.synchronize`. What such an object consists of is at the broker; a process has
books of its own of what it has acquired there. A process that dies holding a lock frees it, and the next one to
acquire it finds ``owner_died`` to be True.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import weakref
from collections.abc import Callable
from functools import partial
from multiprocessing.process import current_process
from threading import BrokenBarrierError
from typing import Any, TypeVar

from multihost.engines.sharing import Ask, Sharing
from multihost.shared import Shared
from multihost_common.shared import (
    BARRIER,
    CONDITION,
    EVENT,
    SEMAPHORE,
    Barriers,
    Conditions,
    Events,
    Semaphores,
)

T = TypeVar("T")


def __getattr__(name: str) -> Any:
    # What else the standard library's module of this name has.
    from multiprocessing import synchronize

    return getattr(synchronize, name)


#: As in multiprocessing: a lock that its thread may acquire again, and everything else.
RECURSIVE_MUTEX, SEMAPHORE_KIND = 0, 1

#: As in multiprocessing, the largest value of a semaphore.
SEM_VALUE_MAX = 2**31 - 1


# -- the books of a process ----------------------------------------------------------------------------


class _Books:
    """What this process has acquired of one semaphore or lock. All copies of it in this process share them."""

    def __init__(self, shared: Shared, kind: int, maxvalue: int) -> None:
        self.shared = shared
        self.kind = kind
        self.maxvalue = maxvalue
        self.owner_died = False
        self._mutex = threading.Lock()
        self._acquired = 0
        #: When that was, of :attr:`Sharing.era`.
        self._era = 0
        self._thread = 0
        self._times = 0

    def __reduce__(self) -> tuple[Any, ...]:
        return _books, (self.shared, self.kind, self.maxvalue)

    def acquire(self, block: bool = True, timeout: float | None = None) -> bool:
        """Get a permit, within ``timeout`` seconds. False: there was none."""
        if self.kind == RECURSIVE_MUTEX and self._is_mine():
            self._acquired += 1
            return True
        ask = self.shared.ask(Semaphores.ACQUIRE, now=not block, timeout=timeout, undo=self._give_back)
        if ask is None:
            return False
        with self._mutex:
            if self._era != ask.era:
                self._era, self._acquired = ask.era, 0
            self._acquired += 1
            self._times += 1
            self._thread = threading.get_ident()
        self.owner_died = bool(ask.amount)
        return True

    def _give_back(self, sharing: Sharing, ask: Ask) -> None:
        # May be called by who runs the loop.
        sharing.tell(self.shared.name, Semaphores.RELEASE)

    def release(self) -> None:
        """Give a permit back. Raises ValueError if there are too many, AssertionError for a recursive lock that this
        thread has not."""
        if self.kind == RECURSIVE_MUTEX:
            assert self._is_mine(), "attempt to release recursive lock not owned by thread"
            if self._acquired > 1:
                self._acquired -= 1
                return
        with self._mutex:
            known = self._acquired > 0
            self._acquired -= known
        if known and self._era != self.shared.sharing.era:
            # The broker had thought this process lost, and others may have it by now: it would be taken from them.
            return
        if known:
            self.shared.tell(Semaphores.RELEASE)
        else:
            self.shared.ask(Semaphores.RELEASE)

    def forget(self) -> None:
        """This is a forked process, and its parent's permits are not its own."""
        self._mutex = threading.Lock()
        self._acquired = 0

    def hold(self) -> int:
        """A number that is another one each time that this thread has acquired it anew; 0: it has not, or others may."""
        return self._times if self.maxvalue == 1 and self._is_mine() else 0

    # The names that multiprocessing's have, for what looks at them.

    def _is_mine(self) -> bool:
        return self._acquired > 0 and self._thread == threading.get_ident()

    def _count(self) -> int:
        return self._acquired

    def _get_value(self) -> int:
        return self.shared.number(Semaphores.VALUE)

    def _is_zero(self) -> bool:
        return self._get_value() == 0


#: The books of this process, by the name of the object.
_known: weakref.WeakValueDictionary[bytes, _Books] = weakref.WeakValueDictionary()
_knowing = threading.Lock()


def _books(shared: Shared, kind: int, maxvalue: int) -> _Books:
    """The books of this process about this object."""
    with _knowing:
        books = _known.get(shared.name)
        if books is None:
            books = _known[shared.name] = _Books(shared, kind, maxvalue)
        return books


def _after_fork() -> None:
    global _knowing
    _knowing = threading.Lock()
    for books in list(_known.values()):
        books.forget()


os.register_at_fork(after_in_child=_after_fork)


# -- semaphores and locks ------------------------------------------------------------------------------


class SemLock:
    """What semaphores and locks have in common."""

    def __init__(self, kind: int, value: int, maxvalue: int, *, ctx: object = None) -> None:
        if not 0 <= value <= SEM_VALUE_MAX:
            raise OSError(22, "Invalid argument")
        owned = Semaphores.COUNTING
        if maxvalue == 1 and value == 1:
            owned = Semaphores.RECURSIVE if kind == RECURSIVE_MUTEX else Semaphores.PLAIN
        maximum = 0 if maxvalue == SEM_VALUE_MAX else maxvalue
        frames = [number.to_bytes(8, "little") for number in (maximum, owned)]
        self._semlock = _books(Shared.make(SEMAPHORE, value, frames), kind, maxvalue)
        self._make_methods()

    def _make_methods(self) -> None:
        self.acquire = self._semlock.acquire
        self.release = self._semlock.release

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *args: object) -> None:
        self.release()

    def __getstate__(self) -> Any:
        return self._semlock

    def __setstate__(self, state: _Books) -> None:
        self._semlock = state
        self._make_methods()

    @property
    def owner_died(self) -> bool:
        """Whether the one that held it before this process had died without releasing it."""
        return self._semlock.owner_died

    def _owner(self) -> str:
        """As multiprocessing describes it."""
        if self._semlock._is_mine():
            name = current_process().name
            thread = threading.current_thread().name
            return name if thread == "MainThread" else f"{name}|{thread}"
        if self._semlock._get_value() == 1:
            return "None"
        return "SomeOtherThread" if self._semlock._count() > 0 else "SomeOtherProcess"


class Semaphore(SemLock):
    """A counter that :meth:`acquire` lowers, waiting while it is zero, and :meth:`release` raises."""

    def __init__(self, value: int = 1, *, ctx: object = None) -> None:
        super().__init__(SEMAPHORE_KIND, value, SEM_VALUE_MAX, ctx=ctx)

    def get_value(self) -> int:
        """How often it could be acquired just now."""
        return self._semlock._get_value()

    def _value(self) -> str:
        try:
            return str(self.get_value())
        except Exception:  # noqa: BLE001
            return "unknown"

    def __repr__(self) -> str:
        return f"<{type(self).__name__}(value={self._value()})>"


class BoundedSemaphore(Semaphore):
    """A semaphore that refuses, with ValueError, to be released more often than it was acquired."""

    def __init__(self, value: int = 1, *, ctx: object = None) -> None:
        SemLock.__init__(self, SEMAPHORE_KIND, value, value, ctx=ctx)

    def __repr__(self) -> str:
        return f"<{type(self).__name__}(value={self._value()}, maxvalue={self._semlock.maxvalue})>"


class Lock(SemLock):
    """A lock. Any process, any thread may release it, as in multiprocessing."""

    def __init__(self, *, ctx: object = None) -> None:
        super().__init__(SEMAPHORE_KIND, 1, 1, ctx=ctx)

    def __repr__(self) -> str:
        try:
            name = self._owner()
        except Exception:  # noqa: BLE001
            name = "unknown"
        return f"<{type(self).__name__}(owner={name})>"


class RLock(SemLock):
    """A lock that the thread which has it may acquire again, and which only that thread releases."""

    def __init__(self, *, ctx: object = None) -> None:
        super().__init__(RECURSIVE_MUTEX, 1, 1, ctx=ctx)

    def __repr__(self) -> str:
        try:
            name = self._owner()
            count: object = {"None": 0, "SomeOtherThread": "nonzero", "SomeOtherProcess": "nonzero"}.get(
                name, self._semlock._count()
            )
        except Exception:  # noqa: BLE001
            name = count = "unknown"
        return f"<{type(self).__name__}({name}, {count})>"


# -- conditions ----------------------------------------------------------------------------------------


class Condition:
    """Wait, with a lock released meanwhile, until another process says that something has changed."""

    def __init__(self, lock: Any = None, *, ctx: object = None) -> None:
        self._lock = lock or RLock(ctx=ctx)
        self._shared = Shared.make(CONDITION)
        self._make_methods()

    def _make_methods(self) -> None:
        self.acquire: Callable[..., bool] = self._lock.acquire
        self.release: Callable[[], None] = self._lock.release

    def __getstate__(self) -> Any:
        return self._lock, self._shared

    def __setstate__(self, state: Any) -> None:
        self._lock, self._shared = state
        self._make_methods()

    def __enter__(self) -> bool:
        return bool(self._lock.__enter__())

    def __exit__(self, *args: object) -> None:
        self._lock.__exit__(*args)

    @property
    def owner_died(self) -> bool:
        """See :attr:`SemLock.owner_died`: of its lock."""
        return bool(self._lock.owner_died)

    def __repr__(self) -> str:
        try:
            waiters: object = self._shared.number(Conditions.COUNT)
        except Exception:  # noqa: BLE001
            waiters = "unknown"
        return f"<{type(self).__name__}({self._lock}, {waiters})>"

    def wait(self, timeout: float | None = None) -> bool:
        """Release the lock, wait for a notification and acquire the lock again. False: none came within ``timeout``
        seconds."""
        assert self._lock._semlock._is_mine(), "must acquire() condition before using wait()"
        sharing = self._shared.sharing
        # What a process says arrives in this order, so this one waits before anybody else has the lock.
        ask = sharing.begin(self._shared.name, Conditions.WAIT)
        depth = self._lock._semlock._count()
        for _ in range(depth):
            self._lock.release()
        notified = False
        try:
            undo = partial(self._pass_on, sharing)
            notified = sharing.finish(ask, None if timeout is None else max(0.0, timeout), undo) is not None
        finally:
            try:
                self._lock_again(depth)
            except BaseException:
                if notified:
                    self._pass_on(sharing, ask)
                raise
        if notified:
            self._shared.tell(Conditions.WOKEN, ask.number)
        return notified

    def _lock_again(self, depth: int) -> None:
        """Whoever waited is going to release it. So Ctrl-C is put off until it is held; not a second time."""
        interrupt: KeyboardInterrupt | None = None
        while depth:
            try:
                self._lock.acquire()
                depth -= 1
            except KeyboardInterrupt as error:
                if interrupt is not None:
                    raise
                interrupt = error
        if interrupt is not None:
            raise interrupt

    def _pass_on(self, sharing: Sharing, ask: Ask) -> None:
        # May be called by who runs the loop.
        sharing.tell(self._shared.name, Conditions.PASS, ask.number)

    def wait_for(self, predicate: Callable[[], T], timeout: float | None = None) -> T:
        """Wait until ``predicate()`` is true, or for ``timeout`` seconds; its last result."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while not (result := predicate()):
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                break
            self.wait(left)
        return result

    def notify(self, n: int = 1) -> None:
        """Wake ``n`` of those that wait."""
        assert self._lock._semlock._is_mine(), "lock is not owned"
        if n > 0:
            self._shared.tell(Conditions.NOTIFY, n)

    def notify_all(self) -> None:
        """Wake all that wait."""
        self.notify(sys.maxsize)


# -- events --------------------------------------------------------------------------------------------


class Event:
    """A flag that processes wait for."""

    def __init__(self, *, ctx: object = None) -> None:
        self._shared = Shared.make(EVENT)

    def is_set(self) -> bool:
        """Whether the flag is set."""
        return bool(self._shared.number(Events.IS_SET))

    def set(self) -> None:
        """Set the flag; whoever waits goes on."""
        self._shared.ask(Events.SET)

    def clear(self) -> None:
        """Clear the flag."""
        self._shared.ask(Events.CLEAR)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the flag is set. False: it was not within ``timeout`` seconds."""
        return self._shared.ask(Events.WAIT, timeout=timeout) is not None

    def __repr__(self) -> str:
        try:
            state = "set" if self.is_set() else "unset"
        except Exception:  # noqa: BLE001
            state = "unknown"
        return f"<{type(self).__qualname__} at {id(self):#x} {state}>"


# -- barriers ------------------------------------------------------------------------------------------


class Barrier:
    """A point where ``parties`` threads of any processes wait for one another.

    It breaks, which is a BrokenBarrierError for all, when one of them does not wait any longer, and when a process that
    has it is killed.
    """

    def __init__(
        self,
        parties: int,
        action: Callable[[], object] | None = None,
        timeout: float | None = None,
        *,
        ctx: object = None,
    ) -> None:
        if parties < 1:
            raise ValueError("parties must be > 0")
        self._parties = parties
        self._action = action
        self._timeout = timeout
        flag = int(action is not None).to_bytes(8, "little")
        self._shared = Shared.make(BARRIER, parties, [flag])

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        # The others are told if this process is killed.
        self._shared.tell(Barriers.JOIN)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the others; answers how many came before. Raises BrokenBarrierError, also after ``timeout`` seconds
        (default: the barrier's own), and then for the others, too."""
        timeout = self._timeout if timeout is None else timeout
        ask = self._shared.ask(Barriers.WAIT, timeout=timeout)
        if ask is None or ask.amount >= Barriers.BROKEN:
            raise BrokenBarrierError
        if self._action is not None and ask.amount == self._parties - 1:
            self._act(self._action, ask)
        return ask.amount

    def _act(self, action: Callable[[], object], ask: Ask) -> None:
        try:
            action()
        except BaseException:
            self.abort()
            raise
        if self._shared.number(Barriers.RELEASE, ask.number) >= Barriers.BROKEN:
            raise BrokenBarrierError

    def reset(self) -> None:
        """As new; whoever waits gets BrokenBarrierError."""
        self._shared.ask(Barriers.RESET)

    def abort(self) -> None:
        """Break it: whoever waits, or comes later, gets BrokenBarrierError."""
        self._shared.ask(Barriers.ABORT)

    @property
    def parties(self) -> int:
        """How many it waits for."""
        return self._parties

    @property
    def n_waiting(self) -> int:
        """How many wait just now."""
        return self._shared.number(Barriers.STATE) % Barriers.BROKEN

    @property
    def broken(self) -> bool:
        """Whether it is broken."""
        return self._shared.number(Barriers.STATE) >= Barriers.BROKEN

    def __repr__(self) -> str:
        kind = type(self)
        try:
            state = "broken" if self.broken else f"waiters={self.n_waiting}/{self.parties}"
        except Exception:  # noqa: BLE001
            state = "unknown"
        return f"<{kind.__module__}.{kind.__qualname__} at {id(self):#x}: {state}>"


__all__ = ["Barrier", "BoundedSemaphore", "Condition", "Event", "Lock", "RLock", "Semaphore"]
