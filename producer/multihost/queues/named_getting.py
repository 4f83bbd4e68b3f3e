"""Getting items of a queue that has a name: which are with users here, which were accepted, and whether that is known."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from functools import partial
from queue import Empty
from typing import TYPE_CHECKING, Any

from multihost.queues.getting import Pace
from multihost.queues.items import Piece, split
from multihost.queues.named_base import NamedBase
from multihost_common import messages as m
from multihost_common.errors import MultihostError
from multihost_common.named import items_of, rows_of, unpack_items
from multihost_common.shared import NamedQueues

if TYPE_CHECKING:
    from multihost.engines.sharing import Ask, Sharing

#: Accepted items that one message names.
MOST_TOLD = 4096


class NamedGetting(NamedBase):
    """What one process has got of a named queue. Items go by their numbers.

    An item is *here* early, then *with a user*, then *accepted*; that is known once the broker has it on disk.
    """

    def reset(self) -> None:
        """Begin anew."""
        super().reset()
        self.items: deque[tuple[int, Piece]] = deque()
        #: The item that each thread has, where to get the next one accepts it; and those that are to be acknowledged.
        self.hands: dict[int, int] = {}
        self.unacked: dict[int, Any] = {}
        #: Accepted, and not known to be; the first of them have been told.
        self.untold: dict[int, None] = {}
        self._pending: list[int] = []
        self._telling: list[tuple[Ask, list[int]]] = []
        self._ask: Ask | None = None
        self._waiting = 0
        self._listen: Ask | None = None
        self._pace = Pace()

    @property
    def kept(self) -> int:
        """How many items are with users here, as far as the broker knows with what it has been told."""
        return len(self.hands) + len(self.unacked) + len(self._pending)

    # -- what the broker knows -------------------------------------------------------------------------

    def _state(self) -> tuple[Sequence[int], Sequence[int]]:
        return sorted(self.untold), sorted([*self.hands.values(), *self.unacked])

    def _parted(self) -> None:
        # What is here early the broker has still, and hands out again.
        self.items.clear()
        self._ask = self._listen = None
        self._telling.clear()
        self._pending = list(self.untold)

    def _accepted(self, numbers: Sequence[int]) -> None:
        """These are known to be accepted."""
        for number in numbers:
            self.untold.pop(number, None)

    def accept(self, numbers: Sequence[int]) -> None:
        """These are accepted; the broker is told. The lock is held."""
        self.untold.update(dict.fromkeys(numbers))
        self._pending += numbers
        self._tell()

    def _tell(self, now: bool = False) -> None:
        """Say what was accepted: ``now``, or together with what is accepted until the last answer has come."""
        while self._pending and (now or not self._telling) and self._up and self._sharing is not None:
            numbers, self._pending = self._pending[:MOST_TOLD], self._pending[MOST_TOLD:]
            told = partial(self._told, self._turn, numbers)
            rows = rows_of(sorted(numbers))
            try:
                ask = self._sharing.begin(self.name, NamedQueues.TAKEN, self.kept, [rows], then=told)
            except MultihostError:
                self.lost(self._turn)
                return
            self._telling.append((ask, numbers))

    def _told(self, turn: int, numbers: list[int], ask: Ask) -> None:
        with self._lock:
            if turn != self._turn:
                return
            if ask.error is not None or ask.status == m.UNKNOWN:
                self.lost(turn)
                return
            self._telling = [each for each in self._telling if each[0] is not ask]
            self._accepted(numbers)
            self._tell()

    def flush_accepted(self, until: float | None = None, number: int | None = None) -> bool:
        """Wait until it is known what was accepted: all of it, or this item. False: it is not ``until`` then."""
        while True:
            with self._lock:
                self._check()
                if not self.untold if number is None else number not in self.untold:
                    return True
                self._tell()
                telling, turn = self._telling[:1], self._turn
            if not telling:
                if not self.await_up(until):
                    return False
            elif self.wait(telling[0][0], turn, until):
                self._told(turn, telling[0][1], telling[0][0])
            if until is not None and time.monotonic() >= until:
                return False

    # -- getting ---------------------------------------------------------------------------------------

    def get(self, block: bool, timeout: float | None, manual: bool) -> tuple[int, Piece]:
        """The next item and its number; it is with its user then. Raises Empty, BrokerLostError.

        ``manual``: it is to be acknowledged; else this thread accepts the item that it had got before."""
        until = None if timeout is None else time.monotonic() + max(0.0, timeout)
        block = block and (timeout is None or timeout > 0)
        if not manual:
            self.accept_hand()
        if not self._gets:
            self._begin_getting()
        while True:
            with self._lock:
                self._check()
                if self.items:
                    return self._pop(manual)
                sharing, ask, turn = self._sharing, self._ask, self._turn
                if self._up and sharing is not None:
                    if ask is None:
                        ask = self._begin_get(sharing, now=not block)
                    elif not block and not ask.done:
                        # Another thread waits, so there is none.
                        raise Empty
                    self._waiting += ask is not None
                else:
                    ask = None
            if ask is not None:
                self._wait(ask, turn, block, until)
            elif not self.await_up(until):
                raise Empty

    def _pop(self, manual: bool) -> tuple[int, Piece]:
        number, piece = self.items.popleft()
        if manual:
            self.unacked[number] = None
        else:
            self.hands[threading.get_ident()] = number
        return number, piece

    def accept_hand(self) -> bool:
        """This thread is done with the item that it got last. False: it has none."""
        with self._lock:
            number = self.hands.pop(threading.get_ident(), None)
            if number is not None:
                self.accept([number])
        return number is not None

    def _begin_getting(self) -> None:
        with self._lock:
            self._gets = True
            # It is opened once more: who gets items is known to the broker, and to the next one.
            self.lost(self._turn)

    def _begin_get(self, sharing: Sharing, now: bool) -> Ask | None:
        self._tell(now=True)
        window = 1 if self.maxsize else self._pace.window()
        try:
            if window > 1 and self._listen is None:
                recalled = partial(self._recalled, self._turn)
                self._listen = sharing.begin(self.name, NamedQueues.LISTEN, then=recalled)
            amount = self.kept << NamedQueues.WINDOW_BITS | window
            arrived = partial(self._arrived, self._turn)
            self._ask = sharing.begin(self.name, NamedQueues.GET, amount, now=now, then=arrived)
        except MultihostError:
            self.lost(self._turn)
            return None
        return self._ask

    def _wait(self, ask: Ask, turn: int, block: bool, until: float | None) -> None:
        """Wait for this answer, of which :meth:`get` then finds the items. Raises Empty."""
        try:
            answered = self.wait(ask, turn, until if block else None)
            if answered:
                # Who runs the loop may be about to do so.
                self._arrived(turn, ask)
        finally:
            self._leave(ask, turn)
        if answered and ask.status == m.FORBIDDEN:
            ask.result()
        if self.items:
            return
        over = until is not None and time.monotonic() >= until
        if over or (not block and answered):
            raise Empty

    def _leave(self, ask: Ask, turn: int) -> None:
        """This thread does not wait any more; the last one takes the request back."""
        with self._lock:
            self._waiting -= 1
            withdraw = not ask.done and not self._waiting and self._up and turn == self._turn
            if self._ask is ask and (ask.done or not self._waiting):
                self._ask = None
            if withdraw and self._sharing is not None:
                self._sharing.withdraw(ask)
        if withdraw and self.wait(ask, turn):
            self._arrived(turn, ask)

    def _arrived(self, turn: int, ask: Ask) -> None:
        with self._lock:
            if turn != self._turn or ask.seen:
                return
            ask.seen = True
            if ask.error is None and ask.status == m.GRANTED:
                numbers = items_of(unpack_items(ask.frames[-1]))
                self.items.extend(zip(numbers, split(ask.frames[:-1]), strict=True))
                self._pace.arrived(len(numbers))

    # -- giving back -----------------------------------------------------------------------------------

    def _recalled(self, turn: int, ask: Ask) -> None:
        """Another process waits for what is here early."""
        with self._lock:
            if turn == self._turn and ask.error is None and ask.status == m.GRANTED:
                self._listen = None
                numbers = [number for number, _ in self.items]
                self.items.clear()
                self._pace.rest()
                self._give_back(numbers)

    def _give_back(self, numbers: Sequence[int]) -> None:
        if self._up and self._sharing is not None:
            self._sharing.tell(self.name, NamedQueues.GIVE_BACK, self.kept, [rows_of(numbers)])

    def acknowledge(self, number: int, confirm: bool) -> None:
        """The user is done with this item. ``confirm``: wait until the broker has that on disk."""
        with self._lock:
            del self.unacked[number]
            self.accept([number])
        if confirm:
            self.flush_accepted(number=number)

    def reject(self, number: int) -> None:
        """The item goes to another consumer, or comes again."""
        with self._lock:
            del self.unacked[number]
            self._give_back([number])


__all__ = ["NamedGetting"]
