"""What hands input out and takes results in: one interface for the local and the remote engine.

A pool, its jobs and its results (``pool.py``, ``executor.py``, ``jobs.py``) speak to nothing but this.
An engine owns a loop, a lock and whatever carries messages; the rules between the two sides are:

- ``start``, ``poke``, ``cancel`` and ``close_pool`` may be called from any thread, also by the garbage
  collector while the very same thread holds the engine's lock: they append to a deque and wake the loop.
- The loop calls ``job.open``, ``job.produce``, ``job.handle`` and ``job.abort`` with its lock held.
  ``handle`` and ``abort`` answer a list of callables (user callbacks); the engine calls those *without*
  its lock, in order, and only then looks again which waits are over: a callback runs before ``get()``
  returns, and a callback may itself call into the pool.
- ``produce`` does about a millisecond of pickling at a time; while it answers something, the engine
  calls it again in its next turn. It is called after ``start``, ``poke`` and after each ``handle``.
- The engine keeps ``job.capacity`` up to date: how many children of the job's pool can run at once.
- When ``job.over`` is true the engine forgets the job.
- When the engine cannot go on (broker lost, initializer failed, pool killed) it calls
  ``job.abort(error)`` for each job concerned.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:
    from multihost.kept import Kept
    from multihost_common.messages import EndResults, Failed, Message, Result


class Completion:
    """Something to wait for: ``done`` turns true once, for good. See :meth:`Engine.wait`."""

    __slots__ = ("done",)

    #: Whether who waits for it may be the one who makes the users' callbacks meanwhile. A callback may need something
    #: that only the waiting thread would do: somebody who waits for a message, say, in order to answer it.
    makes_calls: ClassVar[bool] = True

    def __init__(self) -> None:
        self.done = False


@dataclass(slots=True)
class PoolSpec:
    """What a pool of children is made from.

    ``setup``: pickled dict of ``sys_path``, ``cwd``, ``environ``, ``argv`` (None: the host's own),
    ``name``, ``initializer`` (a pickled function, b"" for none) and ``initargs`` (a pickled tuple).
    ``code``: a bundle of the user's modules, or b"". ``start_timeout``: :meth:`Engine.open_pool`
    raises NoWorkersError when there is no worker by then (None: it does not wait at all).
    ``promises``: what is taken back when the pool's children have ended, see :mod:`multihost_common.shipments`.
    """

    limit: int = 0
    setup: bytes = b""
    code: bytes = b""
    max_tasks: int = 0
    eager: bool = False
    name: str = ""
    start_timeout: float | None = None
    promises: list[Callable[[], None]] = field(default_factory=list)


class Job(Protocol):
    """What an engine sees of a job. Its ``id`` is given by ``Engine.start``."""

    id: int
    pool: int
    capacity: int

    @property
    def over(self) -> bool:
        """Is every item answered and nothing more to come?"""
        raise NotImplementedError

    def idle(self) -> bool:
        """Is nothing under way? (An open-ended job may be idle and not over.)"""
        raise NotImplementedError

    def open(self) -> list[Message]:
        """The blobs that the job refers to, then its OpenJob."""
        raise NotImplementedError

    def produce(self) -> list[Message]:
        """The next Feed messages within the window, or EndJob, or nothing for now."""
        raise NotImplementedError

    #: Set while nothing new is to be fed, since there is no room for it.
    held: bool

    #: Set by an engine whose broker may have to be told again: see :meth:`resume`.
    kept: Kept | None

    def resume(self) -> list[Message]:
        """What states the job anew, blobs apart, to a broker that may know all, some or nothing of it."""
        raise NotImplementedError

    def has_more(self) -> bool:
        """May ``produce`` have something, after a message went either way?"""
        raise NotImplementedError

    def handle(self, message: Result | Failed | EndResults) -> Sequence[Callable[[], object]]:
        """Take in what came back; answers the calls to make without the lock."""
        raise NotImplementedError

    def abort(self, error: BaseException) -> Sequence[Callable[[], object]]:
        """Nothing more will come: whatever is unanswered gets this error."""
        raise NotImplementedError


class Engine(Protocol):
    """The one interface between pools and what runs their work."""

    #: Slots there are (at least 1 on the local engine; on a cluster 0 while no worker is there).
    capacity: int

    #: All its processes are of this machine.
    local: bool

    @property
    def usable(self) -> bool:
        """Nothing has ended it yet: the broker was not lost, and it was not closed."""
        raise NotImplementedError

    def open_pool(self, spec: PoolSpec) -> int:
        """Make a pool; answers its handle number, counted from 1."""
        raise NotImplementedError

    def close_pool(self, pool: int, kill: bool = False) -> None:
        """No more jobs: children end when idle, or now (``kill``: its jobs are aborted)."""

    def pool_closed(self, pool: int) -> Completion:
        """Done when every child of the pool has ended."""
        raise NotImplementedError

    def start(self, job: Any) -> None:
        """Run this job: numbers it and sends what it produces."""

    def poke(self, job: Any, kick: bool = True) -> None:
        """The job has more input, or room in its window. ``kick`` False: the caller waits next."""

    def cancel(self, job: Any, start: int = 0, count: int = 0, kill: bool = False) -> None:
        """These items (count 0: all) are not wanted; ``kill``: also those that run."""

    def wait(self, completion: Completion, timeout: float | None = None) -> bool:
        """Wait until ``completion.done``; runs the loop in this thread if it can. False: timeout."""
        raise NotImplementedError

    def pids(self, pool: int) -> list[int]:
        """Process ids of the pool's children (on the local engine; elsewhere empty)."""
        raise NotImplementedError

    def close(self) -> None:
        """End everything of this engine in this process."""

    def disown(self) -> None:
        """Never touch anything again: this process was forked from the one the engine belongs to."""


__all__ = ["Completion", "Engine", "Job", "PoolSpec"]
