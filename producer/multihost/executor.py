"""``concurrent.futures.Executor``, with its processes on any number of hosts.

A future is answered by whoever runs the engine's loop. ``Future.result`` runs it itself while it waits,
so that no result is handed from thread to thread on its way to the caller.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor as BaseExecutor
from concurrent.futures import Future as BaseFuture
from concurrent.futures import InvalidStateError
from concurrent.futures._base import CANCELLED, CANCELLED_AND_NOTIFIED, FINISHED
from functools import partial
from types import TracebackType
from typing import Any, TypeVar

from multihost.engines.base import Completion, Engine
from multihost.failures import Raised
from multihost.handle import PoolHandle, make_options
from multihost.iterators import IMapIterator, Inbox, Pulled
from multihost.results import closed_error
from multihost.sources import Items
from multihost_common.messages import CALL_MAP, CALL_STAR

T = TypeVar("T")

_invoke_callbacks: Callable[[BaseFuture[Any]], None] = BaseFuture._invoke_callbacks  # type: ignore[attr-defined]

_SHUT_DOWN = "cannot schedule new futures after shutdown"


class Call(Completion):
    """The engine's side of a future: what a stream job gives the outcome to."""

    __slots__ = ("future", "item", "job")

    def __init__(self, future: Future) -> None:
        self.done = False
        self.future: Future | None = future
        self.job: Any = None
        self.item = -1

    def claim(self, item: int) -> bool:
        """Called when the call is about to be sent; not wanted after a cancel."""
        future = self.future
        return future is not None and future._claim(self, item)

    def take(self, value: Any) -> Callable[[], object] | None:
        """Called with the outcome; answers the call to make without the engine's lock."""
        future, self.future = self.future, None
        if future is None:
            return None
        call = future._answer(value)
        self.done = True
        return call


class Future(BaseFuture[Any]):
    """A future whose call can be cancelled also while it runs: the process that runs it is killed."""

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self._engine = engine
        self._call = Call(self)
        self._held = False

    def result(self, timeout: float | None = None) -> Any:
        """The result; raises what the call raised, TimeoutError or CancelledError."""
        self._await(timeout)
        try:
            return super().result(0)
        finally:
            # An exception's traceback would keep this frame, and it the exception, alive.
            del self

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """What the call raised, or None; raises TimeoutError or CancelledError."""
        self._await(timeout)
        return super().exception(0)

    def cancel(self) -> bool:
        """Give the call up, also when it runs. False only if it has ended already."""
        with self._condition:
            if self._state == FINISHED:
                return False
            if not self._mark_cancelled():
                return True
            item = self._call.item
        _invoke_callbacks(self)
        if item >= 0:
            self._engine.cancel(self._call.job, item, 1, kill=True)
        return True

    def _await(self, timeout: float | None) -> None:
        if self._state in (CANCELLED, CANCELLED_AND_NOTIFIED, FINISHED):
            return
        if not self._engine.wait(self._call, timeout) and timeout is None and not self.done():
            raise closed_error()

    def _mark_cancelled(self) -> bool:
        with self._condition:
            if self._state in (CANCELLED, CANCELLED_AND_NOTIFIED, FINISHED):
                return False
            self._state = CANCELLED
            self._condition.notify_all()
            # Also tells concurrent.futures.wait and as_completed.
            self.set_running_or_notify_cancel()
        self._call.done = True
        return True

    def _claim(self, call: Call, item: int) -> bool:
        with self._condition:
            if self._state == CANCELLED_AND_NOTIFIED:
                return False
            call.item = item
            return self.set_running_or_notify_cancel()

    def _answer(self, value: Any) -> Callable[[], object] | None:
        # Callbacks are the user's code: they run once the engine's lock is free.
        self._held = True
        try:
            if type(value) is not Raised:
                self.set_result(value)
            elif value.cancelled:
                if not self._mark_cancelled():
                    return None
            else:
                self.set_exception(value.error)
        except InvalidStateError:
            # It was cancelled meanwhile.
            return None
        finally:
            self._held = False
        return partial(_invoke_callbacks, self) if self._done_callbacks else None  # type: ignore[attr-defined]

    def _invoke_callbacks(self) -> None:
        if not self._held:
            _invoke_callbacks(self)


class Executor(BaseExecutor):
    """An executor of processes.

    ``max_workers``: how many run at once over all hosts (None: as many as there are slots).
    ``mp_context`` gives the processes their name, and says whether what they start with is as if forked. The rest is as for :class:`multihost.Pool`.
    """

    _handle: PoolHandle | None = None

    def __init__(
        self,
        max_workers: int | None = None,
        mp_context: object = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        *,
        max_tasks_per_child: int | None = None,
        address: str | None = None,
        timeout: float | None = None,
        retries: int = 0,
        at_most_once: bool = False,
        start_timeout: float | None = None,
    ) -> None:
        if max_workers is not None and max_workers <= 0:
            raise ValueError("max_workers must be greater than 0")
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        if max_tasks_per_child is not None:
            if not isinstance(max_tasks_per_child, int):
                raise TypeError("max_tasks_per_child must be an integer")
            if max_tasks_per_child <= 0:
                raise ValueError("max_tasks_per_child must be >= 1")
        self._shut = False
        self._options = make_options(timeout, retries, at_most_once)
        self._handle = PoolHandle(
            max_workers,
            initializer,
            initargs,
            max_tasks_per_child,
            address,
            type(self).__name__,
            start_timeout,
            executor=True,
            context=mp_context,
        )
        _keep(self._handle)

    def __del__(self) -> None:
        if self._handle is not None:
            # What was submitted still runs to its end, as in concurrent.futures.
            self._handle.close()

    @property
    def _max_workers(self) -> int:
        handle = self._open_handle()
        return handle.limit or max(1, handle.engine.capacity)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future:
        """A future of ``fn(*args, **kwargs)``."""
        handle = self._check()
        future = Future(handle.engine)
        call = future._call
        try:
            call.job = handle.submit(fn, args, kwargs, self._options, call)
        except Exception as error:  # noqa: BLE001
            broken = handle.broken
            if broken is not None:
                raise broken from None
            callbacks = call.take(Raised(error))
            if callbacks is not None:
                callbacks()
        return future

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int | None = 1,
        buffersize: int | None = None,
    ) -> Iterator[T]:
        """``map(fn, *iterables)``, results in order.

        ``timeout``: seconds from this call on, then TimeoutError. ``chunksize``: items a process runs
        in one go, None: it follows the measured time of an item. ``buffersize``: read the iterables no
        further ahead of the results taken (None: collect them at once).
        """
        end = None if timeout is None else timeout + time.monotonic()
        if chunksize is not None and chunksize < 1:
            raise ValueError("chunksize must be >= 1.")
        if buffersize is not None:
            if not isinstance(buffersize, int):
                raise TypeError("buffersize must be an integer or None")
            if buffersize < 1:
                raise ValueError("buffersize must be None or > 0")
        handle = self._check()
        single = len(iterables) == 1
        rows: Iterable[Any] = iterables[0] if single else zip(*iterables, strict=False)
        style = CALL_MAP if single else CALL_STAR
        if buffersize is None:
            source: Items | Pulled = Items(list(rows))
        else:
            chunksize = chunksize or 1
            source = Pulled(iter(rows), buffersize, chunksize)
        pulled = source if isinstance(source, Pulled) else None
        window = None if pulled is None else pulled.window
        iterator = handle.run(None, fn, style, source, self._options, chunksize, window, Inbox(True))
        return _results(iterator, pulled, end)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """No more calls; ``wait`` until all are done; ``cancel_futures``: those that have not begun."""
        handle = self._open_handle()
        self._shut = True
        if cancel_futures:
            for receiver in handle.drop_waiting():
                if isinstance(receiver, Call) and receiver.future is not None:
                    receiver.future.cancel()
        handle.close()
        if wait:
            handle.join()

    def kill_workers(self) -> None:
        """End the processes at once; calls that have not ended raise MultihostError."""
        self._shut = True
        self._open_handle().close(kill=True)

    terminate_workers = kill_workers

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            self.kill_workers()
        self.shutdown(wait=True)

    def _open_handle(self) -> PoolHandle:
        if self._handle is None:
            raise RuntimeError("this executor was not set up; call Executor.__init__")
        return self._handle

    def _check(self) -> PoolHandle:
        handle = self._open_handle()
        if self._shut or handle.closed:
            raise RuntimeError(_SHUT_DOWN)
        if _ending:
            raise RuntimeError("cannot schedule new futures after interpreter shutdown")
        handle.check()
        return handle


def _results(iterator: IMapIterator, source: Pulled | None, end: float | None) -> Iterator[Any]:
    """What map gives out. Closing it before its end gives the rest up."""
    from multiprocessing import TimeoutError as PoolTimeoutError

    try:
        while True:
            if source is not None:
                source.pull(iterator)
            try:
                yield iterator.next(None if end is None else end - time.monotonic())
            except StopIteration:
                return
            except PoolTimeoutError:
                raise TimeoutError from None
    finally:
        iterator.close()


# -- the end of the interpreter ------------------------------------------------------------------------

#: Handles of executors that may still have work to do, whether or not the executor itself still exists.
_handles: set[PoolHandle] = set()
_ending = False


def _keep(handle: PoolHandle) -> None:
    for each in list(_handles):
        if each.gone:
            _handles.discard(each)
    _handles.add(handle)


def _finish() -> None:
    """Futures are done before the interpreter ends, unless it ends by Ctrl-C."""
    global _ending
    _ending = True
    interrupted = getattr(sys, "last_type", None)
    kill = isinstance(interrupted, type) and issubclass(interrupted, KeyboardInterrupt)
    handles = list(_handles)
    try:
        for handle in handles:
            handle.close(kill)
        for handle in handles:
            handle.join()
    except KeyboardInterrupt:
        for handle in handles:
            handle.close(kill=True)
        raise


# As concurrent.futures does it: before threads that are not daemons are waited for.
threading._register_atexit(_finish)  # type: ignore[attr-defined]
