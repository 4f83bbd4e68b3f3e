"""Putting items into a queue: a flood of them travels in few messages, a single one at once."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from functools import partial
from queue import Full
from typing import TYPE_CHECKING, Any

from multihost.queues.base import Base
from multihost.queues.feeding import Feeding
from multihost.queues.items import ShutDown, pack, pack_one
from multihost_common import messages as m
from multihost_common.blocks import Frame
from multihost_common.errors import BrokerLostError
from multihost_common.shared import Queues

if TYPE_CHECKING:
    from multihost.engines.sharing import Ask

#: Items, and messages without an answer, that are put at once.
MOST_PUT = 16_384
DEPTH = 4

#: Seconds between two puts: if it is longer, the second one is not left to the feeder.
SELDOM = 0.0002

#: Puts that follow each other within so many seconds, and so many of them, are a flood.
FAST = 0.001
SIGNS = 8

#: Seconds for which a process counts on the room that it was told of.
CREDIT = 0.01

#: Seconds that who only looks waits for a feeder, which may be waiting for room.
LOOK = 0.2


class Putting(Feeding, Base):
    """What one process has put into one queue, and has not sent."""

    def reset(self) -> None:
        """Begin anew."""
        super().reset()
        self._reset_feeding()
        self.shut = False
        self._packing = 0
        self._outstanding: deque[Ask] = deque()
        self._failure: BaseException | None = None
        self._put_at = 0.0
        # Of a bounded queue: how much room it has, beside that for items without an answer.
        self._flood = 0
        self._credit = 0
        self._credit_until = 0.0
        self._unanswered = 0

    def put(self, obj: Any) -> None:
        """Have it sent: at once if puts come seldom, else soon, and together with others."""
        self._check()
        now = time.monotonic()
        seldom, self._put_at = now - self._put_at > SELDOM, now
        self._leave_to_feeder(obj, seldom)

    @property
    def has_put(self) -> bool:
        """Has this process put anything?"""
        return self._put_at > 0.0

    def _check(self) -> None:
        if self.shut:
            raise ShutDown
        if self._failure is not None:
            raise self._failure

    def _leave_to_feeder(self, obj: Any, seldom: bool) -> None:
        self.buffer.append(obj)
        if seldom and len(self.buffer) == 1 and self._feeding.acquire(blocking=False):
            try:
                self._pump(until=self._put_at)
            finally:
                self._feeding.release()
        if self.buffer and (self._asleep or self._feeder is None):
            self._stir_feeder()

    def put_bounded(self, obj: Any, block: bool, timeout: float | None) -> None:
        """Put where there may be no room. Raises Full, ShutDown.

        Each answer tells how much room there is. A flood of puts counts on it for a moment, and is sent as one of a
        queue without bounds is."""
        self._check()
        now = time.monotonic()
        self._flood = self._flood + 1 if now - self._put_at < FAST else 0
        self._put_at = now
        if block and self._flood >= SIGNS and self._spend(now):
            self._leave_to_feeder(obj, seldom=False)
            return
        try:
            frames = pack_one(obj)
        except Exception as error:  # noqa: BLE001
            self.onerror(error, obj)
            return
        deadline = None if timeout is None or not block else now + max(0.0, timeout)
        ask = self._put_alone(frames, block, deadline)
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        answer = self.sharing.finish(ask, left)
        if answer is None:
            raise Full
        if answer.amount & Queues.SHUT:
            raise ShutDown

    def _put_alone(self, frames: Sequence[Frame], block: bool, deadline: float | None) -> Ask:
        """Ask for room for one item, after what was put before."""
        until = deadline if block else time.monotonic() + LOOK
        left = -1 if until is None else max(0.0, until - time.monotonic())
        if not self._feeding.acquire(timeout=left):
            raise Full
        try:
            self._pump(until)
            if self.buffer:
                raise Full
            with self._lock:
                self._unanswered += 1
            return self.sharing.begin(
                self.name, Queues.PUT, frames=frames, now=not block, then=partial(self._put_answered, 1)
            )
        finally:
            self._feeding.release()

    def _spend(self, now: float) -> bool:
        """Is there room for another item, as far as is known?"""
        with self._lock:
            if self._credit <= 0 or now > self._credit_until:
                return False
            self._credit -= 1
            self._unanswered += 1
            return True

    def _fails(self, error: Exception, obj: Any) -> None:
        with self._lock:
            self._unanswered -= 1
        self.onerror(error, obj)

    def post(self, frames: Sequence[Frame]) -> None:
        """Send an item, waiting only while several are on their way."""
        with self._feeding:
            self._put_at = time.monotonic()
            self._make_way()
            self._check()
            self._begin_put(frames)

    def flush(self, timeout: float | None = None) -> bool:
        """Send what is to be sent, and wait until the broker has it. False: it was not within ``timeout`` seconds."""
        deadline = None if timeout is None else time.monotonic() + timeout
        if not self._feeding.acquire(timeout=-1 if timeout is None else timeout):
            return False
        try:
            self._pump(deadline)
            while self._outstanding:
                left = None if deadline is None else max(0.0, deadline - time.monotonic())
                if not self.sharing.wait(self._outstanding[0], left):
                    return False
                self._outstanding.popleft()
        finally:
            self._feeding.release()
        return True

    def _pump(self, until: float | None = None) -> None:
        """Send what is in the buffer, or as much as there is room for ``until`` then."""
        buffer = self.buffer
        while buffer and self._make_way(until):
            self._packing = count = min(len(buffer), MOST_PUT)
            objs = [buffer.popleft() for _ in range(count)]
            try:
                for frames in pack(objs, self._fails):
                    self._make_way()
                    self._begin_put(frames)
            finally:
                self._packing = 0

    def _make_way(self, until: float | None = None) -> bool:
        """Wait until another message may be sent. False: none may ``until`` then."""
        outstanding = self._outstanding
        while outstanding and (outstanding[0].done or len(outstanding) >= DEPTH):
            ask = outstanding[0]
            if not ask.done:
                left = None if until is None else max(0.0, until - time.monotonic())
                if not self.sharing.wait(ask, left):
                    if until is None:
                        # The engine has ended: the next request says how.
                        outstanding.clear()
                    return until is None
            if outstanding and outstanding[0] is ask:
                outstanding.popleft()
        return True

    def _begin_put(self, frames: Sequence[Frame]) -> None:
        answered = partial(self._put_answered, len(frames[0]) // 4)
        self._outstanding.append(self.sharing.begin(self.name, Queues.PUT, frames=frames, then=answered))

    def _put_answered(self, count: int, ask: Ask) -> None:
        with self._lock:
            self._unanswered -= count
            if ask.error is not None:
                self._failure = ask.error
            elif ask.status == m.GRANTED:
                self.shut = self.shut or bool(ask.amount & Queues.SHUT)
                self._credit = (ask.amount >> 1) - self._unanswered
                self._credit_until = time.monotonic() + CREDIT
            elif ask.status in (m.UNKNOWN, m.FORBIDDEN):
                self._failure = (
                    BrokerLostError("this queue is no more")
                    if ask.status == m.UNKNOWN
                    else ValueError(ask.text)
                )

    def _feed(self) -> None:
        with self._feeding:
            self._pump()
        if not self.users:
            self.flush()

    def _broke(self, error: Exception) -> None:
        self._failure = error

    def _fed(self) -> None:
        if not self.users:
            self._close()


__all__ = ["LOOK", "Putting"]
