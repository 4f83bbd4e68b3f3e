"""Pools and who works for them: grants of slots, credit, hand-back.

A worker is *granted* a number of child processes for a pool and then holds as many items as keep them
busy for a short while. A worker that could hold more but found nothing ready is *hungry*: new input
goes to it first, and when there is none, work that has not begun elsewhere is called back for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from multihost_broker.events import Action, Send
from multihost_broker.jobs import Job
from multihost_broker.leases import Lease, Leases
from multihost_broker.sessions import SUSPECT, Session
from multihost_common.blobs import Blobs
from multihost_common.blocks import Span
from multihost_common.messages import (
    Blob,
    Grant,
    Message,
    OpenPool,
    Revoke,
)
from multihost_common.messages import Lease as LeaseMessage

#: Seconds of work a child has waiting, so that it never waits for the network.
AHEAD = 0.02

#: Items a child has waiting at most, however small they are.
MOST_AHEAD = 4096

#: A chunk that takes longer than this is not prefetched: better it begins elsewhere.
LONG = 1.0

#: Seconds between two calls to hand work back within one pool.
REVOKE_INTERVAL = 0.005


class Pool:
    """One pool: its jobs and the workers that have slots for it."""

    __slots__ = (
        "closing", "draining", "granted", "held", "hungry", "jobs", "kill", "number", "opened", "owner", "pending",
        "revoke_at", "unconfirmed", "workers",
    )  # fmt: skip

    def __init__(self, number: int, owner: Session, opened: OpenPool) -> None:
        self.number = number
        self.owner = owner
        self.opened = opened
        self.jobs: dict[int, Job] = {}
        #: Jobs that have ready items (an ordered set; it may hold some that have none any more).
        self.pending: dict[int, Job] = {}
        #: Slots it has over all workers, and items they hold.
        self.granted = 0
        self.held = 0
        self.workers: dict[int, Session] = {}
        self.hungry: dict[int, Session] = {}
        #: It takes no more jobs and closes when the last one ends; it is being closed.
        self.draining = False
        self.closing = False
        self.kill = False
        self.revoke_at = 0.0
        #: Workers that have not said yet that its children have ended.
        self.unconfirmed: set[int] = set()

    def next_job(self) -> Job | None:
        """The oldest job with ready items."""
        while self.pending:
            number, job = next(iter(self.pending.items()))
            if job.ready_items and job.number in self.jobs:
                return job
            del self.pending[number]
        return None

    def may_grow(self) -> bool:
        """It is under its limit of slots."""
        return not self.closing and (self.opened.limit == 0 or self.granted < self.opened.limit)

    def wanted(self) -> int:
        """How many more slots could do something now."""
        ready = 0
        for job in self.pending.values():
            if job.ready_items:
                size = job.ready[0].block.chunksize if job.ready else 1
                ready += -(-job.ready_items // size)
        waiting = ready + max(0, self.held - self.granted)
        if self.opened.limit:
            waiting = min(waiting, self.opened.limit - self.granted)
        return waiting


class Scheduler:
    """Hands ready items to workers. ``emit`` takes the actions."""

    def __init__(self, emit: Callable[[Action], None], blobs: Blobs) -> None:
        self._emit = emit
        self._blobs = blobs
        self.pools: dict[int, Pool] = {}
        #: Workers with free slots (an ordered set, used round robin).
        self.free: dict[int, Session] = {}
        self.slots = 0
        self.now = 0.0

    # -- workers -----------------------------------------------------------------------------------

    def join(self, worker: Session) -> None:
        """A worker has come: it gets what is ready, or what others have not begun."""
        self.slots += worker.slots
        self.free[worker.number] = worker
        for pool in list(self.pools.values()):
            if pool.opened.eager:
                self.open_eagerly(pool, worker)
            self.spread(pool)

    def open_eagerly(self, pool: Pool, worker: Session) -> None:
        """Grant at once all slots that the pool may have."""
        self._grant(pool, worker, min(worker.free, pool.opened.limit - pool.granted))

    def leave(self, worker: Session) -> list[tuple[Pool, Job, Lease]]:
        """A worker is gone, or takes nothing more: its slots are, and this is what it held."""
        self.slots -= worker.slots
        self.free.pop(worker.number, None)
        held = []
        for pool_number, slots in worker.grants.items():
            pool = self.pools.get(pool_number)
            if pool is not None:
                pool.granted -= slots
                pool.held -= worker.held.get(pool_number, 0)
                pool.workers.pop(worker.number, None)
                pool.hungry.pop(worker.number, None)
        for job_number, leases in worker.leases.items():
            for pool in self.pools.values():
                job = pool.jobs.get(job_number)
                if job is not None:
                    held += [(pool, job, lease) for lease in leases.clear()]
        worker.grants.clear()
        worker.held.clear()
        worker.leases.clear()
        return held

    def retire(self, worker: Session) -> None:
        """A draining worker gets nothing more; what it holds it will return or finish."""
        worker.draining = True
        self.free.pop(worker.number, None)
        for number in worker.grants:
            pool = self.pools.get(number)
            if pool is not None:
                pool.hungry.pop(worker.number, None)

    def send(self, worker: Session, message: Message) -> None:
        """Send to a worker."""
        self._emit(Send(worker.peer, message))

    # -- work --------------------------------------------------------------------------------------

    def ready(self, pool: Pool, job: Job) -> None:
        """The job has ready items: hungry workers first, then new slots."""
        pool.pending[job.number] = job
        for worker in list(pool.hungry.values()):
            if not job.ready_items:
                return
            self.refill(pool, worker)
        if job.ready_items:
            self.spread(pool)

    def refill(self, pool: Pool, worker: Session) -> None:
        """Give the worker of this pool's ready items what it has credit for."""
        slots = worker.grants.get(pool.number, 0)
        if not slots or worker.draining or (worker.slots and self.now - worker.heard > SUSPECT):
            return
        while True:
            job = pool.next_job()
            if job is None:
                pool.hungry[worker.number] = worker
                self._call_back(pool, worker, slots)
                return
            room = self._credit(pool, job, worker, slots)
            if room <= 0:
                pool.hungry.pop(worker.number, None)
                return
            if not self._blobs_here(job):
                return
            taken = job.take(room)
            if taken is not None:
                self._lease(pool, job, worker, *taken)

    def _credit(self, pool: Pool, job: Job, worker: Session, slots: int) -> int:
        """How many items more the worker may hold."""
        held = worker.held.get(pool.number, 0)
        if job.suspects:
            return slots - held
        size = job.ready[0].block.chunksize
        each = job.pace.seconds
        if each == 0.0 or job.opened.at_most_once:
            return slots * size - held
        ahead = max(size, min(job.pace.items_in(AHEAD), MOST_AHEAD))
        room = slots * ahead + (size if each * size < LONG else 0) - held
        if len(pool.workers) > 1 and room > size:
            # Towards the end everyone gets less, so that all end together.
            room = min(room, max(slots * size, job.ready_items // (2 * len(pool.workers))))
        return room

    def _lease(self, pool: Pool, job: Job, worker: Session, span: Span, isolate: bool) -> None:
        if job.number not in worker.leases:
            worker.leases[job.number] = Leases()
        if worker.number not in job.workers:
            self._introduce(job, worker)
        job.attempts += 1
        worker.leases[job.number].add(Lease(span, job.attempts, isolate))
        count = len(span)
        worker.held[pool.number] = worker.held.get(pool.number, 0) + count
        pool.held += count
        skip, frames = span.cut()
        self.send(
            worker,
            LeaseMessage(
                job.number, span.start, count, span.block.chunksize, skip, job.attempts, isolate, frames
            ),
        )

    def unhold(self, pool: Pool, worker: Session, items: int) -> None:
        """The worker holds so many items of the pool less."""
        worker.held[pool.number] = worker.held.get(pool.number, 0) - items
        pool.held -= items

    def _introduce(self, job: Job, worker: Session) -> None:
        opened = job.opened
        self.give_blobs(worker, (opened.function, opened.code))
        job.workers.add(worker.number)
        self.send(worker, opened)

    def give_blobs(self, worker: Session, digests: Iterable[bytes]) -> None:
        """Send the contents that this worker has not been sent yet."""
        for digest in digests:
            content = self._blobs.get(digest) if digest else None
            if content is not None and digest not in worker.digests:
                worker.digests.add(digest)
                self.send(worker, Blob(digest, (content,)))

    def _blobs_here(self, job: Job) -> bool:
        return all(not digest or digest in self._blobs for digest in (job.opened.function, job.opened.code))

    def _call_back(self, pool: Pool, hungry: Session, slots: int) -> None:
        """Nothing is ready for a worker that could work: call unstarted items back from another."""
        if pool.held <= pool.granted or self.now < pool.revoke_at or hungry.held.get(pool.number, 0) >= slots:
            return
        rich, most = None, 0
        for worker in pool.workers.values():
            surplus = worker.held.get(pool.number, 0) - worker.grants.get(pool.number, 0)
            if surplus > most and worker is not hungry:
                rich, most = worker, surplus
        if rich is not None:
            pool.revoke_at = self.now + REVOKE_INTERVAL
            self.send(rich, Revoke(pool.number, (most + 1) // 2))

    # -- slots -------------------------------------------------------------------------------------

    def spread(self, pool: Pool) -> None:
        """Grant the pool free slots, as many as can do something now, over the workers in turn."""
        while self.free and pool.may_grow():
            wanted = pool.wanted()
            if wanted <= 0:
                return
            number, worker = next(iter(self.free.items()))
            share = max(1, wanted // len(self.free))
            del self.free[number]
            self.free[number] = worker
            if not self._grant(pool, worker, min(worker.free, share, wanted)):
                return
        if not self.free and pool.granted == 0 and pool.wanted() > 0:
            self._free_idle_slots(pool)

    def _grant(self, pool: Pool, worker: Session, slots: int) -> bool:
        if slots <= 0 or not all(
            not digest or digest in self._blobs for digest in (pool.opened.setup, pool.opened.code)
        ):
            return False
        before = worker.grants.get(pool.number, 0)
        if not before:
            self.give_blobs(worker, (pool.opened.setup, pool.opened.code))
            self.send(worker, pool.opened)
            pool.workers[worker.number] = worker
        worker.grants[pool.number] = before + slots
        worker.free -= slots
        if worker.free <= 0:
            self.free.pop(worker.number, None)
        pool.granted += slots
        self.send(worker, Grant(pool.number, before + slots))
        self.refill(pool, worker)
        return True

    def _free_idle_slots(self, needy: Pool) -> None:
        """Nobody has a free slot: take those of pools that have nothing to do, or the richest's half."""
        rich = None
        for pool in self.pools.values():
            if pool is needy or not pool.granted:
                continue
            if pool.held == 0 and pool.next_job() is None:
                self.ungrant(pool, len(pool.workers))
            elif rich is None or pool.granted > rich.granted:
                rich = pool
        if not self.free and rich is not None and rich.granted > 1:
            self.ungrant(rich, (len(rich.workers) + 1) // 2, keep=1)
        if self.free:
            self.spread(needy)

    def ungrant(self, pool: Pool, workers: int, keep: int = 0) -> None:
        """Take slots from the pool on so many workers; ``keep`` slots stay on each."""
        for worker in list(pool.workers.values())[:workers]:
            slots = worker.grants.get(pool.number, 0)
            left = min(keep if slots > keep else slots // 2, slots)
            if left == slots:
                continue
            pool.granted -= slots - left
            worker.free += slots - left
            worker.grants[pool.number] = left
            if not worker.draining:
                self.free[worker.number] = worker
            self.send(worker, Grant(pool.number, left))
            if not left:
                pool.hungry.pop(worker.number, None)

    def remove(self, pool: Pool) -> None:
        """The pool is closed: its slots are free for others."""
        self.pools.pop(pool.number, None)
        for worker in pool.workers.values():
            slots = worker.grants.pop(pool.number, 0)
            worker.held.pop(pool.number, None)
            worker.free += slots
            if worker.free > 0 and not worker.draining:
                self.free[worker.number] = worker
        pool.workers.clear()
        pool.hungry.clear()
        for other in list(self.pools.values()):
            if self.free and other.pending:
                self.spread(other)
