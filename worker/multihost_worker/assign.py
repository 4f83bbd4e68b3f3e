"""Which child gets what: starting children, giving them work, taking it back for an idle one."""

from __future__ import annotations

from multihost_common.blocks import Frame
from multihost_worker import events as e
from multihost_worker.books import Books
from multihost_worker.slots import STOPPING, Child, ChildPool
from multihost_worker.watch import Watch
from multihost_worker.work import AgentJob, Work

#: Seconds of work a child is given in one go at most, and at least, where there is as much.
QUANTUM = 0.2
LEAST = 0.02

#: Chunks in one go at most, however small.
MOST_CHUNKS = 2048

#: Chunks that take longer than this are not given to a busy child.
LONG = 1.0

#: Children of one host, where it has no number of slots.
MOST_CHILDREN = 4096

#: What a child can have left, in seconds, that is worth taking from it for an idle one.
WORTHWHILE = 0.001


class Assigner:
    """Feeds the children of all pools."""

    def __init__(self, books: Books, watch: Watch) -> None:
        self._books = books
        self._watch = watch
        self._next_child = 1
        #: Pools that would start a child if a slot were free.
        self._cramped: dict[int, ChildPool] = {}

    # -- giving ------------------------------------------------------------------------------------

    def feed(self, pool: ChildPool) -> None:
        """Give the pool's children what they have room for, and start those that are wanted."""
        if pool.broken or self._books.draining or self._books.backlog.full():
            if pool.closing:
                self._stop_idle(pool, len(pool.idle))
        else:
            self._feed(pool)
        if self._cramped and self._room() > 0:
            cramped, self._cramped = self._cramped, {}
            for other in cramped.values():
                if self._books.pools.get(other.number) is other:
                    self.feed(other)

    def _feed(self, pool: ChildPool) -> None:
        queue = pool.queue
        if pool.live > pool.granted:
            self._stop_idle(pool, pool.live - pool.granted)
        while queue.alone and pool.idle and self._give_alone(pool):
            pass
        while queue and pool.idle:
            self._give(pool, next(iter(pool.idle.values())))
        while queue and pool.busy and pool.live <= pool.granted and self._may_wait(pool):
            self._give(pool, min(pool.busy.values(), key=Child.unbegun))
        if pool.closing and pool.done():
            self._stop_idle(pool, len(pool.idle))
        else:
            self._start_children(pool)
        if pool.idle and not queue and not pool.owed and pool.live > len(pool.idle):
            self._even_out(pool)

    def _stop_idle(self, pool: ChildPool, count: int) -> None:
        while count > 0 and pool.idle:
            count -= 1
            self.stop(next(iter(pool.idle.values())))

    def _may_wait(self, pool: ChildPool) -> bool:
        """May the next work wait in a child that is busy?"""
        work = pool.queue.head()
        job = self._books.jobs.get(work.job)
        if job is None:
            return True
        each = job.pace.seconds * work.span.block.chunksize
        return 0.0 < each < LONG and not job.opened.at_most_once

    def _give(self, pool: ChildPool, child: Child) -> None:
        head = pool.queue.head()
        job = self._books.jobs.get(head.job)
        if job is None:
            pool.queue.drop(head.job)
            return
        if self._books.missing(job.opened.function, job.opened.code):
            job.parked.append(pool.queue.take(head.span.stop - head.span.start))
            return
        items = self._share(pool, child, job) if pool.queue.items > 1 else 1
        self._run(child, job, pool.queue.take(items))

    def _share(self, pool: ChildPool, child: Child, job: AgentJob) -> int:
        """About how many items the child is given in one go."""
        if job.opened.at_most_once:
            return 1
        span = pool.queue.head().span
        items = min(job.pace.items_in(QUANTUM), MOST_CHUNKS * span.block.chunksize)
        if pool.live > 1:
            # Everyone has as much, so that all end together.
            held = sum(each.unbegun() for each in pool.children.values())
            level = -(-(pool.queue.items + held) // pool.live) - child.unbegun()
            # What waits in a child that has something to do may be taken back from it.
            items = min(items, max(level, job.pace.items_in(LEAST) if child.given else 1))
        items = span.rounded(items)
        most = pool.opened.max_tasks
        if most:
            items = min(items, (most - child.tasks) * span.block.chunksize)
        return items

    def _run(self, child: Child, job: AgentJob, work: Work) -> None:
        opened = job.opened
        if work.job not in child.defined:
            child.defined.add(work.job)
            self._books.emit(
                e.Define(
                    child.number, work.job, self._content(opened.function), self._content(opened.code),
                    opened.call, opened.timeout, opened.retries, opened.at_most_once,
                )
            )  # fmt: skip
        span = work.span
        position = child.give(work)
        skip, frames = span.cut()
        self._books.emit(
            e.Run(child.number, position, work.job, span.start, len(span), span.block.chunksize, skip, frames)
        )
        if opened.timeout:
            self._watch.look_at(child, self._books.now + opened.timeout)
        most = child.pool.opened.max_tasks
        if most and child.tasks >= most:
            self.stop(child)
        else:
            child.pool.update(child)

    def _content(self, digest: bytes) -> Frame:
        return (self._books.blobs.get(digest) if digest else None) or b""

    def _give_alone(self, pool: ChildPool) -> bool:
        """A suspect runs in a child that has run nothing yet; others make room for such a child."""
        work = pool.queue.alone[0]
        job = self._books.jobs.get(work.job)
        if job is None:
            pool.queue.alone.popleft()
            return True
        if self._books.missing(job.opened.function, job.opened.code):
            job.parked.append(pool.queue.alone.popleft())
            return True
        fresh = next((child for child in pool.idle.values() if child.tasks == 0), None)
        if fresh is not None:
            pool.queue.alone.popleft()
            fresh.alone = True
            self._run(fresh, job, work)
            return True
        if pool.starting < len(pool.queue.alone):
            self._stop_idle(pool, 1)
        return False

    # -- taking back -------------------------------------------------------------------------------

    def _even_out(self, pool: ChildPool) -> None:
        """A child is idle and nothing waits: take what the fullest of the others has not begun."""
        fullest, most = None, WORTHWHILE
        for child in pool.children.values():
            if child.claimed or child.reclaiming or child.alone or not child.live or not child.given:
                continue
            head = child.given[0].work
            if len(child.given) == 1 and child.items <= head.span.block.chunksize:
                continue
            job = self._books.jobs.get(head.job)
            left = child.items * job.pace.seconds if job and job.pace.seconds else 1.0
            if left > most:
                fullest, most = child, left
        if fullest is not None:
            self.reclaim(fullest)

    def reclaim(self, child: Child) -> None:
        """Ask for what the child has not begun."""
        if child.given and not child.reclaiming and not child.killed_for:
            child.reclaiming = True
            child.pool.update(child)
            self._books.emit(e.Reclaim(child.number))

    # -- children ----------------------------------------------------------------------------------

    def _start_children(self, pool: ChildPool) -> None:
        wanted = pool.granted - pool.live
        if wanted > 0 and not pool.opened.eager:
            wanted = min(wanted, pool.waiting())
        if wanted <= 0 or self._books.missing(pool.opened.setup, pool.opened.code):
            return
        room = self._room()
        if pool.opened.nested and not pool.live:
            # All others may be waiting for what this one is to do.
            room = max(1, room)
        if wanted > room:
            wanted = room
            self._cramped[pool.number] = pool
        for _ in range(wanted):
            self._start(pool)

    def _room(self) -> int:
        """How many children more may run on this host."""
        slots = self._books.config.slots or MOST_CHILDREN
        return slots - sum(pool.live for pool in self._books.pools.values())

    def number_child(self) -> int:
        """The number of a new child."""
        self._next_child += 1
        return self._next_child - 1

    def _start(self, pool: ChildPool) -> None:
        child = Child(self.number_child(), pool)
        self._books.children[child.number] = child
        pool.enter(child)
        opened = pool.opened
        self._books.emit(
            e.StartChild(child.number, pool.number, self._content(opened.setup), self._content(opened.code))
        )

    def stop(self, child: Child) -> None:
        """Let the child end once it has run what it has."""
        if child.state is not STOPPING:
            child.pool.set_state(child, STOPPING)
            self._books.emit(e.StopChild(child.number))
