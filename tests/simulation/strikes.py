"""What strikes whom: the table of all that may happen, and by what it is aimed."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING, TypeAlias, TypeVar

if TYPE_CHECKING:
    from .agents import Agent
    from .producers import Producer
    from .users import OpenPool
    from .works import Work
    from .world import World

Fault: TypeAlias = "Callable[[World, Random], bool]"
T = TypeVar("T")

#: After these somebody has to come back.
PARTINGS = frozenset(
    {
        "broker_is_killed",
        "connection_of_a_producer_ends",
        "connection_of_an_agent_ends",
        "cut_of_a_producer",
        "items_are_cancelled",
    }
)

#: By name: those after which an item may run twice, and those after which nothing does.
VIOLENT: dict[str, Fault] = {}
GENTLE: dict[str, Fault] = {}

#: What goes wrong with detached jobs alone; nothing runs twice after it, unless it says so.
JOURNALED: dict[str, Fault] = {}

#: What goes wrong with shared objects alone.
SHARED: dict[str, Fault] = {}


def violent(fault: Fault) -> Fault:
    """Enter a fault after which items may run again, or be given up."""
    VIOLENT[fault.__name__] = fault
    return fault


def gentle(fault: Fault) -> Fault:
    """Enter something after which nothing runs twice."""
    GENTLE[fault.__name__] = fault
    return fault


def strike(world: World, name: str, random: Random) -> None:
    """Let it happen, unless the schedule is past that."""
    if world.calm:
        return
    fault = VIOLENT.get(name) or GENTLE.get(name) or JOURNALED.get(name) or SHARED[name]
    if fault(world, random):
        world.counts[f"fault: {name}"] += 1
        world.violent = world.violent or name in VIOLENT
        if world.trace is not None:
            world.note(f"*** {name}")


# -- whom it strikes ---------------------------------------------------------------------------------


def one_of(found: list[T], random: Random) -> T | None:
    """One of them, if there are any."""
    return random.choice(found) if found else None


def an_agent(world: World, random: Random) -> Agent | None:
    """Any that lives."""
    return one_of([each for each in world.agents.values() if each.alive], random)


def a_connected_agent(world: World, random: Random) -> Agent | None:
    """One that has a connection."""
    return one_of([each for each in world.agents.values() if each.alive and each.connection], random)


def a_producer(world: World, random: Random) -> Producer | None:
    """One that has a connection."""
    return one_of([each for each in world.producers if each.alive and each.connection], random)


def a_pool(world: World, random: Random) -> OpenPool | None:
    """One that is open."""
    pools = [pool for each in world.producers if each.alive for pool in each.user.pools if not pool.closed]
    return one_of([pool for pool in pools if pool.engine.usable], random)


def a_work(world: World, random: Random) -> Work | None:
    """A job that is under way."""
    pool = a_pool(world, random)
    works = [work for work in pool.works.values() if not work.over()] if pool else []
    return one_of(works, random)


def lasts(world: World, seconds: float) -> None:
    """The trouble lasts for so long."""
    world.trouble_ends = max(world.trouble_ends, world.now + seconds)


def briefly(random: Random) -> float:
    """Seconds that nobody is thought lost for."""
    # A lease that three beats do not name returns, and so may run twice: three such troubles together are still less.
    return random.uniform(0.05, 0.9)


def patiently(random: Random) -> float:
    """Seconds that nobody is thought lost for who stands still: all that has come is heard afterwards."""
    return random.choice((briefly(random), briefly(random), random.uniform(2.0, 7.0)))


def for_long(random: Random) -> float:
    """Seconds: mostly brief, sometimes long enough to be thought lost."""
    return random.choice((briefly, briefly, lambda r: r.uniform(5.5, 9.5), lambda r: r.uniform(10.5, 14.0)))(
        random
    )
