"""Detached jobs: the broker's journal is their producer.

Their input goes into the journal before it is confirmed, and their answers instead of to a producer's connection.
From there it is fed to a pool and a job like any other, of session 0, a window at a time, so that what waits on disk
takes no memory. After a start of the broker they are stated anew, as every producer does that comes back
(:mod:`recovery`). Who submits is answered in :mod:`deposits`, who asks for answers in :mod:`fetches`, operators in
:mod:`orders`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from multihost_broker.detached.books import (
    DEADLY,
    DEATH,
    DIED,
    END,
    ENDED,
    ENDS,
    FAILED,
    RANGE,
    RESULT,
    Answer,
    DetachedJob,
    Input,
    Lent,
    Letter,
    contents,
)  # fmt: skip
from multihost_broker.detached.scribe import Scribe
from multihost_broker.detached.tombstones import Tombstones
from multihost_broker.jobs import Job
from multihost_broker.journal.records import Erase, Forget, Record, Spooled
from multihost_broker.ledger import Ledger
from multihost_broker.pools import Pool
from multihost_broker.sessions import HOUSE, NUMBER, Session
from multihost_common import messages as m
from multihost_common.blocks import Block
from multihost_common.codec import encode
from multihost_common.rope import whole

#: Bytes of a job's input in memory, beyond which it gets more only while it has too few chunks for its slots.
WINDOW = 16 << 20
#: The same over all jobs: the later ones wait.
MOST_LENT = 512 << 20
#: Blocks of a job in memory, if it has enough chunks, and blocks read at once.
MOST_BLOCKS, MOST_READ = 4096, 512
#: Records named in one erasure.
ERASED = 256
#: Seconds between two looks for jobs whose time is over.
LOOK = 60.0
#: What those are told who wait for a job that is forgotten.
GONE = "the job is not here any more: somebody has collected or dropped it"


class Archive:
    """Feeds detached jobs and takes their answers. ``wall``: wall clock minus the core's time, seconds."""

    def __init__(self, ledger: Ledger, ticket: int = 0, wall: float = 0.0) -> None:
        self.ledger = ledger
        self.scribe = Scribe(ledger.emit, ticket)
        self._scheduler = ledger.scheduler
        self._wall = wall
        self.session = Session(HOUSE, 0, None, m.Hello(kind=m.PRODUCER, name="detached jobs"), 0.0)
        #: In the order in which they were submitted.
        self.jobs: dict[bytes, DetachedJob] = {}
        self._numbers: dict[int, DetachedJob] = {}
        #: Number of an open pool -> its job's function.
        self._functions: dict[int, bytes] = {}
        #: Jobs that may have something to hand out, and whether it is worth a look.
        self._eager: dict[int, DetachedJob] = {}
        self.stirred = False
        self.lent = 0
        self.garbage: list[int] = []
        #: Called when a job of before this start is known again, or will not be.
        self.restated: Callable[[DetachedJob], None] = lambda job: None
        #: Do such jobs wait for workers to come back?
        self.waiting: Callable[[], bool] = lambda: False
        self.slots = 1
        self._look_at = float("inf")
        #: Called when there is something new of a job.
        self.changed: Callable[[DetachedJob], None] = lambda job: None
        self.tombstones = Tombstones(self.scribe)
        ledger.take_in = self.take

    # -- time --------------------------------------------------------------------------------------

    @property
    def now(self) -> float:
        """Wall clock, seconds."""
        return self._scheduler.now + self._wall

    def deadline(self) -> float | None:
        """When :meth:`tick` has something to do."""
        return self._look_at if self.jobs or self.tombstones else None

    def tick(self) -> None:
        """Forget the jobs whose time is over."""
        if self._scheduler.now < self._look_at:
            return
        self._look_at = self._scheduler.now + LOOK
        for job in list(self.jobs.values()):
            if self.expires(job) <= self.now:
                self.forget(job)
            else:
                self._look_for(job)
        self.tombstones.expire(self.now)
        self.erase_garbage()

    def expires(self, job: DetachedJob) -> float:
        """Wall clock when the job is forgotten; never while it runs."""
        if job.live and job.count >= 0:
            return float("inf")
        return (job.ended or job.touched) + job.opened.retention

    def _look_for(self, job: DetachedJob) -> None:
        self._look_at = min(self._look_at, self._scheduler.now + LOOK, self.expires(job) - self._wall)

    # -- jobs --------------------------------------------------------------------------------------

    def add(self, job: DetachedJob) -> None:
        """A job is durable."""
        self.jobs[job.key] = self._numbers[job.number] = job
        self._look_for(job)

    def busy(self) -> bool:
        """Is any job not over?"""
        return any(job.live for job in self.jobs.values())

    def number(self) -> int:
        """A number for a job; none that a job of these days had, since workers may know that still."""
        number = self.scribe.next & NUMBER or 1
        while number in self._numbers:
            number = number % NUMBER + 1
        return number

    def forget(self, job: DetachedJob) -> None:
        """Neither the job nor its answers are wanted any more."""
        job.gone = True
        self.jobs.pop(job.key, None)
        self._numbers.pop(job.number, None)
        self._rest(job)
        self._close(job, kill=True)
        for session, _ in job.watchers.values():
            self.deny(session, job.key, "E_JOB", GONE)
        self.scribe.write(Forget(job.key), essential=True)

    def collect(self, job: DetachedJob) -> None:
        """Somebody has its answers."""
        self.forget(job)
        self.tombstones.add(job.key, self.now)
        self.look_soon()

    def look_soon(self) -> None:
        """There is something that will be over some day."""
        self._look_at = min(self._look_at, self._scheduler.now + LOOK)

    def deny(self, session: Session, key: bytes, reason: str, text: str, after: float = 0.0) -> None:
        """Tell why not."""
        self.ledger.reach(session, m.Denied(key, reason, text, after))

    def _rest(self, job: DetachedJob) -> None:
        """There is nothing of it to hand out."""
        self._eager.pop(job.number, None)
        self.lent -= job.lent.bytes
        job.lent = Lent()
        job.queue.clear()
        self.restated(job)
        self.stirred = True

    def _close(self, job: DetachedJob, kill: bool) -> None:
        pool = self.ledger.pools.get(job.number)
        if pool is not None and pool.owner is self.session:
            self.ledger.close_pool(pool, kill)

    # -- handing out -------------------------------------------------------------------------------

    def wake(self, job: DetachedJob) -> None:
        """The job may have something to hand out."""
        self._eager[job.number] = job
        self.stirred = True

    def pump(self) -> None:
        """Hand out what there is room for."""
        self.stirred = False
        for job in list(self._eager.values()):
            if job.queue and self.lent >= MOST_LENT:
                # Until somebody's answers make room.
                return
            del self._eager[job.number]
            if self._may_go_on(job):
                blocks = self._next(job)
                if blocks:
                    self._read(job, blocks)
                elif not job.queue and job.count >= 0:
                    self._end_input(job)

    def _may_go_on(self, job: DetachedJob) -> bool:
        """Who says no wakes the job later."""
        if not job.live or job.token:
            return False
        pool = self.ledger.pools.get(job.number)
        if pool is not None and (pool.closing or pool.broken):
            return False
        # To open it once more while answers are on their way into the journal would run those items again.
        return job.number in self.ledger.owners or not job.unsynced

    def _next(self, job: DetachedJob) -> list[Input]:
        """Blocks to hand out now."""
        blocks: list[Input] = []
        lent = job.lent
        slots = min(self.slots, job.opened.limit or self.slots)
        while job.queue and self.lent < MOST_LENT and len(blocks) < MOST_READ:
            if (lent.bytes >= WINDOW or len(lent) >= MOST_BLOCKS) and lent.chunks >= 2 * slots:
                break
            block = job.blocks[job.queue.pop(0)]
            blocks.append(block)
            lent.add(block)
            self.lent += block.size
        return blocks

    def _read(self, job: DetachedJob, blocks: list[Input]) -> None:
        numbers = [block.ticket for block in blocks]
        opened = job.number in self.ledger.pools
        if not opened:
            numbers.append(job.ticket)
        job.token = self.scribe.read(tuple(numbers), partial(self._have_read, job, opened, blocks))

    def _have_read(
        self, job: DetachedJob, opened: bool, blocks: list[Input], records: dict[int, Record]
    ) -> None:
        job.token = 0
        self.wake(job)
        pool = self.ledger.pools.get(job.number)
        if job.live and (pool.closing or pool.broken if pool else opened):
            # Meanwhile; it begins anew when its children have ended.
            for block in blocks:
                if self._take_back(job, block):
                    job.enqueue(block.start)
            return
        if not job.live or not self._open(job, records):
            self.restated(job)
            return
        pool = self.ledger.pools[job.number]
        running = pool.jobs.get(job.number) or self._open_job(job, pool)
        for block in blocks:
            if block.start in job.blocks:
                self._feed(job, pool, running, block, records.get(block.ticket))
        self._scheduler.unready(pool, running)
        self._scheduler.ready(pool, running)
        self.restated(job)

    def _open(self, job: DetachedJob, records: dict[int, Record]) -> bool:
        """Have a pool for the job; False: it cannot be."""
        ledger, opened = self.ledger, job.opened
        if job.number in ledger.pools:
            return True
        submit = records.get(job.ticket)
        if submit is None:
            self.end(job, m.BROKEN, "its function was damaged on the broker's disk")
            return False
        assert not isinstance(submit.payload, Spooled)
        for digest, content in zip(contents(opened), submit.payload, strict=True):
            ledger.blobs.put(digest, content)
        ledger.open_pool(
            self.session,
            m.OpenPool(
                job.number, opened.limit, opened.setup, opened.code, opened.max_tasks, False, opened.name
            ),
        )
        # The pool's, so that the job's is there whenever it is opened again.
        ledger.blobs.use(opened.function)
        self._functions[job.number] = opened.function
        return True

    def _open_job(self, job: DetachedJob, pool: Pool) -> Job:
        opened = job.opened
        told = m.OpenJob(
            job.number, job.number, opened.function, opened.code, opened.call, opened.timeout, opened.retries, False,
            opened.name, True,
        )  # fmt: skip
        running = self.ledger.open_job(pool, told)
        running.waits = job.restored and self.waiting()
        return running

    def _feed(self, job: DetachedJob, pool: Pool, running: Job, block: Input, record: Record | None) -> None:
        """As a producer does that comes back: a block, and what of it has an answer."""
        payload = () if record is None or isinstance(record.payload, Spooled) else record.payload
        fed = Block(block.start, block.stop - block.start, block.chunksize, payload)
        again = block.start < running.fed
        for item in [item for item in job.retried if block.start <= item < block.stop]:
            job.retried.discard(item)
            running.stale.add(item, item + 1)
        running.refeed(fed)
        if not again:
            for start, stop in job.answered.within(block.start, block.stop):
                running.take_out(start, stop)
                running.answered.add(start, stop)
        for item, (deaths, _) in job.deaths.items():
            if block.start <= item < block.stop:
                for span, _ in running.take_out(item, item + 1):
                    running.suspect(span)
                    running.deaths[item] = deaths
        if record is None or fed.check():
            text = "its input was damaged on the broker's disk"
            running.take_out(block.start, block.stop)
            self.ledger.fail(pool, running, block.start, block.stop, m.Failed(reason=m.LOST, text=text))

    def _end_input(self, job: DetachedJob) -> None:
        pool = self.ledger.owners.get(job.number)
        if pool is not None:
            running = pool.jobs[job.number]
            running.end(job.count)
            self.ledger.settle(pool, running)

    def _take_back(self, job: DetachedJob, block: Input) -> bool:
        """It is not out any more. False: nobody needs it."""
        self.lent -= job.lent.take(block)
        return block.start in job.blocks

    # -- what a producer would be told --------------------------------------------------------------

    def take(self, pool: Pool, message: m.Message) -> None:
        """What happens to a detached job's pool."""
        if isinstance(message, m.PoolClosed):
            self.ledger.blobs.release(self._functions.pop(pool.number, b""))
        job = self._numbers.get(pool.number)
        if job is None or job.gone:
            return
        if isinstance(message, m.PoolClosed):
            self.wake(job)
        elif not job.live or pool.closing:
            # It was of the job as it was before its end.
            return
        elif isinstance(message, m.Result):
            self._write_answer(job, RESULT, message)
        elif isinstance(message, m.Failed):
            self._write_answer(job, FAILED, message)
        elif isinstance(message, m.Died):
            self._write_death(job, message.item)
        elif isinstance(message, m.PoolBroken):
            self.stop(job, m.BROKEN, message.text)

    def _write_answer(self, job: DetachedJob, kind: int, message: m.Result | m.Failed) -> None:
        header, *frames = encode(message)
        start, stop = message.start, message.start + message.count
        record = Record(kind, job.key, RANGE.pack(start, message.count) + header, tuple(map(whole, frames)))
        size = len(header) + sum(map(len, frames))
        job.unsynced += 1
        failed = message if isinstance(message, m.Failed) else None
        self.scribe.write(
            record,
            partial(self._answered, job, Answer(self.scribe.next, start, stop, size), failed),
            partial(self._no_room, job, start, stop, size),
            essential=True,
        )

    def _no_room(self, job: DetachedJob, start: int, stop: int, size: int) -> None:
        """A large result did not fit, and would not if its items ran again."""
        job.unsynced -= 1
        text = (
            f"its result of {size >> 20} MiB did not fit on the broker's disk; make room there and retry it"
        )
        for item in range(start, stop):
            if not job.gone:
                self._write_answer(job, FAILED, m.Failed(job.number, item, 1, m.LOST, text=text))

    def _answered(self, job: DetachedJob, answer: Answer, failed: m.Failed | None) -> None:
        job.unsynced -= 1
        if job.gone:
            return
        self.enter(job, answer, failed, self.now)
        if job.complete and job.live:
            self.end(job, m.DONE)
        self.changed(job)
        self.wake(job)

    def enter(self, job: DetachedJob, answer: Answer, failed: m.Failed | None, now: float) -> None:
        """An answer is durable."""
        if failed is not None:
            fresh = sum(high - low for low, high in job.answered.missing(answer.start, answer.stop))
            job.failed += fresh
            if fresh and failed.count == 1 and failed.reason in DEADLY:
                job.dead[answer.start] = Letter(answer.ticket, failed, now)
        for block in job.answer(answer):
            if job.needed(block):
                self._take_back(job, block)
            else:
                self.discard(job, block)
        self.garbage += job.forget_deaths(answer.start, answer.stop)

    def _write_death(self, job: DetachedJob, item: int) -> None:
        deaths, tickets = job.deaths.get(item, (0, ()))
        record = Record(DEATH, job.key, DIED.pack(item, deaths + 1))
        ticket = self.scribe.write(record, essential=True)
        job.deaths[item] = deaths + 1, (*tickets, ticket)

    # -- the end -----------------------------------------------------------------------------------

    def stop(
        self, job: DetachedJob, state: str, text: str = "", then: Callable[[int], None] = lambda left: None
    ) -> None:
        """The job is over, unless all of its answers are on their way into the journal; ``then`` is called with the
        number of items that have none, once that is durable."""

        def settled() -> None:
            left = 0
            if job.live:
                left = max(job.count, job.stored) - job.answered.total
                self.end(job, state, text)
            self.scribe.follow(partial(then, left))

        self.scribe.follow(settled)

    def end(self, job: DetachedJob, state: str, text: str = "") -> None:
        """The job is over."""
        job.ending = state
        job.end_ticket = self.scribe.next
        header = END.pack(self.now, ENDS.index(state), job.stored) + text.encode(errors="replace")
        ended = partial(self._ended, job, job.end_ticket, text, self.now)
        self.scribe.write(Record(ENDED, job.key, header), ended, essential=True)

    def _ended(self, job: DetachedJob, ticket: int, text: str, at: float) -> None:
        if job.gone or job.end_ticket != ticket:
            # Dead letters are being run again.
            return
        job.state, job.text, job.ended, job.ending = job.ending, text, at, ""
        self._rest(job)
        for block in list(job.blocks.values()):
            if not any(block.start <= item < block.stop for item in job.dead):
                self.discard(job, block)
        self.erase_garbage()
        if job.state == m.DONE:
            # It may have been sealed only when all of it had been answered.
            self._end_input(job)
        self._close(job, kill=job.state != m.DONE)
        self._look_for(job)
        self.changed(job)

    def discard(self, job: DetachedJob, block: Input) -> None:
        """No item of the block will ever run again."""
        self._take_back(job, block)
        job.drop(block)
        self.garbage.append(block.ticket)
        if len(self.garbage) >= ERASED:
            self.erase_garbage()

    def erase_garbage(self) -> None:
        """Have the journal drop the records that are not needed any more."""
        if self.garbage:
            garbage, self.garbage = self.garbage, []
            self.scribe.write(Erase(tuple(garbage)), essential=True)

    def retry(self, job: DetachedJob, items: list[int]) -> None:
        """Run dead letters once more, beginning at once: should that be forgotten, they are dead letters still."""
        tickets = [job.dead[item].ticket for item in items]
        tickets += [ticket for item in items for ticket in job.deaths.get(item, (0, ()))[1]]
        tickets += [job.end_ticket] if job.end_ticket else []
        for item in items:
            job.unanswer(item)
            for block in job.overlapping(item, item + 1):
                self._take_back(job, block)
                job.enqueue(block.start)
        job.state, job.ended, job.ending = m.RUNNING if job.count >= 0 else m.FILLING, 0.0, ""
        pool = self.ledger.pools.get(job.number)
        if pool is not None:
            pool.draining = False
        job.end_ticket = 0
        self.wake(job)
        self.scribe.write(Erase(tuple(tickets)), essential=True)

    def bury(self, job: DetachedJob, item: int) -> None:
        """A dead letter will not be run again; its item still has no result."""
        letter = job.dead[item]
        letter.dropped = True
        self._write_answer(job, FAILED, replace(letter.failed, reason=m.CANCELLED))
        self.scribe.write(Erase((letter.ticket,)), partial(self._buried, job, item), essential=True)

    def _buried(self, job: DetachedJob, item: int) -> None:
        if job.gone:
            return
        job.bury(item)
        for block in job.overlapping(item, item + 1):
            if not job.needed(block):
                self.discard(job, block)
