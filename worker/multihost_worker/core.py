"""The agent's core: told what the broker sends and what the children do, it answers with actions.

It is composed of :mod:`work` (what waits, what was given) and :mod:`slots` (children and pools); which
child gets what is decided in :mod:`assign`. This file is the reactor, one method for each event.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from multihost_common import messages as m
from multihost_common.blobs import Blobs
from multihost_worker import events as e
from multihost_worker.assign import Assigner
from multihost_worker.slots import MAX_FAILED_STARTS, READY, STOPPING, Child, ChildPool
from multihost_worker.work import AgentJob, Work

EX_OK = 0


@dataclass(slots=True)
class CoreConfig:
    """What the shell tells the core once."""

    #: Child processes at once; 0: as many as the pools ask for.
    slots: int = 0
    host: str = ""
    #: Resident bytes a child may have; 0: no limit.
    max_memory: int = 0
    #: Seconds a drain may take before everything is handed back.
    drain_timeout: float = 25.0
    #: Seconds between beats; 0.0: none (the broker is in the same process).
    heartbeat: float = 1.0


class Core:
    """See the module. All state changes go through :meth:`handle`, ever."""

    def __init__(self, config: CoreConfig) -> None:
        self.config = config
        self._out: list[e.Action] = []
        self.blobs = Blobs()
        self.pools: dict[int, ChildPool] = {}
        self.jobs: dict[int, AgentJob] = {}
        self.children: dict[int, Child] = {}
        self.assigner = Assigner(
            self._out.append, config.slots, self.pools, self.jobs, self.children, self.blobs
        )
        self.connected = False
        self.draining = False
        self._drain_by: float | None = None
        self._next_beat: float | None = None
        self._now = 0.0
        self._reactions: dict[type, Callable[[Any], None]] = {
            e.ChildResult: self._on_child_result,
            e.ChildReady: self._on_child_ready,
            e.ChildFailed: self._on_child_failed,
            e.ChildDied: self._on_child_died,
            e.Reclaimed: self._on_reclaimed,
            e.Progress: self._on_progress,
            e.ChildMemory: self._on_child_memory,
            e.Connected: self._on_connected,
            e.Disconnected: self._on_disconnected,
            e.Stop: self._on_stop,
            e.Tick: self._on_tick,
            m.Lease: self._on_lease,
            m.OpenPool: self._on_open_pool,
            m.ClosePool: self._on_close_pool,
            m.Grant: self._on_grant,
            m.OpenJob: self._on_open_job,
            m.CloseJob: self._on_close_job,
            m.Cancel: self._on_cancel,
            m.Revoke: self._on_revoke,
            m.Blob: self._on_blob,
        }

    # -- the door ----------------------------------------------------------------------------------

    def handle(self, event: e.Event, now: float) -> list[e.Action]:
        """Take one event; what is to be done about it."""
        self._now = self.assigner.now = now
        subject: object = event.message if type(event) is e.Received else event
        reaction = self._reactions.get(type(subject))
        if reaction is not None:
            reaction(subject)
        out = self._out[:]
        self._out.clear()
        return out

    def deadline(self) -> float | None:
        """When :class:`~multihost_worker.events.Tick` is due."""
        times = [child.check_at for child in self.children.values() if child.check_at is not None]
        times += [at for at in (self._next_beat, self._drain_by) if at is not None]
        return min(times, default=None)

    def _send(self, message: m.Message) -> None:
        self._out.append(e.Send(message))

    # -- the session -------------------------------------------------------------------------------

    def _on_connected(self, event: e.Connected) -> None:
        self.connected = True
        if self.config.heartbeat:
            self._next_beat = self._now + self.config.heartbeat

    def _on_disconnected(self, event: e.Disconnected) -> None:
        """The broker knows nothing of us any more: begin anew."""
        self.connected = False
        self._next_beat = None
        for child in self.children.values():
            child.given.clear()
            self._kill(child, m.CANCELLED)
        for pool in self.pools.values():
            pool.queue.clear()
            pool.granted = 0
            pool.closing = True
        self.pools.clear()
        self.jobs.clear()
        if self.draining:
            self._finish_drain()

    def _on_tick(self, event: e.Tick) -> None:
        now = self._now
        if self._next_beat is not None and now >= self._next_beat:
            self._next_beat = now + self.config.heartbeat
            self._send(m.Beat((self._held(),)))
        for child in self.children.values():
            if child.check_at is not None and now >= child.check_at:
                child.check_at = None
                self._out.append(e.Inspect(child.number))
        if self._drain_by is not None and now >= self._drain_by:
            self._hand_back()

    def _held(self) -> bytes:
        held = array("Q")
        for work in self._works():
            held.extend((work.job, work.span.start, len(work.span), work.attempt))
        if sys.byteorder == "big":
            held.byteswap()
        return held.tobytes()

    def _works(self) -> list[Work]:
        works = [work for pool in self.pools.values() for work in pool.queue]
        works += [given.work for child in self.children.values() for given in child.given]
        return works

    # -- stopping ----------------------------------------------------------------------------------

    def _on_stop(self, event: e.Stop) -> None:
        if self.draining or not self.connected:
            self._hand_back()
            return
        self.draining = self.assigner.draining = True
        self._drain_by = self._now + self.config.drain_timeout
        self._send(m.Drain())
        for pool in self.pools.values():
            for work in pool.queue.clear():
                self._return(work)
        for child in self.children.values():
            if child.given:
                self._out.append(e.Reclaim(child.number))
        self._finish_drain()

    def _finish_drain(self) -> None:
        if any(child.given for child in self.children.values()):
            return
        self._drain_by = None
        if self.connected:
            self._send(m.Bye("drained"))
        self._out.append(e.Exit(EX_OK))

    def _hand_back(self) -> None:
        """End at once. The broker gives what was held to others when it hears Bye."""
        self._drain_by = None
        for child in self.children.values():
            self._kill(child, m.CANCELLED)
            child.given.clear()
        if self.connected:
            self._send(m.Bye("stopped"))
        self._out.append(e.Exit(EX_OK))

    def _return(self, work: Work) -> None:
        self._send(m.Returned(work.job, work.span.start, len(work.span), work.attempt))

    # -- pools and jobs ----------------------------------------------------------------------------

    def _on_blob(self, blob: m.Blob) -> None:
        self.blobs.put(blob.digest, blob.frames[0])
        for pool in list(self.pools.values()):
            self.assigner.feed(pool)

    def _on_open_pool(self, opened: m.OpenPool) -> None:
        if opened.pool not in self.pools:
            self.pools[opened.pool] = ChildPool(opened)
            for digest in (opened.setup, opened.code):
                self.blobs.use(digest)
                self._need(digest)

    def _need(self, digest: bytes) -> None:
        if digest and digest not in self.blobs:
            self._send(m.Need(digest))

    def _on_grant(self, grant: m.Grant) -> None:
        pool = self.pools.get(grant.pool)
        if pool is not None:
            pool.granted = grant.slots
            self.assigner.feed(pool)

    def _on_close_pool(self, close: m.ClosePool) -> None:
        pool = self.pools.get(close.pool)
        if pool is None:
            self._send(m.PoolClosed(close.pool))
            return
        pool.closing = True
        if close.kill:
            pool.queue.clear()
        for child in list(pool.children.values()):
            if close.kill:
                child.given.clear()
                self._kill(child, m.CANCELLED)
            elif not child.given:
                self.assigner.stop(child)
        self._pool_ended(pool)

    def _pool_ended(self, pool: ChildPool) -> None:
        if pool.closing and not pool.children and self.pools.get(pool.number) is pool:
            del self.pools[pool.number]
            self.blobs.release(pool.opened.setup)
            self.blobs.release(pool.opened.code)
            self._send(m.PoolClosed(pool.number))

    def _on_open_job(self, opened: m.OpenJob) -> None:
        if opened.job not in self.jobs:
            self.jobs[opened.job] = AgentJob(opened)
            for digest in (opened.function, opened.code):
                self.blobs.use(digest)
                self._need(digest)

    def _on_close_job(self, close: m.CloseJob) -> None:
        job = self.jobs.pop(close.job, None)
        pool = self.pools.get(job.opened.pool) if job else None
        if job is None:
            return
        self.blobs.release(job.opened.function)
        self.blobs.release(job.opened.code)
        for child in pool.children.values() if pool else ():
            if close.job in child.defined:
                child.defined.discard(close.job)
                self._out.append(e.Forget(child.number, close.job))

    # -- work --------------------------------------------------------------------------------------

    def _on_lease(self, lease: m.Lease) -> None:
        job = self.jobs.get(lease.job)
        pool = self.pools.get(job.opened.pool) if job else None
        if pool is None or pool.closing or self.draining or len(lease.frames[0]) == 0:
            self._send(m.Returned(lease.job, lease.start, lease.count, lease.attempt))
            return
        pool.queue.put(Work.leased(lease))
        self.assigner.feed(pool)

    def _on_revoke(self, revoke: m.Revoke) -> None:
        """Give back from the end of the queue; what is missing is reclaimed from the children."""
        pool = self.pools.get(revoke.pool)
        if pool is None:
            return
        pool.owed = revoke.count
        self._pay(pool)
        if pool.owed:
            asked = [child for child in pool.children.values() if child.items() > 1 and not child.alone]
            for child in asked:
                self.assigner.reclaim(child)
            if not asked:
                pool.owed = 0

    def _pay(self, pool: ChildPool) -> None:
        while pool.owed > 0:
            work = pool.queue.take_last(pool.owed)
            if work is None:
                return
            pool.owed -= len(work.span)
            self._return(work)

    def _on_cancel(self, cancel: m.Cancel) -> None:
        start, stop = (cancel.start, cancel.start + cancel.count) if cancel.count else (0, 1 << 64)
        job = self.jobs.get(cancel.job)
        pool = self.pools.get(job.opened.pool) if job else None
        if pool is None:
            return
        pool.queue.drop(cancel.job, start, stop)
        for child in list(pool.children.values()):
            hit = [
                given
                for given in child.given
                if given.work.job == cancel.job
                and given.work.span.start < stop
                and start < given.work.span.stop
            ]
            if not hit:
                continue
            for given in hit:
                given.work.cancel(start, stop)
            child.suspect = cancel.kill
            self.assigner.reclaim(child)
            if cancel.kill:
                self._out.append(e.Inspect(child.number))

    # -- children ----------------------------------------------------------------------------------

    def _on_child_ready(self, event: e.ChildReady) -> None:
        child = self.children[event.child]
        child.pid = event.pid
        child.pool.failed_starts = 0
        if child.state != STOPPING:
            child.state = READY
            self.assigner.feed(child.pool)

    def _on_child_failed(self, event: e.ChildFailed) -> None:
        child = self.children[event.child]
        child.state = STOPPING
        self._break(child.pool, event.text)

    def _break(self, pool: ChildPool, text: str) -> None:
        if not pool.broken:
            pool.broken = True
            self._send(m.PoolBroken(pool.number, text[-m.TEXT :]))

    def _on_child_result(self, event: e.ChildResult) -> None:
        child = self.children[event.child]
        work = child.answered(event.job, event.start, event.count)
        job = self.jobs.get(event.job)
        if job is not None and work is not None:
            job.pace.measure(event.count, event.spent)
            self._send(
                m.Result(
                    event.job,
                    event.start,
                    event.count,
                    work.attempt,
                    event.spent,
                    event.encoding,
                    event.frames,
                )
            )
        if not child.given:
            child.alone = False
            child.check_at = None
            if self.draining:
                self._finish_drain()
        self.assigner.feed(child.pool)

    def _on_reclaimed(self, event: e.Reclaimed) -> None:
        child = self.children.get(event.child)
        if child is None:
            return
        child.reclaiming = False
        child.position = max(child.position, event.position)
        pool = child.pool
        for work in child.cut_off(event.position):
            self._put_back(pool, work)
        if self.draining:
            self._finish_drain()
        elif pool.owed:
            self._pay(pool)
            pool.owed = 0
        self.assigner.feed(pool)

    def _put_back(self, pool: ChildPool, work: Work) -> None:
        """Queue again what a child had and has not begun, unless nobody wants it any more."""
        for part in work.wanted() if work.job in self.jobs else ():
            if self.draining:
                self._return(part)
            else:
                pool.queue.put(part, first=True)

    def _on_progress(self, event: e.Progress) -> None:
        """What a child runs: too long already, or not wanted any more?"""
        child = self.children.get(event.child)
        given = child.find(event.position) if child else None
        if child is None or given is None:
            if child is not None and child.given:
                self.assigner.watch(child)
            return
        item = given.work.span.start + event.position - given.position
        job = self.jobs.get(given.work.job)
        if child.suspect and (job is None or given.work.is_cancelled(item)):
            self._kill(child, m.CANCELLED)
            return
        timeout = job.opened.timeout if job else 0.0
        if not timeout:
            return
        if self._now - event.since >= timeout:
            self._kill(child, m.TIMED_OUT)
        else:
            child.check_at = event.since + timeout

    def _on_child_memory(self, event: e.ChildMemory) -> None:
        child = self.children.get(event.child)
        if child is None or not self.config.max_memory or event.rss <= self.config.max_memory:
            return
        if child.given:
            self._kill(child, m.MEMORY)
        else:
            self.assigner.stop(child)
            self.assigner.feed(child.pool)

    def _kill(self, child: Child, why: str) -> None:
        if not child.killed_for:
            child.killed_for = why
            child.check_at = None
            self._out.append(e.KillChild(child.number))

    def _on_child_died(self, event: e.ChildDied) -> None:
        child = self.children.pop(event.child)
        pool = child.pool
        pool.children.pop(child.number, None)
        self._charge(child, event)
        for given in reversed(child.given):
            self._put_back(pool, given.work)
        child.given.clear()
        if child.pid == 0 and not child.killed_for and not pool.broken:
            pool.failed_starts += 1
            if pool.failed_starts >= MAX_FAILED_STARTS:
                text = f"{pool.failed_starts} children in a row ended before they were ready: {event.text}"
                self._break(pool, text)
        self._pool_ended(pool)
        if self.draining:
            self._finish_drain()
        if pool.number in self.pools:
            self.assigner.feed(pool)

    def _charge(self, child: Child, event: e.ChildDied) -> None:
        """The item that was running, and only that one, is charged with the death."""
        given = child.find(event.position)
        if given is None:
            if not child.given or child.killed_for == m.CANCELLED:
                return
            given = child.given[0]
            item = given.work.span.start
        else:
            item = given.work.span.start + event.position - given.position
        work = given.work
        if work.job in self.jobs and not work.is_cancelled(item):
            if child.killed_for == m.CANCELLED:
                # It was killed for another item's sake between two looks: this one is innocent.
                return
            reason = child.killed_for or m.DIED
            self._send(
                m.Died(
                    work.job, item, work.attempt, reason, self.config.host, event.pid, event.signal,
                    event.exitcode, event.rss, event.oom, event.text[-2000:],
                )
            )  # fmt: skip
        child.answered(work.job, item, 1)
