"""Who gets which items: grants of slots, credit, hand-back.

A worker is *granted* a number of child processes for a pool and then holds as many items as keep them
busy for a short while. A worker that could hold more but found nothing ready is *hungry*: new input
goes to it first, and when there is none, work that has not begun elsewhere is called back for it.

What is done for one message does not grow with the number of workers: nothing here looks at all of
them, but for the books that a worker's coming and going, and a tick, make necessary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice

from multihost_broker.events import Action, Send
from multihost_broker.jobs import Job
from multihost_broker.leases import Lease, Leases
from multihost_broker.pools import Pool, Share
from multihost_broker.sessions import Session
from multihost_common.blobs import Blobs
from multihost_common.messages import COUNT, Blob, Grant, Message, Revoke
from multihost_common.messages import Lease as LeaseMessage

#: Seconds of work a child has waiting at most, so that it never waits for the network. It gets more
#: when a quarter of that is done, since each message costs as much as some work does.
AHEAD = 0.2

#: Chunks a child has waiting at most, however small they are.
MOST_AHEAD = 4096

#: A chunk that takes longer than this is not prefetched: better it begins elsewhere.
LONG = 1.0

#: Seconds between two calls to hand work back within one pool.
REVOKE_INTERVAL = 0.005

#: Workers looked at to find one that has much to hand back.
SAMPLE = 32

#: Contents that are not here any more and that a worker is remembered to have been sent, about.
MOST_SENT = 1024

#: Slots that are wanted at once at most, so that what they are wanted for need not be counted further.
MOST_WANTED = 1 << 16


class Scheduler:
    """Hands ready items to workers. ``emit`` takes the actions; attempts are numbered on from ``attempts``."""

    def __init__(self, emit: Callable[[Action], None], blobs: Blobs, attempts: int = 0) -> None:
        self._emit = emit
        self._blobs = blobs
        #: The last lease's number. A job that is stated anew may have been known before, so they count on.
        self.attempts = attempts
        self.pools: dict[int, Pool] = {}
        #: All workers that have joined.
        self.workers: dict[int, Session] = {}
        #: Workers with free slots (an ordered set, used in turn).
        self.free: dict[int, Session] = {}
        #: Pools that could do with more slots than there are.
        self.needy: dict[int, Pool] = {}
        #: Pools in which work is to be called back as soon as that is allowed again.
        self._due: dict[int, Pool] = {}
        self.now = 0.0

    # -- workers -----------------------------------------------------------------------------------

    def join(self, worker: Session) -> None:
        """A worker has come: it gets what is ready, or what others have not begun."""
        self.workers[worker.number] = worker
        if worker.free > 0:
            self.free[worker.number] = worker
        for pool in list(self.pools.values()):
            if pool.opened.eager:
                self.open_eagerly(pool, worker)
            self.spread(pool)

    def open_eagerly(self, pool: Pool, worker: Session) -> None:
        """Grant at once all slots that the pool may have."""
        if pool.may_grow() and not self.missing(pool.opened.setup, pool.opened.code):
            self._grant(pool, worker, min(worker.free, pool.opened.limit - pool.granted))

    def leave(self, worker: Session) -> list[tuple[Pool, Job, Lease]]:
        """A worker is gone: its slots are, and this is what it held."""
        self.workers.pop(worker.number, None)
        self.free.pop(worker.number, None)
        held = [
            (leases.share.pool, leases.job, lease)
            for leases in worker.leases.values()
            for lease in leases.clear()
        ]
        for share in worker.shares.values():
            pool = share.pool
            pool.granted -= share.slots
            pool.held -= share.held
            for books in (pool.workers, pool.hungry, pool.spare, pool.rich):
                books.pop(worker.number, None)
        worker.shares.clear()
        worker.leases.clear()
        return held

    def retire(self, worker: Session) -> None:
        """A draining worker gets nothing more; what it holds it will return or finish."""
        worker.draining = True
        self.free.pop(worker.number, None)
        for share in list(worker.shares.values()):
            share.pool.hungry.pop(worker.number, None)
            share.rank()
            self._shrink(share)

    def revive(self, worker: Session) -> None:
        """A worker that was silent has been heard again."""
        for share in list(worker.shares.values()):
            self.refill(share)
        if worker.number in self.free:
            for pool in list(self.pools.values()):
                if pool.pending:
                    self.spread(pool)

    def _shrink(self, share: Share) -> None:
        """The slots that a draining worker will not use any more are there for others."""
        left = min(share.slots, share.held)
        if left < share.slots:
            share.pool.granted -= share.slots - left
            share.slots = left
            if share.pool.pending:
                self.spread(share.pool)

    # -- work --------------------------------------------------------------------------------------

    def ready(self, pool: Pool, job: Job) -> None:
        """The job may have ready items: hungry workers first, then new slots."""
        if not job.ready_items or job.number not in pool.jobs or pool.broken:
            return
        if job.waits or pool.owner.stated is not None:
            return
        if self.missing(job.opened.function, job.opened.code):
            return
        pool.pending[job.number] = job
        hungry = pool.hungry
        for _ in range(len(hungry)):
            if not job.ready_items:
                return
            self.refill(hungry.pop(next(iter(hungry))))
        if job.ready_items:
            self.spread(pool)

    def unready(self, pool: Pool, job: Job) -> None:
        """Ready items were taken out of the job."""
        if not job.ready_items:
            pool.pending.pop(job.number, None)

    def refill(self, share: Share) -> None:
        """Give the worker of this pool's ready items what it has credit for."""
        pool, worker = share.pool, share.worker
        if worker.draining:
            self._shrink(share)
            return
        if not share.slots or worker.suspect(self.now):
            return
        while pool.pending:
            job = next(iter(pool.pending.values()))
            room = self._credit(job, share)
            if room <= 0:
                pool.hungry.pop(worker.number, None)
                return
            self._lease(job, share, room)
            if not job.ready_items:
                del pool.pending[job.number]
        pool.hungry[worker.number] = share
        if pool.spare and pool.rich:
            self._call_back(pool)

    def _credit(self, job: Job, share: Share) -> int:
        """How many items more the worker may hold."""
        pool, held, slots = share.pool, share.held, share.slots
        if job.suspects:
            return slots - held
        size = job.ready[0].block.chunksize
        each = job.pace.seconds
        if each == 0.0 or job.opened.at_most_once:
            most = slots * size
            if not job.opened.at_most_once and self._only(share):
                # However long an item takes, nobody else could begin more: it waits with the worker.
                most *= 2
            return most - held
        ahead = max(size, min(job.pace.items_in(AHEAD), MOST_AHEAD * size))
        most = slots * ahead + (size if each * size < LONG else 0)
        room = most - held
        if held > slots * size and room < most // 4:
            # Not worth a message yet.
            return 0
        workers = len(pool.workers)
        if workers > 1 and room > size:
            # Towards the end everyone gets less, so that all end together.
            room = min(room, max(slots * size, job.ready_items // (2 * workers)))
        return job.ready[0].rounded(room) if each * size < LONG else room

    def _only(self, share: Share) -> bool:
        """Has no other worker a child, or room for one, without work?"""
        pool = share.pool
        return not (self.free and pool.may_grow()) and pool.spare.keys() <= {share.worker.number}

    def _lease(self, job: Job, share: Share, items: int) -> None:
        worker = share.worker
        leases = worker.leases.get(job.number)
        if leases is None:
            leases = worker.leases[job.number] = Leases(job, share)
            if worker.number not in job.workers:
                self.introduce(job, worker)
        span, isolate = job.take(items)
        self.attempts = job.attempts = self.attempts + 1
        share.pool.leases += 1
        leases.add(Lease(span, job.attempts, isolate, self.now))
        count = span.stop - span.start
        share.hold(count)
        skip, frames = span.cut()
        self.send(
            worker,
            LeaseMessage(
                job.number, span.start, count, span.block.chunksize, skip, job.attempts, isolate, frames
            ),
        )

    def introduce(self, job: Job, worker: Session) -> None:
        """Tell the worker of the job."""
        opened = job.opened
        self.give_blobs(worker, (opened.function, opened.code))
        job.workers.add(worker.number)
        self.send(worker, opened)

    def adopt(self, share: Share, job: Job, start: int, stop: int, attempt: int) -> list[tuple[int, int]]:
        """Lease to the worker what is ready of ``start .. stop``, which it has already; those parts."""
        worker = share.worker
        adopted = []
        for span, isolate in job.take_out(start, stop):
            if job.number not in worker.leases:
                worker.leases[job.number] = Leases(job, share)
            worker.leases[job.number].add(Lease(span, attempt, isolate, self.now))
            share.hold(len(span))
            job.high = max(job.high, span.stop)
            adopted.append((span.start, span.stop))
        self.unready(share.pool, job)
        return adopted

    def regain(self, pool: Pool, worker: Session, children: int) -> Share:
        """The worker's share of the pool; it has so many children of it already."""
        share = worker.shares.get(pool.number)
        if share is None:
            share = worker.shares[pool.number] = pool.workers[worker.number] = Share(pool, worker)
            self.send(worker, pool.opened)
            slots = min(children, worker.free, max(0, (pool.opened.limit or children) - pool.granted))
            self._grant(pool, worker, slots)
            if slots <= 0:
                self.send(worker, Grant(pool.number, 0))
        return share

    def send(self, worker: Session, message: Message) -> None:
        """Send to a worker."""
        self._emit(Send(worker.peer, message))

    # -- content -----------------------------------------------------------------------------------

    def give_blobs(self, worker: Session, digests: Iterable[bytes]) -> None:
        """Send the contents that this worker has not been sent yet."""
        for digest in digests:
            content = self._blobs.get(digest) if digest else None
            if content is not None and digest not in worker.digests:
                worker.digests.add(digest)
                self.send(worker, Blob(digest, (content,)))
        if len(worker.digests) > MOST_SENT + 2 * len(self._blobs):
            worker.digests = {each for each in worker.digests if each in self._blobs}

    def missing(self, *digests: bytes) -> bool:
        """Is one of these contents not here?"""
        for digest in digests:  # noqa: SIM110 - on the path of every message
            if digest and digest not in self._blobs:
                return True
        return False

    # -- calling back ------------------------------------------------------------------------------

    def _call_back(self, pool: Pool) -> None:
        """Nothing is ready and a worker has idle children: call unstarted items back from another."""
        if self.now < pool.revoke_at:
            self._due[pool.number] = pool
            return
        if not any(share.worker.usable(self.now) for share in islice(pool.spare.values(), SAMPLE)):
            return
        richest, most = None, 0
        looked = list(islice(pool.rich.values(), SAMPLE))
        for share in looked:
            surplus = share.held - share.slots
            if surplus > most and not share.barren and share.worker.usable(self.now):
                richest, most = share, surplus
        if len(pool.rich) > len(looked):
            # The next look is at others.
            for share in looked:
                number = share.worker.number
                pool.rich[number] = pool.rich.pop(number)
        if richest is not None:
            richest.barren = True
            pool.revoke_at = self.now + REVOKE_INTERVAL
            self._due[pool.number] = pool
            self.send(richest.worker, Revoke(pool.number, min((most + 1) // 2, COUNT[1])))

    def deadline(self) -> float | None:
        """When work is to be called back."""
        return min((pool.revoke_at for pool in self._due.values()), default=None)

    def call_back(self) -> None:
        """Call back what is due."""
        for pool in [each for each in self._due.values() if each.revoke_at <= self.now]:
            del self._due[pool.number]
            if pool.spare and pool.rich and not pool.pending:
                self._call_back(pool)

    # -- slots -------------------------------------------------------------------------------------

    def spread(self, pool: Pool) -> None:
        """Grant the pool free slots, as many as can do something now, over the workers in turn."""
        if not pool.may_grow() or pool.broken or self.missing(pool.opened.setup, pool.opened.code):
            return
        if self.free:
            self._grant_free(pool, pool.wanted(MOST_WANTED))
        if not self.free and pool.may_grow() and (pool.pending or pool.held > pool.granted):
            self.needy[pool.number] = pool
            if not pool.granted:
                self._make_room(pool)
            if not pool.granted and pool.opened.nested:
                self._grant_beside(pool)

    def _grant_free(self, pool: Pool, wanted: int) -> None:
        passed = 0
        while wanted > 0 and passed < len(self.free):
            number, worker = next(iter(self.free.items()))
            del self.free[number]
            self.free[number] = worker
            if not worker.usable(self.now):
                passed += 1
                continue
            slots = min(worker.free, max(1, wanted // len(self.free)))
            wanted -= slots
            self._grant(pool, worker, slots)

    def _grant_beside(self, pool: Pool) -> None:
        """One child beside the slots, on the worker that has fewest of these: who has the slots may wait for it."""
        usable = [each for each in self.workers.values() if each.usable(self.now)]
        if usable:
            self._grant(pool, max(usable, key=lambda each: each.free), 1)

    def _grant(self, pool: Pool, worker: Session, slots: int) -> None:
        if slots <= 0:
            return
        share = worker.shares.get(pool.number)
        if share is None:
            share = worker.shares[pool.number] = pool.workers[worker.number] = Share(pool, worker)
            self.give_blobs(worker, (pool.opened.setup, pool.opened.code))
            self.send(worker, pool.opened)
        share.slots += slots
        pool.granted += slots
        share.rank()
        worker.free -= slots
        if worker.free <= 0:
            self.free.pop(worker.number, None)
        self.send(worker, Grant(pool.number, share.slots))
        if worker.claims.pools:
            self._make_way(worker)
        self.refill(share)

    def _make_way(self, worker: Session) -> None:
        """The idle children that a worker has come back with end where they are in the way of what is granted;
        not those of a producer whose work it may have: that is still to be told."""
        children, shares = worker.claims.pools, worker.shares
        over = sum(count for number, count in children.items() if number not in shares) - worker.free
        busy = {number >> 32 for number in worker.claims.items}
        for number, count in list(children.items()):
            if over > 0 and count > 0 and number not in shares and number >> 32 not in busy:
                ended = min(count, over)
                over -= ended
                children[number] = count - ended
                self.send(worker, Grant(number, count - ended))

    def _make_room(self, needy: Pool) -> None:
        """Nobody has a free slot: take those of a pool that has nothing to do, or half the richest's."""
        richest = None
        for pool in self.pools.values():
            if pool is needy or not pool.granted:
                continue
            if not pool.held and not pool.pending:
                self._ungrant(pool, 0)
                if self.free:
                    break
            elif richest is None or pool.granted > richest.granted:
                richest = pool
        if not self.free and richest is not None and richest.granted > 1:
            self._ungrant(richest, richest.granted // 2)
        if self.free:
            self._grant_free(needy, needy.wanted(MOST_WANTED))

    def _ungrant(self, pool: Pool, keep: int) -> None:
        """Take slots from the pool until it has ``keep``, from all of its workers about alike."""
        part = keep / pool.granted
        for share in list(pool.workers.values()):
            over = pool.granted - keep
            slots = min(over, share.slots - int(share.slots * part))
            if slots <= 0 or share.worker.draining:
                continue
            share.slots -= slots
            pool.granted -= slots
            share.worker.free += slots
            self.free[share.worker.number] = share.worker
            share.rank()
            if not share.slots:
                pool.hungry.pop(share.worker.number, None)
            self.send(share.worker, Grant(pool.number, share.slots))

    def remove(self, pool: Pool) -> None:
        """The pool is closed: its slots are free for others."""
        self.pools.pop(pool.number, None)
        self.needy.pop(pool.number, None)
        self._due.pop(pool.number, None)
        for share in pool.workers.values():
            worker = share.worker
            worker.shares.pop(pool.number, None)
            worker.free += share.slots
            if worker.free > 0 and not worker.draining:
                self.free[worker.number] = worker
        for books in (pool.workers, pool.hungry, pool.spare, pool.rich):
            books.clear()
        self.share_out()

    def share_out(self) -> None:
        """Pools that could do with more slots get the free ones."""
        for pool in list(self.needy.values()):
            if not self.free:
                return
            del self.needy[pool.number]
            self.spread(pool)

    def tick(self) -> None:
        """Now and then: what nobody uses goes to who can, and what was missed is made good."""
        quiet = [pool for pool in self.pools.values() if pool.fell_quiet()]
        if self.needy:
            for pool in quiet:
                if pool.granted and not pool.opened.eager:
                    self._ungrant(pool, 0)
            self.share_out()
        for pool in list(self.pools.values()):
            if pool.pending:
                self.spread(pool)
