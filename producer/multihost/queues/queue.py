"""``Queue``, ``JoinableQueue`` and ``SimpleQueue`` of multiprocessing, between processes of any hosts.

What is put is sent by a feeder thread if much is put, so ``put`` does not wait, and a flood of items travels in a few
messages. A process that is the only one to get items, and uses them fast, gets several at once; what it has early goes
back when another one waits, or when it ends. So a process that is killed, also inside ``get()``, holds nobody up.
"""

from __future__ import annotations

import pickle
import types
from collections.abc import Iterator
from queue import Empty, Full
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias, cast
from weakref import WeakMethod

from multihost.engines.choosing import get_sharing
from multihost.queues.items import Piece, ShutDown, check_size, pack_one
from multihost.queues.line import Line, close_line, open_line
from multihost_common.blocks import Frame
from multihost_common.shared import QUEUE, Queues

if TYPE_CHECKING:
    from multihost.engines.sharing import Sharing

#: How an item of a named queue is accepted.
Ack: TypeAlias = Literal["auto", "manual"]

#: A queue for more items than this is not bounded at all.
MOST_ITEMS = (1 << 31) - 2

_SIZED = frozenset({bytes, bytearray, str})

_loads = pickle.loads


class _Named:
    """A queue that has a name, by which all processes know it, and a line of this process."""

    _name: bytes
    _line: Line
    _maxsize: int
    _closed: bool

    def _make(self, maxsize: int) -> None:
        self._maxsize = maxsize
        sharing = get_sharing()
        self._name = sharing.make(QUEUE, maxsize)
        self._open(sharing)

    def _open(self, made: Sharing | None = None) -> None:
        self._closed = False
        self._line = open_line(self._name, self._maxsize > 0, made)

    def __getstate__(self) -> Any:
        self._line.shared = True
        return (self._name, self._maxsize)

    def __setstate__(self, state: Any) -> None:
        self._name, self._maxsize = state[:2]
        self._open()

    def __del__(self) -> None:
        line = self.__dict__.pop("_line", None)
        if line is not None:
            close_line(line)

    def _get(self, block: bool, timeout: float | None) -> Any:
        line = self._line
        try:
            piece = line.items.popleft()
        except IndexError:
            piece = line.get(block, timeout)
        else:
            if line.quiet:
                line.stir()
        return _loads(piece) if type(piece) is bytes else _load(piece)

    def empty(self) -> bool:
        """Is there no item? Another process may have put one by now.

        Raises OSError after :meth:`close`, if this process had put some before."""
        if self._closed and self._line.has_put:
            raise OSError(f"{type(self).__name__} {self!r} is closed")
        return not self._line.items and not self._line.size()

    def close(self) -> None:
        """This process puts and gets nothing with this object any more; what it has put is sent, what it has got early goes
        back."""
        if not self._closed:
            self._closed = True
            self._line.rest()

    __class_getitem__: Any = classmethod(types.GenericAlias)


class Queue(_Named):
    """As ``multiprocessing.Queue``. ``maxsize``: items it has room for (0 or less: as many as there is memory for).

    ``ctx`` is taken for the sake of who writes for multiprocessing, and means nothing. It can be sent to any other
    process, also as an argument of a pool's task. With a ``name`` it is a :class:`~multihost.named.NamedQueue`, the same
    queue from every script, kept on the broker's disk; ``ack`` is for that.
    """

    def __new__(cls, *args: Any, **options: Any) -> Self:
        """A queue, or a :class:`~multihost.named.NamedQueue` if there is a ``name``."""
        if "name" in options and cls is Queue:
            from multihost.queues.named import NamedQueue

            return cast(Self, object.__new__(cast(Any, NamedQueue)))
        return super().__new__(cls)

    def __init__(
        self, maxsize: int = 0, *, ctx: Any = None, name: str | None = None, ack: Ack = "auto"
    ) -> None:
        if name is not None:
            raise TypeError(f"a {type(self).__name__} has no name: make a NamedQueue, or a subclass of it")
        self._joincancelled = False
        self._make(maxsize if 0 < maxsize <= MOST_ITEMS else 0)
        self._hook()

    def __setstate__(self, state: Any) -> None:
        super().__setstate__(state)
        self._joincancelled = False
        self._hook()

    def _hook(self) -> None:
        """Have the line call ``_on_queue_feeder_error``, without keeping this object alive."""
        hook = self._on_queue_feeder_error
        if isinstance(hook, types.MethodType):
            weak = WeakMethod(hook)

            def called(error: Exception, obj: Any) -> None:
                alive = weak()
                (Queue._on_queue_feeder_error if alive is None else alive)(error, obj)

            self._line.onerror = called
        else:
            self._line.onerror = hook

    def put(self, obj: Any, block: bool = True, timeout: float | None = None) -> None:
        """Put an item. While there is no room it waits, for ``timeout`` seconds, unless it is not to ``block``.

        Raises Full if there is no room then, ValueError after :meth:`close` and for an item of more than 256 MiB,
        ShutDown after :meth:`shutdown`."""
        if self._closed:
            raise ValueError(f"Queue {self!r} is closed")
        if type(obj) in _SIZED:
            check_size(len(obj))
        if self._maxsize:
            self._line.put_bounded(obj, block, timeout)
        else:
            self._line.put(obj)

    def put_nowait(self, obj: Any) -> None:
        """Put an item if there is room. Raises Full if there is none."""
        self.put(obj, False)

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """The next item. While there is none it waits, for ``timeout`` seconds, unless it is not to ``block``.

        Raises Empty if there is none then, ValueError after :meth:`close`, ShutDown if the queue was shut down and
        has no item, BrokerLostError if the queue is no more, and what unpickling the item raises."""
        if self._closed:
            raise ValueError(f"Queue {self!r} is closed")
        # As _get, without the cost of another call for each item.
        line = self._line
        try:
            piece = line.items.popleft()
        except IndexError:
            piece = line.get(block, timeout)
        else:
            if line.quiet:
                line.stir()
        return _loads(piece) if type(piece) is bytes else _load(piece)

    def get_nowait(self) -> Any:
        """The next item, if there is one. Raises Empty if there is none."""
        return self.get(False)

    def __iter__(self) -> Iterator[Any]:
        """Items as they come, until the queue is shut down."""
        while True:
            try:
                item = self.get()
            except ShutDown:
                return
            yield item

    def qsize(self) -> int:
        """How many items there are, about."""
        return self._line.size()

    def full(self) -> bool:
        """Is there no room?"""
        return 0 < self._maxsize <= self._line.size()

    def shutdown(self, immediate: bool = False) -> None:
        """Nothing is put any more; who gets an item is told so (ShutDown) when there is none left, or at once if this
        is ``immediate``. As ``queue.Queue.shutdown`` of Python 3.13."""
        line = self._line
        if not immediate:
            line.flush()
        line.sharing.ask(line.name, Queues.SHUTDOWN, int(immediate))
        line.shut = True

    def join_thread(self) -> None:
        """Wait until the broker has what this process has put. Only after :meth:`close`."""
        assert self._closed, f"Queue {self!r} not closed"
        if not self._joincancelled:
            self._line.flush()

    def cancel_join_thread(self) -> None:
        """What was put and not yet sent is not waited for when the process ends."""
        self._joincancelled = True
        self._line.cancelled = True

    @staticmethod
    def _on_queue_feeder_error(e: Exception, obj: Any) -> None:
        """An item could not be pickled. Subclasses may do something else about it."""
        import traceback

        traceback.print_exception(type(e), e, e.__traceback__)


class JoinableQueue(Queue):
    """As ``multiprocessing.JoinableQueue``: a queue that knows when all that was put is done with."""

    def task_done(self) -> None:
        """An item that was got is done with. Raises ValueError if that is said more often than there are items."""
        line = self._line
        if line.buffer:
            line.flush()
        line.task_done()

    def join(self) -> None:
        """Wait until all that was put is done with."""
        line = self._line
        line.flush()
        line.sharing.ask(line.name, Queues.JOIN)


class SimpleQueue(_Named):
    """As ``multiprocessing.SimpleQueue``: no bound, no feeder thread; ``put`` raises what pickling raises."""

    def __init__(self, *, ctx: Any = None) -> None:
        self._make(0)

    def put(self, obj: Any) -> None:
        """Put an item. Raises what pickling it raises, ValueError if it has more than 256 MiB, OSError after
        :meth:`close`."""
        self._check_open()
        self._line.post(pack_one(obj))

    def get(self) -> Any:
        """The next item; it waits while there is none. Raises OSError after :meth:`close`."""
        self._check_open()
        return self._get(True, None)

    def _check_open(self) -> None:
        if self._closed:
            raise OSError("handle is closed")

    @property
    def _reader(self) -> _End:
        return _End(self._closed)

    _writer = _reader


class _End:
    """What stands for an end of the pipe that multiprocessing's has."""

    def __init__(self, closed: bool) -> None:
        self.closed = closed


def _load(piece: Piece) -> Any:
    data, *buffers = cast(tuple[Frame, ...], piece)
    # As multiprocessing has it: an array can be written to.
    return _loads(data, buffers=[bytearray(each) if memoryview(each).readonly else each for each in buffers])


__all__ = ["Empty", "Full", "JoinableQueue", "Queue", "ShutDown", "SimpleQueue"]
