"""Prompts children that sit on results while a later item takes its time.

A child sends results of short items by the bundle. If the next one turns out to be long, those that
are done would wait for it, and with them whoever waits for them, which may be that very item. The child
cannot know, so the agent looks now and then and sends the process a signal whose handler sends what is
done. SIGURG: nobody minds it by default. It is seen by a child that waits, or computes in Python; one
that is busy in a single call into C sees it after that.
"""

from __future__ import annotations

import os
from signal import SIGURG
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from multihost_worker.claims import ClaimBook

#: Seconds between two looks. An item that is seen in two of them is long.
INTERVAL = 0.02


class Prompter:
    """When to look, and at what."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        #: Time of the next look; None while no child has anything to do.
        self.due: float | None = None

    def given(self) -> None:
        """A child was given work."""
        if self.due is None:
            self.due = self._clock() + INTERVAL

    def look(self, children: Iterable[tuple[int, ClaimBook]]) -> None:
        """Look if it is time to: process ids (0: not known yet) and their books."""
        now = self._clock()
        if self.due is None or now < self.due:
            return
        busy = False
        for pid, book in children:
            if book.answered < book.expected:
                busy = True
                if pid and book.withholds():
                    _prompt(pid)
        self.due = now + INTERVAL if busy else None


def _prompt(pid: int) -> None:
    try:
        os.kill(pid, SIGURG)
    except ProcessLookupError:
        return
