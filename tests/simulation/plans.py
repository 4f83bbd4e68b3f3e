"""What a job's items are and do, and what really became of them: the truth that answers are held against."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .world import World

#: The items of a job are numbers: its own number times this, and their index.
STRIDE = 1000


#: Set-ups of pools: one whose initializer raises, and one that is fine.
BROKEN, FINE = b"broken", b"fine"

#: Seconds that nobody waits.
ENDLESS = 1e4


@dataclass(slots=True)
class Plan:
    """One job."""

    number: int
    #: Seconds that each item takes.
    seconds: list[float]
    at_most_once: bool = False
    #: Seconds an item may take, 0.0: no limit.
    timeout: float = 0.0
    #: Items that kill every child that runs them, and those that kill so many.
    poison: frozenset[int] = frozenset()
    flaky: dict[int, int] = field(default_factory=dict)
    #: Items that never end: their user will cancel them, or the whole job.
    endless: frozenset[int] = frozenset()
    #: How many children died with an item, and how often it began.
    deaths: Counter[int] = field(default_factory=Counter)
    begun: Counter[int] = field(default_factory=Counter)

    def __len__(self) -> int:
        return len(self.seconds)

    def value(self, item: int) -> int:
        """The item itself, a number that no other job has."""
        return self.number * STRIDE + item

    def begins(self, item: int) -> None:
        """A child begins it."""
        self.begun[item] += 1

    def kills(self, item: int) -> bool:
        """Does it, begun now, end its child?"""
        if item in self.poison:
            return True
        left = self.flaky.get(item, 0)
        if left:
            self.flaky[item] = left - 1
        return left > 0


def plan_of(world: World, value: int) -> Plan:
    """The plan that an item belongs to."""
    return world.plans[value // STRIDE]
