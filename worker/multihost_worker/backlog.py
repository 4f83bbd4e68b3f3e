"""Answers that cannot be sent yet: the first of them in memory, the large ones behind those on the disk.

A worker without a broker goes on with what it has. What comes of it is kept here until the broker knows the job (again),
and then goes out in its order. Decisions alone: the shell writes and reads (:mod:`spool`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

from multihost_common import messages as m
from multihost_worker import events as e
from multihost_worker.work import AgentJob, Kept

#: Bytes of results kept in memory; what comes then is spooled, and if it cannot be, nothing new is begun.
MOST_KEPT = 64 << 20

#: Results smaller than this are not worth a file operation each.
LEAST_SPOOLED = 4096

#: Bytes of memory that an answer takes beyond its payload, about.
OVERHEAD = 500


class Backlog:
    """The answers kept for all jobs. ``spool_bytes``: what may be on the disk at once, 0: nothing."""

    def __init__(self, emit: Callable[[e.Action], None], spool_bytes: int = 0) -> None:
        self._emit = emit
        self._spool_bytes = spool_bytes
        #: Bytes in memory, and on the disk.
        self.kept = 0
        self.spooled = 0
        #: What is on the disk, or on its way there or back, by its number there.
        self._away: dict[int, tuple[AgentJob, Kept]] = {}
        self._next = 1
        #: The disk took no more, and nothing has left it since.
        self._disk_full = False

    def full(self) -> bool:
        """Is so much kept that nothing new should be begun?"""
        return self.kept > MOST_KEPT

    def put(self, job: AgentJob, message: m.Result | m.Died) -> None:
        """Send this answer, behind those of its job that are kept; if the broker does not know the job now, once
        it does."""
        if job.confirmed and not job.kept:
            self._emit(e.Send(message))
            return
        kept = Kept(message, _size(message))
        job.kept.append(kept)
        if self._to_be_spooled(kept):
            self._spool(job, kept)
        else:
            self.kept += kept.size + OVERHEAD

    def _to_be_spooled(self, kept: Kept) -> bool:
        return (
            self.kept + kept.size > MOST_KEPT
            and kept.size >= LEAST_SPOOLED
            and not self._disk_full
            and self.spooled + kept.size <= self._spool_bytes
        )

    def _spool(self, job: AgentJob, kept: Kept) -> None:
        message = kept.message
        assert isinstance(message, m.Result)
        kept.number = self._next
        self._next += 1
        self._away[kept.number] = (job, kept)
        frames, message.frames = message.frames, ()
        self.kept += OVERHEAD
        self.spooled += kept.size
        self._emit(e.Spool(kept.number, frames))

    def not_spooled(self, event: e.NotSpooled) -> None:
        """There was no room on the disk: it stays in memory."""
        self._disk_full = True
        self._back(event.number, event.frames)

    def unspooled(self, event: e.Unspooled) -> AgentJob | None:
        """Here is what was spooled, or nothing if that could not be read: then the item is run again, for nobody names it any more.
        The job whose turn it is."""
        self._disk_full = False
        found = self._away.get(event.number)
        if found is None:
            return None
        job, kept = found
        if event.frames is None:
            self._leave(kept)
            job.kept.remove(kept)
        else:
            self._back(event.number, event.frames)
        kept.asked = False
        return job

    def _back(self, number: int, frames: e.Frames) -> None:
        found = self._away.pop(number, None)
        if found is None:
            return
        kept = found[1]
        assert isinstance(kept.message, m.Result)
        kept.message.frames = frames
        kept.number = 0
        self.spooled -= kept.size
        self.kept += kept.size

    def pour(self, job: AgentJob) -> None:
        """The broker knows the job: send what was kept for it, as far as that is in memory, and have the next one read."""
        while job.kept and job.confirmed:
            kept = job.kept[0]
            if kept.number:
                if not kept.asked:
                    kept.asked = True
                    self._emit(e.Unspool(kept.number))
                return
            job.kept.popleft()
            self._leave(kept)
            self._emit(e.Send(kept.message))

    def forget(self, job: AgentJob) -> None:
        """The job is over here."""
        for kept in job.kept:
            if kept.number:
                self._emit(e.Unlink(kept.number))
            self._leave(kept)
        job.kept = deque()

    def _leave(self, kept: Kept) -> None:
        self.kept -= OVERHEAD
        if kept.number:
            self.spooled -= kept.size
            self._disk_full = False
            del self._away[kept.number]
        else:
            self.kept -= kept.size

    @staticmethod
    def held(job: AgentJob) -> Iterator[tuple[int, int, int, int]]:
        """(job, start, count, attempt) of each answer kept for the job."""
        for kept in job.kept:
            message = kept.message
            start, count = (
                (message.item, 1) if isinstance(message, m.Died) else (message.start, message.count)
            )
            yield message.job, start, count, message.attempt


def _size(message: m.Result | m.Died) -> int:
    return 0 if isinstance(message, m.Died) else sum(map(len, message.frames))
