"""What people do meanwhile: start and stop workers, close pools, cancel what they asked for."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

from .agents import Agent
from .plans import ENDLESS
from .strikes import a_pool, a_work, an_agent, gentle, one_of, violent

if TYPE_CHECKING:
    from .world import World


@gentle
def join(world: World, random: Random) -> bool:
    name = f"h{len(world.agents) + 1}"
    agent = world.agents[name] = Agent(
        world, name, random.randint(1, 3), random.choice((0.0002, 0.002, 0.03))
    )
    agent.begin(random.uniform(0.0, 0.5))
    return True


@gentle
def drain(world: World, random: Random) -> bool:
    agent = one_of([each for each in world.agents.values() if each.alive and not each.stops], random)
    if agent is None or not agent.registered:
        # Without a broker it ends at once.
        return False
    if agent.core.config.drain_timeout < 25.0:
        # It may kill what runs.
        world.violent = True
    agent.stop()
    return True


@violent
def stop_twice(world: World, random: Random) -> bool:
    agent = an_agent(world, random)
    if agent is None:
        return False
    agent.stop()
    world.after(random.uniform(0.0, 0.5), agent.stop)
    return True


@gentle
def pool_is_closed(world: World, random: Random) -> bool:
    pool = a_pool(world, random)
    if pool is None:
        return False
    pool.close(kill=False)
    pool.user.look()
    return True


@violent
def pool_is_terminated(world: World, random: Random) -> bool:
    pool = a_pool(world, random)
    if pool is None:
        return False
    pool.close(kill=True)
    pool.user.look()
    return True


# With the child that is killed go innocent items, if it has just gone on to them.
@violent
def job_is_cancelled(world: World, random: Random) -> bool:
    return _cancel(world, random, whole=True, kill=True)


@gentle
def items_are_cancelled(world: World, random: Random) -> bool:
    return _cancel(world, random, whole=False, kill=False)


@violent
def items_are_cancelled_and_killed(world: World, random: Random) -> bool:
    return _cancel(world, random, whole=False, kill=True)


def _cancel(world: World, random: Random, whole: bool, kill: bool) -> bool:
    work = a_work(world, random)
    if work is None:
        return False
    start, count = random.randrange(len(work.plan)), random.randint(1, 5)
    if not kill and not world.careless and max(work.plan.seconds[start : start + count]) >= ENDLESS:
        # It would go on for ever, and its slot be lost.
        return False
    work.cancel(start, 0 if whole else count, kill)
    work.pool.user.look()
    return True
