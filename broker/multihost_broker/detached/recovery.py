"""What a broker finds in the journal when it begins, and how detached jobs go on from there.

They wait for as many workers as there were, as the jobs of any producer do that comes back (:mod:`returns`): so
that is in the journal, too.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from functools import partial

from multihost_broker.detached.archive import Archive
from multihost_broker.detached.books import (
    BLOCK,
    COLLECTED,
    COUNTED,
    DEATH,
    DIED,
    END,
    ENDED,
    ENDS,
    FAILED,
    HINT,
    PUT,
    RANGE,
    RESULT,
    SEAL,
    SUBMIT,
    SUBMITTED,
    WORKERS,
    Answer,
    DetachedJob,
    Input,
)  # fmt: skip
from multihost_broker.journal.errors import StoreError
from multihost_broker.journal.records import Record, Spooled
from multihost_broker.returns import Returns
from multihost_common import messages as m
from multihost_common.codec import decode
from multihost_common.errors import ProtocolError


class Recovery:
    """Fills the archive."""

    def __init__(self, archive: Archive, returns: Returns) -> None:
        self._archive = archive
        self._returns = returns
        archive.restated = self._restated
        archive.waiting = self._waiting
        #: Jobs that are to be stated anew still.
        self._unstated: set[int] = set()
        #: Where the journal has how many workers there are.
        self._hint = 0
        #: Takes a record of something else. False: nobody needs it.
        self.others: Callable[[int, Record], bool] = lambda ticket, record: False

    def restore(self, records: Iterable[tuple[int, Record]]) -> None:
        """What the journal had when the broker began. Raises StoreError if that makes no sense."""
        archive = self._archive
        for ticket, record in records:
            try:
                self._take(ticket, record)
            except (ProtocolError, struct.error, IndexError, UnicodeError) as error:
                raise StoreError(
                    f"record {ticket} of the journal is not of this version of multihost ({error}); run the version "
                    "that wrote it, or give the broker another --journal"
                ) from None
        for job in list(archive.jobs.values()):
            self._resume(job)
        archive.erase_garbage()
        archive.pump()
        self._unstated = {job.number for job in archive.jobs.values() if job.token}

    def _take(self, ticket: int, record: Record) -> None:
        archive = self._archive
        if record.kind == WORKERS:
            archive.garbage += [self._hint] if self._hint else []
            self._hint, (archive.session.workers,) = ticket, HINT.unpack(record.header)
        elif record.kind == COLLECTED:
            archive.tombstones.restore(ticket, record)
            archive.look_soon()
        elif record.kind == SUBMIT:
            submitted, number = SUBMITTED.unpack_from(record.header)
            opened = decode([record.header[SUBMITTED.size :]])
            assert isinstance(opened, m.Submit)
            archive.add(DetachedJob(record.job, number, opened, ticket, submitted))
        elif record.job in archive.jobs:
            self._restore(archive.jobs[record.job], ticket, record)
        elif not self.others(ticket, record):
            archive.garbage.append(ticket)

    def _restore(self, job: DetachedJob, ticket: int, record: Record) -> None:
        header = record.header
        if record.kind == PUT:
            start, count, chunksize = BLOCK.unpack(header)
            job.store(Input(start, start + count, chunksize, ticket, _size(record)))
        elif record.kind == SEAL:
            (job.count,) = COUNTED.unpack(header)
            job.state = m.RUNNING
        elif record.kind in (RESULT, FAILED):
            start, count = RANGE.unpack_from(header)
            failed = decode([header[RANGE.size :]]) if record.kind == FAILED else None
            assert failed is None or isinstance(failed, m.Failed)
            answer = Answer(ticket, start, start + count, len(header) + _size(record))
            self._archive.enter(job, answer, failed, self._archive.now)
        elif record.kind == DEATH:
            item, deaths = DIED.unpack(header)
            job.deaths[item] = deaths, (*job.deaths.get(item, (0, ()))[1], ticket)
        elif record.kind == ENDED:
            job.ended, state, job.fed = END.unpack_from(header)
            job.state, job.text, job.end_ticket = ENDS[state], header[END.size :].decode(), ticket

    def _resume(self, job: DetachedJob) -> None:
        """Go on where the job was: all of its records are known."""
        job.touched = self._archive.now
        job.stored = 0
        for block in sorted(job.blocks.values()):
            # What is missing before it has been erased, for it had its answers; or it never got here.
            if job.answered.missing(job.stored, block.start):
                self._archive.discard(job, block)
            else:
                job.stored = block.stop
                if not job.needed(block):
                    self._archive.discard(job, block)
        known = job.answered.within(job.stored, 1 << 63)
        if known and known[0][0] == job.stored:
            job.stored = known[0][1]
        if job.ended:
            job.stored = job.fed
            return
        job.fed = job.stored
        if job.count >= 0 and job.stored < job.count:
            job.count, job.state = -1, m.FILLING
        if job.complete:
            self._archive.end(job, m.DONE)
            return
        for block in job.blocks.values():
            if job.answered.missing(block.start, block.stop):
                job.enqueue(block.start)
        job.restored = True
        self._archive.wake(job)

    def _restated(self, job: DetachedJob) -> None:
        """The job is known again, or is not to be."""
        if job.number in self._unstated:
            self._unstated.discard(job.number)
            if not self._unstated:
                self._returns.await_workers(self._archive.session)

    def _waiting(self) -> bool:
        return bool(self._unstated) or self._returns.awaits(self._archive.session)

    def note(self, workers: int) -> None:
        """So many workers are there: the next broker has to know of how many to wait for."""
        archive = self._archive
        if workers == archive.session.workers or self._waiting() or not archive.busy():
            return
        archive.session.workers = workers
        former = self._hint
        refused = partial(self._not_noted, archive.scribe.next)
        self._hint = archive.scribe.write(Record(WORKERS, b"", HINT.pack(workers)), refused=refused)
        archive.garbage += [former] if former else []

    def _not_noted(self, ticket: int) -> None:
        if self._hint == ticket:
            self._hint = self._archive.session.workers = 0


def _size(record: Record) -> int:
    payload = record.payload
    return sum(payload.lengths if isinstance(payload, Spooled) else map(len, payload))
