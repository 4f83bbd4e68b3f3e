"""``Queue(name="frontier")``: the same queue from every script on every host that uses this broker, kept on its disk.

It outlives scripts and the broker. An item whose ``put(item, confirm=True)`` has returned, or that was put before a
``flush()`` or ``join_thread()`` that has, is never lost, whatever is killed. It goes to one consumer; if that dies before it
has accepted it, to another.
"""

from __future__ import annotations

import atexit
import os
import pickle
import threading
import time
import weakref
from collections import deque
from collections.abc import Sequence
from functools import partial
from typing import Any

from multihost.engines.choosing import get_sharing
from multihost.logs import log
from multihost.queues.items import Piece, check_size, pack_one
from multihost.queues.named_base import check_broker
from multihost.queues.named_getting import NamedGetting
from multihost.queues.named_putting import NamedPutting
from multihost.queues.queue import _SIZED, MOST_ITEMS, Ack, Queue, _load
from multihost_common import messages as m
from multihost_common.named import check_name
from multihost_common.shared import NamedQueues

#: Seconds that who only looks at the queue waits until what this process has put is there.
LOOK = 1.0

#: Seconds without a broker after which a process that ends waits for one no longer: with puts that are not confirmed, and
#: with items that were accepted.
PUT_PATIENCE = 60.0
TAKEN_PATIENCE = 5.0


class NamedLine(NamedGetting, NamedPutting):
    """This process's end of a named queue, which all its objects for it share: to the broker it is one end."""

    def reset(self) -> None:
        """Begin anew."""
        super().reset()
        #: Itself, for each object that was collected while there was no broker.
        self.orphaned: deque[NamedLine] = deque()

    def _reopened(self, accepted: Sequence[int]) -> None:
        self._accepted(accepted)
        self._pending = list(self.untold)
        self._resend()
        self._tell()

    def _failed(self) -> None:
        self._give_up()

    def size(self) -> int:
        """How many items there are that no user has, about."""
        self.flush_puts(time.monotonic() + LOOK)
        return len(self.buffer) + self.call(NamedQueues.SIZE, self.kept).amount

    def flush(self, until: float | None = None) -> bool:
        """Wait until all that was put is on the broker's disk, and what was accepted is not. False: it is not so
        ``until`` then."""
        return self.flush_puts(until) and self.flush_accepted(until)

    # -- the end -------------------------------------------------------------------------------------

    def retire(self) -> None:
        """No object of this process means it any more. Neither waits nor raises. ``_registry`` is held."""
        with self._lock:
            self.accept(list(self.hands.values()))
            self.hands.clear()
            busy = bool(self.buffer or self.puts or self.untold) and self._failure is None
        if not busy:
            self._close()
        elif self not in _retiring:
            # First what was put, and accepted.
            _retiring.add(self)
            threading.Thread(target=self._retire, name="multihost-close", daemon=True).start()

    def _retire(self) -> None:
        try:
            self.flush()
        except Exception as error:  # noqa: BLE001
            log().warning("queue %r was closed, and not all that was put is stored: %s", self.title, error)
        with _registry:
            _retiring.discard(self)
            if not self.users:
                self._close()

    def _close(self) -> None:
        self.closed = True
        _forget_line(self)
        if self._sharing is not None and self._up:
            self._sharing.tell_later(self.name, m.CLOSE)

    def drop_user(self) -> None:
        """As :func:`_close_line`, from wherever the garbage collector may call."""
        sharing = self._sharing
        if sharing is not None and sharing.usable:
            # This thread may hold any lock just now.
            sharing.later(partial(_close_line, self))
        else:
            self.orphaned.append(self)

    def _recovered(self) -> None:
        while self.orphaned:
            _close_line(self.orphaned.popleft())

    def finish(self) -> None:
        """The process ends: all that was put is stored, and what was accepted is known."""
        sharing = self._sharing
        if sharing is None or self._failure is not None or not sharing.usable:
            return
        with self._lock:
            self.accept(list(self.hands.values()))
            self.hands.clear()
            if self.cancelled:
                self._give_up()
        self._finish_puts()
        self.flush_accepted(time.monotonic() + TAKEN_PATIENCE)

    def _finish_puts(self) -> None:
        alone_since = None
        while not self.flush_puts(time.monotonic() + 1.0):
            now = time.monotonic()
            if self._sharing is not None and self._sharing.connected:
                # The queue has no room, or the disk, and this is waited for.
                alone_since = None
            elif alone_since is None:
                alone_since = now
            elif now - alone_since > PUT_PATIENCE:
                unsent = len(self.buffer) + len(self.puts)
                log().warning(
                    "there is no broker: %d puts to queue %r were not confirmed", unsent, self.title
                )
                return


class Token:
    """An item that was got and is to be acknowledged."""

    __slots__ = ("number",)

    def __init__(self, number: int) -> None:
        self.number = number


class NamedQueue(Queue):
    """A queue that every script knows by its ``name``, and that is kept on the broker's disk.

    ``maxsize``: items that it has room for, of which the first one who opens the queue decides; 0: as many as there is
    room on the disk for, or as it was made with. ``ack``: with "auto" an item is accepted when its thread gets the next
    one, or closes the queue, or its process ends in good order; with "manual" when it is acknowledged. An item that was
    not accepted goes to another consumer, in front, when the process that has it dies.

    It needs a broker. Raises ConfigError if there is none, ValueError if the queue has another ``maxsize`` or there can be
    no such name.
    """

    #: A :class:`NamedLine`, see :attr:`_end`.
    _line: Any

    def __init__(
        self, maxsize: int = 0, *, ctx: Any = None, name: str | None = None, ack: Ack = "auto"
    ) -> None:
        if ack not in ("auto", "manual"):
            raise ValueError(f'ack is "auto" or "manual", not {ack!r}')
        self._title = check_name(name or "")
        self._ack = ack
        self._maxsize = maxsize if 0 < maxsize <= MOST_ITEMS else 0
        self._begin()

    def _begin(self) -> None:
        self._joincancelled = False
        self._closed = True
        check_broker()
        line = _open_line(self._title, self._maxsize)
        try:
            line.ensure()
        except BaseException:
            _close_line(line)
            raise
        if self._maxsize not in (0, line.maxsize):
            _close_line(line)
            raise ValueError(f"queue {self._title!r} has room for {line.maxsize or 'any number of'} items")
        self._line = line
        self._closed = False
        self._hook()

    def __getstate__(self) -> Any:
        return (self._title, self._maxsize, self._ack)

    def __setstate__(self, state: Any) -> None:
        self._title, self._maxsize, self._ack = state
        self._begin()

    def __repr__(self) -> str:
        return f"<NamedQueue {self._title!r}>"

    @property
    def name(self) -> str:
        """What it is called."""
        return self._title

    @property
    def _end(self) -> NamedLine:
        line: NamedLine = self._line
        return line

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError(f"Queue {self!r} is closed")

    # -- putting -------------------------------------------------------------------------------------

    def put(
        self, obj: Any, block: bool = True, timeout: float | None = None, *, confirm: bool = False
    ) -> None:
        """Put an item. ``confirm``: wait until it is on the broker's disk; a queue with a bound always does.

        While there is no room in a queue with a bound it waits, for ``timeout`` seconds, unless it is not to ``block``.
        Raises Full if there is no room then, ValueError after :meth:`close` and for an item of more than 256 MiB,
        BrokerLostError if the queue was deleted."""
        self._check_open()
        if type(obj) in _SIZED:
            check_size(len(obj))
        line = self._end
        if not confirm and not line.maxsize:
            line.put(obj)
            return
        try:
            frames = pack_one(obj)
        except Exception as error:
            if confirm:
                raise
            line.onerror(error, obj)
        else:
            line.put_now(frames, block, timeout)

    def flush(self) -> None:
        """Wait until all that this process has put is on the broker's disk, and all that it accepted is gone from
        there."""
        self._end.flush()

    def join_thread(self) -> None:
        """Wait until all that this process has put is on the broker's disk. Only after :meth:`close`."""
        assert self._closed, f"Queue {self!r} not closed"
        if not self._joincancelled:
            self._end.flush()

    # -- getting -------------------------------------------------------------------------------------

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """The next item. While there is none it waits, for ``timeout`` seconds, unless it is not to ``block``.

        Raises Empty if there is none then, ValueError after :meth:`close`, BrokerLostError if the queue was deleted, and
        what unpickling the item raises."""
        return self._take(block, timeout)[0]

    def get_with_token(self, block: bool = True, timeout: float | None = None) -> tuple[Any, Token]:
        """As :meth:`get`, and what to acknowledge it by."""
        if self._ack == "auto":
            raise ValueError('there are tokens with ack="manual" only')
        return self._take(block, timeout)

    def _take(self, block: bool, timeout: float | None) -> tuple[Any, Token]:
        self._check_open()
        line = self._end
        manual = self._ack == "manual"
        if not block or timeout == 0:
            # What this process has put is there when it asks.
            line.flush_puts(time.monotonic() + LOOK)
        number, piece = line.get(block, timeout, manual)
        item = _unpickled(piece)
        if manual:
            line.unacked[number] = item
        return item, Token(number)

    def ack(self, item: Any, *, confirm: bool = False) -> None:
        """This item, or that of this token, is done with, and nobody gets it again. ``confirm``: wait until the broker has
        that on disk. Raises ValueError if this process does not have it."""
        self._end.acknowledge(self._find(item), confirm)

    def nack(self, item: Any) -> None:
        """This item, or that of this token, goes back in front, for whoever gets the next one."""
        self._end.reject(self._find(item))

    def _find(self, item: Any) -> int:
        unacked = self._end.unacked
        if isinstance(item, Token):
            if item.number in unacked:
                return item.number
        else:
            held = list(unacked.items())
            for number, each in held:
                if each is item:
                    return number
            for number, each in held:
                if type(each) is type(item) and _equal(each, item):
                    return number
        raise ValueError("this process does not have that item: it was acknowledged, or got with ack='auto'")

    def task_done(self) -> None:
        """The item that this thread has got last is done with; with ``ack="manual"`` the one that this process has had
        longest. Raises ValueError if there is none."""
        line = self._end
        if self._ack == "manual":
            first = next(iter(line.unacked), None)
            if first is not None:
                line.acknowledge(first, False)
                return
        elif line.accept_hand():
            return
        raise ValueError("task_done() called too many times")

    def join(self) -> None:
        """Wait until all items were accepted."""
        self._end.flush()
        self._end.call(NamedQueues.JOIN)

    # -- the queue -----------------------------------------------------------------------------------

    def empty(self) -> bool:
        """Is there no item? Another process may have put one by now."""
        return not self._end.items and not self._end.size()

    def full(self) -> bool:
        """Is there no room?"""
        return 0 < self._end.maxsize <= self._end.size()

    def purge(self) -> int:
        """Items that nobody has got are no more; how many they were."""
        self._end.flush_puts()
        return self._end.call(NamedQueues.PURGE).amount

    def delete(self) -> None:
        """The queue is no more, and nor are its items; who uses it gets BrokerLostError. The name is free."""
        _forget_line(self._end)
        self._end.delete()

    def shutdown(self, immediate: bool = False) -> None:
        """Not of a queue that outlives who uses it."""
        raise ValueError("a named queue is not shut down: put a sentinel for each consumer, or delete it")

    def close(self) -> None:
        """This object is not used any more; what this process has put is sent, and what it has got is accepted."""
        if not self._closed:
            self._closed = True
            _close_line(self._line)

    def __del__(self) -> None:
        if not getattr(self, "_closed", True):
            self._closed = True
            self._line.drop_user()


def _equal(one: Any, other: Any) -> bool:
    try:
        return bool(one == other)
    except Exception:  # noqa: BLE001
        # Arrays, say.
        return False


def _unpickled(piece: Piece) -> Any:
    return pickle.loads(piece) if type(piece) is bytes else _load(piece)


# -- the lines of this process -----------------------------------------------------------------------------


def _open_line(title: str, maxsize: int) -> NamedLine:
    """The line of this queue; its caller calls :func:`_close_line` once."""
    global _registered
    if not _registered:
        # Engines end after that: what is registered last runs first.
        get_sharing()
        atexit.register(_finish)
        _registered = True
    with _registry:
        line = _lines.get(title)
        if line is None or not line.alive:
            line = _lines[title] = NamedLine(title, maxsize)
        line.users += 1
    return line


def _close_line(line: NamedLine) -> None:
    """One user less. Also for finalizers."""
    with _registry:
        line.users -= 1
        if not line.users:
            line.retire()


def _forget_line(line: NamedLine) -> None:
    """Whoever opens this queue next is another end of it."""
    with _registry:
        if _lines.get(line.title) is line:
            del _lines[line.title]


def _finish() -> None:
    """This process ends: see :meth:`NamedLine.finish`."""
    for line in {*_lines.values(), *_retiring}:
        try:
            line.finish()
        except Exception as error:  # noqa: BLE001
            log().warning("queue %r: %s", line.title, error)


def _forked() -> None:
    """This process was forked: it has ends of its own."""
    global _registry
    _registry = threading.RLock()
    _retiring.clear()
    for line in list(_lines.values()):
        line.reset()


_registry = threading.RLock()
_lines: weakref.WeakValueDictionary[str, NamedLine] = weakref.WeakValueDictionary()
_retiring: set[NamedLine] = set()
_registered = False

os.register_at_fork(after_in_child=_forked)

__all__ = ["NamedLine", "NamedQueue", "Token"]
