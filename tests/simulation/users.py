"""What scripts do with pools: open them, run jobs, close them, and end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from multihost.engines.base import PoolSpec
from multihost_common import messages as m
from multihost_common.blobs import digest_of

from .plans import BROKEN, FINE
from .works import APPLY, JobPlan, Work
from .world import ViolationError

if TYPE_CHECKING:
    from .producers import Engine, Producer
    from .world import World


@dataclass(slots=True)
class PoolPlan:
    """One pool as a user will open it."""

    limit: int
    max_tasks: int
    delay: float
    jobs: list[JobPlan]
    #: The initializer raises.
    broken: bool = False
    #: How it is closed once its jobs are over.
    kill: bool = False


class OpenPool:
    """One pool under way."""

    def __init__(self, user: User, engine: Engine, spec: PoolPlan) -> None:
        self.user = user
        self.engine = engine
        self.spec = spec
        self.closed = False
        self._content = content = BROKEN if spec.broken else FINE
        self.number = engine.open_pool(PoolSpec(limit=spec.limit, setup=content, max_tasks=spec.max_tasks))
        #: By the job's number, and in the order in which they will be started.
        self.works: dict[int, Work] = {}
        self.all = [Work(user.world, self, each) for each in spec.jobs]
        for work in self.all:
            user.world.after(work.spec.delay, user.starts, work)

    def close(self, kill: bool) -> None:
        """As the pool's own ``close`` and ``terminate`` do it."""
        if not self.engine.usable or (self.closed and not kill):
            return
        self.closed = True
        for work in self.all:
            if not work.job.id:
                work.answers.called_off = True
            work.answers.terminated = work.answers.terminated or kill
            if work.spec.style == APPLY and work.job.id and not kill:
                work.job.close()
                self.engine.poke(work.job)
        self.engine.turn()
        self.engine.close_pool(self.number, kill)
        self.engine.turn()

    def resume(self) -> list[m.Message]:
        """The pool and its jobs, stated anew."""
        content = self._content
        spec = self.spec
        messages: list[m.Message] = [m.Blob(digest_of(content), (content,))]
        messages.append(m.OpenPool(self.number, spec.limit, digest_of(content), b"", spec.max_tasks))
        for work in self.works.values():
            if not work.job.over and not work.answers.called_off:
                work.told = 0
                messages += work.job.resume()
        return [*messages, m.ClosePool(self.number, spec.kill)] if self.closed else messages

    def ended(self) -> bool:
        """All of its children have ended."""
        return self.engine.pool_closed(self.number).done


class User:
    """One script: opens its pools, waits for its jobs, closes the pools, and ends."""

    def __init__(self, world: World, specs: list[PoolPlan], stays: bool) -> None:
        self.world = world
        self.specs = specs
        #: Does not end when its pools have.
        self.stays = stays
        self.pools: list[OpenPool] = []
        self.done = False
        world.unfinished += 1
        self.producer: Producer

    def begin(self, producer: Producer) -> None:
        """The broker has welcomed it."""
        self.producer = producer
        for spec in self.specs:
            self.world.after(spec.delay, self._open, spec)

    def _open(self, spec: PoolPlan) -> None:
        if self.producer.engine.usable and self.producer.alive:
            self.pools.append(OpenPool(self, self.producer.engine, spec))

    def starts(self, work: Work) -> None:
        """It is time for this job."""
        if self.producer.alive:
            work.start()
            self.look()

    def find(self, job: int) -> Work | None:
        """The work of this job."""
        for pool in self.pools:
            if job in pool.works:
                return pool.works[job]
        return None

    def works(self) -> list[Work]:
        """All work that was begun."""
        return [work for pool in self.pools for work in pool.all]

    # -- what comes ----------------------------------------------------------------------------------

    def hears(self, message: m.Message) -> None:
        """The broker says this; the engine has not taken it yet."""
        kind = type(message)
        if kind is m.Result or kind is m.Failed:
            self._answered(message)
        elif kind is m.PoolClosed:
            self._closed(cast(m.PoolClosed, message))

    def _answered(self, message: Any) -> None:
        work = self.find(message.job)
        if work is not None:
            bits = (1 << message.count) - 1 << message.start
            # What was on its way when the producer came back is answered once more.
            if not bits & ~work.told and self.producer.dials == 1:
                raise ViolationError(f"all of it was answered before: {message}")
            if type(message) is m.Failed and bits & work.told and self.producer.dials == 1:
                raise ViolationError(f"some of it was answered before: {message}")
            work.told |= bits

    def _closed(self, closed: m.PoolClosed) -> None:
        if self.world.violent:
            return
        number = self.producer.session << 32 | closed.pool
        for agent in self.world.agents.values():
            if agent.alive and number in agent.core.pools:
                raise ViolationError(f"pool {number} is closed, and {agent.name} still has it")

    def look(self) -> None:
        """Something may be over."""
        if self.done or len(self.pools) < len(self.specs):
            return
        for pool in self.pools:
            for work in pool.all:
                work.look()
            if not pool.closed and all(work.over() for work in pool.all):
                pool.close(pool.spec.kill)
        if all(pool.closed and pool.ended() for pool in self.pools):
            self._end()

    def finish(self) -> None:
        """It waits for nothing any more."""
        self.world.unfinished -= not self.done
        self.done = True

    def _end(self) -> None:
        self.finish()
        for work in self.works():
            work.check()
        if not self.stays:
            self.producer.leave()
