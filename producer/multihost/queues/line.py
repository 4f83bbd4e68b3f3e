"""One process's end of a queue: what it has put and not yet sent, what it has got early and not yet used.

All of a process's :class:`~multihost.queues.Queue` objects that mean the same queue share one :class:`Line`. It is one
consumer to the broker, and one producer.

    put() -> buffer -> feeder thread, or put() itself when puts come seldom -> PUT
    GET -> items -> get()
"""

from __future__ import annotations

import atexit
import os
import threading
import weakref
from typing import TYPE_CHECKING

from multihost.queues.getting import Getting, forked
from multihost.queues.putting import LOOK, Putting
from multihost_common import messages as m
from multihost_common.shared import Queues

if TYPE_CHECKING:
    from multihost.engines.sharing import Sharing

#: Seconds without a broker after which a process that ends does not wait for one.
PATIENCE = 5.0


class Line(Getting, Putting):
    """See the module."""

    def __init__(self, name: bytes, bounded: bool) -> None:
        super().__init__(name, bounded)
        #: Another process may have it, too.
        self.shared = False
        #: By which this process made it.
        self.made: Sharing | None = None

    def _begun(self, sharing: Sharing) -> None:
        _flush_at_exit(sharing)

    def _show(self) -> None:
        if self.buffer or self._packing:
            self.flush(LOOK)

    def size(self) -> int:
        """How many items there are, those included that this process has not sent yet."""
        # Not while the feeder is between the two.
        held = self._feeding.acquire(timeout=LOOK)
        try:
            unsent = len(self.buffer) + self._packing
            ask = self.sharing.begin(self.name, Queues.SIZE, self._taken())
        finally:
            if held:
                self._feeding.release()
        answer = self.sharing.finish(ask)
        return unsent + (answer.amount if answer is not None else 0)

    def task_done(self) -> None:
        """An item is done with, and so it is taken. Raises ValueError if that is said too often."""
        self.sharing.ask(self.name, Queues.TASK_DONE, self._taken())

    # -- the end -------------------------------------------------------------------------------------

    def rest(self) -> None:
        """This process gets nothing for now."""
        if self._sharing is not None:
            self.report()
            self.give_back()

    def retire(self) -> None:
        """No Queue object of this process means it any more. Neither waits nor raises."""
        if self.buffer or self._packing or any(not ask.done for ask in list(self._outstanding)):
            # First what was put.
            self._news.set()
            if self._feeder is None:
                self._start_feeder()
            return
        self._close()

    def _close(self) -> None:
        sharing, listen = self._sharing, self._listen
        if sharing is None:
            # By none but that one: at the end of the interpreter no engine can be made.
            if self.made is not None and not self.shared:
                self.made.tell_later(self.name, m.CLOSE)
            return
        with self._lock:
            taken = self._end - len(self.items)
            count = len(self.items)
            self._told = taken
            self.items.clear()
            self._end = 0
        if listen is not None:
            sharing.tell_later(b"", m.WITHDRAW, listen.number)
        if taken:
            sharing.tell_later(self.name, Queues.TAKEN, taken)
        if self.made is None or not self.shared:
            sharing.tell_later(self.name, m.CLOSE)
        elif count:
            # To close it would be the end of it for the others, too.
            sharing.tell_later(self.name, Queues.GIVE_BACK, taken << Queues.WINDOW_BITS | count)

    def finish(self) -> None:
        """The process ends: all that was put is sent, and what was taken is told."""
        sharing = self._sharing
        if sharing is None:
            return
        if self.cancelled:
            self.buffer.clear()
        while not self.cancelled and not self.flush(PATIENCE) and sharing.connected:
            # The queue has no room, and who gets items is slow.
            continue
        taken = self._taken()
        if taken:
            # Whatever the reporter was about to say.
            sharing.wait(sharing.begin(self.name, Queues.TAKEN, taken), PATIENCE)


# -- the lines of this process -----------------------------------------------------------------------------


def open_line(name: bytes, bounded: bool, made: Sharing | None = None) -> Line:
    """The line of the queue of this name; its caller calls :func:`close_line` once. ``made``: by which this process has
    just made the queue."""
    with _registry:
        line = _lines.get(name)
        if line is None:
            line = _lines[name] = Line(name, bounded)
        line.users += 1
        line.made = line.made or made
    return line


def close_line(line: Line) -> None:
    """One user less. Also for finalizers."""
    with _registry:
        line.users -= 1
        last = not line.users
    if last:
        line.retire()


def _flush_at_exit(sharing: Sharing) -> None:
    """What was put is sent before this engine ends: what is registered last runs first."""
    if sharing not in _sharings:
        _sharings.add(sharing)
        atexit.register(finish)


def finish() -> None:
    """This process ends: see :meth:`Line.finish`."""
    for line in list(_lines.values()):
        try:
            line.finish()
        except Exception:  # noqa: BLE001, S112
            # Its broker is gone, and so is the queue.
            continue


def _forked() -> None:
    """This process was forked: it has lines of its own."""
    global _registry
    _registry = threading.RLock()
    forked()
    for line in list(_lines.values()):
        line.shared = True
        line.made = None
        line.reset()


_registry = threading.RLock()
_lines: weakref.WeakValueDictionary[bytes, Line] = weakref.WeakValueDictionary()
_sharings: weakref.WeakSet[Sharing] = weakref.WeakSet()

os.register_at_fork(after_in_child=_forked)

__all__ = ["Line", "close_line", "finish", "open_line"]
