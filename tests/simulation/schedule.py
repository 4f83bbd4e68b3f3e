"""One schedule from its seed to its verdict."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from random import Random

from . import faults, people
from .agents import Agent
from .brokers import Broker
from .disks import Disk
from .invariants import agent_is_empty, broker_is_empty
from .network import Network
from .plans import ENDLESS, Plan
from .producers import Producer
from .strikes import GENTLE, VIOLENT, strike
from .users import PoolPlan, User
from .works import IMAP, STYLES, JobPlan
from .world import BEGIN, ViolationError, World

#: Both enter what may happen into one table.
HAPPENS = (faults, people)

#: Seconds within which things go wrong.
STRIKES = 1.5

#: Seconds that everything takes at most once nothing goes wrong any more, and then until all is forgotten.
PATIENCE = 120.0
AFTERMATH = 90.0

#: Seconds one way: within a rack, a building, a continent.
LATENCIES = (0.0002, 0.0002, 0.002, 0.03)


@dataclass(slots=True)
class Verdict:
    """What became of a schedule. ``violation`` is empty if all that must hold did."""

    seed: int
    violation: str
    steps: int
    seconds: float
    counts: Counter[str]
    trace: list[str]


class Schedule:
    """See the module. ``faults``: the only ones that may happen, by name; None: all that there are.
    ``careless``: users cancel without a kill what never ends."""

    #: Seconds that everybody has to come to rest.
    aftermath = AFTERMATH

    def __init__(
        self,
        seed: int,
        traced: bool = False,
        faults: Collection[str] | None = None,
        careless: bool = False,
    ) -> None:
        self.seed = seed
        self.world = world = World(seed, traced, careless)
        self.random = random = world.random
        self.allowed = faults
        self.gentle = random.random() < 0.25
        world.network = Network(world, wire=random.random() < 0.1)
        world.journal = Disk(world)
        world.broker = Broker(world)
        self._plans = 0
        self._cast()
        self._troubles()

    # -- the cast ------------------------------------------------------------------------------------

    def _cast(self) -> None:
        random, world = self.random, self.world
        for number in range(1, random.choice((2, 2, 3, 3)) + 1):
            name = f"h{number}"
            latency = random.choice(LATENCIES)
            # A drain that takes too long kills what runs.
            timeout = random.choice((25.0, 25.0, 25.0 if self.gentle else 1.0))
            agent = world.agents[name] = Agent(world, name, random.randint(1, 3), latency, timeout)
            agent.begin(random.choice((0.0, random.uniform(0.0, 0.5))))
        for number in range(1, random.choice((1, 1, 2)) + 1):
            pools = [self._pool() for _ in range(random.choice((1, 1, 2)))]
            user = User(world, pools, stays=random.random() < 0.2)
            producer = Producer(world, f"p{number}", random.choice(LATENCIES), user)
            world.producers.append(producer)
            producer.begin(random.uniform(0.0, 0.3))

    def _pool(self) -> PoolPlan:
        random = self.random
        return PoolPlan(
            limit=random.choice((0, 0, 0, 1, 3)),
            max_tasks=random.choice((0, 0, 0, 2)),
            delay=random.uniform(0.0, 0.2),
            jobs=[self._job() for _ in range(random.choice((1, 1, 2)))],
            broken=random.random() < 0.02,
            kill=random.random() < 0.2,
        )

    def _job(self) -> JobPlan:
        random = self.random
        style = random.choice(STYLES)
        return JobPlan(
            plan=self._plan(60 if random.random() < 0.03 else random.choice((1, 4, 8, 8, 12, 16))),
            style=style,
            chunksize=random.choice((1, 1, 1, 3)) if style == IMAP else random.choice((None, 1, 1, 4)),
            window=random.choice((None, 2, 4)) if style == IMAP else None,
            delay=random.choice((0.0, random.uniform(0.0, 0.5))),
            pause=random.choice((0.0, random.uniform(0.0, 0.05))),
        )

    def _plan(self, items: int) -> Plan:
        """What the items take: usually some milliseconds, sometimes next to nothing, or very long."""
        random = self.random
        self._plans += 1
        scale = random.choice((0.0000002, 0.0005, 0.01, 0.05, 0.1))
        seconds = [scale * random.choice((0.5, 1.0, 1.0, 2.0, 4.0)) for _ in range(items)]
        plan = self.world.plans[self._plans] = Plan(self._plans, seconds)
        plan.at_most_once = random.random() < 0.15
        if not self.gentle:
            self._spoil(plan)
        return plan

    def _spoil(self, plan: Plan) -> None:
        random, items = self.random, len(plan)
        if random.random() < 0.2:
            self.world.violent = True
            plan.timeout = random.choice((0.2, 0.5, 1.0))
            for item in random.sample(range(items), min(items, random.randint(1, 2))):
                # For ever, or just about too long.
                plan.seconds[item] = random.choice((ENDLESS, plan.timeout + random.uniform(-0.002, 0.002)))
        elif random.random() < 0.1:
            self.world.violent = True
            plan.endless = frozenset({random.randrange(items)})
            for item in plan.endless:
                plan.seconds[item] = ENDLESS
        if random.random() < 0.25:
            self.world.violent = True
            struck = random.sample(range(items), min(items, random.randint(1, 2)))
            if random.random() < 0.5:
                plan.poison = frozenset(struck)
            else:
                plan.flaky = {item: random.randint(1, 2) for item in struck}

    # -- what happens --------------------------------------------------------------------------------

    def _troubles(self) -> None:
        """A few kinds of trouble, each perhaps several times: so that rare ones meet themselves, too."""
        random, world = self.random, self.world
        names = sorted(GENTLE) if self.gentle else sorted({*VIOLENT, *GENTLE})
        if self.allowed is not None:
            names = [each for each in names if each in self.allowed]
        if not names:
            return
        kinds = random.sample(names, min(len(names), random.randint(1, 4)))
        for _ in range(random.choice((0, 1, 2, 3, 4, 5, 6))):
            when = BEGIN + random.uniform(0.0, STRIKES)
            world.at(when, strike, world, random.choice(kinds), Random(random.getrandbits(32)))

    def run(self) -> Verdict:
        """Let it all happen; what must hold and did not."""
        world, violation = self.world, ""
        try:
            self._run()
        except Exception as error:  # noqa: BLE001 - a core that raises is what is looked for
            violation = f"{type(error).__name__}: {error}"
            if not isinstance(error, AssertionError):
                import traceback

                violation += "\n" + "".join(traceback.format_exception(error)[-6:])
        finally:
            for producer in world.producers:
                for work in producer.user.works():
                    work.drop()
        return Verdict(self.seed, violation, world.steps, world.now - BEGIN, world.counts, world.trace or [])

    def _run(self) -> None:
        world = self.world
        world.run(BEGIN + STRIKES)
        while world.unfinished and world.now < world.trouble_ends:
            world.run(world.trouble_ends)
        self._calm_down()
        if not world.run(world.now + PATIENCE):
            raise ViolationError(f"somebody waits for ever: {self._waiting()}")
        self._come_to_rest()
        self._judge()

    def _calm_down(self) -> None:
        """From now on nothing goes wrong, and there is somebody to do the work."""
        world = self.world
        world.calm = True
        network = world.network
        network.drop_rate = network.repeat_rate = 0.0
        for client in (*world.agents.values(), *world.producers):
            network.cut(client, False, False)
            client.thaw()
        world.broker.thaw()
        if not any(each.alive and not each.stops for each in world.agents.values()):
            agent = world.agents["last"] = Agent(world, "last", 2, 0.0002)
            agent.begin(0.0)

    def _waiting(self) -> str:
        found = []
        for producer in self.world.producers:
            for pool in () if producer.user.done else producer.user.pools:
                if not pool.ended():
                    found.append(f"{producer.name} for pool {pool.number}")
                for work in pool.all:
                    if not work.over():
                        found.append(
                            f"{producer.name} for items {work.answers.missing()} of job {work.job.id}"
                        )
        return ", ".join(found) or "users that have not begun"

    # -- the end -------------------------------------------------------------------------------------

    def _come_to_rest(self) -> None:
        """Nothing is left of the work, neither at the broker nor at the agents."""
        world = self.world
        deadline = world.now + self.aftermath
        while not self._resting() and world.now < deadline:
            world.run(world.now + 0.25, aftermath=True)
        core = world.broker.core
        broker_is_empty(core)
        for agent in world.agents.values():
            if agent.alive:
                agent_is_empty(agent.core, agent.name)
        left = len(core.sessions.by_number)
        if left != self._present():
            raise ViolationError(f"{left} sessions are left, and {self._present()} peers")

    def _present(self) -> int:
        return sum(
            each.alive and each.connection is not None
            for each in (*self.world.agents.values(), *self.world.producers)
        )

    def _resting(self) -> bool:
        world = self.world
        core = world.broker.core
        if not world.broker.alive or core.pools or len(core.sessions.by_number) != self._present():
            return False
        return not any(
            each.alive and (each.core.pools or each.core.children) for each in world.agents.values()
        )

    def _judge(self) -> None:
        """At most once is never twice; and without violence nothing is."""
        for plan in self.world.plans.values():
            if plan.at_most_once or not self.world.violent:
                again = sorted(item for item, times in plan.begun.items() if times > 1)
                if again:
                    raise ViolationError(f"items {again} of job {plan.number} have run twice")
