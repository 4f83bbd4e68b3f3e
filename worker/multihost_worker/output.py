"""What children print, on its way to the producer: bounded, so that a chatty child harms nobody."""

from __future__ import annotations

from collections.abc import Callable

from multihost_common.messages import Output

#: Bytes a second that one child may print; what is more is dropped, and a line says so.
RATE = 1 << 20

#: Bytes that a child which has been quiet may print at once.
BURST = 1 << 20


class Budget:
    """What one child may still print."""

    __slots__ = ("dropped", "left", "refilled")

    def __init__(self, now: float) -> None:
        self.left = float(BURST)
        self.refilled = now
        self.dropped = 0

    def take(self, size: int, now: float) -> bool:
        """Whether ``size`` bytes may pass now."""
        self.left = min(BURST, self.left + (now - self.refilled) * RATE)
        self.refilled = now
        if size > self.left:
            self.dropped += size
            return False
        self.left -= size
        return True


class Printer:
    """Turns the bytes of children into Output messages. What comes while there is nobody to hear them is
    dropped, too."""

    def __init__(
        self,
        send: Callable[[Output], None],
        host: str,
        clock: Callable[[], float],
        heard: Callable[[], bool] = lambda: True,
    ) -> None:
        self._send = send
        self._host = host
        self._clock = clock
        self._heard = heard
        self._budgets: dict[tuple[int, int], Budget] = {}

    def __call__(self, pool: int, pid: int, stream: int, data: bytes) -> None:
        """Pass on what the child ``pid`` wrote to ``stream``; no data: it has ended."""
        now = self._clock()
        if not data:
            self._end(pool, pid)
            return
        budget = self._budgets.get((pool, pid))
        if budget is None:
            budget = self._budgets[pool, pid] = Budget(now)
        if not self._heard():
            budget.dropped += len(data)
        elif budget.take(len(data), now):
            self._tell_dropped(pool, pid, budget)
            self._send(Output(pool, self._host, pid, stream, (data,)))

    def _end(self, pool: int, pid: int) -> None:
        budget = self._budgets.pop((pool, pid), None)
        if budget is not None:
            self._tell_dropped(pool, pid, budget)

    def _tell_dropped(self, pool: int, pid: int, budget: Budget) -> None:
        if budget.dropped and self._heard():
            text = f"[multihost: {budget.dropped} bytes of output of process {pid} were dropped]\n"
            budget.dropped = 0
            self._send(Output(pool, self._host, pid, 2, (text.encode(),)))

    def sweep(self) -> None:
        """Forget children that have not printed for a minute."""
        if not self._heard():
            # What was dropped of theirs is still to be told.
            return
        before = self._clock() - 60
        for key in [key for key, each in self._budgets.items() if each.refilled < before]:
            self._end(*key)
