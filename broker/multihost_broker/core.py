"""The broker's core: told messages and the time, it answers with messages to send.

It is composed of :mod:`sessions` (who is here), :mod:`pools` (who works for whom), :mod:`jobs` and
:mod:`leases` (which item is where), :mod:`blobs` (content by digest). This file is the reactor: one
method for each message, each read from top to bottom as "what happens when ... comes".
"""

from __future__ import annotations

import json
import sys
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from multihost_broker.events import Action, Drop, Event, Gone, Note, Peer, Received, Send, Tick
from multihost_broker.jobs import MAX_DEATHS, Job
from multihost_broker.pools import Pool, Scheduler
from multihost_broker.sessions import HEARTBEAT, Session, Sessions
from multihost_broker.status import status
from multihost_common import messages as m
from multihost_common.blobs import Blobs
from multihost_common.blocks import Block

#: A lease that so many beats in a row did not name returns: its message was lost on the way.
MISSED_BEATS = 3

INFO, WARNING = 20, 30


@dataclass(slots=True)
class CoreConfig:
    """What the shell tells the core once."""

    #: Rises with every start of the broker.
    epoch: int = 1
    #: Largest frame the sockets take, bytes.
    max_frame: int = 1 << 32
    #: Python minor version that peers must have, "3.11"; the first peer's if empty.
    python: str = ""


class Core:
    """See the module. All state changes go through :meth:`handle`, ever."""

    def __init__(self, config: CoreConfig | None = None) -> None:
        self.config = config or CoreConfig()
        self.python = self.config.python
        self.sessions = Sessions()
        self.blobs = Blobs()
        self._out: list[Action] = []
        self.scheduler = Scheduler(self._emit, self.blobs)
        self.pools = self.scheduler.pools
        #: Job number -> its pool, for all open jobs.
        self.owners: dict[int, Pool] = {}
        self._next_beat = 0.0
        self._reactions: dict[type, Callable[[Session, Any], None]] = {
            m.Beat: self._on_beat,
            m.Bye: self._on_bye,
            m.Blob: self._on_blob,
            m.Need: self._on_need,
            m.OpenPool: self._on_open_pool,
            m.ClosePool: self._on_close_pool,
            m.PoolClosed: self._on_pool_closed,
            m.PoolBroken: self._on_pool_broken,
            m.OpenJob: self._on_open_job,
            m.Feed: self._on_feed,
            m.EndJob: self._on_end_job,
            m.Cancel: self._on_cancel,
            m.Returned: self._on_returned,
            m.Result: self._on_result,
            m.Died: self._on_died,
            m.Output: self._on_output,
            m.Drain: self._on_drain,
            m.Ask: self._on_ask,
        }

    def _emit(self, action: Action) -> None:
        self._out.append(action)

    def _tell(self, session: Session, message: m.Message) -> None:
        self._out.append(Send(session.peer, message))

    # -- the door ----------------------------------------------------------------------------------

    def handle(self, event: Event, now: float) -> list[Action]:
        """Take one event; what is to be done about it."""
        self.scheduler.now = now
        if type(event) is Received:
            self._on_message(event.peer, event.role, event.message, now)
        elif type(event) is Gone:
            session = self.sessions.by_peer.get(event.peer)
            if session is not None:
                session.gone_at = now
        elif type(event) is Tick:
            self._on_tick(now)
        out, self._out = self._out, []
        return out

    def deadline(self) -> float | None:
        """When :class:`Tick` is due."""
        return self._next_beat if self.sessions.by_number else None

    def _on_message(self, peer: Peer, role: str, message: m.Message, now: float) -> None:
        kind = type(message)
        if role not in message.senders:
            self._refuse(peer, "E_ROLE", f"a {role} token may not send {kind.__name__}")
            return
        if kind is m.Hello:
            self._on_hello(peer, role, message, now)  # type: ignore[arg-type]
            return
        session = self.sessions.by_peer.get(peer)
        if session is None:
            if kind is not m.Bye:
                self._refuse(peer, "E_HELLO", "say Hello first")
            return
        session.heard = now
        reaction = self._reactions.get(kind)
        if reaction is None:
            self._refuse(peer, "E_OP", f"the broker does not take {kind.__name__}")
            return
        reaction(session, message)

    def _refuse(self, peer: Peer, reason: str, text: str) -> None:
        self._out.append(Send(peer, m.Refused(reason, text)))

    # -- sessions ----------------------------------------------------------------------------------

    def _on_hello(self, peer: Peer, role: str, hello: m.Hello, now: float) -> None:
        refusal = self._misfit(role, hello)
        if refusal:
            self._refuse(peer, *refusal)
            return
        if not self.sessions.by_number:
            self._next_beat = now + HEARTBEAT
        session = self.sessions.resume(peer, hello, now)
        if session is None:
            known = self.sessions.by_peer.get(peer)
            if known is not None:
                self._end(known, "said Hello again")
            session = self.sessions.open(peer, hello, now)
            if hello.kind != m.ADMIN:
                self._out.append(Note(INFO, f"{hello.kind} {session.number} is here: {_name(session)}"))
        slots, workers = self._capacity()
        if hello.kind == m.WORKER:
            slots, workers = slots + hello.slots, workers + 1
        self._tell(
            session,
            m.Welcome(self.config.epoch, session.number, HEARTBEAT, self.config.max_frame, slots, workers),
        )
        if hello.kind == m.WORKER:
            self.scheduler.join(session)
            self._announce()

    def _misfit(self, role: str, hello: m.Hello) -> tuple[str, str] | None:
        if hello.kind not in (m.PRODUCER, m.WORKER, m.ADMIN):
            return "E_FIELD", f"there is no kind of peer called {hello.kind!r}"
        if role != hello.kind and not (hello.kind == m.ADMIN and role in (m.PRODUCER, m.WORKER)):
            return "E_ROLE", f"a {role} token does not make a {hello.kind}; use a {hello.kind} token"
        if hello.protocol != m.PROTOCOL_VERSION:
            return "E_VERSION", (
                f"{hello.host} speaks protocol {hello.protocol}, the broker {m.PROTOCOL_VERSION}: "
                "install the same multihost version on both"
            )
        if hello.kind == m.ADMIN:
            return None
        if not self.python:
            self.python = hello.python
        if hello.python != self.python:
            return "E_PYTHON", (
                f"{hello.host} runs Python {hello.python}, this cluster runs {self.python}: "
                "code pickled by one minor version is not safe in another, so use the same on all hosts"
            )
        return None

    def _capacity(self) -> tuple[int, int]:
        workers = [each for each in self.sessions.of_kind(m.WORKER) if not each.draining]
        return sum(each.slots for each in workers), len(workers)

    def _announce(self) -> None:
        capacity = m.Capacity(*self._capacity())
        for session in self.sessions.of_kind(m.PRODUCER):
            self._tell(session, capacity)

    def _on_tick(self, now: float) -> None:
        for session in self.sessions.lost(now):
            self._end(session, f"has been silent for {now - session.heard:.0f} s")
        self._next_beat = now + HEARTBEAT
        for session in self.sessions.by_number.values():
            self._tell(session, m.Beat())
        for pool in list(self.pools.values()):
            if pool.pending and not pool.closing:
                self.scheduler.spread(pool)

    def _on_bye(self, session: Session, bye: m.Bye) -> None:
        self._end(session, bye.reason or "left")

    def _end(self, session: Session, why: str) -> None:
        """The session is over: a producer's work is cancelled, a worker's returns."""
        self.sessions.close(session)
        if session.kind != m.ADMIN:
            self._out.append(Note(INFO, f"{session.kind} {session.number} ({_name(session)}) {why}"))
        self._out.append(Drop(session.peer, why))
        if session.kind == m.PRODUCER:
            for number in list(session.pools):
                self._close_pool(self.pools[number], kill=True)
        elif session.kind == m.WORKER:
            self._worker_left(session)

    def _worker_left(self, worker: Session) -> None:
        busy = {}
        for pool, job, lease in self.scheduler.leave(worker):
            job.workers.discard(worker.number)
            span = lease.span
            if job.opened.at_most_once:
                for start, stop in job.answered.missing(span.start, span.stop):
                    self._fail(pool, job, start, stop - start, m.LOST, host=worker.host)
            else:
                job.put_back(span)
            busy[job.number] = (pool, job)
        for pool, job in busy.values():
            self._settle(pool, job)
            self.scheduler.ready(pool, job)
        for pool in list(self.pools.values()):
            self._confirm(pool, worker)
        self._announce()

    def _on_beat(self, worker: Session, beat: m.Beat) -> None:
        """Leases live only while they are named: the message that carried one may have been lost."""
        if worker.kind != m.WORKER or not beat.frames:
            return
        named = array("Q")
        if len(beat.frames[0]) % 32:
            self._refuse(worker.peer, "E_FIELD", "a beat names leases by four 64-bit integers each")
            return
        named.frombytes(beat.frames[0])
        if sys.byteorder == "big":
            named.byteswap()
        held = {(named[i], named[i + 3]) for i in range(0, len(named), 4)}
        for number, leases in worker.leases.items():
            for lease in list(leases):
                lease.missed = 0 if (number, lease.attempt) in held else lease.missed + 1
                if lease.missed >= MISSED_BEATS:
                    self._take_back(worker, number, lease.span.start, lease.span.stop, lease.attempt)

    # -- content -----------------------------------------------------------------------------------

    def _on_blob(self, session: Session, blob: m.Blob) -> None:
        self.blobs.put(blob.digest, blob.frames[0])
        for pool in list(self.pools.values()):
            if blob.digest in (pool.opened.setup, pool.opened.code) and pool.opened.eager:
                for worker in list(self.scheduler.free.values()):
                    self.scheduler.open_eagerly(pool, worker)
            for job in list(pool.pending.values()):
                self.scheduler.ready(pool, job)

    def _on_need(self, worker: Session, need: m.Need) -> None:
        worker.digests.discard(need.digest)
        self.scheduler.give_blobs(worker, (need.digest,))

    # -- pools -------------------------------------------------------------------------------------

    def _on_open_pool(self, producer: Session, opened: m.OpenPool) -> None:
        number = producer.number << 32 | opened.pool
        if number in self.pools or opened.pool >= 1 << 32:
            self._refuse(producer.peer, "E_STATE", f"pool {opened.pool} is open already")
            return
        opened.pool = number
        pool = self.pools[number] = Pool(number, producer, opened)
        producer.pools.add(number)
        for digest in (opened.setup, opened.code):
            self.blobs.use(digest)
            if digest and digest not in self.blobs:
                self._tell(producer, m.Need(digest))
        if opened.eager:
            for worker in list(self.scheduler.free.values()):
                self.scheduler.open_eagerly(pool, worker)

    def _on_close_pool(self, producer: Session, close: m.ClosePool) -> None:
        pool = self.pools.get(producer.number << 32 | close.pool)
        if pool is None:
            self._tell(producer, m.PoolClosed(close.pool))
        else:
            self._close_pool(pool, close.kill)

    def _close_pool(self, pool: Pool, kill: bool) -> None:
        pool.kill = pool.kill or kill
        for job in list(pool.jobs.values()) if kill else ():
            self._close_job(pool, job)
        if not pool.closing and not pool.jobs:
            pool.closing = True
            pool.unconfirmed = set(pool.workers)
            self._order_close(pool)
        elif pool.closing and kill:
            self._order_close(pool)
        else:
            # What is open still runs; the last job's end comes here again.
            pool.draining = True
            return
        self._confirmed(pool)

    def _order_close(self, pool: Pool) -> None:
        for worker in pool.workers.values():
            self._tell(worker, m.ClosePool(pool.number, pool.kill))

    def _on_pool_closed(self, worker: Session, closed: m.PoolClosed) -> None:
        pool = self.pools.get(closed.pool)
        if pool is not None and pool.closing:
            self._confirm(pool, worker)

    def _confirm(self, pool: Pool, worker: Session) -> None:
        pool.unconfirmed.discard(worker.number)
        if pool.closing:
            self._confirmed(pool)

    def _confirmed(self, pool: Pool) -> None:
        if pool.unconfirmed or pool.number not in self.pools:
            return
        self.scheduler.remove(pool)
        pool.owner.pools.discard(pool.number)
        self.blobs.release(pool.opened.setup)
        self.blobs.release(pool.opened.code)
        if pool.owner.number in self.sessions.by_number:
            self._tell(pool.owner, m.PoolClosed(pool.number & 0xFFFF_FFFF))

    def _on_pool_broken(self, worker: Session, broken: m.PoolBroken) -> None:
        pool = self.pools.get(broken.pool)
        if pool is not None:
            self._tell(pool.owner, m.PoolBroken(pool.number & 0xFFFF_FFFF, broken.text))

    # -- jobs --------------------------------------------------------------------------------------

    def _job(self, number: int) -> tuple[Pool, Job] | None:
        pool = self.owners.get(number)
        return None if pool is None else (pool, pool.jobs[number])

    def _on_open_job(self, producer: Session, opened: m.OpenJob) -> None:
        number = producer.number << 32 | opened.job
        pool = self.pools.get(producer.number << 32 | opened.pool)
        if pool is None or pool.closing or number in self.owners or opened.job >= 1 << 32:
            self._refuse(producer.peer, "E_STATE", f"job {opened.job} cannot be opened")
            return
        opened.job, opened.pool = number, pool.number
        pool.jobs[number] = Job(number, opened)
        self.owners[number] = pool
        for digest in (opened.function, opened.code):
            self.blobs.use(digest)
            if digest and digest not in self.blobs:
                self._tell(producer, m.Need(digest))

    def _on_feed(self, producer: Session, feed: m.Feed) -> None:
        found = self._job(producer.number << 32 | feed.job)
        if found is None:
            return
        pool, job = found
        block = Block(feed.start, feed.count, feed.chunksize, feed.frames)
        wrong = block.check()
        if wrong:
            self._refuse(producer.peer, "E_FIELD", wrong)
        elif not job.feed(block):
            self._refuse(producer.peer, "E_STATE", f"job {feed.job} continues at item {job.fed}")
        else:
            self.scheduler.ready(pool, job)

    def _on_end_job(self, producer: Session, end: m.EndJob) -> None:
        found = self._job(producer.number << 32 | end.job)
        if found is None:
            return
        pool, job = found
        if end.count != job.fed:
            self._refuse(producer.peer, "E_STATE", f"job {end.job} has {job.fed} items, not {end.count}")
            return
        job.count = end.count
        self._settle(pool, job)

    def _settle(self, pool: Pool, job: Job) -> None:
        """If every item has its answer, say so and forget the job."""
        if job.done() and job.number in pool.jobs:
            self._tell(pool.owner, m.EndResults(job.number & 0xFFFF_FFFF, job.count))
            self._close_job(pool, job)

    def _close_job(self, pool: Pool, job: Job) -> None:
        del pool.jobs[job.number], self.owners[job.number]
        pool.pending.pop(job.number, None)
        for number in job.workers:
            worker = self.sessions.by_number.get(number)
            if worker is None:
                continue
            leases = worker.leases.pop(job.number, None)
            if leases:
                self.scheduler.unhold(pool, worker, leases.items)
                self._tell(worker, m.Cancel(job.number, 0, 0, True))
            self._tell(worker, m.CloseJob(job.number))
            if leases and not pool.closing:
                self.scheduler.refill(pool, worker)
        self.blobs.release(job.opened.function)
        self.blobs.release(job.opened.code)
        if pool.draining and not pool.jobs and not pool.closing:
            self._close_pool(pool, pool.kill)

    def _on_cancel(self, producer: Session, cancel: m.Cancel) -> None:
        found = self._job(producer.number << 32 | cancel.job)
        if found is None:
            return
        pool, job = found
        if cancel.count == 0:
            self._close_job(pool, job)
            return
        start, stop = cancel.start, min(cancel.start + cancel.count, job.fed)
        if start >= stop:
            return
        job.drop_ready(start, stop)
        for number in job.workers:
            worker = self.sessions.by_number.get(number)
            leases = worker.leases.get(job.number) if worker else None
            taken = leases.take(start, stop) if leases else ()
            if worker is not None and taken:
                self.scheduler.unhold(pool, worker, sum(len(lease.span) for lease in taken))
                self._tell(worker, m.Cancel(job.number, start, stop - start, cancel.kill))
                self.scheduler.refill(pool, worker)
        self._fail(pool, job, start, stop - start, m.CANCELLED)
        self._settle(pool, job)

    # -- results -----------------------------------------------------------------------------------

    def _take_back(self, worker: Session, number: int, start: int, stop: int, attempt: int) -> None:
        """The worker does not hold these items any more, and they have not been run."""
        found = self._job(number)
        leases = worker.leases.get(number)
        if found is None or not leases:
            return
        pool, job = found
        for lease in leases.take(start, stop, attempt):
            self.scheduler.unhold(pool, worker, len(lease.span))
            if lease.isolate:
                job.suspect(lease.span)
            else:
                job.put_back(lease.span)
        self.scheduler.ready(pool, job)

    def _on_returned(self, worker: Session, back: m.Returned) -> None:
        self._take_back(worker, back.job, back.start, back.start + back.count, back.attempt)
        found = self._job(back.job)
        if found is not None:
            # It gave them back because others are idle: it is served last.
            self.scheduler.refill(found[0], worker)

    def _on_result(self, worker: Session, result: m.Result) -> None:
        """The first result of any attempt wins; what comes later is dropped."""
        found = self._job(result.job)
        if found is None:
            return
        pool, job = found
        start, stop = result.start, result.start + result.count
        if stop > job.fed:
            self._refuse(worker.peer, "E_STATE", f"job {result.job} has {job.fed} items")
            return
        leases = worker.leases.get(result.job)
        taken = leases.take(start, stop) if leases else []
        count = sum(len(lease.span) for lease in taken)
        if count:
            self.scheduler.unhold(pool, worker, count)
        job.pace.measure(result.count, result.spent)
        fresh = job.answered.add(start, stop)
        if count != result.count:
            self._forestall(pool, job, worker, start, stop)
        if fresh:
            result.job &= 0xFFFF_FFFF
            self._tell(pool.owner, result)
            self._settle(pool, job)
        if worker.number in pool.workers:
            self.scheduler.refill(pool, worker)

    def _forestall(self, pool: Pool, job: Job, teller: Session, start: int, stop: int) -> None:
        """A result came from a worker whose lease had been given up: nobody else needs to run it."""
        job.drop_ready(start, stop)
        for number in list(job.workers):
            worker = self.sessions.by_number.get(number)
            leases = worker.leases.get(job.number) if worker else None
            taken = leases.take(start, stop) if leases and worker is not teller else ()
            if worker is not None and taken:
                self.scheduler.unhold(pool, worker, sum(len(lease.span) for lease in taken))
                self._tell(worker, m.Cancel(job.number, start, stop - start, False))

    def _on_died(self, worker: Session, died: m.Died) -> None:
        """A child died of one item: only that item is charged with it."""
        found = self._job(died.job)
        leases = worker.leases.get(died.job)
        if found is None or not leases:
            return
        pool, job = found
        item = died.item
        taken = leases.take(item, item + 1, died.attempt)
        if not taken:
            return
        self.scheduler.unhold(pool, worker, 1)
        deaths = job.deaths[item] = job.deaths.get(item, 0) + 1
        final = deaths >= MAX_DEATHS or died.reason == m.TIMED_OUT or job.opened.at_most_once
        if final:
            self._fail(pool, job, item, 1, died.reason, died)
            self._settle(pool, job)
        else:
            self._out.append(Note(WARNING, f"item {item} of job {job.number} runs again: {died.text}"))
            job.suspect(taken[0].span)
        if job.number in pool.jobs:
            self.scheduler.ready(pool, job)
        self.scheduler.refill(pool, worker)

    def _fail(
        self,
        pool: Pool,
        job: Job,
        start: int,
        count: int,
        reason: str,
        died: m.Died | None = None,
        host: str = "",
    ) -> None:
        """These items get no result."""
        for low, high in job.answered.add(start, start + count):
            failed = m.Failed(job.number & 0xFFFF_FFFF, low, high - low, reason, job.deaths.get(low, 0), host)
            if died is not None:
                failed.host, failed.pid, failed.signal = died.host or pool.owner.host, died.pid, died.signal
                failed.exitcode, failed.rss, failed.oom = died.exitcode, died.rss, died.oom
                failed.text = died.text
            self._tell(pool.owner, failed)

    # -- the rest ----------------------------------------------------------------------------------

    def _on_output(self, worker: Session, output: m.Output) -> None:
        pool = self.pools.get(output.pool)
        if pool is not None:
            output.pool &= 0xFFFF_FFFF
            self._tell(pool.owner, output)

    def _on_drain(self, worker: Session, drain: m.Drain) -> None:
        self.scheduler.retire(worker)
        self._announce()

    def _on_ask(self, session: Session, ask: m.Ask) -> None:
        answer = status(self) if ask.what == "status" else {"ok": True}
        self._tell(session, m.Answer(ask.what, (json.dumps(answer).encode(),)))


def _name(session: Session) -> str:
    slots = f", {session.slots} slots" if session.kind == m.WORKER else ""
    return f"{session.name or '?'} on {session.host or '?'}, pid {session.pid}{slots}"
