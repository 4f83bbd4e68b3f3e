"""Schedules of shared objects and processes: scripts, and processes on workers, that use them, beside all that goes wrong
with scripts, workers, brokers and connections."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from random import Random
from typing import Any

from multihost_broker.core import Core
from multihost_common import stream

from .agents import Agent
from .brokers import Broker
from .games import BarrierGame, ConditionGame, EventGame, Game, LockGame, ProcessGame
from .partners import Program
from .scene import Scene
from .schedule import LATENCIES, STRIKES, Schedule, Verdict
from .scripts import Script
from .strikes import SHARED, lasts, one_of, strike
from .traffic import PipeGame, QueueGame
from .world import BEGIN, ViolationError, World

GAMES: tuple[type[Game], ...] = (
    LockGame, QueueGame, QueueGame, QueueGame, PipeGame, EventGame, ConditionGame, BarrierGame, ProcessGame,
)  # fmt: skip

#: What may go wrong.
TROUBLES = frozenset(
    {
        "agent_is_killed", "agent_stands_still", "agent_stands_still_briefly", "agents_clock_jumps", "brief_cut",
        "broker_is_killed", "broker_stands_still", "broker_stands_still_briefly", "brokers_clock_jumps", "child_exits",
        "child_is_killed", "connection_goes_silent", "connection_of_a_producer_ends", "connection_of_an_agent_ends",
        "cut_both_ways", "cut_of_a_producer", "cut_towards_the_broker", "cut_towards_the_worker", "drain",
        "connection_leaks_before_it_ends", "host_loses_power", "join", "producer_is_killed", "producer_stands_still",
        "producers_clock_jumps", "stop_twice",
    }
)  # fmt: skip


def connection_leaks_before_it_ends(world: World, random: Random) -> bool:
    """As ZeroMQ does it: what is given to a connection that is about to go may be dropped, one by one."""
    clients = [each for each in (*world.agents.values(), *world.producers) if each.alive and each.connection]
    client = one_of(clients, random)
    if client is None or client.connection is None:
        return False
    client.connection.leaky = True
    seconds = random.uniform(0.0, 0.3)
    lasts(world, seconds)
    world.after(seconds, client.connection.reset, random.choice((0.0, 0.1)), random.choice((0.0, 0.1, 1.0)))
    return True


SHARED[connection_leaks_before_it_ends.__name__] = connection_leaks_before_it_ends


class SharedSchedule(Schedule):
    """See the module."""

    def _cast(self) -> None:
        random, world = self.random, self.world
        scene = self.scene = world.scene = Scene(world, Random(random.getrandbits(32)))
        world.broker = Broker(world)
        world.hurt = True
        for number in range(1, random.choice((1, 2, 2, 3)) + 1):
            name = f"h{number}"
            agent = world.agents[name] = Agent(world, name, random.randint(1, 3), random.choice(LATENCIES))
            agent.begin(random.choice((0.0, random.uniform(0.0, 0.5))))
        for number in range(1, random.choice((1, 2, 2, 3)) + 1):
            script = Script(
                scene, f"p{number}", random.choice(LATENCIES), self._goes_on, stays=random.random() < 0.2
            )
            world.producers.append(script)  # type: ignore[arg-type]
            script.begin(random.uniform(0.0, 0.3))

    def _goes_on(self, script: Script) -> None:
        """It has a broker that knows nothing of it: it begins, or begins anew."""
        random = self.scene.random
        if not self.world.calm and script.heard == 0:
            for _ in range(random.choice((1, 2, 3))):
                game = random.choice(GAMES)(self.scene, Random(random.getrandbits(32)))
                delay = random.uniform(0.0, 0.5)
                script.start(game.master(script), delay, lasts=isinstance(game, ProcessGame))
        if random.random() < 0.7:
            game = ProcessGame(self.scene, Random(random.getrandbits(32)))
            script.start(game.master(script), 0.0, lasts=True)
        elif not script.threads:
            script.start(_nothing(), 0.0)

    def _troubles(self) -> None:
        random, world = self.random, self.world
        names = sorted(TROUBLES)
        if self.allowed is not None:
            names = [each for each in names if each in self.allowed]
        kinds = random.sample(names, min(len(names), random.randint(1, 4)))
        for _ in range(random.choice((0, 1, 2, 3, 4, 5, 6)) if kinds else 0):
            when = BEGIN + random.uniform(0.0, STRIKES)
            world.at(when, strike, world, random.choice(kinds), Random(random.getrandbits(32)))

    def run(self) -> Verdict:
        with small_limits(Random(self.seed)):
            return super().run()

    def _waiting(self) -> str:
        found = [each.waits_for() for each in self.scene.partners if each.threads]
        return ", ".join(found) or super()._waiting()

    # -- the end -------------------------------------------------------------------------------------

    def _resting(self) -> bool:
        core = self.world.broker.core
        return super()._resting() and not any(self._books(core).values())

    def _come_to_rest(self) -> None:
        for each in self.world.producers:
            if each.alive:
                each.leave()
        super()._come_to_rest()
        self._is_empty()

    def _is_empty(self) -> None:
        for what, book in self._books(self.world.broker.core).items():
            if book:
                raise ViolationError(f"{what} are left: {book}")

    def _books(self, core: Core) -> dict[str, Any]:
        """All that must be empty in the end."""
        books: dict[str, Any] = {
            "objects": core.objects.machines, "makers": core.objects._makers, "made": core.objects._made,
            "used": core.objects._used, "waiting": core.objects._waiting, "processes": core.processes.by_number,
            "waiting processes": core.processes._waiting, "owned processes": core.processes._owned,
            "running processes": core.processes._run, "strays": core.processes._strays,
            "bytes": core.processes._waiting_bytes, "children": core.nested._here, "roots": core.nested._roots,
        }  # fmt: skip
        for agent in self.world.agents.values():
            if agent.alive:
                books[f"processes of {agent.name}"] = agent.core.processes.by_number
                books[f"children of {agent.name}"] = agent.core._nested._roots
                books[f"what {agent.name} keeps"] = agent.stream._kept
        for session in core.sessions.by_number.values():
            books[f"what is kept for {session.name}"] = session.stream._kept
        return books


def _nothing() -> Program:
    yield 0.0


@contextmanager
def small_limits(random: Random) -> Iterator[None]:
    """It is said often how much was heard."""
    before = stream.MANY
    try:
        stream.MANY = random.choice((1, 4, 64))
        yield
    finally:
        stream.MANY = before
