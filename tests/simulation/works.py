"""One job as its user sees it: a map, an imap read at the reader's pace, or calls of apply."""

from __future__ import annotations

import pickle
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from multihost.engines.base import Engine as AnyEngine
from multihost.iterators import IMapIterator, Inbox
from multihost.jobs import MapJob, Options, Task
from multihost.results import MapResult
from multihost.sources import Items
from multihost.streams import StreamJob
from multihost_common.blobs import digest_of

from .answers import Answers, Call, Recorder
from .world import ViolationError

if TYPE_CHECKING:
    from .plans import Plan
    from .users import OpenPool
    from .world import World

MAP, IMAP, APPLY = "map", "imap", "apply"
STYLES = (MAP, MAP, IMAP, APPLY)


@dataclass(slots=True)
class JobPlan:
    """One job as a user will start it."""

    plan: Plan
    style: str
    chunksize: int | None
    window: int | None
    #: Seconds after the pool was opened, and between two calls or two results that are taken.
    delay: float
    pause: float


class Work:
    """One job under way."""

    def __init__(self, world: World, pool: OpenPool, spec: JobPlan) -> None:
        self.world = world
        self.pool = pool
        self.spec = spec
        self.plan = spec.plan
        self.answers = Answers(world, spec.plan)
        self.answers.broken = pool.spec.broken
        #: Answers that the broker has sent, as bits.
        self.told = 0
        self._make()

    def _make(self) -> None:
        spec, plan, number = self.spec, self.plan, self.pool.number
        content = b"function %d" % plan.number
        task = Task(content, digest_of(content))
        options = Options(plan.timeout, 0, plan.at_most_once)
        self.sink: Recorder | None = None
        self.iterator: IMapIterator | None = None
        self.job: Any
        if spec.style == APPLY:
            self.job = StreamJob(number, task, options)
            self.submitted = 0
            return
        engine = cast(AnyEngine, self.pool.engine)
        values = [plan.value(item) for item in range(len(plan))]
        if spec.style == MAP:
            self.sink = Recorder(self.answers, MapResult(None, engine, len(plan)))
        else:
            self.inbox = Inbox(ordered=True)
            self.taking = False
            self.sink = Recorder(self.answers, self.inbox)
        self.job = MapJob(number, task, options, Items(values), self.sink, spec.chunksize, spec.window)
        if spec.style == IMAP:
            self.iterator = IMapIterator(None, engine, self.inbox, self.job)

    def start(self) -> None:
        """Hand it to the engine."""
        if not self.pool.engine.usable or self.pool.closed:
            self.answers.called_off = True
            return
        self.pool.engine.start(self.job)
        self.pool.works[self.job.id] = self
        if self.spec.style == APPLY:
            self._submit()
        self.pool.engine.turn()
        if self.plan.endless:
            self.world.after(0.2, self._end_the_endless)

    def _end_the_endless(self) -> None:
        """Cancel what never ends, or all of it, once it is under way."""
        if self.over() or self.job.error is not None or not self.pool.user.producer.alive:
            return
        if self.job.fed <= max(self.plan.endless):
            self.world.after(0.2, self._end_the_endless)
        elif self.plan.number % 2:
            for item in sorted(self.plan.endless):
                self.cancel(item, 1, True)
        else:
            self.cancel(0, 0, True)
        self.pool.user.look()

    # -- what its user does -------------------------------------------------------------------------

    def _submit(self) -> None:
        """One more call."""
        if self.over() or self.pool.closed or self.job.error is not None:
            return
        item, self.submitted = self.submitted, self.submitted + 1
        self.job.submit(pickle.dumps(self.plan.value(item)), (), Call(self.answers, item))
        self.pool.engine.poke(self.job)
        self.pool.engine.turn()
        if self.submitted < len(self.plan):
            self.world.after(self.spec.pause, self._submit)

    def look(self) -> None:
        """Results may have come: its reader takes them, one after the other."""
        if self.iterator is not None and self.inbox.ready and not self.taking:
            self.taking = True
            self.world.after(self.spec.pause, self._take)

    def _take(self) -> None:
        self.taking = False
        if self.inbox.ready and self.iterator is not None:
            # What it may raise was looked at when it came.
            with suppress(Exception):
                self.iterator.next()
            self.pool.engine.turn()
            self.pool.user.look()

    def cancel(self, start: int, count: int, kill: bool) -> None:
        """These items are not wanted any more; ``count`` 0: none is."""
        if self.over():
            return
        if count:
            self.answers.cancelled.update(range(start, start + count))
        else:
            self.answers.called_off = True
            if self.spec.style != APPLY:
                self.job.stop()
        self.pool.engine.cancel(self.job, start, count, kill)
        self.pool.engine.turn()

    # -- how it is -----------------------------------------------------------------------------------

    def over(self) -> bool:
        """There is nothing more to wait for."""
        if self.answers.called_off:
            return True
        if self.spec.style == APPLY:
            wanted = self.submitted if self.pool.closed or self.job.error is not None else len(self.plan)
            return len(self.answers.values) >= wanted
        assert self.sink is not None
        return self.sink.finished and (self.iterator is None or not self.inbox.ready)

    def check(self) -> None:
        """It is over: each item has an answer."""
        if self.answers.called_off:
            return
        missing = self.answers.missing()
        if self.spec.style == APPLY:
            missing = [item for item in missing if item < self.submitted]
        if missing:
            raise ViolationError(f"job {self.plan.number} is over and items {missing} have no answer")

    def drop(self) -> None:
        """The schedule is over: its iterator must not call it off when it is collected."""
        if self.iterator is not None:
            self.iterator._job = None
