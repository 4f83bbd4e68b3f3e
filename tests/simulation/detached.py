"""Schedules of detached jobs: submitters and fetchers that are killed, disks that are slow or full, and brokers that are
killed at any instant, beside all that goes wrong with other work."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from random import Random
from typing import TYPE_CHECKING

from multihost_broker.detached import archive, fetches

from .agents import Agent
from .deposits import BRIEF, Deposit
from .journaled import journal_is_empty
from .producers import Producer
from .schedule import LATENCIES, STRIKES, Schedule, Verdict
from .strikes import GENTLE, JOURNALED, for_long, lasts, one_of, strike
from .users import User
from .world import BEGIN

if TYPE_CHECKING:
    from .world import World

#: Seconds that are more than any jump of the wall clock.
HOURS = 1e5

#: What may go wrong with anything.
ELSEWHERE = frozenset(
    {
        "agent_is_killed", "agent_stands_still", "agent_stands_still_briefly", "agents_clock_jumps", "answers_come_twice",
        "brief_cut", "broker_is_killed", "broker_stands_still", "broker_stands_still_briefly", "brokers_clock_jumps",
        "child_exits", "child_is_killed", "connection_goes_silent", "connection_of_an_agent_ends", "cut_both_ways",
        "cut_towards_the_broker", "drain", "host_loses_power", "join", "messages_are_dropped", "stop_twice",
    }
)  # fmt: skip


def journaled(fault: Callable[[World, Random], bool]) -> Callable[[World, Random], bool]:
    """Enter a fault."""
    JOURNALED[fault.__name__] = fault
    return fault


def _deposit(world: World, random: Random) -> Deposit | None:
    return one_of([each for each in world.deposits if not each.over], random)


@journaled
def submitter_is_killed(world: World, random: Random) -> bool:
    deposit = _deposit(world, random)
    return deposit is not None and deposit.lose_submitter(random.uniform(0.0, 3.0))


@journaled
def fetcher_is_killed(world: World, random: Random) -> bool:
    deposit = _deposit(world, random)
    return deposit is not None and deposit.lose_fetcher(random.uniform(0.0, 3.0))


@journaled
def connection_of_a_caller_ends(world: World, random: Random) -> bool:
    caller = one_of([each for each in world.callers if each.alive and each.connection], random)
    if caller is None or caller.connection is None:
        return False
    caller.connection.reset(random.choice((0.0, 0.01, 1.0)), random.choice((0.0, 0.01, 1.0, 5.0)))
    return True


@journaled
def caller_stands_still(world: World, random: Random) -> bool:
    caller = one_of([each for each in world.callers if each.alive and not each.frozen], random)
    if caller is None:
        return False
    seconds = for_long(random)
    caller.freeze(seconds)
    lasts(world, seconds)
    return True


@journaled
def broker_is_killed_while_it_writes(world: World, random: Random) -> bool:
    world.journal.trap = random.choice((1, 1, 2, 3, 5, 10, 20))
    world.violent = world.hurt = True
    return True


@journaled
def disk_is_slow(world: World, random: Random) -> bool:
    seconds = random.uniform(0.1, 3.0)
    world.journal.slow = random.choice((0.02, 0.2, 1.0))
    world.after(seconds, setattr, world.journal, "slow", 0.002)
    lasts(world, seconds)
    return True


@journaled
def disk_is_full(world: World, random: Random) -> bool:
    seconds = random.uniform(0.05, 4.0)
    world.journal.fill(stuck=random.random() < 0.3)
    world.after(seconds, world.journal.make_room)
    lasts(world, seconds)
    return True


@journaled
def job_is_cancelled_by_order(world: World, random: Random) -> bool:
    deposit = _deposit(world, random)
    if deposit is None or not deposit.known or deposit.cancelled:
        return False
    world.violent = True
    deposit.cancel()
    return True


@journaled
def dead_letters_are_retried(world: World, random: Random) -> bool:
    deposit = _deposit(world, random)
    return deposit is not None and deposit.look_at_letters(retried=True)


@journaled
def dead_letters_are_dropped(world: World, random: Random) -> bool:
    deposit = _deposit(world, random)
    return deposit is not None and deposit.look_at_letters(retried=False)


@journaled
def wall_clock_jumps(world: World, random: Random) -> bool:
    """The next broker to start sees it."""
    if any(each.retention < HOURS for each in world.deposits):
        # It would be forgotten too early, or too late: that is what retention is measured by.
        return False
    world.wall += random.choice((-3600.0, -10.0, 10.0, 3600.0))
    return True


class DetachedSchedule(Schedule):
    """As any other schedule, with detached jobs for the most of its work."""

    #: A job that is kept for a minute may have ended in the last moment.
    aftermath = Schedule.aftermath + BRIEF

    def _cast(self) -> None:
        random, world = self.random, self.world
        for number in range(1, random.choice((1, 2, 2)) + 1):
            name = f"h{number}"
            agent = world.agents[name] = Agent(world, name, random.randint(1, 3), random.choice(LATENCIES))
            agent.begin(random.choice((0.0, random.uniform(0.0, 0.5))))
        for _ in range(random.choice((1, 1, 2))):
            self._deposit().begin(random.uniform(0.0, 0.4))
        if random.random() < 0.2:
            user = User(world, [self._pool()], stays=False)
            producer = Producer(world, "p1", random.choice(LATENCIES), user)
            world.producers.append(producer)
            producer.begin(random.uniform(0.0, 0.3))

    def _deposit(self) -> Deposit:
        random = self.random
        plan = self._plan(random.choice((1, 4, 8, 8, 12, 16)))
        plan.at_most_once = False
        for item in plan.endless:
            plan.seconds[item] = 0.01
        plan.endless = frozenset()
        return Deposit(
            self.world,
            plan,
            broken=random.random() < 0.03,
            retention=random.choice((1e6, 1e6, 1e6, BRIEF)),
            limit=random.choice((0, 0, 1, 3)),
        )

    def _troubles(self) -> None:
        random, world = self.random, self.world
        names = sorted(JOURNALED) + sorted(each for each in ELSEWHERE if not self.gentle or each in GENTLE)
        if self.allowed is not None:
            names = [each for each in names if each in self.allowed]
        kinds = random.sample(names, min(len(names), random.randint(1, 4)))
        for _ in range(random.choice((0, 1, 2, 3, 4, 5, 6)) if kinds else 0):
            when = BEGIN + random.uniform(0.0, STRIKES)
            world.at(when, strike, world, random.choice(kinds), Random(random.getrandbits(32)))

    def run(self) -> Verdict:
        with small_limits(Random(self.seed)):
            return super().run()

    def _calm_down(self) -> None:
        super()._calm_down()
        self.world.journal.make_room()
        self.world.journal.trap = 0
        for caller in self.world.callers:
            caller.thaw()

    def _waiting(self) -> str:
        jobs = [f"{each} ({each.promised} stored)" for each in self.world.deposits if not each.over]
        return ", ".join(jobs) or super()._waiting()

    def _present(self) -> int:
        return super()._present() + sum(
            each.alive and each.connection is not None for each in self.world.callers
        )

    def _resting(self) -> bool:
        archive = self.world.broker.core.archive
        return super()._resting() and not archive.jobs and archive.scribe.idle()

    def _come_to_rest(self) -> None:
        self.world.aftermath = True
        super()._come_to_rest()
        journal_is_empty(self.world.broker.core, self.world.journal)


@contextmanager
def small_limits(random: Random) -> Iterator[None]:
    """Limits that are for gigabytes are for some bytes, so that they are met."""
    limits = (
        (archive, "WINDOW", (16 << 20, 60, 200)),
        (archive, "MOST_LENT", (512 << 20, 512 << 20, 300)),
        (archive, "ERASED", (256, 1, 4)),
        (fetches, "MOST_BYTES", (4 << 20, 100)),
        (fetches, "MOST_RECORDS", (512, 1, 3)),
    )
    before = [(module, name, getattr(module, name)) for module, name, _ in limits]
    try:
        for module, name, choices in limits:
            setattr(module, name, random.choice(choices))
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)
