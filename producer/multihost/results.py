"""What the methods of a pool give back: results to wait for."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

from multihost.engines.base import Completion, Engine
from multihost.failures import Raised
from multihost.sources import Calls

#: In the place of an item's number: the call was given up before it was sent.
_UNWANTED = -2


def pool_timeout() -> Exception:
    """The TimeoutError of multiprocessing, which is not the built-in one."""
    from multiprocessing import TimeoutError as PoolTimeoutError

    return PoolTimeoutError()


def closed_error() -> Exception:
    """What to raise when a wait without a limit ended without an answer."""
    from multihost_common.errors import MultihostError

    return MultihostError("this will not be answered here: the process is ending, or was forked meanwhile")


def run_callback(function: Callable[[Any], object], value: Any) -> None:
    """Call back; what it raises is shown, and neither stops the pool nor the other callbacks."""
    try:
        function(value)
    except Exception:  # noqa: BLE001
        threading.excepthook(threading.ExceptHookArgs((*sys.exc_info(), threading.current_thread())))


class AsyncResult(Completion):
    """The result of ``apply_async``."""

    __slots__ = ("__weakref__", "_callback", "_engine", "_error_callback", "_item", "_job", "_pool", "_value")

    def __init__(
        self,
        pool: Any,
        engine: Engine,
        callback: Callable[[Any], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> None:
        self.done = False
        # A pool lives as long as a result of it is awaited.
        self._pool = pool
        self._engine = engine
        self._callback = callback
        self._error_callback = error_callback
        self._job: Any = None
        self._item = -1
        self._value: Any = None

    def ready(self) -> bool:
        """Has the call ended?"""
        return self.done

    def successful(self) -> bool:
        """Did the call end without raising? ValueError while it has not ended."""
        if not self.done:
            raise ValueError(f"{self!r} not ready")
        return type(self._value) is not Raised

    def wait(self, timeout: float | None = None) -> None:
        """Wait until the call has ended, or for ``timeout`` seconds."""
        if not self.done:
            self._await(timeout)

    def get(self, timeout: float | None = None) -> Any:
        """The result; raises what the call raised, or multiprocessing.TimeoutError."""
        if not self.done and not self._await(timeout):
            raise pool_timeout() if timeout is not None else closed_error()
        value = self._value
        if type(value) is Raised:
            try:
                raise value.error
            finally:
                # Without this the traceback would keep this frame, and it the error, alive.
                del value, self
        return value

    def _await(self, timeout: float | None) -> bool:
        return self._engine.wait(self, timeout)

    def claim(self, item: int) -> bool:
        """Called when the call is about to be sent; not wanted after :meth:`_cancel`."""
        if self._item == _UNWANTED:
            return False
        self._item = item
        return True

    def take(self, value: Any) -> Callable[[], object] | None:
        """Called with the outcome; answers the callback to make before anybody sees it."""
        if self.done:
            return None
        self._value = value
        callback = self._error_callback if type(value) is Raised else self._callback
        if callback is None:
            self._settle()
            return None
        return partial(self._call_back, callback)

    def _call_back(self, callback: Callable[[Any], object]) -> None:
        value = self._value
        try:
            run_callback(callback, value.error if type(value) is Raised else value)
        finally:
            self._settle()

    def _settle(self) -> None:
        self._pool = self._job = self._callback = self._error_callback = None
        self.done = True

    def _cancel(self) -> None:
        """Give up: whatever of it runs is killed."""
        job = self._job
        if job is not None and not self.done:
            if self._item < 0:
                self._item = _UNWANTED
            else:
                self._engine.cancel(job, self._item, 1, kill=True)


class MapResult(AsyncResult):
    """The result of ``map_async`` and ``starmap_async``: a list in the order of the items."""

    __slots__ = ("_answered", "_failure", "_failure_at", "_results")

    def __init__(
        self,
        pool: Any,
        engine: Engine,
        length: int,
        callback: Callable[[Any], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> None:
        super().__init__(pool, engine, callback, error_callback)
        self._results: list[Any] | None = [None] * length
        self._answered = 0
        self._failure: Raised | None = None
        self._failure_at = length

    def consumed(self) -> int:
        """Results take up room for good, so none of them holds back the input."""
        return self._answered

    def put(self, start: int, values: list[Any], failed: bool, calls: Calls) -> None:
        """Results from ``start`` on."""
        if self._results is None:
            return
        self._results[start : start + len(values)] = values
        self._answered += len(values)
        if failed:
            self._find_failure(start, values)

    def _find_failure(self, start: int, values: list[Any]) -> None:
        if start >= self._failure_at:
            return
        for item, value in enumerate(values, start):
            if type(value) is Raised:
                if item < self._failure_at:
                    self._failure, self._failure_at = value, item
                return

    def finish(self, total: int, calls: Calls) -> None:
        """All results are there: the list, or the first error by index. Called twice, it acts once."""
        results, self._results = self._results, None
        if results is None:
            return
        call = self.take(results if self._failure is None else self._failure)
        if call is not None:
            calls.append(call)

    def _settle(self) -> None:
        self._failure = None
        super()._settle()

    def _cancel(self) -> None:
        job = self._job
        if job is not None and not self.done:
            job.stop()
            self._engine.cancel(job, kill=True)
