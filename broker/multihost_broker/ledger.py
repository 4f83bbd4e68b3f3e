"""What the parts of the broker's core share: sessions, pools, jobs, content, and how a job ends."""

from __future__ import annotations

from collections.abc import Callable

from multihost_broker.events import Action, Note, Peer, Send
from multihost_broker.jobs import Job
from multihost_broker.leases import Lease
from multihost_broker.memory import Memory
from multihost_broker.pools import Pool, Share
from multihost_broker.scheduler import Scheduler
from multihost_broker.sessions import HOUSE, NUMBER, Session, Sessions
from multihost_common import messages as m
from multihost_common.blobs import Blobs
from multihost_common.stream import STREAMED


class Ledger:
    """The broker's state, and the steps that what producers say and what workers say have in common."""

    def __init__(self, epoch: int = 0, max_memory: int = 0) -> None:
        self.out: list[Action] = []
        # A million sessions in each millisecond is more than any earlier start can have opened.
        self.sessions = Sessions(epoch & m.U32[1] or 1, (epoch << 20) & (m.U64[1] >> 1))
        self.blobs = Blobs()
        self.memory = Memory(self.emit, self.find, max_memory)
        # A thousand attempts in each millisecond is more than any earlier start can have made.
        self.scheduler = Scheduler(self.emit, self.blobs, attempts=epoch << 10)
        self.pools = self.scheduler.pools
        #: Job number -> its pool, for all open jobs.
        self.owners: dict[int, Pool] = {}
        #: Content that was named and is not here -> numbers of the pools that wait for it.
        self.awaited: dict[bytes, set[int]] = {}
        #: Number what must arrive once. (Within one process nothing is lost.)
        self.numbers = True
        #: Takes what the producer of a detached job would be told.
        self.take_in: Callable[[Pool, m.Message], None] = lambda pool, message: None
        #: Numbers what has been said so far to producers that are children of workers: it goes over the workers' sessions.
        self.pack: Callable[[], None] = lambda: None
        #: Whose process of this number this worker runs.
        self.process_owner: Callable[[int, Session], Session | None] = lambda number, worker: None
        #: Of a producer that is a child of a worker: the pool or process that it belongs to, and whose that is.
        self.ancestry: Callable[[Session], tuple[int, Session | None]] = lambda child: (0, None)

    def emit(self, action: Action) -> None:
        self.out.append(action)

    def flush(self) -> list[Action]:
        """What is to be done by now."""
        out, self.out = self.out, []
        return out

    # -- saying ------------------------------------------------------------------------------------

    def tell(self, session: Session, message: m.Message) -> None:
        """Send to this peer."""
        if type(message) in STREAMED and self.numbers and not session.nested:
            if session.kind == m.WORKER:
                self.pack()
            session.stream.stamp(message)
        self.out.append(Send(session.peer, message))

    def reach(self, session: Session, message: m.Message) -> None:
        """Send to this peer, if it is still there: it was asked for some time ago."""
        if session.number in self.sessions.by_number:
            self.tell(session, message)

    def tell_owner(self, pool: Pool, message: m.Message) -> None:
        """Send to the pool's producer, if it is still there."""
        if pool.owner.number in self.sessions.by_number:
            self.out.append(Send(pool.owner.peer, message))
        elif pool.owner.number == HOUSE:
            self.take_in(pool, message)

    def refuse(self, peer: Peer, reason: str, text: str) -> None:
        """What the peer asked for is not done, and why."""
        self.out.append(Send(peer, m.Refused(reason, text)))

    def note(self, level: int, text: str) -> None:
        """A line for the log."""
        self.out.append(Note(level, text))

    # -- content -----------------------------------------------------------------------------------

    def use(self, pool: Pool, *digests: bytes) -> None:
        """The pool, or a job of it, refers to these; what is not here is asked for."""
        for digest in digests:
            self.blobs.use(digest)
            if digest and digest not in self.blobs:
                self.awaited.setdefault(digest, set()).add(pool.number)
                self.tell_owner(pool, m.Need(digest))

    # -- jobs --------------------------------------------------------------------------------------

    def open_job(self, pool: Pool, opened: m.OpenJob) -> Job:
        """A new job of the pool; ``opened`` has the broker's own numbers."""
        job = pool.jobs[opened.job] = Job(opened.job, opened, self.scheduler.attempts)
        self.owners[opened.job] = pool
        self.use(pool, opened.function, opened.code)
        return job

    def find(self, number: int) -> tuple[Pool, Job] | None:
        """The open job of this number, and its pool."""
        pool = self.owners.get(number)
        return None if pool is None else (pool, pool.jobs[number])

    def fail(self, pool: Pool, job: Job, start: int, stop: int, facts: m.Failed) -> None:
        """These items get no result, but these facts; those that have an answer keep it."""
        for low, high in job.answered.add(start, stop):
            # Several blocks together may be more than one message can name.
            for at in range(low, high, m.COUNT[1]):
                self.tell_owner(
                    pool,
                    m.Failed(
                        job.number & NUMBER, at, min(high - at, m.COUNT[1]), facts.reason, job.deaths.pop(at, 0),
                        facts.host, facts.pid, facts.signal, facts.exitcode, facts.rss, facts.oom, facts.text,
                    ),
                )  # fmt: skip

    def lose(self, worker: Session, pool: Pool, job: Job, lease: Lease) -> None:
        """Nobody knows what became of this lease."""
        if not job.opened.at_most_once:
            job.put_back(lease.span, lease.isolate)
            return
        text = f"{worker.host or 'a worker'} was lost and may have begun it, and at_most_once is set"
        facts = m.Failed(reason=m.LOST, host=worker.host, text=text)
        self.fail(pool, job, lease.span.start, lease.span.stop, facts)

    def withdraw(self, pool: Pool, job: Job, start: int, stop: int, kill: bool) -> list[Share]:
        """Nobody is to run these items any more; the shares of the workers that had some of them."""
        job.take_out(start, stop)
        self.scheduler.unready(pool, job)
        freed = []
        for number in job.workers:
            worker = self.sessions.by_number.get(number)
            leases = worker.leases.get(job.number) if worker else None
            taken = leases.take(start, stop) if leases else ()
            if worker is not None and leases is not None and taken:
                leases.share.hold(-sum(len(lease.span) for lease in taken))
                self.tell(worker, m.Cancel(job.number, start, stop - start, kill))
                freed.append(leases.share)
        return freed

    def settle(self, pool: Pool, job: Job) -> None:
        """If every item has its answer, say so and forget the job; not while its producer may still say that
        some of the answers never arrived."""
        if job.done() and pool.owner.stated is None and not job.waits and job.number in pool.jobs:
            self.tell_owner(pool, m.EndResults(job.number & NUMBER, job.count))
            self.close_job(pool, job)

    def close_job(self, pool: Pool, job: Job) -> None:
        """The job is over, or not wanted any more: its workers drop what they have of it."""
        del pool.jobs[job.number], self.owners[job.number]
        pool.pending.pop(job.number, None)
        for number in job.workers:
            worker = self.sessions.by_number.get(number)
            if worker is None:
                continue
            leases = worker.leases.pop(job.number, None)
            if leases:
                leases.share.hold(-leases.items)
                self.tell(worker, m.Cancel(job.number, 0, 0, True))
            self.tell(worker, m.CloseJob(job.number))
            if leases and not pool.closing:
                self.scheduler.refill(leases.share)
        self.blobs.release(job.opened.function)
        self.blobs.release(job.opened.code)
        if pool.draining and not pool.jobs and not pool.closing:
            self.close_pool(pool, pool.kill)

    # -- pools -------------------------------------------------------------------------------------

    def open_pool(self, owner: Session, opened: m.OpenPool) -> Pool:
        """A new pool; ``opened`` has the broker's own number of it."""
        pool = self.pools[opened.pool] = Pool(opened.pool, owner, opened)
        owner.pools.add(opened.pool)
        self.use(pool, opened.setup, opened.code)
        return pool

    def close_pool(self, pool: Pool, kill: bool) -> None:
        """Close the pool when its last job ends, or now (``kill``)."""
        pool.kill = pool.kill or kill
        if not pool.closing and not kill and pool.jobs:
            # What is open still runs; the last job's end comes here again.
            pool.draining = True
            return
        if not pool.closing:
            pool.closing = True
            pool.unconfirmed = set(pool.workers)
        for job in list(pool.jobs.values()):
            self.close_job(pool, job)
        self.order_close(pool)
        self._confirmed(pool)

    def order_close(self, pool: Pool) -> None:
        """Tell the workers that have not confirmed it yet to end the pool's children."""
        for number in pool.unconfirmed:
            self.tell(pool.workers[number].worker, m.ClosePool(pool.number, pool.kill))

    def confirm(self, pool: Pool, worker: Session) -> None:
        """The worker has no children of the pool any more."""
        pool.unconfirmed.discard(worker.number)
        if pool.closing:
            self._confirmed(pool)

    def _confirmed(self, pool: Pool) -> None:
        if pool.unconfirmed or pool.number not in self.pools:
            return
        pool.owner.pools.discard(pool.number)
        if not pool.owner.pools:
            self.sessions.reserved.discard(pool.owner.number)
        self.blobs.release(pool.opened.setup)
        self.blobs.release(pool.opened.code)
        for digest in [each for each, pools in self.awaited.items() if pool.number in pools]:
            self.awaited[digest].discard(pool.number)
            if not self.awaited[digest]:
                del self.awaited[digest]
        if pool.owner.stated is None or pool.number in pool.owner.stated:
            # Else its producer has just come back, and would take this for the end of the pool that it states anew.
            self.tell_owner(pool, m.PoolClosed(pool.number & NUMBER))
        self.scheduler.remove(pool)
