"""What operators ask about detached jobs and workers, and what they order."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Any

from multihost_broker.detached.archive import Archive
from multihost_broker.detached.books import DetachedJob
from multihost_broker.events import INFO
from multihost_broker.ledger import Ledger
from multihost_broker.sessions import Session
from multihost_common import messages as m

#: Jobs and dead letters told of in one answer: the latest ones.
MOST = 10_000

#: Characters of a key that have to be given, at least.
FEWEST = 4


class Orders:
    """Answers Ask, but for the questions about the broker itself."""

    def __init__(self, ledger: Ledger, archive: Archive) -> None:
        self._ledger = ledger
        self._archive = archive
        self._scribe = archive.scribe
        #: What is asked -> who answers.
        self.verbs: dict[str, Callable[[Session, m.Ask], None]] = {
            "jobs": self._jobs,
            "dead": self._dead,
            "cancel": self._cancel,
            "collect": self._collect,
            "retry": self._retry,
            "drop": self._drop,
            "drain": self._drain,
        }

    def _answer(self, session: Session, what: str, answer: dict[str, Any]) -> None:
        self._ledger.reach(session, m.Answer(what, (json.dumps(answer).encode(),)))

    def _confirm(self, session: Session, what: str, job: DetachedJob, count: int) -> None:
        """Answer with the number of items, once what was ordered before is durable."""
        answer = {"key": job.key.hex(), "count": count}
        self._scribe.follow(partial(self._answer, session, what, answer))

    def _find(self, session: Session, about: str) -> DetachedJob | None:
        """The one job whose key begins so; else it is told why there is none."""
        found = [job for key, job in self._archive.jobs.items() if key.hex().startswith(about.lower())]
        if len(found) == 1 and len(about) >= FEWEST:
            return found[0]
        if not found:
            text = f"there is no detached job {about} here; multihost jobs lists those there are"
        else:
            text = (
                f"{len(found)} jobs begin with {about!r}; give more of the key, at least {FEWEST} characters"
            )
        self._ledger.refuse(session.peer, "E_JOB", text)
        return None

    def _meant(self, session: Session, about: str) -> list[DetachedJob] | None:
        """The job of this key, or all of them for none; None: it was told that there is no such job."""
        if not about:
            return list(self._archive.jobs.values())
        found = self._find(session, about)
        return None if found is None else [found]

    # -- jobs --------------------------------------------------------------------------------------

    def _jobs(self, session: Session, ask: m.Ask) -> None:
        jobs = self._meant(session, ask.about)
        if jobs is not None:
            self._answer(session, ask.what, {"jobs": [self._job(job) for job in jobs[-MOST:]]})

    def _job(self, job: DetachedJob) -> dict[str, Any]:
        until = self._archive.expires(job)
        return {
            "key": job.key.hex(),
            "name": job.opened.name,
            "state": job.state,
            "count": job.count if job.count >= 0 else None,
            "fed": job.stored,
            "answered": job.answered.total,
            "failed": job.failed,
            "dead": len(job.letters()),
            "submitted": job.submitted,
            "ended": job.ended or None,
            "kept_until": until if until < float("inf") else None,
            "bytes": sum(block.size for block in job.blocks.values()),
            "text": job.text,
        }

    def _cancel(self, session: Session, ask: m.Ask) -> None:
        job = self._find(session, ask.about)
        if job is None:
            return

        def answer(left: int) -> None:
            self._answer(session, ask.what, {"key": job.key.hex(), "count": left, "state": job.state})

        self._archive.stop(job, m.STOPPED, then=answer)

    def _collect(self, session: Session, ask: m.Ask) -> None:
        job = self._find(session, ask.about)
        if job is not None:
            self._archive.collect(job)
            self._confirm(session, ask.what, job, job.answered.total)

    # -- dead letters ------------------------------------------------------------------------------

    def _dead(self, session: Session, ask: m.Ask) -> None:
        jobs = self._meant(session, ask.about)
        if jobs is not None:
            letters = [_letter(job, item) for job in jobs for item in job.letters()]
            self._answer(session, ask.what, {"dead": letters[-MOST:]})

    def _letters(self, session: Session, ask: m.Ask) -> tuple[DetachedJob, list[int]] | None:
        """``KEY`` or ``KEY:ITEM``: the job, and its dead letters that are meant."""
        key, _, item = ask.about.partition(":")
        job = self._find(session, key)
        if job is None:
            return None
        items = job.letters()
        if item:
            items = [each for each in items if str(each) == item]
        if item and not items:
            text = f"item {item} of job {key} is no dead letter; multihost dead ls lists those there are"
            self._ledger.refuse(session.peer, "E_JOB", text)
            return None
        return job, items

    def _retry(self, session: Session, ask: m.Ask) -> None:
        found = self._letters(session, ask)
        if found is None:
            return
        job, items = found
        state = job.ending or job.state
        if state in (m.STOPPED, m.BROKEN):
            text = f"job {job.key.hex()} is {state}; submit it anew"
            self._ledger.refuse(session.peer, "E_STATE", text)
            return
        if items:
            self._archive.retry(job, items)
        self._confirm(session, ask.what, job, len(items))

    def _drop(self, session: Session, ask: m.Ask) -> None:
        found = self._letters(session, ask)
        if found is None:
            return
        job, items = found
        for item in items:
            self._archive.bury(job, item)
        self._confirm(session, ask.what, job, len(items))

    # -- workers -----------------------------------------------------------------------------------

    def _drain(self, session: Session, ask: m.Ask) -> None:
        if session.role != m.ADMIN:
            self._ledger.refuse(session.peer, "E_ROLE", "only an admin token may drain workers")
            return
        workers = [
            each
            for each in self._ledger.sessions.of_kind(m.WORKER)
            if ask.about and ask.about in (each.host, each.name)
        ]
        if not workers:
            text = f"there is no worker on a host or of the name {ask.about!r}; multihost status lists them"
            self._ledger.refuse(session.peer, "E_JOB", text)
            return
        for worker in workers:
            self._ledger.note(INFO, f"worker {worker.number} ({worker.host}) is asked to leave")
            self._ledger.tell(worker, m.Leave())
        told = [{"session": each.number, "host": each.host, "name": each.name} for each in workers]
        self._answer(session, ask.what, {"workers": told})


def _letter(job: DetachedJob, item: int) -> dict[str, Any]:
    letter = job.dead[item]
    failed = letter.failed
    return {
        "key": job.key.hex(), "item": item, "name": job.opened.name, "reason": failed.reason, "host": failed.host,
        "pid": failed.pid, "signal": failed.signal, "exitcode": failed.exitcode, "rss": failed.rss,
        "oom": failed.oom, "deaths": failed.deaths, "text": failed.text, "since": letter.since,
    }  # fmt: skip
