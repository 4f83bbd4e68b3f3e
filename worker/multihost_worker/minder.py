"""What becomes of the children: results, deaths, items that take too long or that nobody wants."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from multihost_common import messages as m
from multihost_worker import events as e
from multihost_worker.assign import Assigner
from multihost_worker.books import Books
from multihost_worker.slots import MAX_FAILED_STARTS, READY, STOPPING, Child, ChildPool
from multihost_worker.watch import Watch
from multihost_worker.work import Given, Work

#: Seconds until the next look at a child that runs, between two items, towards one nobody wants.
AGAIN = 0.05


class Minder:
    """Reacts to what the children do. ``spare`` is called when one of them has nothing left, ``ended`` with the number
    of each that is gone."""

    def __init__(
        self,
        books: Books,
        assigner: Assigner,
        watch: Watch,
        spare: Callable[[], None],
        ended: Callable[[int, bool], None],
    ) -> None:
        self._ended = ended
        self._books = books
        self._assigner = assigner
        self._watch = watch
        self._spare = spare
        self.reactions: dict[type, Callable[[Any], None]] = {
            e.ChildResult: self._on_result,
            e.ChildReady: self._on_ready,
            e.ChildFailed: self._on_failed,
            e.ChildDied: self._on_died,
            e.Reclaimed: self._on_reclaimed,
            e.Progress: self._on_progress,
            e.ChildMemory: self._on_memory,
        }

    # -- life --------------------------------------------------------------------------------------

    def _on_ready(self, event: e.ChildReady) -> None:
        child = self._books.children.get(event.child)
        if child is None:
            return
        child.pid = event.pid
        child.pool.failed_starts = 0
        if child.state is not STOPPING:
            child.pool.set_state(child, READY)
            self._assigner.feed(child.pool)

    def _on_failed(self, event: e.ChildFailed) -> None:
        child = self._books.children.get(event.child)
        if child is not None:
            child.pool.set_state(child, STOPPING)
            self._break(child.pool, event.text)

    def _break(self, pool: ChildPool, text: str) -> None:
        if not pool.broken:
            pool.broken = text[-m.TEXT :] or "a child could not be made ready"
            self._books.send(m.PoolBroken(pool.number, pool.broken))

    def kill(self, child: Child, why: str) -> None:
        """End the child now; ``why`` is the reason its item is given, unless nobody wants it."""
        if not child.killed_for:
            child.killed_for = why
            child.check_at = None
            child.pool.update(child)
            self._books.emit(e.KillChild(child.number))

    def _on_memory(self, event: e.ChildMemory) -> None:
        child = self._books.children.get(event.child)
        most = self._books.config.max_memory
        if child is None or not most or event.rss <= most:
            return
        if child.given:
            self.kill(child, m.MEMORY)
        else:
            self._assigner.stop(child)
            self._assigner.feed(child.pool)

    # -- results -----------------------------------------------------------------------------------

    def _on_result(self, event: e.ChildResult) -> None:
        child = self._books.children.get(event.child)
        if child is None:
            return
        work = child.answered(event.job, event.start, event.count)
        job = self._books.jobs.get(event.job)
        if job is not None and work is not None:
            job.pace.measure(event.count, event.spent)
            self._books.backlog.put(
                job,
                m.Result(
                    event.job, event.start, event.count, work.attempt, event.spent, event.encoding, event.frames
                ),
            )  # fmt: skip
        if not child.given:
            child.alone = child.suspect = False
        child.pool.update(child)
        self._assigner.feed(child.pool)
        if not child.given:
            self._spare()

    def _on_reclaimed(self, event: e.Reclaimed) -> None:
        child = self._books.children.get(event.child)
        if child is None:
            return
        pool = child.pool
        child.reclaiming = False
        child.claimed = True
        child.position = max(child.position, event.position)
        for work in child.cut_off(event.position):
            self.put_back(pool, work)
        pool.update(child)
        if pool.owed:
            self.pay(pool)
            pool.owed = 0
        self._assigner.feed(pool)
        self._spare()

    def put_back(self, pool: ChildPool, work: Work) -> None:
        """Queue again what has not begun, unless nobody wants it, or give it back where it cannot run."""
        for part in work.wanted() if work.job in self._books.jobs else ():
            if self._books.draining or not pool.granted:
                self._books.give_back(part)
            else:
                pool.queue.put(part, first=True)

    def pay(self, pool: ChildPool) -> None:
        """Give back what the broker has called for, the last items first, as far as they wait here."""
        while pool.owed > 0:
            work = pool.queue.take_last(pool.owed)
            if work is None:
                return
            pool.owed -= len(work.span)
            self._books.give_back(work)

    # -- looking -----------------------------------------------------------------------------------

    def look(self) -> None:
        """Inspect the children that it is time to look at."""
        for child in self._watch.due(self._books.now):
            if child.given and not child.killed_for:
                self._books.emit(e.Inspect(child.number))

    def _on_progress(self, event: e.Progress) -> None:
        """What a child runs: too long already, or not wanted any more?"""
        child = self._books.children.get(event.child)
        if child is None or child.killed_for or not child.given:
            return
        given = child.find_first(event.position, event.covers)
        if given is None:
            self._look_again(child)
            return
        job = self._books.jobs.get(given.work.job)
        if child.suspect and not self._is_wanted(child, event):
            self.kill(child, m.CANCELLED)
            return
        timeout = job.opened.timeout if job else 0.0
        if timeout and self._books.now >= event.since + timeout:
            child.late = range(event.position, event.position + event.covers)
            self.kill(child, m.TIMED_OUT)
        elif timeout:
            self._watch.look_at(child, event.since + timeout)
        if not child.killed_for:
            self._look_again(child)

    def _is_wanted(self, child: Child, event: e.Progress) -> bool:
        """Is anything wanted of what may be running?"""
        for position in range(event.position, event.position + event.covers):
            given = child.find(position)
            if (
                given
                and given.work.job in self._books.jobs
                and not given.work.is_cancelled(_item(given, position))
            ):
                return True
        return False

    def _look_again(self, child: Child) -> None:
        """What it has not begun yet may take too long, or be unwanted, too."""
        now = self._books.now
        if child.suspect and any(
            given.work.cancelled or given.work.job not in self._books.jobs for given in child.given
        ):
            self._watch.look_at(child, now + AGAIN)
        for given in child.given:
            job = self._books.jobs.get(given.work.job)
            if job is not None and job.opened.timeout:
                self._watch.look_at(child, now + job.opened.timeout)

    # -- death -------------------------------------------------------------------------------------

    def _on_died(self, event: e.ChildDied) -> None:
        child = self._books.children.pop(event.child, None)
        if child is None:
            return
        self._ended(event.child, bool(event.signal) and child.killed_for != m.CANCELLED)
        pool = child.pool
        child.check_at = None
        self._charge(child, event)
        rest = [given.work for given in reversed(child.given)]
        pool.leave(child)
        for work in rest:
            self.put_back(pool, work)
        if child.pid == 0 and not child.killed_for and not pool.broken:
            pool.failed_starts += 1
            if pool.failed_starts >= MAX_FAILED_STARTS:
                how = f"signal {event.signal}" if event.signal else f"exit code {event.exitcode}"
                text = f"{pool.failed_starts} children in a row ended before they were ready ({how})"
                self._break(pool, f"{text}: {event.text}" if event.text else text)
        self._assigner.feed(pool)
        self.pool_ended(pool)
        self._spare()

    def _charge(self, child: Child, event: e.ChildDied) -> None:
        """The item that was running, and only that one, is charged with the death. Where it is one
        of several, all of them are: each then runs alone, so a second death is surely its own."""
        position = event.position
        if position < 0 and child.given and not child.killed_for:
            # Nothing was noted yet: it died of what comes before the first item, such as an import.
            position = child.given[0].position
        running = range(position, position + event.covers)
        # What ran for too long may have ended just before the kill: then it is the one behind it that runs.
        for each in (*running, *(late for late in child.late if late not in running)):
            given = child.find(each)
            if given is not None:
                self._charge_item(child, event, given, each)

    def _charge_item(self, child: Child, event: e.ChildDied, given: Given, position: int) -> None:
        work, item = given.work, _item(given, position)
        job = self._books.jobs.get(work.job)
        if job is not None and not work.is_cancelled(item):
            reason = child.killed_for or m.DIED
            if child.killed_for == m.CANCELLED or (child.late and position not in child.late):
                # It was killed for another item's sake between two looks: this one is innocent.
                if not job.opened.at_most_once:
                    return
                reason = m.DIED
            self._books.backlog.put(
                job,
                m.Died(
                    work.job, item, work.attempt, reason, self._books.config.host,
                    event.pid, event.signal, event.exitcode, event.rss, event.oom, event.text[-2000:],
                ),
            )  # fmt: skip
        child.answered(work.job, item, 1)

    def pool_ended(self, pool: ChildPool) -> None:
        """If the pool is closing and has no children left, forget it and say so."""
        books = self._books
        if not pool.closing or pool.children or books.pools.get(pool.number) is not pool:
            return
        del books.pools[pool.number]
        books.blobs.release(pool.opened.setup)
        books.blobs.release(pool.opened.code)
        for job in [each for each in books.jobs.values() if each.opened.pool == pool.number]:
            books.forget(job)
        books.send(m.PoolClosed(pool.number))


def _item(given: Given, position: int) -> int:
    return given.work.span.start + position - given.position
