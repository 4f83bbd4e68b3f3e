"""What workers say: results, deaths, what they hold, what they give back, that they leave."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from multihost_broker.events import WARNING
from multihost_broker.jobs import MAX_DEATHS, Job
from multihost_broker.leases import Leases
from multihost_broker.ledger import Ledger
from multihost_broker.pools import Pool
from multihost_broker.sessions import HOUSE, NUMBER, Session
from multihost_common import messages as m
from multihost_common.tables import unpack_rows

#: A lease that so many beats in a row did not name returns: its message was lost on the way.
MISSED_BEATS = 3


class Workers:
    """Reacts to workers. ``changed`` is called when there are more or fewer slots than before."""

    def __init__(self, ledger: Ledger, changed: Callable[[], None]) -> None:
        self._ledger = ledger
        self._scheduler = ledger.scheduler
        self._changed = changed
        self.reactions: dict[type, Callable[[Session, Any], None]] = {
            m.Need: self._on_need,
            m.PoolClosed: self._on_pool_closed,
            m.PoolBroken: self._on_pool_broken,
            m.Returned: self._on_returned,
            m.Result: self._on_result,
            m.Died: self._on_died,
            m.Output: self._on_output,
            m.Drain: self._on_drain,
        }

    # -- coming and going --------------------------------------------------------------------------

    def joined(self, worker: Session) -> None:
        """A worker is here."""
        self._scheduler.join(worker)
        self._changed()

    def ended(self, worker: Session) -> None:
        """The session is over: what it held returns."""
        pools = [share.pool for share in worker.shares.values()]
        touched: dict[int, tuple[Pool, Job]] = {}
        for pool, job, lease in self._scheduler.leave(worker):
            self._ledger.lose(worker, pool, job, lease)
            touched[job.number] = (pool, job)
        for pool in pools:
            for job in pool.jobs.values():
                # It need not be told of its end.
                job.workers.discard(worker.number)
            self._ledger.confirm(pool, worker)
        for pool, job in touched.values():
            self._scheduler.ready(pool, job)
            self._ledger.settle(pool, job)
        for pool in pools:
            if pool.number in self._ledger.pools:
                self._scheduler.spread(pool)
        self._changed()

    def beat(self, worker: Session, beat: m.Beat) -> None:
        """Leases live only while they are named: the message that carried one may have been lost."""
        if not beat.frames:
            return
        rows = unpack_rows(beat.frames[0], 4)
        if rows is None:
            text = "a beat names leases by four 64-bit integers each"
            self._ledger.refuse(worker.peer, "E_FIELD", text)
            return
        held = {(job, attempt) for job, _, _, attempt in rows}
        missed = []
        for number, leases in worker.leases.items():
            for lease in leases:
                if (number, lease.attempt) in held:
                    lease.missed = 0
                elif lease.miss(self._scheduler.now) >= MISSED_BEATS:
                    missed.append((leases, lease))
        for leases, lease in missed:
            for taken in leases.take(lease.span.start, lease.span.stop, lease.attempt):
                leases.share.hold(-len(taken.span))
                self._ledger.lose(worker, leases.share.pool, leases.job, taken)
            self._remind(worker, leases)
            self._scheduler.ready(leases.share.pool, leases.job)
            self._ledger.settle(leases.share.pool, leases.job)
            self._scheduler.refill(leases.share)

    def _remind(self, worker: Session, leases: Leases) -> None:
        """What came before the lease may have been lost with it."""
        share = leases.share
        for message in (share.pool.opened, m.Grant(share.pool.number, share.slots), leases.job.opened):
            self._ledger.tell(worker, message)

    def _on_drain(self, worker: Session, drain: m.Drain) -> None:
        if not worker.draining:
            self._scheduler.retire(worker)
            self._changed()
        # Behind all that was leased to it: when it hears this, it has heard of everything.
        self._ledger.tell(worker, m.Drain())

    # -- pools -------------------------------------------------------------------------------------

    def _on_need(self, worker: Session, need: m.Need) -> None:
        if need.digest not in self._ledger.blobs:
            text = "that content is not here any more; run the work again"
            self._ledger.refuse(worker.peer, "E_STATE", text)
            return
        worker.digests.discard(need.digest)
        self._scheduler.give_blobs(worker, (need.digest,))

    def _on_pool_closed(self, worker: Session, closed: m.PoolClosed) -> None:
        pool = self._ledger.pools.get(closed.pool)
        if pool is not None and pool.closing:
            self._ledger.confirm(pool, worker)

    def _on_pool_broken(self, worker: Session, broken: m.PoolBroken) -> None:
        share = worker.shares.get(broken.pool)
        if share is None or share.pool.broken:
            return
        pool = share.pool
        pool.broken = broken.text or "a child could not be made ready"
        pool.pending.clear()
        self._ledger.tell_owner(pool, m.PoolBroken(pool.number & NUMBER, pool.broken))
        for job in list(pool.jobs.values()):
            self._ledger.close_job(pool, job)

    def _on_output(self, worker: Session, output: m.Output) -> None:
        share = worker.shares.get(output.pool)
        owner = None if share is not None else self._ledger.process_owner(output.pool, worker)
        output.pool &= NUMBER
        if share is not None:
            self._ledger.tell_owner(share.pool, output)
        elif owner is not None:
            self._ledger.tell(owner, output)

    # -- items -------------------------------------------------------------------------------------

    def _on_returned(self, worker: Session, back: m.Returned) -> None:
        """The worker does not hold these items any more, and they have not been run."""
        leases = worker.leases.get(back.job)
        if leases is None:
            return
        share, job = leases.share, leases.job
        taken = leases.take(back.start, back.start + back.count, back.attempt)
        for lease in reversed(taken):
            share.hold(-len(lease.span))
            job.put_back(lease.span, lease.isolate)
        if taken:
            self._scheduler.ready(share.pool, job)
        # It gave them back because others are idle: it is served last.
        self._scheduler.refill(share)

    def _on_result(self, worker: Session, result: m.Result) -> None:
        """The first result of any attempt wins; what comes later is dropped."""
        leases = worker.leases.get(result.job)
        if leases is not None:
            pool, job = leases.share.pool, leases.job
        elif (found := self._ledger.find(result.job)) is not None:
            pool, job = found
        else:
            return
        start, stop = result.start, result.start + result.count
        if job.waits or (job.opened.resumed and result.attempt <= job.base and stop > job.high):
            # Of an earlier start of the broker; the worker keeps what it has until it is told of the job.
            return
        if not job.leased(stop, result.attempt):
            text = f"job {result.job}: items {start} to {stop} were never leased in attempt {result.attempt}"
            self._ledger.refuse(worker.peer, "E_STATE", text)
            return
        count = 0
        if leases is not None:
            for lease in leases.take(start, stop):
                count += lease.span.stop - lease.span.start
            if count:
                leases.share.hold(-count)
        job.pace.measure(result.count, result.spent)
        fresh = job.answered.add(start, stop)
        if fresh:
            if count != result.count:
                # From a worker whose lease had been given up: nobody else needs to run it.
                for share in self._ledger.withdraw(pool, job, start, stop, kill=True):
                    self._scheduler.refill(share)
            if job.deaths:
                for low, high in fresh:
                    job.forget_deaths(low, high)
            result.job &= NUMBER
            self._ledger.tell_owner(pool, result)
            self._ledger.settle(pool, job)
        if leases is not None:
            self._scheduler.refill(leases.share)

    def _on_died(self, worker: Session, died: m.Died) -> None:
        """A child died of one item: only that item is charged with it."""
        leases = worker.leases.get(died.job)
        taken = leases.take(died.item, died.item + 1, died.attempt) if leases else ()
        if leases is None or not taken:
            return
        share, job, item = leases.share, leases.job, died.item
        pool = share.pool
        share.hold(-1)
        deaths = job.deaths[item] = job.deaths.get(item, 0) + 1
        if deaths >= MAX_DEATHS or died.reason == m.TIMED_OUT or job.opened.at_most_once:
            facts = m.Failed(
                reason=died.reason if died.reason in m.REASONS else m.DIED, host=died.host or worker.host,
                pid=died.pid, signal=died.signal, exitcode=died.exitcode, rss=died.rss, oom=died.oom,
                text=died.text,
            )  # fmt: skip
            self._ledger.fail(pool, job, item, item + 1, facts)
            job.deaths.pop(item, None)
            self._ledger.settle(pool, job)
        else:
            if pool.owner.number == HOUSE:
                self._ledger.take_in(pool, died)
            self._ledger.note(WARNING, f"item {item} of job {job.number} runs again: {died.text}")
            job.suspect(taken[0].span)
            self._scheduler.ready(pool, job)
        self._scheduler.refill(share)
