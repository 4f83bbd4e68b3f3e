"""``multiprocessing.Pool``, with its processes on any number of hosts."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from os import getpid
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Self, TypeVar, overload

from multihost.failures import Raised
from multihost.handle import PoolHandle, make_options
from multihost.iterators import IMapIterator
from multihost.jobs import Options
from multihost.results import AsyncResult, MapResult
from multihost.sources import Items
from multihost_common.messages import CALL_APPLY, CALL_MAP, CALL_STAR

if TYPE_CHECKING:
    from multihost.detached.result import DetachedResult

R = TypeVar("R")

INIT = "INIT"
RUN = "RUN"
CLOSE = "CLOSE"
TERMINATE = "TERMINATE"

ApplyResult = AsyncResult

#: Processes of a pool for which nobody names a number; None: as many as there are slots.
usual_processes: int | None = None

#: How long ``Pool._pool`` waits for the pool's processes to be there.
START_SECONDS = 5.0

_FROM_MULTIPROCESSING = frozenset({"RemoteTraceback", "MaybeEncodingError"})


def __getattr__(name: str) -> Any:
    if name == "ThreadPool":
        from multihost.threadpool import ThreadPool

        return ThreadPool
    if name in _FROM_MULTIPROCESSING:
        from multiprocessing import pool

        return getattr(pool, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class Child:
    """A process of a pool, as ``Pool._pool`` lists it."""

    def __init__(self, handle: PoolHandle, pid: int) -> None:
        self.pid = pid
        self._handle = handle

    def is_alive(self) -> bool:
        """Is it still there?"""
        return self.pid in self._handle.engine.pids(self._handle.number)

    @property
    def exitcode(self) -> int | None:
        """None while it runs; what came after is not kept."""
        return None if self.is_alive() else 0


class Pool:
    """A pool of processes that functions are applied in.

    ``address``: of a broker (None: ``MULTIHOST_BROKER``; empty: processes of this machine).
    ``processes``: how many run at once over all hosts (None: as many as there are slots).
    ``timeout``: seconds an item may run before its process is killed. ``retries``: how often an item
    that raised is run again. ``at_most_once``: an item whose process died is not run again.
    ``start_timeout``: raise NoWorkersError when no worker is there after so many seconds.
    """

    _state = INIT

    def __init__(
        self,
        processes: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        maxtasksperchild: int | None = None,
        context: object = None,
        *,
        address: str | None = None,
        timeout: float | None = None,
        retries: int = 0,
        at_most_once: bool = False,
        start_timeout: float | None = None,
    ) -> None:
        processes = usual_processes if processes is None else processes
        if processes is not None and processes < 1:
            raise ValueError("Number of processes must be at least 1")
        if maxtasksperchild is not None and (not isinstance(maxtasksperchild, int) or maxtasksperchild <= 0):
            raise ValueError("maxtasksperchild must be a positive int or None")
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        self._options = make_options(timeout, retries, at_most_once)
        self._handle = PoolHandle(
            processes,
            initializer,
            initargs,
            maxtasksperchild,
            address,
            type(self).__name__,
            start_timeout,
            context=context,
        )
        self._engine = self._handle.engine
        self._state = RUN

    def __repr__(self) -> str:
        cls = type(self)
        return f"<{cls.__module__}.{cls.__qualname__} state={self._state} pool_size={self._handle.limit}>"

    def __del__(self, _warn: Callable[..., None] = warnings.warn) -> None:
        if self._state == RUN:
            try:
                _warn(f"unclosed running multiprocessing pool {self!r}", ResourceWarning, source=self)
            finally:
                # Also where warnings are errors.
                self._handle.close(kill=True)

    def __reduce__(self) -> NoReturn:
        raise NotImplementedError("pool objects cannot be passed between processes or pickled")

    def __enter__(self) -> Self:
        self._check_running()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.terminate()

    def options(
        self, *, timeout: float | None = None, retries: int | None = None, at_most_once: bool | None = None
    ) -> PoolView:
        """The same pool with other options for the calls made through it."""
        mine = self._options
        changed = make_options(
            timeout if timeout is not None else mine.timeout or None,
            mine.retries if retries is None else retries,
            mine.at_most_once if at_most_once is None else at_most_once,
        )
        return PoolView(self, changed)

    # -- one call

    def apply(
        self, func: Callable[..., R], args: Iterable[Any] = (), kwds: Mapping[str, Any] | None = None
    ) -> R:
        """``func(*args, **kwds)`` in a process of the pool."""
        if self._state != RUN or self._handle.pid != getpid():
            self._check_running()
        result = AsyncResult(self, self._engine)
        self._submit(result, func, args, kwds, kick=False)
        value: R = _blocking(result)
        return value

    def apply_async(
        self,
        func: Callable[..., Any],
        args: Iterable[Any] = (),
        kwds: Mapping[str, Any] | None = None,
        callback: Callable[[Any], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
        *,
        detach: bool = False,
        **job: Any,
    ) -> AsyncResult:
        """Like :meth:`apply`, without waiting. ``detach``: see :meth:`map_async`."""
        if detach:
            items = [(tuple(args), dict(kwds or {}))]
            return self._detach(func, items, CALL_APPLY, 1, callback, error_callback, **job)
        _check_undetached(job)
        if self._state != RUN or self._handle.pid != getpid():
            self._check_running()
        result = AsyncResult(self, self._engine, callback, error_callback)
        self._submit(result, func, args, kwds, kick=True)
        return result

    def _submit(
        self,
        result: AsyncResult,
        func: Callable[..., Any],
        args: Iterable[Any],
        kwds: Mapping[str, Any] | None,
        kick: bool,
    ) -> None:
        try:
            result._job = self._handle.submit(
                func, tuple(args), dict(kwds or {}), self._options, result, kick
            )
        except Exception as error:  # noqa: BLE001
            call = result.take(Raised(error))
            if call is not None:
                call()

    # -- lists

    def map(self, func: Callable[[Any], R], iterable: Iterable[Any], chunksize: int | None = None) -> list[R]:
        """``[func(item) for item in iterable]``; the first error by index once all are done."""
        result: list[R] = _blocking(self._map_async(func, iterable, CALL_MAP, chunksize))
        return result

    @overload
    def map_async(
        self,
        func: Callable[[Any], Any],
        iterable: Iterable[Any],
        chunksize: int | None = None,
        callback: Callable[[Any], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> MapResult: ...

    @overload
    def map_async(
        self,
        func: Callable[[Any], Any],
        iterable: Iterable[Any],
        chunksize: int | None = None,
        callback: Callable[[Any], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
        *,
        detach: Literal[True],
        retention: float | None = None,
        name: str | None = None,
        key: str | bytes | None = None,
    ) -> DetachedResult: ...

    def map_async(
        self,
        func: Callable[[Any], Any],
        iterable: Iterable[Any],
        chunksize: int | None = None,
        callback: Callable[[Any], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
        *,
        detach: bool = False,
        **job: Any,
    ) -> MapResult | DetachedResult:
        """Like :meth:`map`, without waiting.

        ``detach``: the broker keeps the job on its disk, and it outlives this process. Returns a
        :class:`~multihost.detached.DetachedResult` once all of the input is there. With it, and only then:
        ``retention``, seconds that the job is kept after its end (a week); ``name``, for ``multihost jobs``; ``key``
        (32 hexadecimal digits), under which it may have been handed in before, or in part: then the rest is.
        """
        if detach:
            return self._detach(func, iterable, CALL_MAP, chunksize, callback, error_callback, **job)
        _check_undetached(job)
        return self._map_async(func, iterable, CALL_MAP, chunksize, callback, error_callback)

    def starmap(
        self, func: Callable[..., R], iterable: Iterable[Iterable[Any]], chunksize: int | None = None
    ) -> list[R]:
        """``[func(*item) for item in iterable]``."""
        result: list[R] = _blocking(self._map_async(func, iterable, CALL_STAR, chunksize))
        return result

    @overload
    def starmap_async(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Iterable[Any]],
        chunksize: int | None = None,
        callback: Callable[[Any], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> MapResult: ...

    @overload
    def starmap_async(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Iterable[Any]],
        chunksize: int | None = None,
        callback: Callable[[Any], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
        *,
        detach: Literal[True],
        retention: float | None = None,
        name: str | None = None,
        key: str | bytes | None = None,
    ) -> DetachedResult: ...

    def starmap_async(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Iterable[Any]],
        chunksize: int | None = None,
        callback: Callable[[Any], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
        *,
        detach: bool = False,
        **job: Any,
    ) -> MapResult | DetachedResult:
        """Like :meth:`starmap`, without waiting. ``detach``: see :meth:`map_async`."""
        if detach:
            return self._detach(func, iterable, CALL_STAR, chunksize, callback, error_callback, **job)
        _check_undetached(job)
        return self._map_async(func, iterable, CALL_STAR, chunksize, callback, error_callback)

    def _map_async(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Any],
        style: int,
        chunksize: int | None,
        callback: Callable[[Any], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> MapResult:
        self._check_running()
        if chunksize is not None:
            _check_chunksize(chunksize)
        source = self._handle.items(iterable) or Items(list(iterable))
        length = source.ready()
        if not length:
            empty = MapResult(self, self._engine, 0)
            empty.finish(0, [])
            return empty
        result = MapResult(self, self._engine, length, callback, error_callback)
        job = self._handle.map(self._handle.task(func, style), source, result, self._options, chunksize)
        result._job = job
        self._engine.start(job)
        return result

    def _detach(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Any],
        style: int,
        chunksize: int | None,
        callback: Callable[[Any], object] | None,
        error_callback: Callable[[BaseException], object] | None,
        *,
        retention: float | None = None,
        name: str | None = None,
        key: str | bytes | None = None,
    ) -> DetachedResult:
        from multihost.detached.result import submit

        self._check_running()
        if chunksize is not None:
            _check_chunksize(chunksize)
        result = submit(self._handle, func, style, iterable, self._options, chunksize, retention, name, key)
        result.call_back(callback, error_callback)
        return result

    # -- iterators

    def imap(
        self,
        func: Callable[[Any], Any],
        iterable: Iterable[Any],
        chunksize: int = 1,
        *,
        buffersize: int | None = None,
    ) -> IMapIterator:
        """Results in order, one by one. The iterable is read no further ahead than a window of items
        (``buffersize``, by default as many as keep the pool busy), so it may be endless."""
        return self._imap(func, iterable, chunksize, buffersize, ordered=True)

    def imap_unordered(
        self,
        func: Callable[[Any], Any],
        iterable: Iterable[Any],
        chunksize: int = 1,
        *,
        buffersize: int | None = None,
    ) -> IMapIterator:
        """Like :meth:`imap`, results as they come."""
        return self._imap(func, iterable, chunksize, buffersize, ordered=False)

    def _imap(
        self,
        func: Callable[[Any], Any],
        iterable: Iterable[Any],
        chunksize: int,
        buffersize: int | None,
        ordered: bool,
    ) -> IMapIterator:
        self._check_running()
        _check_chunksize(chunksize)
        if buffersize is not None and buffersize < 1:
            raise ValueError(f"buffersize must be 1 or more, not {buffersize!r}")
        return self._handle.iterate(
            self, func, CALL_MAP, iterable, self._options, chunksize, buffersize, ordered
        )

    # -- the end

    def close(self) -> None:
        """No more calls; the processes end when all work is done."""
        if self._state == RUN:
            handle = self._handle
            if handle.initializer and not handle.used and not handle.local and self._engine.capacity:
                # Processes of a cluster are started on first use, and some initializer may be all there is to do.
                self.apply_async(abs, (0,))
            self._state = CLOSE
            self._handle.close()

    def terminate(self) -> None:
        """End the processes at once; what has no result by then gets none."""
        self._state = TERMINATE
        self._handle.close(kill=True)

    def join(self) -> None:
        """Wait for the processes to end, after :meth:`close` or :meth:`terminate`."""
        if self._state == RUN:
            raise ValueError("Pool is still running")
        if self._state not in (CLOSE, TERMINATE):
            raise ValueError("In unknown state")
        self._handle.join()

    def _check_running(self) -> None:
        if self._state != RUN:
            raise ValueError("Pool not running")
        self._handle.check()

    # -- what programs that know the insides of multiprocessing.Pool look at

    @property
    def _pool(self) -> list[Child]:
        """The processes (those of this machine)."""
        handle = self._handle
        deadline = time.monotonic() + START_SECONDS
        pids = handle.engine.pids(handle.number)
        while handle.local and self._state == RUN and len(pids) < handle.limit:
            if time.monotonic() > deadline:
                break
            time.sleep(0.002)
            pids = handle.engine.pids(handle.number)
        return [Child(handle, pid) for pid in pids]

    @property
    def _processes(self) -> int:
        return self._handle.limit

    def _repopulate_pool(self) -> None:
        """Processes that have ended are replaced without being asked."""


class PoolView(Pool):
    """A pool seen with other options; see :meth:`Pool.options`."""

    def __init__(self, pool: Pool, options: Options) -> None:
        # The pool ends when nobody holds it any more, so its views do.
        self._viewed = pool
        self._options = replace(options)
        self._handle = pool._handle
        self._engine = pool._engine

    @property
    def _state(self) -> str:
        return self._viewed._state

    @_state.setter
    def _state(self, state: str) -> None:
        self._viewed._state = state

    def __del__(self, _warn: Callable[..., None] = warnings.warn) -> None:
        """A view owns nothing."""


def _check_chunksize(chunksize: int) -> None:
    if chunksize < 1:
        raise ValueError(f"Chunksize must be 1+, not {chunksize!r}")


def _check_undetached(job: dict[str, Any]) -> None:
    if job:
        raise TypeError(f"{', '.join(sorted(job))}: only with detach=True")


def _blocking(result: AsyncResult) -> Any:
    """The value of a call nobody else can wait for: Ctrl-C gives it up."""
    try:
        return result.get()
    except KeyboardInterrupt:
        result._cancel()
        raise


__all__ = [
    "CLOSE",
    "RUN",
    "TERMINATE",
    "ApplyResult",
    "AsyncResult",
    "IMapIterator",
    "MapResult",
    "Pool",
]
