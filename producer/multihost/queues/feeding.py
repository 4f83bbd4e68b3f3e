"""The thread that sends what is put into a queue. It is there while there is something to send, and a little longer."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Any

#: Seconds that a feeder waits for something to do before it ends.
IDLE = 0.5


class Feeding:
    """A process's end of a queue, with a buffer and a feeder."""

    users: int
    _lock: threading.RLock

    def _reset_feeding(self) -> None:
        """Begin anew."""
        self.buffer: deque[Any] = deque()
        self.cancelled = False
        self.onerror: Callable[[Exception, Any], object] = _ignore
        #: Held by who packs what is in the buffer.
        self._feeding = threading.RLock()
        self._feeder: threading.Thread | None = None
        self._asleep = False
        self._news = threading.Event()

    def _feed(self) -> None:
        """Send what is in the buffer."""
        raise NotImplementedError

    def _broke(self, error: Exception) -> None:
        """It cannot be sent."""
        raise NotImplementedError

    def _fed(self) -> None:
        """The feeder has ended, and there was nothing left to send."""

    def _stir_feeder(self) -> None:
        """There is something to send."""
        if self._asleep:
            self._news.set()
        elif self._feeder is None:
            self._start_feeder()

    def _start_feeder(self) -> None:
        with self._lock:
            if self._feeder is None:
                self._feeder = threading.Thread(
                    target=self._run_feeder, name="QueueFeederThread", daemon=True
                )
                self._feeder.start()

    def _run_feeder(self) -> None:
        while True:
            try:
                self._feed()
            except Exception as error:  # noqa: BLE001
                self._broke(error)
                self.buffer.clear()
            self._asleep = True
            # In this order: who puts something looks first whether this thread sleeps.
            idle = not self.buffer and (not self.users or not self._news.wait(IDLE))
            self._asleep = False
            self._news.clear()
            if idle and not self.buffer:
                break
        self._feeder = None
        if self.buffer:
            self._start_feeder()
        else:
            self._fed()


def _ignore(error: Exception, obj: Any) -> None:
    """Nobody wants to know."""


__all__ = ["Feeding"]
