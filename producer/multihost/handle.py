"""A pool of children as its face sees it: what Pool and Executor have in common."""

from __future__ import annotations

import math
import os
import pickle
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

from multihost import callables, parents
from multihost.applying import forks, preparation, process_name
from multihost.engines.base import Engine, PoolSpec
from multihost.engines.choosing import get_engine, resolve_address
from multihost.functions import call as call_function
from multihost.iterators import Filler, IMapIterator, Inbox, Pulled
from multihost.jobs import MapJob, Options, Task
from multihost.reduction import cacheable, dump_function, dump_item, dump_once, renew
from multihost.sources import Items, Receiver, Sink, Source
from multihost.streams import StreamJob
from multihost_common import shipments
from multihost_common.blobs import digest_of
from multihost_common.inherit import describe
from multihost_common.messages import CALL_APPLY, SECONDS, U32
from multihost_common.naming import authkey
from multihost_common.pickling import Fresh
from multihost_common.whereabouts import here

#: Functions of apply and submit that a pool keeps open; the oldest idle one makes room.
MAX_STREAMS = 64


def make_options(timeout: float | None, retries: int, at_most_once: bool) -> Options:
    """Checked options of a pool."""
    if timeout == math.inf:
        timeout = None
    if timeout is not None and not 0 < timeout <= SECONDS[1]:
        raise ValueError(f"timeout must be a number of seconds, up to {SECONDS[1]:g}, or None for no limit")
    if not 0 <= retries <= U32[1]:
        raise ValueError(f"retries must be 0 or more, up to {U32[1]}")
    return Options(float(timeout or 0.0), int(retries), bool(at_most_once))


class PoolHandle:
    """An open pool of an engine, its functions and its open streams."""

    def __init__(
        self,
        processes: int | None,
        initializer: Callable[..., object] | None,
        initargs: Iterable[Any],
        max_tasks: int | None,
        address: str | None,
        name: str,
        start_timeout: float | None = None,
        executor: bool = False,
        context: object = None,
    ) -> None:
        #: Of the broker; empty: there is none.
        self.address = resolve_address(address)
        self.local = not self.address
        self.engine: Engine = get_engine(address)
        self.executor = executor
        self.pid = os.getpid()
        self.limit = processes or (self.engine.capacity if self.local else 0)
        self.closed = False
        #: Something was to be run in it.
        self.used = False
        self._streams: OrderedDict[Any, StreamJob] = OrderedDict()
        #: Functions that have been pickled, so that what they refer to is pickled once.
        self._tasks: WeakKeyDictionary[Callable[..., Any], Task] = WeakKeyDictionary()
        self._iterators: WeakSet[IMapIterator] = WeakSet()
        # Reentrant: the garbage collector may close a pool in the middle of it.
        self._opening = threading.RLock()
        self.initializer = initializer
        with shipments.collected(lasting=True) as promises:
            # Its children see __main__ as it is from now on.
            forked = forks(context)
            renew(forked)
            called = process_name(context)
            if not executor:
                called = called.replace("Process", "PoolWorker")
            setup = setup_of(self.engine, self.local, called, initializer, tuple(initargs), authkey(), forked)
        self.spec = PoolSpec(
            self.limit,
            setup,
            self._code(initializer),
            max_tasks or 0,
            self.local,
            name,
            start_timeout,
            promises,
        )
        self.number = self.engine.open_pool(self.spec)

    def _code(self, function: Callable[..., object] | None, pickled: bytes = b"") -> bytes:
        if self.local or function is None:
            return b""
        from multihost.code import bundle_for

        return bundle_for(function, pickled)

    def check(self) -> None:
        """Raise unless this process may use the pool."""
        if os.getpid() != self.pid:
            raise ValueError("this pool belongs to the parent process; make a new one after a fork")

    def task(self, function: Callable[..., Any], style: int, about: Callable[..., Any] | None = None) -> Task:
        """The function as it travels. ``about``: whose modules travel along, if not the function's."""
        kept = about is None and cacheable(function)
        known = self._tasks.get(function) if kept else None
        if known is None:
            with shipments.collected(lasting=True) as promises:
                content = dump_function(function) if kept else dump_once(function)
            self.spec.promises += promises
            code = self._code(about or function, content)
            name = getattr(function, "__qualname__", type(function).__qualname__)
            again, fresh = None, not kept and callables.has_state(function, content)
            if fresh:
                again = callables.pickling_again(function, content)
                content = pickle.dumps(Fresh(content), 5)
            digests = digest_of(content), digest_of(code) if code else b""
            known = Task(content, digests[0], code, digests[1], style, name, fresh, again)
            if kept:
                self._tasks[function] = known
        return known if known.call == style else replace(known, call=style)

    # -- calls

    def submit(
        self,
        function: Callable[..., Any],
        args: Sequence[Any],
        kwds: dict[str, Any],
        options: Options,
        receiver: Receiver,
        kick: bool = True,
    ) -> StreamJob:
        """Have ``function(*args, **kwds)`` called; the receiver gets the outcome.

        ``kick`` False: the caller waits for it at once, and so runs the loop itself.
        """
        self.used = True
        plain = cacheable(function)
        data, buffers = dump_item((tuple(args) if plain else (function, *args), kwds))
        with self._opening:
            if self.closed:
                raise ValueError("Pool not running")
            stream = self._stream(function, options) if plain else self._stream(None, options, function)
            stream.submit(data, buffers, receiver)
        if not stream.poked:
            stream.poked = True
            self.engine.poke(stream, kick)
        return stream

    def _stream(
        self, function: Callable[..., Any] | None, options: Options, about: Callable[..., Any] | None = None
    ) -> StreamJob:
        # Callables that are pickled with each call share a stream, unless other modules travel with them.
        kind = function or (self.local or getattr(about, "__module__", None) or type(about).__module__)
        key = (kind, options.timeout, options.retries, options.at_most_once)
        stream = self._streams.get(key)
        if stream is not None and stream.error is None:
            return stream
        task = self.task(function or call_function, CALL_APPLY, about)
        stream = StreamJob(self.number, task, options, self.executor)
        self.engine.start(stream)
        self._streams[key] = stream
        if len(self._streams) > MAX_STREAMS:
            self._evict()
        return stream

    def _evict(self) -> None:
        for key, stream in list(self._streams.items())[:-1]:
            if stream.idle():
                del self._streams[key]
                stream.close()
                self.engine.poke(stream)
                return

    def map(
        self,
        task: Task,
        source: Source,
        sink: Sink,
        options: Options,
        chunksize: int | None,
        window: int | None = None,
    ) -> MapJob:
        """A job that runs a function over a source; it is not started yet."""
        self.used = True
        if task.fresh and chunksize is None and source.total is not None:
            # How much of what it changes in itself shows must not depend on how long items take.
            processes = self.limit or self.engine.capacity
            chunksize = callables.usual_chunksize(source.total, processes, *source.peek(1))
        return MapJob(self.number, task, options, source, sink, chunksize, window, self.executor)

    def iterate(
        self,
        owner: object,
        function: Callable[..., Any],
        style: int,
        iterable: Iterable[Any],
        options: Options,
        chunksize: int,
        window: int | None,
        ordered: bool,
    ) -> IMapIterator:
        """Run a function over an iterable, read as results are taken out."""
        source: Items | Filler = self.items(iterable) or Filler(iterable, self.engine, chunksize)
        return self.run(owner, function, style, source, options, chunksize, window, Inbox(ordered))

    def run(
        self,
        owner: object,
        function: Callable[..., Any],
        style: int,
        source: Items | Filler | Pulled,
        options: Options,
        chunksize: int | None,
        window: int | None,
        inbox: Inbox,
    ) -> IMapIterator:
        """Run a function over a source, results to be taken from an iterator."""
        if source.total == 0:
            inbox.finish(0, [])
            return IMapIterator(owner, self.engine, inbox, None)
        job = self.map(self.task(function, style), source, inbox, options, chunksize, window)
        iterator = IMapIterator(owner, self.engine, inbox, job)
        self._iterators.add(iterator)
        self.engine.start(job)
        if isinstance(source, Filler):
            source.start(job)
        return iterator

    def items(self, iterable: Iterable[Any]) -> Items | None:
        """A source that needs no thread, if the iterable has a length."""
        if isinstance(iterable, (list, tuple, range)):
            return Items(iterable)
        return Items(list(iterable)) if hasattr(iterable, "__len__") else None

    # -- the end

    @property
    def broken(self) -> BaseException | None:
        """Why the pool takes no more work, although it was not closed."""
        if self.closed:
            return None
        return next((stream.error for stream in list(self._streams.values()) if stream.error), None)

    def drop_waiting(self) -> list[Receiver]:
        """Take out the calls that are not on their way, and recall those that have not begun.

        As many as can run at once count as begun, whether or not their processes are there yet.
        """
        dropped: list[Receiver] = []
        spare = self.limit or self.engine.capacity
        for stream in list(self._streams.values()):
            under_way = stream.under_way
            receivers, items = stream.drop_waiting(spare)
            spare = max(0, spare - under_way)
            dropped += receivers
            if items:
                self.engine.cancel(stream, items.start, len(items))
        return dropped

    def close(self, kill: bool = False) -> None:
        """Take no more work; ``kill``: drop what there is."""
        if os.getpid() != self.pid or (self.closed and not kill):
            return
        with self._opening:
            self.closed = True
        for iterator in list(self._iterators):
            iterator.seal()
        if not kill:
            for stream in list(self._streams.values()):
                stream.close()
                self.engine.poke(stream)
        self.engine.close_pool(self.number, kill)

    @property
    def gone(self) -> bool:
        """Have all its children ended?"""
        return os.getpid() != self.pid or self.engine.pool_closed(self.number).done

    def join(self, timeout: float | None = None) -> bool:
        """Wait until every child has ended."""
        if os.getpid() != self.pid:
            return True
        for iterator in list(self._iterators):
            iterator.release()
        return self.engine.wait(self.engine.pool_closed(self.number), timeout)


def setup_of(
    engine: Engine,
    local: bool,
    name: str,
    initializer: Callable[..., object] | None,
    initargs: tuple[Any, ...],
    key: bytes,
    forked: bool = False,
) -> bytes:
    """How a child is set up, pickled: see :class:`~multihost.engines.base.PoolSpec`. ``local``: on this machine;
    ``forked``: as in :func:`~multihost.reduction.dump_once`."""
    setup: dict[str, Any] = {
        "sys_path": list(sys.path) if local else None,
        "cwd": _cwd() if local else None,
        "environ": dict(os.environ) if local else None,
        "argv": list(sys.argv) if local else None,
        "name": name,
        "loggers": describe(local),
        "authkey": bytes(key),
        "prepare": pickle.dumps(made, 5) if (made := preparation(engine)) is not None else b"",
        "parent": None if local else _parent(),
        "tracker": _tracker() if local else None,
        # In band: it is small, and must be one blob.
        "initializer": dump_once(initializer, forked) if initializer is not None else b"",
        "initargs": dump_once(initargs, forked) if initargs else pickle.dumps((), 5),
    }
    return pickle.dumps(setup, 5)


def _tracker() -> tuple[int, int] | None:
    """Where children of this machine find what tracks this process's shared memory, if there is such a thing."""
    module = sys.modules.get("multiprocessing.resource_tracker")
    fd = None if module is None else module._resource_tracker._fd
    return None if fd is None else (os.getpid(), fd)


def _parent() -> tuple[str, bytes]:
    """Where this process is, and what a child does that is not there."""
    return here(), pickle.dumps((parents.reach, (os.getpid(),)), 5)


def _cwd() -> str | None:
    try:
        return os.getcwd()
    except OSError:
        return None
