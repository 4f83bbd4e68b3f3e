"""How long an item takes: a mean that follows what is measured."""

from __future__ import annotations

#: Weight of a measurement of a few items, and of one of many: many items say more than one.
FEW, MANY = 0.3, 0.7

#: No item takes less, seconds: below this a clock says nothing.
LEAST = 5e-8


class Pace:
    """Mean seconds an item of one job takes in a child; 0.0 until the first measurement."""

    __slots__ = ("seconds",)

    def __init__(self) -> None:
        self.seconds = 0.0

    def measure(self, count: int, spent: int) -> None:
        """``count`` items took ``spent`` microseconds."""
        seconds = max(spent * 1e-6 / count, LEAST)
        if self.seconds:
            self.seconds += (FEW if count < 64 else MANY) * (seconds - self.seconds)
        else:
            self.seconds = seconds

    def items_in(self, seconds: float) -> int:
        """How many items take about that long (0: fewer than one, or not known yet)."""
        return int(seconds / self.seconds) if self.seconds else 0
