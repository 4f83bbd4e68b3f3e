"""Who comes back: after a lost connection, or to a broker that was started anew.

A producer states its pools and jobs once more, with the input that has no answer yet; a worker names
what it still has. What both of them mean lives on where it is. A broker that was started anew knows
neither, so jobs wait until the workers that their producers knew of are back, :data:`GRACE` seconds at most:
else what they hold would be run twice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from multihost_broker.answered import Answered
from multihost_broker.jobs import Job
from multihost_broker.ledger import Ledger
from multihost_broker.pools import Pool
from multihost_broker.processes import Processes
from multihost_broker.sessions import Session
from multihost_common import messages as m
from multihost_common.tables import unpack_rows

#: Seconds that producers and workers have to come back.
GRACE = 10.0


class Returns:
    """Reacts to peers that come back. ``joined`` is called with each worker that can be given work again."""

    def __init__(self, ledger: Ledger, processes: Processes, joined: Callable[[Session], None]) -> None:
        self._ledger = ledger
        self._processes = processes
        self._joined = joined
        self._scheduler = ledger.scheduler
        #: Producers whose jobs wait for workers, and until when; None: nobody has come yet.
        self._waiting: dict[int, Session] = {}
        self._grace_until: float | None = None
        #: Workers that have named what they hold, and may be told to drop it.
        self._claimants: dict[int, Session] = {}
        self.reactions: dict[type, Callable[[Session, Any], None]] = {
            m.Restated: self._on_restated,
            m.Held: self._on_held,
        }

    # -- Hello ---------------------------------------------------------------------------------------

    def began(self, session: Session, hello: m.Hello, now: float) -> None:
        """A session has begun; the producer's may have been known to an earlier start of this broker."""
        if self._grace_until is None:
            self._grace_until = now + GRACE
        if not hello.session:
            return
        if session.kind == m.PRODUCER:
            session.stated = set()
        elif session.kind == m.WORKER:
            # What it has comes first, else it is given more than it can do.
            session.returning = True

    def moved(self, session: Session) -> None:
        """The session goes on over a new connection: what was on its way over the old one is lost."""
        ledger = self._ledger
        if session.kind == m.PRODUCER:
            session.stated = set()
            for number in session.pools:
                for job in ledger.pools[number].jobs.values():
                    job.stale = job.answered.copy()
            return
        for share in session.shares.values():
            if share.pool.closing:
                # It may have said already that it has no children of it; else it is asked again anyhow.
                continue
            ledger.tell(session, share.pool.opened)
            ledger.tell(session, m.Grant(share.pool.number, share.slots))
            for job in share.pool.jobs.values():
                if session.number in job.workers:
                    ledger.tell(session, job.opened)
        for leases in session.leases.values():
            for lease in leases:
                lease.doubtful = True

    # -- producers -----------------------------------------------------------------------------------

    def states(self, producer: Session, number: int) -> bool:
        """The producer states this pool or job anew, it does not make it."""
        if producer.stated is None:
            return False
        producer.stated.add(number)
        return True

    def _on_restated(self, producer: Session, restated: m.Restated) -> None:
        stated, producer.stated = producer.stated, None
        if stated is None:
            return
        for number in list(producer.pools):
            pool = self._ledger.pools[number]
            if number not in stated:
                self._ledger.close_pool(pool, kill=True)
                continue
            for job in [each for each in pool.jobs.values() if each.number not in stated]:
                self._ledger.close_job(pool, job)
        for digest, pools in self._ledger.awaited.items():
            if not pools.isdisjoint(producer.pools):
                # What was sent when it was asked for may have been lost.
                self._ledger.tell(producer, m.Need(digest))
        self.await_workers(producer)

    def await_workers(self, producer: Session) -> None:
        """The producer has stated all of its jobs: they run when the workers are back that it knew of."""
        self._waiting[producer.number] = producer
        self._release()

    def awaits(self, producer: Session) -> bool:
        """Do its jobs wait for workers?"""
        return producer.number in self._waiting

    def _release(self) -> None:
        """Let the jobs run whose workers are back."""
        if not self._waiting:
            return
        workers = self._ledger.sessions.of_kind(m.WORKER)
        back = sum(each.former > 0 and each.claims_until is not None for each in workers)
        over = self._grace_until is not None and self._scheduler.now >= self._grace_until
        for producer in list(self._waiting.values()):
            if not over and back < producer.workers:
                continue
            del self._waiting[producer.number]
            self._processes.released(producer)
            for number in list(producer.pools):
                pool = self._ledger.pools[number]
                for job in list(pool.jobs.values()):
                    self._go_on(pool, job)

    def _go_on(self, pool: Pool, job: Job) -> None:
        """All of a resumed job is known."""
        if job.waits:
            job.waits = False
            job.high = job.fed
            for worker in list(self._claimants.values()):
                self._adopt(worker, pool, job)
            if job.opened.at_most_once:
                # Those that were not run yet cannot be told from those that were.
                for span, _ in job.take_out(0, job.fed):
                    job.lost.add(span.start, span.stop)
        lost, job.lost = job.lost, Answered()
        for start, stop in lost.ranges():
            text = "the broker was lost, and it may have been begun, and at_most_once is set"
            self._ledger.fail(pool, job, start, stop, m.Failed(reason=m.LOST, text=text))
        self._scheduler.ready(pool, job)
        self._ledger.settle(pool, job)

    # -- workers -------------------------------------------------------------------------------------

    def _on_held(self, worker: Session, held: m.Held) -> None:
        pools, items = unpack_rows(held.frames[0], 2), unpack_rows(held.frames[1], 4)
        if pools is None or items is None:
            text = "Held names pools by two, leases by four 64-bit integers each"
            self._ledger.refuse(worker.peer, "E_FIELD", text)
            return
        claims = worker.claims
        claims.pools = {number: children for number, children in pools}  # noqa: C416 - rows are tuples of any length
        claims.items = {}
        for number, start, count, attempt in items:
            if count:
                claims.items.setdefault(number, []).append((start, start + count, attempt))
        worker.claims_until = self._scheduler.now + GRACE
        self._claimants[worker.number] = worker
        self._give_up_doubtful(worker)
        for number in list(claims.items):
            found = self._ledger.find(number)
            if found is not None and not found[1].waits:
                pool, job = found
                self._adopt(worker, pool, job)
                self._scheduler.ready(pool, job)
        self._release()
        if worker.returning:
            worker.returning = False
            self._joined(worker)
        else:
            # While its connection was gone it was given nothing.
            self._scheduler.revive(worker)

    def _give_up_doubtful(self, worker: Session) -> None:
        """What was leased over the old connection, and is not named, never arrived, or its result was lost."""
        for number, leases in list(worker.leases.items()):
            covered: dict[int, Answered] = {}
            for start, stop, attempt in worker.claims.items.get(number, ()):
                covered.setdefault(attempt, Answered()).add(start, stop)
            for lease in [each for each in leases if each.doubtful]:
                lease.doubtful = False
                start, stop = lease.span.start, lease.span.stop
                for low, high in covered.get(lease.attempt, Answered()).missing(start, stop):
                    for taken in leases.take(low, high, lease.attempt):
                        leases.share.hold(-len(taken.span))
                        self._ledger.lose(worker, leases.share.pool, leases.job, taken)
            # What it has and is leased to it is no claim.
            self._scheduler.ready(leases.share.pool, leases.job)
            self._ledger.settle(leases.share.pool, leases.job)

    def _adopt(self, worker: Session, pool: Pool, job: Job) -> None:
        """Lease to the worker what it has of the job already, as far as nobody else has it."""
        claimed = worker.claims.items.pop(job.number, None)
        if claimed is None:
            return
        share = self._scheduler.regain(pool, worker, worker.claims.pools.get(pool.number, 0))
        held = worker.leases.get(job.number)
        for start, stop, attempt in claimed:
            if not 0 < attempt <= job.attempts:
                # No broker has ever leased it.
                continue
            kept = Answered()
            for low, high in held.covers(start, stop) if held else ():
                kept.add(low, high)
            for low, high in self._scheduler.adopt(share, job, start, stop, attempt):
                kept.add(low, high)
            for low, high in kept.missing(start, stop):
                # It may run there for ever, or for long, and keep a child from what is wanted.
                self._ledger.tell(worker, m.Cancel(job.number, low, high - low, True))
        # Now it may send the results that it has kept.
        self._scheduler.introduce(job, worker)

    # -- time ----------------------------------------------------------------------------------------

    def deadline(self) -> float | None:
        """When :meth:`tick` has something to do."""
        times = [each.claims_until for each in self._claimants.values() if each.claims_until is not None]
        if self._waiting and self._grace_until is not None:
            times.append(self._grace_until)
        return min(times, default=None)

    def tick(self) -> None:
        """What nobody came back for is not waited for any longer."""
        self._release()
        now = self._scheduler.now
        for worker in list(self._claimants.values()):
            if worker.claims_until is not None and worker.claims_until <= now:
                del self._claimants[worker.number]
                self._clear(worker)

    def _clear(self, worker: Session) -> None:
        """Have the worker drop what is not of any pool or job here, and no process that is waited for."""
        self._processes.clear(worker)
        for number in worker.claims.items:
            if self._ledger.find(number) is None:
                self._ledger.tell(worker, m.Cancel(number, 0, 0, True))
                self._ledger.tell(worker, m.CloseJob(number))
        for number in worker.claims.pools:
            if number not in worker.shares:
                self._ledger.tell(worker, m.ClosePool(number, True))
        worker.claims.items, worker.claims.pools = {}, {}

    def ended(self, session: Session) -> None:
        """The session is over."""
        self._waiting.pop(session.number, None)
        self._claimants.pop(session.number, None)
