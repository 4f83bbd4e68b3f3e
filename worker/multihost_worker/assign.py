"""Which child gets what: starting children, giving them work, taking it back for an idle one."""

from __future__ import annotations

from collections.abc import Callable

from multihost_common.blobs import Blobs
from multihost_common.blocks import Frame
from multihost_worker import events as e
from multihost_worker.slots import READY, STARTING, STOPPING, Child, ChildPool
from multihost_worker.work import AgentJob, Given, Work

#: Seconds of work a child is given in one go.
QUANTUM = 0.004

#: Items in one go at most, however small.
MOST_ITEMS = 2048

#: A child has at most so many runs: the one it works on and the next.
RUNS = 2

#: Chunks that take longer than this are not given to a busy child.
LONG = 1.0

#: What a child can have left, in seconds, that is worth taking from it for an idle one.
WORTHWHILE = 0.001


class Assigner:
    """Feeds the children of all pools. ``emit`` takes the actions."""

    def __init__(
        self,
        emit: Callable[[e.Action], None],
        slots: int,
        pools: dict[int, ChildPool],
        jobs: dict[int, AgentJob],
        children: dict[int, Child],
        blobs: Blobs,
    ) -> None:
        self._emit = emit
        self._slots = slots
        self._pools = pools
        self._jobs = jobs
        self._children = children
        self._blobs = blobs
        self._next_child = 1
        self.draining = False
        self.now = 0.0

    # -- giving ------------------------------------------------------------------------------------

    def feed(self, pool: ChildPool) -> None:
        """Give the pool's children what they have room for, and start those that are wanted."""
        if pool.broken or self.draining:
            self._stop_idle(pool)
            return
        idle = False
        for child in list(pool.children.values()):
            if child.state is not READY or child.killed_for:
                continue
            if not child.given and self._superfluous(pool):
                self.stop(child)
                continue
            if pool.queue.alone:
                self._give_alone(pool, child)
            while pool.queue and self._has_room(pool, child):
                self._give(pool, child)
            if not child.given and child.state is READY:
                idle = True
        if pool.queue or pool.queue.alone or pool.opened.eager:
            self._start_children(pool)
        if idle and not pool.queue and not pool.owed:
            self._even_out(pool)

    def _superfluous(self, pool: ChildPool) -> bool:
        return pool.live() > pool.granted or (pool.closing and not pool.queue and not pool.queue.alone)

    def _stop_idle(self, pool: ChildPool) -> None:
        for child in list(pool.children.values()):
            if not child.given and pool.closing:
                self.stop(child)

    def _has_room(self, pool: ChildPool, child: Child) -> bool:
        if child.state is not READY or child.alone or child.reclaiming:
            return False
        runs = len(child.given)
        if not runs:
            return True
        if runs >= RUNS:
            return False
        work = pool.queue.head()
        job = self._jobs.get(work.job)
        if job is None:
            return True
        each = job.pace.seconds * work.span.block.chunksize
        return 0.0 < each < LONG and not job.opened.at_most_once

    def _give(self, pool: ChildPool, child: Child) -> None:
        head = pool.queue.head()
        job = self._jobs.get(head.job)
        if job is None:
            pool.queue.drop(head.job)
            return
        if job.opened.function not in self._blobs:
            pool.queue.put(pool.queue.take(1), first=False)
            child.reclaiming = True
            return
        items = min(job.pace.items_in(QUANTUM), MOST_ITEMS)
        live = pool.live()
        if live > 1:
            # Towards the end everyone gets less, so that all end together.
            items = min(items, -(-pool.queue.items // (2 * live)))
        if job.opened.at_most_once:
            items = 1
        most = pool.opened.max_tasks
        if most:
            items = min(items, (most - child.tasks) * head.span.block.chunksize)
        self._run(child, job, pool.queue.take(items))

    def _run(self, child: Child, job: AgentJob, work: Work) -> None:
        opened = job.opened
        if work.job not in child.defined:
            child.defined.add(work.job)
            self._emit(
                e.Define(
                    child.number, work.job, self._content(opened.function), self._content(opened.code),
                    opened.call, opened.timeout, opened.retries, opened.at_most_once,
                )
            )  # fmt: skip
        span = work.span
        count = len(span)
        position = child.position
        child.position += count
        idle = not child.given
        child.given.append(Given(position, work))
        child.tasks += -(-count // span.block.chunksize)
        skip, frames = span.cut()
        self._emit(
            e.Run(child.number, position, work.job, span.start, count, span.block.chunksize, skip, frames)
        )
        if opened.timeout and idle:
            child.check_at = self.now + opened.timeout
        if child.pool.opened.max_tasks and child.tasks >= child.pool.opened.max_tasks:
            self.stop(child)
            self._start_children(child.pool)

    def _content(self, digest: bytes) -> Frame:
        return (self._blobs.get(digest) if digest else None) or b""

    def _give_alone(self, pool: ChildPool, child: Child) -> None:
        """A suspect runs in a child that has run nothing yet; others make room for such a child."""
        if child.given:
            return
        if child.tasks == 0:
            work = pool.queue.alone.popleft()
            job = self._jobs.get(work.job)
            if job is not None:
                child.alone = True
                self._run(child, job, work)
        elif not any(other.tasks == 0 and other.state is not STOPPING for other in pool.children.values()):
            self.stop(child)

    def watch(self, child: Child) -> None:
        """Look again later at a child of which it is not known what it runs."""
        job = self._jobs.get(child.given[0].work.job)
        if job is not None and job.opened.timeout:
            child.check_at = self.now + min(job.opened.timeout, 0.05)

    # -- taking back -------------------------------------------------------------------------------

    def _even_out(self, pool: ChildPool) -> None:
        """A child is idle and nothing waits: take what the fullest of the others has not begun."""
        fullest, most = None, WORTHWHILE
        for child in pool.children.values():
            if child.reclaiming or child.alone or not child.given:
                continue
            items = child.items()
            head = child.given[0].work
            if items <= head.span.block.chunksize and len(child.given) == 1:
                continue
            job = self._jobs.get(head.job)
            left = items * job.pace.seconds if job and job.pace.seconds else 1.0
            if left > most:
                fullest, most = child, left
        if fullest is not None:
            self.reclaim(fullest)

    def reclaim(self, child: Child) -> None:
        """Ask for what the child has not begun."""
        if not child.reclaiming:
            child.reclaiming = True
            self._emit(e.Reclaim(child.number))

    # -- children ----------------------------------------------------------------------------------

    def _start_children(self, pool: ChildPool) -> None:
        if pool.closing and not pool.queue and not pool.queue.alone:
            return
        if any(digest and digest not in self._blobs for digest in (pool.opened.setup, pool.opened.code)):
            return
        live = pool.live()
        wanted = pool.granted if pool.opened.eager else min(pool.granted, self._useful(pool))
        while live < wanted and (not self._slots or self._alive() < self._slots):
            self._start(pool)
            live += 1

    def _useful(self, pool: ChildPool) -> int:
        """How many children would have something to do."""
        waiting = len(pool.queue.alone)
        if pool.queue:
            waiting += -(-pool.queue.items // pool.queue.head().span.block.chunksize)
        starting = sum(1 for child in pool.children.values() if child.state is STARTING)
        return pool.busy() + max(waiting, starting)

    def _alive(self) -> int:
        return sum(1 for child in self._children.values() if child.state is not STOPPING)

    def _start(self, pool: ChildPool) -> None:
        child = Child(self._next_child, pool)
        self._next_child += 1
        pool.children[child.number] = self._children[child.number] = child
        opened = pool.opened
        self._emit(
            e.StartChild(child.number, pool.number, self._content(opened.setup), self._content(opened.code))
        )

    def stop(self, child: Child) -> None:
        """Let the child end once it has run what it has."""
        if child.state is not STOPPING:
            child.state = STOPPING
            self._emit(e.StopChild(child.number))
