"""Who asks for the answers of detached jobs: they are read from the journal, a few MiB at a time."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import islice
from typing import Any

from multihost_broker.detached.archive import Archive
from multihost_broker.detached.books import RANGE, Answer, DetachedJob
from multihost_broker.journal.records import Record, Spooled
from multihost_broker.ledger import Ledger
from multihost_broker.sessions import Session
from multihost_common import messages as m
from multihost_common.codec import encode

#: Bytes and records that one Fetch is answered with, the bytes but for the last record.
MOST_BYTES = 4 << 20
MOST_RECORDS = 512


class Fetches:
    """Reacts to Fetch."""

    def __init__(self, ledger: Ledger, archive: Archive) -> None:
        self._ledger = ledger
        self._archive = archive
        archive.changed = self._tell
        self.reactions: dict[type, Callable[[Session, Any], None]] = {m.Fetch: self._on_fetch}

    def _on_fetch(self, session: Session, fetch: m.Fetch) -> None:
        job = self._archive.jobs.get(fetch.key)
        if job is None:
            text = "there is no such job here, or it has been collected"
            self._archive.deny(session, fetch.key, "E_JOB", text)
            return
        job.watchers.pop(session.number, None)
        if fetch.wait and not job.ended and next(job.answers(fetch.cursor), None) is None:
            job.watchers[session.number] = (session, fetch.cursor)
        else:
            self._serve(session, job, fetch.cursor)

    def _tell(self, job: DetachedJob) -> None:
        watchers, job.watchers = job.watchers, {}
        for session, cursor in watchers.values():
            self._serve(session, job, cursor)

    def _serve(self, session: Session, job: DetachedJob, cursor: int) -> None:
        wanted, size = [], 0
        for answer in islice(job.answers(cursor), MOST_RECORDS):
            wanted.append(answer)
            size += answer.size
            if size >= MOST_BYTES:
                break
        if wanted:
            tickets = tuple(answer.ticket for answer in wanted)
            self._archive.scribe.read(tickets, partial(self._send, session, job, wanted))
        else:
            self._fetched(session, job, cursor)

    def _send(
        self, session: Session, job: DetachedJob, wanted: list[Answer], records: dict[int, Record]
    ) -> None:
        if session.number not in self._ledger.sessions.by_number:
            return
        if job.gone:
            self._archive.deny(session, job.key, "E_JOB", "the job has been collected or dropped meanwhile")
            return
        for answer in wanted:
            record = records.get(answer.ticket)
            # A dead letter may have been retried or dropped meanwhile.
            if record is not None or next(job.answers(answer.ticket), None) == answer:
                self._ledger.tell(session, m.Part(job.key, answer.ticket, _frames(answer, record)))
        self._fetched(session, job, wanted[-1].ticket + 1)

    def _fetched(self, session: Session, job: DetachedJob, cursor: int) -> None:
        over = bool(job.ended) and next(job.answers(cursor), None) is None
        fetched = m.Fetched(
            job.key, cursor, job.total, job.answered.total, job.state, over, job.text[: m.TEXT]
        )
        self._ledger.reach(session, fetched)


def _frames(answer: Answer, record: Record | None) -> tuple[Any, ...]:
    """The message that was recorded; if that was damaged, one that says so."""
    if record is None or isinstance(record.payload, Spooled):
        text = "its result was damaged on the broker's disk"
        failed = m.Failed(0, answer.start, answer.stop - answer.start, m.LOST, text=text)
        return tuple(encode(failed))
    return record.header[RANGE.size :], *record.payload
