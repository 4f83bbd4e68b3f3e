"""Every answer a user gets is held against what really became of the item."""

from __future__ import annotations

from concurrent.futures import CancelledError
from multiprocessing import TimeoutError as PoolTimeoutError
from typing import TYPE_CHECKING, Any

from multihost.failures import Raised
from multihost.sources import Calls, Sink
from multihost_broker.jobs import MAX_DEATHS as _MAX_DEATHS
from multihost_common.errors import MultihostError, RemoteError, WorkerLostError

from .world import ViolationError

if TYPE_CHECKING:
    from .plans import Plan
    from .world import World

#: Deaths that make an item one that is not run again. As promised, whatever the core's own constant says.
MAX_DEATHS = 3
assert _MAX_DEATHS == MAX_DEATHS


class Answers:
    """What a job's user has been given, item by item."""

    def __init__(self, world: World, plan: Plan) -> None:
        self.world = world
        self.plan = plan
        self.values: dict[int, Any] = {}
        #: Items that the user has called off; all of them; and why else there may be none.
        self.cancelled: set[int] = set()
        self.called_off = False
        self.terminated = False
        self.broken = False

    def give(self, item: int, value: Any) -> None:
        """The answer of one item. Raises ViolationError if that is not what it must be."""
        if item in self.values:
            raise ViolationError(f"item {item} of job {self.plan.number} is answered twice")
        self.values[item] = value
        if type(value) is Raised:
            wrong = self._wrong(item, value.error)
            self.world.counts[f"answer: {type(value.error).__name__}"] += 1
        else:
            wrong = "" if value == -self.plan.value(item) else f"{value} is not its result"
            if item in self.plan.poison:
                wrong = "it kills every child, and has a result"
            if self.plan.deaths[item]:
                self.world.counts["result after a death"] += 1
        if wrong:
            raise ViolationError(f"item {item} of job {self.plan.number}: {wrong}")

    def _wrong(self, item: int, error: BaseException) -> str:
        """Why this error is not what should be raised for this item; empty: it is."""
        kind = type(error)
        if kind is WorkerLostError:
            return self._wrongly_lost(item, error)  # type: ignore[arg-type]
        if kind is PoolTimeoutError:
            late = self.plan.timeout and self.plan.seconds[item] >= self.plan.timeout
            excused = self.plan.timeout and self.world.jumped
            return "" if late or excused else f"it takes {self.plan.seconds[item]:.4f} s and is timed out"
        if kind is CancelledError:
            return "" if item in self.cancelled else "nobody has cancelled it"
        if kind is RemoteError:
            return "" if self.broken else f"its pool is not broken: {error}"
        if kind is MultihostError and self.terminated:
            return ""
        return f"it has {error!r}"

    def _wrongly_lost(self, item: int, error: WorkerLostError) -> str:
        plan, deaths = self.plan, self.plan.deaths[item]
        if not error.pid:
            # Nobody knows whether it ran.
            return "" if plan.at_most_once and self.world.violent else f"it was given up: {error}"
        least = 1 if plan.at_most_once else MAX_DEATHS
        if error.deaths != least:
            return f"it was given up after {error.deaths} deaths"
        return "" if deaths >= least else f"it has seen {deaths} deaths and is blamed for {error.deaths}"

    def missing(self) -> list[int]:
        """Items without an answer."""
        return [item for item in range(len(self.plan)) if item not in self.values]


class Recorder:
    """A sink before the real one: notes what passes."""

    def __init__(self, answers: Answers, inner: Sink) -> None:
        self.answers = answers
        self.inner = inner
        self.finished = False

    def consumed(self) -> int:
        """Results that take up no room any more."""
        return self.inner.consumed()

    def put(self, start: int, values: list[Any], failed: bool, calls: Calls) -> None:
        """Results from ``start`` on."""
        for item, value in enumerate(values, start):
            # Of an input whose end is not known there is an error more than there are items.
            if item < len(self.answers.plan):
                self.answers.give(item, value)
        self.inner.put(start, values, failed, calls)

    def finish(self, total: int, calls: Calls) -> None:
        """There will be no more."""
        self.finished = True
        self.inner.finish(total, calls)


class Call:
    """Receives the result of one call."""

    def __init__(self, answers: Answers, item: int) -> None:
        self.answers = answers
        self.item = item

    def claim(self, item: int) -> bool:
        """It is about to be sent: calls are numbered in the order in which they were made."""
        if item != self.item:
            raise ViolationError(f"call {self.item} is sent as item {item}")
        return True

    def take(self, value: Any) -> None:
        """The result."""
        self.answers.give(self.item, value)
