"""Putting items into a queue that has a name: what is not confirmed is kept, and sent again to the next broker."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from queue import Full
from typing import TYPE_CHECKING, Any

from multihost.queues.feeding import Feeding
from multihost.queues.items import pack
from multihost.queues.named_base import PAUSE, NamedBase
from multihost_common import messages as m
from multihost_common.errors import MultihostError
from multihost_common.named import MOST_AT_ONCE
from multihost_common.shared import NamedQueues

if TYPE_CHECKING:
    from multihost.engines.sharing import Ask
    from multihost_common.blocks import Frame

#: Messages, and bytes of them, that are put and not confirmed.
DEPTH = 256
WINDOW_BYTES = 8 << 20


class Entry:
    """A PUT that is not confirmed yet."""

    __slots__ = ("ask", "error", "frames", "full", "now", "number", "over", "size", "turn")

    def __init__(self, number: int, frames: Sequence[Frame], now: bool) -> None:
        self.number = number
        self.frames = frames
        self.now = now
        self.size = sum(map(len, frames))
        self.ask: Ask | None = None
        #: How often the queue had been opened when it was sent.
        self.turn = 0
        #: It is answered: it is stored, or there was no room, or it cannot be.
        self.over = False
        self.full = False
        self.error: Exception | None = None


class NamedPutting(Feeding, NamedBase):
    """What one process has put into a named queue."""

    def reset(self) -> None:
        """Begin anew."""
        super().reset()
        self._reset_feeding()
        self.puts: dict[int, Entry] = {}
        self._number = 0
        self._size = 0
        self._error: Exception | None = None

    # -- what is sent ----------------------------------------------------------------------------------

    def _add(self, frames: Sequence[Frame], now: bool = False) -> Entry:
        with self._lock:
            self._check()
            self._number += 1
            entry = self.puts[self._number] = Entry(self._number, frames, now)
            self._size += entry.size
            if self._up:
                self._send(entry)
        return entry

    def _send(self, entry: Entry) -> None:
        sharing = self._sharing
        assert sharing is not None
        entry.turn = self._turn
        answered = partial(self._answered, entry, self._turn)
        try:
            entry.ask = sharing.begin(
                self.name, NamedQueues.PUT, entry.number, entry.frames, now=entry.now, then=answered
            )
        except MultihostError:
            self.lost(self._turn)

    def _answered(self, entry: Entry, turn: int, ask: Ask) -> None:
        with self._lock:
            if entry.turn != turn or entry.over:
                return
            if ask.error is not None or ask.status == m.UNKNOWN:
                self.lost(turn)
                return
            if ask.status == m.GRANTED and ask.amount == NamedQueues.REFUSED:
                # The disk is full: all that is not confirmed is put again, in its order.
                self.lost(turn, PAUSE)
                return
            entry.over = True
            entry.full = ask.status in (m.BUSY, m.WITHDRAWN)
            if ask.status == m.FORBIDDEN:
                entry.error = self._error = ValueError(ask.text)
            del self.puts[entry.number]
            self._size -= entry.size

    def _resend(self) -> None:
        for entry in self.puts.values():
            self._send(entry)

    def _give_up(self) -> None:
        for entry in self.puts.values():
            entry.over = True
        self.puts.clear()
        self.buffer.clear()
        self._size = 0

    def _wait_for(self, entry: Entry, until: float | None = None) -> bool:
        """Wait until this one is answered. False: it is not ``until`` then."""
        while not entry.over:
            with self._lock:
                ask, turn = entry.ask, entry.turn
                sent = self._up and turn == self._turn
            if sent and ask is not None:
                if self.wait(ask, turn, until):
                    self._answered(entry, turn, ask)
            elif not self.await_up(until):
                return False
            if not entry.over and until is not None and time.monotonic() >= until:
                return False
        self._check()
        return True

    # -- putting ---------------------------------------------------------------------------------------

    def put(self, obj: Any) -> None:
        """Have it sent soon, together with others."""
        self._check_puts()
        self.buffer.append(obj)
        if self._asleep or self._feeder is None:
            self._stir_feeder()

    def put_now(self, frames: Sequence[Frame], block: bool, timeout: float | None) -> None:
        """Put an item, and wait until it is on the broker's disk. Raises Full."""
        self._check_puts()
        until = None if timeout is None or not block else time.monotonic() + max(0.0, timeout)
        with self._feeding:
            self._pump()
            self._make_way()
            entry = self._add(frames, now=not block)
        try:
            if not self._wait_for(entry, until):
                self._withdraw(entry)
                self._wait_for(entry)
        except BaseException:
            self._withdraw(entry)
            raise
        if entry.error is not None:
            raise entry.error
        if entry.full:
            raise Full

    def _withdraw(self, entry: Entry) -> None:
        with self._lock:
            # The next broker, too, has to say at once whether it is there.
            entry.now = True
            if not entry.over and self._up and entry.ask is not None and self._sharing is not None:
                self._sharing.withdraw(entry.ask)

    def _check_puts(self) -> None:
        self._check()
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _make_way(self) -> None:
        """Wait until another message may be sent."""
        while True:
            with self._lock:
                if len(self.puts) < DEPTH and self._size < WINDOW_BYTES:
                    return
                first = next(iter(self.puts.values()))
            self._wait_for(first)

    def _pump(self) -> None:
        """Send what is in the buffer."""
        buffer = self.buffer
        while buffer:
            count = 1 if self.maxsize else min(len(buffer), MOST_AT_ONCE)
            objs = [buffer.popleft() for _ in range(count)]
            for frames in pack(objs, self.onerror):
                self._make_way()
                self._add(frames)

    def flush_puts(self, until: float | None = None) -> bool:
        """Send what is to be sent, and wait until the broker has it on disk. False: it has not ``until`` then."""
        left = -1 if until is None else max(0.0, until - time.monotonic())
        if not self._feeding.acquire(timeout=left):
            return False
        try:
            self._pump()
        finally:
            self._feeding.release()
        with self._lock:
            entries = list(self.puts.values())
        return all(self._wait_for(entry, until) for entry in entries)

    def _feed(self) -> None:
        with self._feeding:
            self._pump()

    def _broke(self, error: Exception) -> None:
        self.fail(error)


__all__ = ["NamedPutting"]
