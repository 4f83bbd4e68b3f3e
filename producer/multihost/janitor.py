"""What must not be done here and now: whoever runs an engine's loop cannot wait for an answer from that engine.

Results are unpickled within the loop, and the garbage collector may strike there. What then wants to ask something is
done soon, by a thread that is there as long as there is such work.
"""

from __future__ import annotations

import _thread
import os
import queue
import sys
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import util

from multihost.engines import choosing, loop, sharing
from multihost_worker import link

_LOOP = loop.__file__
#: Their locks are held only for a moment, but the garbage collector may strike in it.
_LOCKED = (choosing.__file__, sharing.__file__, link.__file__)


def within_loop() -> bool:
    """Whether the caller is called by an engine, so that waiting for it would never end."""
    frame = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if code.co_filename == _LOOP:
            # Callbacks of users may wait: nothing is held then.
            return code.co_name != loop.Loop._run_calls.__name__
        if code.co_filename in _LOCKED:
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False


class _Janitor:
    """One thread, while there is work. Nothing here takes a lock for longer than the interpreter does: it may be called
    anywhere."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self._at_work = _thread.allocate_lock()
        self._thread = 0

    def add(self, call: Callable[[], object]) -> None:
        """Have this called soon, after all that was added before."""
        self._calls.put(call)
        self._go()

    def finish(self, timeout: float) -> None:
        """Wait until all that was added is done, or for ``timeout`` seconds."""
        if self._thread == _thread.get_ident() or (self._calls.empty() and not self._at_work.locked()):
            return
        done = _thread.allocate_lock()
        done.acquire()
        self.add(done.release)
        done.acquire(timeout=timeout)

    def _go(self) -> None:
        while not self._calls.empty() and self._at_work.acquire(False):
            try:
                # Not threading's: that takes locks which may be held just now.
                _thread.start_new_thread(self._work, ())
                return
            except RuntimeError:
                # The process is ending.
                self._at_work.release()
                return

    def _work(self) -> None:
        self._thread = _thread.get_ident()
        try:
            with suppress(queue.Empty):
                while True:
                    _make(self._calls.get_nowait())
        finally:
            self._thread = 0
            self._at_work.release()
            self._go()


def _make(call: Callable[[], object]) -> None:
    try:
        call()
    except Exception as error:  # noqa: BLE001
        util.debug("... failed: %s", error)


def later(call: Callable[[], object]) -> None:
    """Have this called soon, by a thread that may wait; what it raises is dropped."""
    _janitor.add(call)


def finish(timeout: float) -> None:
    """Wait until all that was to be called is done, or for ``timeout`` seconds. Not for :func:`within_loop`."""
    _janitor.finish(timeout)


def _after_fork() -> None:
    global _janitor
    _janitor = _Janitor()


_janitor = _Janitor()
os.register_at_fork(after_in_child=_after_fork)

__all__ = ["finish", "later", "within_loop"]
