"""What producers say: pools, jobs, their input, and that it is not wanted any more."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from multihost_broker.jobs import Job
from multihost_broker.ledger import Ledger
from multihost_broker.pools import Pool, Share
from multihost_broker.returns import Returns
from multihost_broker.sessions import NUMBER, Session
from multihost_common import messages as m
from multihost_common.blocks import Block
from multihost_common.tables import unpack_rows


class Producers:
    """Reacts to producers. Numbers in their messages are their own."""

    def __init__(self, ledger: Ledger, returns: Returns) -> None:
        self._ledger = ledger
        self._returns = returns
        self._scheduler = ledger.scheduler
        self.reactions: dict[type, Callable[[Session, Any], None]] = {
            m.OpenPool: self._on_open_pool,
            m.ClosePool: self._on_close_pool,
            m.OpenJob: self._on_open_job,
            m.Feed: self._on_feed,
            m.Known: self._on_known,
            m.EndJob: self._on_end_job,
            m.Cancel: self._on_cancel,
        }

    def ended(self, producer: Session) -> None:
        """The session is over: what it had is freed, and its work is cancelled."""
        for number in list(producer.pools):
            self._ledger.close_pool(self._ledger.pools[number], kill=True)
        self._ledger.memory.ended(producer)

    # -- content -----------------------------------------------------------------------------------

    def on_blob(self, producer: Session, blob: m.Blob) -> None:
        """Content that pools and jobs refer to."""
        ledger = self._ledger
        ledger.blobs.put(blob.digest, blob.frames[0])
        for number in ledger.awaited.pop(blob.digest, ()):
            pool = ledger.pools.get(number)
            if pool is None:
                continue
            if pool.opened.eager:
                self._open_eagerly(pool)
            for job in list(pool.jobs.values()):
                self._scheduler.ready(pool, job)

    # -- pools -------------------------------------------------------------------------------------

    def _on_open_pool(self, producer: Session, opened: m.OpenPool) -> None:
        ledger = self._ledger
        number = producer.number << 32 | opened.pool
        if opened.pool > NUMBER:
            ledger.refuse(producer.peer, "E_FIELD", "pools are numbered with 32 bits")
            return
        if self._returns.states(producer, number) and number in ledger.pools:
            self._open_again(producer, ledger.pools[number])
            return
        if number in ledger.pools:
            ledger.refuse(producer.peer, "E_STATE", f"pool {opened.pool} is open already")
            return
        opened.pool = number
        opened.nested = producer.nested
        pool = ledger.open_pool(producer, opened)
        if opened.eager:
            self._open_eagerly(pool)

    def _open_again(self, producer: Session, pool: Pool) -> None:
        """The producer states a pool anew; if it closes it, it says so again, too."""
        if pool.broken:
            self._ledger.tell(producer, m.PoolBroken(pool.number & NUMBER, pool.broken))
        pool.draining = False
        if pool.closing:
            # It lacks answers of jobs that had ended here.
            pool.closing = pool.kill = False
            pool.unconfirmed.clear()
            for share in pool.workers.values():
                self._ledger.tell(share.worker, pool.opened)
                self._ledger.tell(share.worker, m.Grant(pool.number, share.slots))

    def _open_eagerly(self, pool: Pool) -> None:
        for worker in list(self._scheduler.free.values()):
            self._scheduler.open_eagerly(pool, worker)

    def _on_close_pool(self, producer: Session, close: m.ClosePool) -> None:
        number = producer.number << 32 | close.pool
        self._returns.states(producer, number)
        pool = self._ledger.pools.get(number)
        if pool is None or close.pool > NUMBER:
            self._ledger.tell(producer, m.PoolClosed(close.pool))
        else:
            self._ledger.close_pool(pool, close.kill)

    # -- jobs --------------------------------------------------------------------------------------

    def _find(self, producer: Session, job: int) -> tuple[Pool, Job] | None:
        return self._ledger.find(producer.number << 32 | job) if job <= NUMBER else None

    def _on_open_job(self, producer: Session, opened: m.OpenJob) -> None:
        ledger = self._ledger
        number = producer.number << 32 | opened.job
        pool = ledger.pools.get(producer.number << 32 | opened.pool) if opened.pool <= NUMBER else None
        if opened.job > NUMBER:
            ledger.refuse(producer.peer, "E_FIELD", "jobs are numbered with 32 bits")
            return
        stated = self._returns.states(producer, number)
        known = ledger.find(number)
        if known is not None and (stated or opened.resumed):
            # That input of it was dropped may have been told just when all of it was stated anyhow.
            known[1].opened.resumed = True
            known[1].dropped = False
            if stated:
                # Not to be handed out before it is known which answers were lost.
                known[0].pending.pop(number, None)
            return
        if pool is None or pool.closing or number in ledger.owners:
            ledger.refuse(producer.peer, "E_STATE", f"job {opened.job} cannot be opened: its pool is not")
            return
        if pool.broken:
            ledger.tell(producer, m.PoolBroken(opened.pool, pool.broken))
            return
        opened.job, opened.pool = number, pool.number
        ledger.open_job(pool, opened).waits = opened.resumed and stated

    def _on_feed(self, producer: Session, feed: m.Feed) -> None:
        found = self._find(producer, feed.job)
        if found is None:
            return
        pool, job = found
        memory = self._ledger.memory
        if memory.limit:
            block = memory.take(producer, job, feed, self._scheduler.now)
            if block is None:
                self._drop(producer, job, feed)
                return
        else:
            block = Block(feed.start, feed.count, feed.chunksize, feed.frames)
        wrong = block.check()
        if wrong:
            self._ledger.refuse(producer.peer, "E_FIELD", wrong)
        elif not (job.refeed(block) if job.opened.resumed else job.feed(block)):
            self._ledger.refuse(producer.peer, "E_STATE", f"job {feed.job} continues at item {job.fed}")
        else:
            self._scheduler.ready(pool, job)

    def _drop(self, producer: Session, job: Job, feed: m.Feed) -> None:
        """There is no room for it: the producer has it still, and what comes behind it cannot be taken either."""
        if not (job.waits and job.opened.at_most_once):
            self._ledger.memory.drop(producer, job, self._scheduler.now)
            return
        # An earlier start of the broker may have had it run: it is not to be taken later, as if it were new.
        block = Block(feed.start, feed.count, feed.chunksize, feed.frames)
        if not block.check() and job.refeed(block):
            for span, _ in job.take_out(block.start, block.start + block.count):
                job.lost.add(span.start, span.stop)

    def _on_known(self, producer: Session, known: m.Known) -> None:
        found, rows = self._find(producer, known.job), unpack_rows(known.frames[0], 2)
        if found is None:
            return
        if rows is None:
            self._ledger.refuse(producer.peer, "E_FIELD", "Known names items by two 64-bit integers each")
            return
        pool, job = found
        freed: list[Share] = []
        for start, count in rows:
            stop = min(start + count, job.fed)
            if start < stop:
                freed += self._ledger.withdraw(pool, job, start, stop, kill=False)
                job.answered.add(start, stop)
        for share in freed:
            self._scheduler.refill(share)
        self._ledger.settle(pool, job)

    def _on_end_job(self, producer: Session, end: m.EndJob) -> None:
        found = self._find(producer, end.job)
        if found is None:
            return
        pool, job = found
        if job.dropped:
            # It is said again, behind the input that is missing.
            return
        if not job.end(end.count):
            text = f"job {end.job} has {job.fed} items, not {end.count}"
            self._ledger.refuse(producer.peer, "E_STATE", text)
            return
        self._ledger.settle(pool, job)

    def _on_cancel(self, producer: Session, cancel: m.Cancel) -> None:
        found = self._find(producer, cancel.job)
        if found is None:
            return
        pool, job = found
        if cancel.count == 0:
            self._ledger.close_job(pool, job)
            return
        start, stop = cancel.start, min(cancel.start + cancel.count, job.fed)
        if start >= stop:
            return
        freed = self._ledger.withdraw(pool, job, start, stop, cancel.kill)
        self._ledger.fail(pool, job, start, stop, m.Failed(reason=m.CANCELLED, text="it was cancelled"))
        for share in freed:
            self._scheduler.refill(share)
        self._ledger.settle(pool, job)
