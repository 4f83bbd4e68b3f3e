"""Waiting for descriptors, awake where that pays.

To fall asleep and be woken costs more than a small message does: the processor halts meanwhile, and its
caches are cold when it comes back. So when the last waits were all brief, the next one begins by asking
again and again, and sleeps only if nothing has come by then. Who waits awake lets others run first.
"""

from __future__ import annotations

import math
import os
import select
import time
from collections.abc import Callable

from multihost_common.cpus import available_cpus

#: Seconds that a wait may take to be brief, and that one is waited awake.
BRIEF = 0.0005

#: So many brief waits in a row are taken for a sign that the next one will be.
SIGNS = 4

#: Seconds between two questions of an :class:`Alarm` while there is always something to do.
LOOK = 0.005


class Habit:
    """Whether the next wait is likely to be brief, from what the last ones were."""

    __slots__ = ("_brief",)

    def __init__(self) -> None:
        self._brief = 0

    def expects(self) -> bool:
        """Is it worth to wait awake?"""
        return self._brief >= SIGNS

    def learn(self, seconds: float) -> None:
        """A wait has taken so long."""
        self._brief = self._brief + 1 if seconds < BRIEF else 0


def milliseconds(seconds: float) -> int:
    """For ``poll``: rounded up, so that what is due then is due indeed."""
    return max(0, math.ceil(seconds * 1000))


class Waiter:
    """Waits for file descriptors: ``select.poll`` with a time in seconds.

    ``zmq.Poller`` costs several times as much, asks each of its sockets twice in a turn, and counts
    its events differently. Here a ZeroMQ socket is its descriptor, with the rule of
    :func:`multihost_common.wire.readable`.
    """

    def __init__(self) -> None:
        self._poll = select.poll()
        self.habit = Habit()
        # With a single processor, who is waited for could not run.
        self._apt = available_cpus() > 1

    def watch(self, fd: int, events: int = select.POLLIN) -> None:
        """Wait for these events of ``fd`` from now on; 0: for none any more."""
        if events:
            self._poll.register(fd, events)
        else:
            self._poll.unregister(fd)

    def wait(self, seconds: float | None) -> list[tuple[int, int]]:
        """(descriptor, events) of all that are ready, at the latest after ``seconds``, asleep meanwhile."""
        if seconds is not None and seconds <= 0:
            return self._poll.poll(0)
        began = time.perf_counter()
        ready = self._poll.poll(None if seconds is None else milliseconds(seconds))
        self.habit.learn(time.perf_counter() - began)
        return ready

    def wait_awake_first(self, patience: Callable[[], float | None]) -> list[tuple[int, int]]:
        """The same, begun awake where that pays. ``patience`` is asked for the seconds only if nothing has
        come by then: to find out costs something."""
        return self.soon() or self.wait(patience())

    def soon(self) -> list[tuple[int, int]]:
        """What is ready within :data:`BRIEF` seconds, for who waits awake; nothing at once, if that does
        not pay."""
        if not (self._apt and self.habit.expects()):
            return []
        poll, clock = self._poll.poll, time.perf_counter
        until = clock() + BRIEF
        while not (ready := poll(0)) and clock() < until:
            _yield()
        self.habit.learn(0.0 if ready else BRIEF)
        return ready

    def awake(self) -> bool:
        """Will the next wait begin awake?"""
        return self._apt and self.habit.expects()


class Alarm:
    """Tells when it is time for a core's Tick. To find out when that is takes the core longer than a
    small message does, so it is asked before a sleep, and else only once in :data:`LOOK` seconds."""

    def __init__(self, deadline: Callable[[], float | None]) -> None:
        self._deadline = deadline
        self._look_at = 0.0

    def patience(self, now: float) -> float | None:
        """Seconds until it is time; None: that will never be."""
        due = self._deadline()
        self._look_at = now + LOOK if due is None else min(due, now + LOOK)
        return None if due is None else due - now

    def rings(self, now: float) -> bool:
        """Is it time?"""
        if now < self._look_at:
            return False
        left = self.patience(now)
        return left is not None and left <= 0


#: Let others run that want this processor.
_yield = getattr(os, "sched_yield", None) or (lambda: time.sleep(0))
