"""Virtual time, chance and the record of what happened: all that a schedule has in common."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from heapq import heappop, heappush
from random import Random
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .agents import Agent
    from .brokers import Broker
    from .callers import Caller
    from .deposits import Deposit
    from .disks import Disk
    from .network import Network
    from .plans import Plan
    from .producers import Producer
    from .scene import Scene

#: More than any schedule needs: who asks for the time again and again does not get on.
MOST_STEPS = 30_000

#: When a schedule begins, seconds: no core may take 0.0 for "never".
BEGIN = 1000.0


def legible(text: str) -> str:
    """Numbers of jobs and pools as session/number, digests and payloads cut short."""
    text = re.sub(r"\b\d{10,}\b", lambda each: f"{int(each[0]) >> 32}/{int(each[0]) & 0xFFFF_FFFF}", text)
    text = re.sub(r", frames=\[.*\]", "", text)
    text = re.sub(r"(digest|setup|function|code)=b['\"](.{0,8}).*?['\"](?=[,)])", r"\1=\2", text)
    return re.sub(r", (\w+)=(0|0\.0|False|''|b'')(?=[,)])", "", text)


class ViolationError(AssertionError):
    """Something that must hold, whatever happens, did not."""


class World:
    """One schedule: its clock, its queue of events, its cast. Everything that is drawn by chance comes from
    ``random``, so the seed fixes it all; nothing depends on the order of sets of strings, or on ``id``."""

    broker: Broker
    network: Network
    journal: Disk

    def __init__(self, seed: int, traced: bool = False, careless: bool = False) -> None:
        self.now = BEGIN
        self.seed = seed
        self.random = Random(seed)
        self.careless = careless
        #: How often each fault and each interesting state occurred.
        self.counts: Counter[str] = Counter()
        #: Lines that tell what happened, where somebody wants to read them.
        self.trace: list[str] | None = [] if traced else None
        self.steps = 0
        self.agents: dict[str, Agent] = {}
        self.producers: list[Producer] = []
        self.callers: list[Caller] = []
        self.deposits: list[Deposit] = []
        #: What is shared, if anything is.
        self.scene: Scene | None = None
        #: Something was done that may make items run twice, or charge them with deaths.
        self.violent = False
        #: A clock has jumped, so an item may seem to take longer than it does.
        self.jumped = False
        #: Children may have been killed by others than their items.
        self.hurt = False
        #: How far the wall clock has jumped.
        self.wall = 0.0
        #: All that people wanted has been done.
        self.aftermath = False
        #: Users who are not done.
        self.unfinished = 0
        #: Nothing more goes wrong.
        self.calm = False
        #: Until when something that has gone wrong lasts.
        self.trouble_ends = BEGIN
        #: What is run, by its number, which every item bears.
        self.plans: dict[int, Plan] = {}
        self._queue: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._order = 0

    # -- time ----------------------------------------------------------------------------------------

    def at(self, when: float, call: Callable[..., None], *args: Any) -> None:
        """Call then. Of several calls at one time the first to be entered is the first to be made."""
        self._order += 1
        heappush(self._queue, (when, self._order, call, args))

    def after(self, delay: float, call: Callable[..., None], *args: Any) -> None:
        """Call after so many seconds."""
        self._order += 1
        heappush(self._queue, (self.now + delay, self._order, call, args))

    def run(self, until: float, aftermath: bool = False) -> bool:
        """Let time pass until then, or until all users are done; was it that? ``aftermath``: they are."""
        queue = self._queue
        while queue and queue[0][0] <= until:
            if not self.unfinished and not aftermath:
                return True
            when, _, call, args = heappop(queue)
            self.now = max(self.now, when)
            self.steps += 1
            if self.steps > MOST_STEPS:
                raise ViolationError(f"{self.steps} steps, and no end: time stands still")
            call(*args)
        if not self.unfinished and not aftermath:
            return True
        self.now = max(self.now, until)
        return False

    # -- the record ----------------------------------------------------------------------------------

    def note(self, text: str, *facts: object) -> None:
        """A line of the trace; to be called where ``trace`` is not None."""
        assert self.trace is not None
        shown = legible(" ".join(map(repr, facts)))
        self.trace.append(f"{self.now - BEGIN:10.4f}  {text}  {shown}".rstrip())

    def require(self, condition: object, text: str) -> None:
        """Raise unless the condition holds."""
        if not condition:
            raise ViolationError(text)
