"""Who submits detached jobs: what has come of one is confirmed once it is in the journal.

All of it may be said again, since the answer may have been lost with a connection, or the broker: what is there
already is confirmed once more.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from multihost_broker.detached.archive import GONE, Archive
from multihost_broker.detached.books import (
    BLOCK,
    COUNTED,
    PUT,
    SEAL,
    SUBMIT,
    SUBMITTED,
    DetachedJob,
    Input,
    contents,
)
from multihost_broker.journal.records import Erase, Record
from multihost_broker.ledger import Ledger
from multihost_broker.sessions import Session
from multihost_common import messages as m
from multihost_common.blobs import digest_of
from multihost_common.blocks import Block
from multihost_common.codec import encode

#: Jobs that the broker knows at most, over or not.
MOST_JOBS = 10_000

#: Seconds after which who was denied for want of room may try again.
AFTER = 2.0


class Deposits:
    """Reacts to Submit, Put and Seal."""

    def __init__(self, ledger: Ledger, archive: Archive) -> None:
        self._ledger = ledger
        self._archive = archive
        self._scribe = archive.scribe
        #: Jobs that are not durable yet.
        self._coming: dict[bytes, DetachedJob] = {}
        self.reactions: dict[type, Callable[[Session, Any], None]] = {
            m.Submit: self._on_submit,
            m.Put: self._on_put,
            m.Seal: self._on_seal,
        }

    # -- answers -----------------------------------------------------------------------------------

    def _stored(self, session: Session, job: DetachedJob) -> None:
        self._ledger.reach(session, m.Stored(job.key, job.stored, job.count >= 0))

    def _full(self, session: Session, key: bytes) -> None:
        text = "the broker's journal has no room for new work; make room on its disk"
        self._archive.deny(session, key, "E_FULL", text, AFTER)

    # -- the job -----------------------------------------------------------------------------------

    def _on_submit(self, session: Session, submit: m.Submit) -> None:
        key = submit.key
        known = self._archive.jobs.get(key)
        if known is not None:
            if submit.name not in ("", known.opened.name):
                text = f"that is the key of another job, {known.opened.name!r}; choose another one"
                self._archive.deny(session, key, "E_STATE", text)
                return
            # Behind what is on its way into the journal, perhaps of a submitter that has ended meanwhile.
            self._scribe.follow(partial(self._begin_again, session, known))
            return
        if key in self._coming:
            # Somebody has said it, over another connection perhaps, and will not be told over this one.
            self._scribe.follow(partial(self._on_submit, session, submit))
            return
        if key in self._archive.tombstones:
            self._archive.deny(
                session, key, "E_JOB", "the job with that key has been collected; choose another key"
            )
            return
        wrong = _misfit(submit)
        if wrong:
            self._archive.deny(session, key, "E_FIELD", wrong)
        elif len(self._archive.jobs) + len(self._coming) >= MOST_JOBS:
            text = (
                f"the broker has {MOST_JOBS} detached jobs; collect or drop some (multihost jobs lists them)"
            )
            self._archive.deny(session, key, "E_FULL", text, AFTER)
        else:
            self._take(session, submit)

    def _begin_again(self, session: Session, job: DetachedJob) -> None:
        job.rejected = False
        self._stored(session, job)

    def _take(self, session: Session, submit: m.Submit) -> None:
        frames, submit.frames = submit.frames, ()
        now, number = self._archive.now, self._archive.number()
        header = SUBMITTED.pack(now, number) + bytes(encode(submit)[0])
        job = DetachedJob(submit.key, number, submit, self._scribe.next, now)
        self._coming[job.key] = job
        self._scribe.write(
            Record(SUBMIT, job.key, header, tuple(frames)),
            partial(self._begun, session, job),
            partial(self._not_begun, session, job),
        )

    def _begun(self, session: Session, job: DetachedJob) -> None:
        del self._coming[job.key]
        self._archive.add(job)
        self._stored(session, job)

    def _not_begun(self, session: Session, job: DetachedJob) -> None:
        del self._coming[job.key]
        self._full(session, job.key)

    # -- its input ---------------------------------------------------------------------------------

    def _find(self, session: Session, key: bytes) -> DetachedJob | None:
        job = self._archive.jobs.get(key)
        if job is None:
            text = "there is no such job here; submit it, and put its input when it is stored"
            self._archive.deny(session, key, "E_JOB", text)
        return job

    def _over(self, session: Session, job: DetachedJob) -> bool:
        """Is it too late for more input? Then that is told."""
        if job.live:
            return False
        if job.gone:
            self._archive.deny(session, job.key, "E_JOB", GONE)
            return True
        text = "the job has ended" + (f": {job.text}" if job.text else "")
        self._archive.deny(session, job.key, "E_STATE", text)
        return True

    def _on_put(self, session: Session, put: m.Put) -> None:
        job = self._find(session, put.key)
        if job is None:
            return
        start, stop = put.start, put.start + put.count
        wrong = Block(start, put.count, put.chunksize, put.frames).check()
        if stop <= job.stored:
            self._stored(session, job)
        elif wrong:
            self._archive.deny(session, put.key, "E_FIELD", wrong)
        elif self._over(session, job) or job.rejected:
            # It is to be said again.
            return
        elif start < job.fed:
            # It is on its way into the journal already, perhaps since it came over another connection.
            self._scribe.follow(partial(self._settled, session, job))
        elif start > job.fed or job.count >= 0:
            self._archive.deny(session, put.key, "E_STATE", f"the job's input goes on at item {job.fed}")
        else:
            job.fed, job.touched = stop, self._archive.now
            size = sum(map(len, put.frames))
            block = Input(start, stop, put.chunksize, self._scribe.next, size)
            self._scribe.write(
                Record(PUT, job.key, BLOCK.pack(start, put.count, put.chunksize), tuple(put.frames)),
                partial(self._put, session, job, block),
                partial(self._not_put, session, job),
            )

    def _put(self, session: Session, job: DetachedJob, block: Input) -> None:
        if block.start != job.stored or not job.live:
            # What came before it was refused, or it is not wanted any more.
            self._scribe.write(Erase((block.ticket,)), essential=True)
            self._over(session, job)
            return
        job.store(block)
        job.enqueue(block.start)
        self._archive.wake(job)
        self._stored(session, job)

    def _not_put(self, session: Session, job: DetachedJob) -> None:
        if not job.rejected:
            self._full(session, job.key)
        job.rejected, job.fed = True, job.stored

    def _settled(self, session: Session, job: DetachedJob) -> None:
        """It is known what became of all that has come of the job's input."""
        if job.rejected:
            self._full(session, job.key)
        elif not self._over(session, job):
            self._stored(session, job)

    def _on_seal(self, session: Session, seal: m.Seal) -> None:
        job = self._find(session, seal.key)
        if job is None or job.rejected:
            return
        if job.count == seal.count:
            self._stored(session, job)
        elif self._over(session, job):
            return
        elif job.count >= 0 or seal.count != job.fed:
            self._archive.deny(session, seal.key, "E_STATE", f"the job has {job.fed} items, not {seal.count}")
        else:
            self._scribe.write(
                Record(SEAL, job.key, COUNTED.pack(seal.count)),
                partial(self._sealed, session, job, seal.count),
                partial(self._not_put, session, job),
            )

    def _sealed(self, session: Session, job: DetachedJob, count: int) -> None:
        if job.stored != count or self._over(session, job):
            return
        job.count, job.state = count, m.RUNNING
        self._stored(session, job)
        if job.complete:
            self._archive.end(job, m.DONE)
        else:
            self._archive.wake(job)


def _misfit(submit: m.Submit) -> str:
    """What is wrong with a Submit, or nothing."""
    if len(submit.key) != m.KEY:
        return f"a job's key has {m.KEY} bytes"
    digests = contents(submit)
    if not submit.function or len(digests) != len(submit.frames):
        return "a job comes with the contents that it names, at least its function"
    for digest, content in zip(digests, submit.frames, strict=True):
        if digest_of(content) != digest:
            return "what comes with the job is not what it names"
    return ""
