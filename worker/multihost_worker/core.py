"""The agent's core: told what the broker sends and what the children do, it answers with actions.

It is composed of :mod:`books` (the state), :mod:`slots` (children and pools), :mod:`work` (what waits,
what was given), :mod:`assign` (which child gets what), :mod:`minder` (what the children do) and
:mod:`watch` (when to look at them). This file is the reactor to the broker and to the operator.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from multihost_common import messages as m
from multihost_common.tables import pack_rows
from multihost_worker import events as e
from multihost_worker.assign import Assigner
from multihost_worker.books import Books, CoreConfig
from multihost_worker.minder import Minder
from multihost_worker.nested import Nested
from multihost_worker.processes import Processes
from multihost_worker.slots import ChildPool
from multihost_worker.watch import Watch
from multihost_worker.work import AgentJob, Work

EX_OK = 0


class Core:
    """See the module. All state changes go through :meth:`handle`, ever."""

    def __init__(self, config: CoreConfig) -> None:
        self.config = config
        self.books = Books(config)
        self.pools = self.books.pools
        self.jobs = self.books.jobs
        self.children = self.books.children
        self.blobs = self.books.blobs
        self._watch = Watch()
        self._assigner = Assigner(self.books, self._watch)
        self._nested = Nested(self.books, self._root_of)
        self._minder = Minder(self.books, self._assigner, self._watch, self._spare, self._nested.ended)
        self.processes = Processes(
            self.books, self._assigner.number_child, self._minder.reactions, self._spare, self._nested.ended
        )
        self._drain_by: float | None = None
        #: The broker has answered that it sends no more work.
        self._heard_out = False
        self._next_beat: float | None = None
        self._orphan_at: float | None = None
        self._reactions: dict[type, Callable[[Any], None]] = {
            **self._minder.reactions,
            **self._nested.reactions,
            **self.processes.reactions,
            e.Connected: self._on_connected,
            e.Disconnected: self._on_disconnected,
            e.NotSpooled: self._on_not_spooled,
            e.Unspooled: self._on_unspooled,
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
            m.Drain: self._on_drain,
            m.Leave: self._on_leave,
        }

    # -- the door ----------------------------------------------------------------------------------

    def handle(self, event: e.Event, now: float) -> list[e.Action]:
        """Take one event; what is to be done about it."""
        self.books.now = now
        subject: object = event.message if type(event) is e.Received else event
        reaction = self._reactions.get(type(subject))
        if reaction is not None:
            reaction(subject)
        out, self.books.out = self.books.out, []
        return out

    def deadline(self) -> float | None:
        """When :class:`~multihost_worker.events.Tick` is due."""
        times = (
            self.processes.deadline(),
            self._watch.deadline(),
            self._next_beat,
            self._drain_by,
            self._orphan_at,
        )
        return min((at for at in times if at is not None), default=None)

    def _root_of(self, child: int) -> int | None:
        """The pool that the child belongs to, or the process that it is."""
        known = self.children.get(child)
        return self.processes.root_of(child) if known is None else known.pool.number

    # -- the session -------------------------------------------------------------------------------

    def _on_connected(self, event: e.Connected) -> None:
        books = self.books
        books.connected = True
        self._orphan_at = None
        if event.fresh:
            self._nested.forgotten()
            self.processes.restate()
        self._doubt()
        pools = pack_rows((pool.number, pool.live) for pool in self.pools.values())
        books.send(m.Held((pools, pack_rows(books.held()))))
        if books.draining:
            books.send(m.Drain())
        if self.config.heartbeat:
            self._next_beat = books.now + self.config.heartbeat

    def _on_disconnected(self, event: e.Disconnected) -> None:
        """The children go on; what they answer is kept for when the broker is back."""
        self.books.connected = False
        self._next_beat = None
        self._orphan_at = self.books.now + self.config.orphan_timeout
        self._doubt()
        # A broker that is gone sends no more work either: with nothing left there is nothing to wait for.
        self._heard_out = self._heard_out or self.books.draining
        self._spare()

    def _doubt(self) -> None:
        """Who answers next may be another broker, which knows of no job before it says so."""
        for job in self.jobs.values():
            job.confirmed = False

    def _begin_anew(self) -> None:
        """Nobody waits for any of it any more: drop everything."""
        for child in self.children.values():
            child.clear()
            self._minder.kill(child, m.CANCELLED)
        for pool in self.pools.values():
            pool.closing = True
            self.books.blobs.release(pool.opened.setup)
            self.books.blobs.release(pool.opened.code)
        self.pools.clear()
        self.processes.kill_all()
        for job in list(self.jobs.values()):
            self.books.forget(job)
        self._spare()

    def _on_tick(self, event: e.Tick) -> None:
        now = self.books.now
        if self._next_beat is not None and now >= self._next_beat:
            self._next_beat = now + self.config.heartbeat
            self._beat()
        if self._orphan_at is not None and now >= self._orphan_at:
            self._orphan_at = None
            self._begin_anew()
        self._minder.look()
        self.processes.tick()
        if self._drain_by is not None and now >= self._drain_by:
            self._hand_back()

    def _beat(self) -> None:
        self.books.send(m.Beat((pack_rows(self.books.held()),)))
        if self.books.draining and not self._heard_out:
            self.books.send(m.Drain())
        # What was asked for before may have been lost.
        for pool in self.pools.values():
            self.books.ask_for(pool.opened.setup, pool.opened.code)
        for job in self.jobs.values():
            if job.parked:
                self.books.ask_for(job.opened.function, job.opened.code)
        self.processes.ask_again()

    # -- stopping ----------------------------------------------------------------------------------

    def _on_stop(self, event: e.Stop) -> None:
        books = self.books
        if books.draining or not books.connected:
            self._hand_back()
        else:
            self._begin_drain()

    def _on_leave(self, leave: m.Leave) -> None:
        """Somebody has told the broker to have this worker end. Said twice, it is no more urgent."""
        if not self.books.draining:
            self._begin_drain()

    def _begin_drain(self) -> None:
        books = self.books
        books.draining = True
        self._drain_by = books.now + self.config.drain_timeout
        books.send(m.Drain())
        for pool in self.pools.values():
            self._give_all_back(pool)
        self._spare()

    def _on_drain(self, drain: m.Drain) -> None:
        self._heard_out = True
        self._spare()

    def _give_all_back(self, pool: ChildPool) -> None:
        """Give back what has not begun; what the children have follows as it is reclaimed."""
        parked = [job.parked for job in self.jobs.values() if job.opened.pool == pool.number]
        for works in (pool.queue.clear(), *parked):
            for work in works:
                self.books.give_back(work)
        for each in parked:
            each.clear()
        for child in pool.children.values():
            self._assigner.reclaim(child)

    def _spare(self) -> None:
        """A child has nothing left: if it was the last one of a draining agent, that was all."""
        if self.books.draining and self._drain_by is not None and self._heard_out:
            if any(child.given for child in self.children.values()):
                return
            if self.processes.by_number or any(job.kept for job in self.jobs.values()):
                # Not before the broker has it.
                return
            self._leave("drained")

    def _hand_back(self) -> None:
        """End at once. The broker gives what was held to others when it hears Bye."""
        for child in self.children.values():
            self._minder.kill(child, m.CANCELLED)
            child.clear()
        self.processes.kill_all()
        self.books.draining = True
        self._leave("stopped")

    def _leave(self, why: str) -> None:
        self._drain_by = None
        self._next_beat = None
        if self.books.connected:
            self.books.send(m.Bye(why))
        self.books.emit(e.Exit(EX_OK))

    # -- content, pools, jobs ----------------------------------------------------------------------

    def _on_blob(self, blob: m.Blob) -> None:
        if not blob.frames:
            return
        self.books.blobs.put(blob.digest, blob.frames[0])
        for job in self.jobs.values():
            pool = self.pools.get(job.opened.pool)
            if job.parked and pool is not None:
                parked, job.parked = job.parked, []
                for work in reversed(parked):
                    pool.queue.put(work, first=True)
        for pool in list(self.pools.values()):
            self._assigner.feed(pool)
        self.processes.content_came()

    def _on_open_pool(self, opened: m.OpenPool) -> None:
        known = self.pools.get(opened.pool)
        if known is None:
            self.pools[opened.pool] = ChildPool(opened)
            self.books.blobs.use(opened.setup)
            self.books.blobs.use(opened.code)
        else:
            # It was being closed, perhaps, and is wanted again.
            known.closing = False
            if known.broken:
                # What was said before may have been lost.
                self.books.send(m.PoolBroken(known.number, known.broken))
        self.books.ask_for(opened.setup, opened.code)

    def _on_grant(self, grant: m.Grant) -> None:
        pool = self.pools.get(grant.pool)
        if pool is not None:
            pool.granted = grant.slots
            if not grant.slots:
                self._give_all_back(pool)
            self._assigner.feed(pool)

    def _on_close_pool(self, close: m.ClosePool) -> None:
        pool = self.pools.get(close.pool)
        if pool is None:
            self.books.send(m.PoolClosed(close.pool))
            return
        pool.closing = True
        if close.kill:
            pool.queue.clear()
        for child in list(pool.children.values()):
            if close.kill:
                child.clear()
                self._minder.kill(child, m.CANCELLED)
            elif not child.given and (pool.done() or pool.broken):
                self._assigner.stop(child)
        self._minder.pool_ended(pool)

    def _on_open_job(self, opened: m.OpenJob) -> None:
        known = self.jobs.get(opened.job)
        if known is not None:
            self.books.confirm(known)
            self.books.ask_for(opened.function, opened.code)
            self._resume()
        elif opened.pool in self.pools:
            self.jobs[opened.job] = AgentJob(opened)
            self.books.blobs.use(opened.function)
            self.books.blobs.use(opened.code)
            self.books.ask_for(opened.function, opened.code)

    def _on_not_spooled(self, event: e.NotSpooled) -> None:
        self.books.backlog.not_spooled(event)

    def _on_unspooled(self, event: e.Unspooled) -> None:
        job = self.books.backlog.unspooled(event)
        if job is not None and job.confirmed:
            self.books.confirm(job)
            self._resume()

    def _resume(self) -> None:
        """What was kept has gone: go on where that was too much."""
        for pool in list(self.pools.values()):
            if pool.queue or pool.closing:
                self._assigner.feed(pool)
        self._spare()

    def _on_close_job(self, close: m.CloseJob) -> None:
        job = self.jobs.get(close.job)
        if job is None:
            return
        self.books.forget(job)
        pool = self.pools.get(job.opened.pool)
        if pool is None:
            return
        if pool.queue:
            pool.queue.drop(close.job)
        for child in pool.children.values():
            if close.job in child.defined:
                child.defined.discard(close.job)
                self.books.emit(e.Forget(child.number, close.job))
            if any(given.work.job == close.job for given in child.given):
                # It has its answers from elsewhere, and what runs here might never end.
                child.suspect = True
                self.books.emit(e.Inspect(child.number))

    # -- work --------------------------------------------------------------------------------------

    def _on_lease(self, lease: m.Lease) -> None:
        books = self.books
        job = self.jobs.get(lease.job)
        pool = self.pools.get(job.opened.pool) if job else None
        work = Work.leased(lease)
        if pool is None or work is None:
            # It is missing in the next beats, and so it finds its way back without a storm of returns.
            return
        if books.draining:
            # The broker has not heard it.
            books.send(m.Drain())
        if books.draining or pool.closing or not pool.granted:
            books.give_back(work)
            return
        pool.queue.put(work)
        self._assigner.feed(pool)

    def _on_revoke(self, revoke: m.Revoke) -> None:
        """Give back from the end of the queue; what is missing is reclaimed from the children."""
        pool = self.pools.get(revoke.pool)
        if pool is None:
            return
        pool.owed = revoke.count
        self._minder.pay(pool)
        full = [
            child
            for child in (pool.children.values() if pool.owed else ())
            if child.items > 1 and not (child.alone or child.claimed or child.killed_for)
        ]
        for child in full:
            self._assigner.reclaim(child)
        if not full:
            pool.owed = 0

    def _on_cancel(self, cancel: m.Cancel) -> None:
        start, stop = (cancel.start, cancel.start + cancel.count) if cancel.count else (0, 1 << 64)
        job = self.jobs.get(cancel.job)
        pool = self.pools.get(job.opened.pool) if job else None
        if job is None or pool is None:
            return
        pool.queue.drop(cancel.job, start, stop)
        job.parked = [part for work in job.parked for part in work.without(start, stop)]
        for child in list(pool.children.values()):
            hit = [given.work for given in child.given if given.work.overlaps(cancel.job, start, stop)]
            if not hit:
                continue
            for work in hit:
                work.cancel(start, stop)
            self._assigner.reclaim(child)
            if cancel.kill:
                child.suspect = True
                self.books.emit(e.Inspect(child.number))


__all__ = ["Core", "CoreConfig"]
