"""What goes wrong: processes end or stand still, clocks jump, packets and messages do not arrive. Each takes the
world and its own source of chance, and answers whether it found anything to strike."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

from .parties import Client, Party
from .people import join
from .strikes import (
    a_connected_agent,
    a_producer,
    an_agent,
    briefly,
    for_long,
    gentle,
    lasts,
    one_of,
    patiently,
    violent,
)

if TYPE_CHECKING:
    from .world import World


# -- crashes -----------------------------------------------------------------------------------------


def _end_agent(world: World, random: Random, power: bool) -> bool:
    agent = an_agent(world, random)
    if agent is None:
        return False
    agent.crash(power)
    if random.random() < 0.5:
        join(world, random)
    return True


@violent
def agent_is_killed(world: World, random: Random) -> bool:
    return _end_agent(world, random, power=False)


@violent
def host_loses_power(world: World, random: Random) -> bool:
    return _end_agent(world, random, power=True)


@gentle
def producer_is_killed(world: World, random: Random) -> bool:
    producer = a_producer(world, random)
    if producer is None:
        return False
    # Without power it takes a minute until the broker gives it up.
    producer.crash(power=random.random() < 0.1)
    return True


def _end_child(world: World, random: Random, signal: int) -> bool:
    agent = an_agent(world, random)
    children = [each for each in agent.children.children.values() if each.ready] if agent else []
    child = one_of(children, random)
    if agent is None or child is None:
        return False
    if signal:
        agent.children._die(child, signal)
    else:
        agent.children.exits(child, 3)
    return True


@violent
def child_is_killed(world: World, random: Random) -> bool:
    return _end_child(world, random, random.choice((9, 11)))


@violent
def child_exits(world: World, random: Random) -> bool:
    return _end_child(world, random, 0)


@violent
def broker_is_killed(world: World, random: Random) -> bool:
    broker = world.broker
    if not broker.alive:
        return False
    broker.crash()
    seconds = random.uniform(0.05, 4.0)
    world.after(seconds, broker.restart)
    lasts(world, seconds)
    return True


# -- standing still ----------------------------------------------------------------------------------


def _freeze(world: World, party: Party | None, seconds: float) -> bool:
    if party is None or party.frozen:
        return False
    party.freeze(seconds)
    lasts(world, seconds)
    return True


@gentle
def agent_stands_still_briefly(world: World, random: Random) -> bool:
    return _freeze(world, an_agent(world, random), patiently(random))


@gentle
def broker_stands_still_briefly(world: World, random: Random) -> bool:
    return _freeze(world, world.broker, patiently(random))


@gentle
def producer_stands_still(world: World, random: Random) -> bool:
    return _freeze(world, a_producer(world, random), for_long(random))


@violent
def agent_stands_still(world: World, random: Random) -> bool:
    return _freeze(world, an_agent(world, random), for_long(random))


@violent
def broker_stands_still(world: World, random: Random) -> bool:
    return _freeze(world, world.broker, for_long(random))


def _jump(world: World, party: Party | None, random: Random) -> bool:
    if party is None:
        return False
    world.jumped = True
    party.jump(random.choice((0.5, 2.0, 4.0, 12.0, 30.0)))
    return True


@violent
def agents_clock_jumps(world: World, random: Random) -> bool:
    return _jump(world, an_agent(world, random), random)


@violent
def brokers_clock_jumps(world: World, random: Random) -> bool:
    return _jump(world, world.broker, random)


@violent
def producers_clock_jumps(world: World, random: Random) -> bool:
    return _jump(world, a_producer(world, random), random)


# -- the network -------------------------------------------------------------------------------------


def _cut(world: World, client: Client | None, up: bool, down: bool, seconds: float) -> bool:
    if client is None or client.cut_up or client.cut_down:
        return False
    world.network.cut(client, up, down)
    world.after(seconds, world.network.cut, client, False, False)
    lasts(world, seconds)
    return True


@gentle
def brief_cut(world: World, random: Random) -> bool:
    client = one_of([each for each in (*world.agents.values(), *world.producers) if each.alive], random)
    up, down = random.choice(((True, True), (True, False), (False, True)))
    return _cut(world, client, up, down, briefly(random))


@violent
def cut_both_ways(world: World, random: Random) -> bool:
    return _cut(world, an_agent(world, random), True, True, for_long(random))


@violent
def cut_towards_the_broker(world: World, random: Random) -> bool:
    return _cut(world, an_agent(world, random), True, False, for_long(random))


@violent
def cut_towards_the_worker(world: World, random: Random) -> bool:
    return _cut(world, an_agent(world, random), False, True, for_long(random))


@violent
def cut_of_a_producer(world: World, random: Random) -> bool:
    up, down = random.choice(((True, True), (True, False), (False, True)))
    return _cut(world, a_producer(world, random), up, down, for_long(random))


def _reset(client: Client | None, random: Random) -> bool:
    if client is None or client.connection is None:
        return False
    near = random.choice((0.0, 0.01, random.uniform(0.0, 2.0)))
    far = random.choice((0.0, 0.01, random.uniform(0.0, 3.0), random.uniform(3.0, 10.0)))
    client.connection.reset(near, far)
    return True


@violent
def connection_of_an_agent_ends(world: World, random: Random) -> bool:
    return _reset(a_connected_agent(world, random), random)


@violent
def connection_of_a_producer_ends(world: World, random: Random) -> bool:
    producer = a_producer(world, random)
    if producer is not None and random.random() < 0.5:
        # It comes back over a slow line: meanwhile others go on.
        producer.latency = random.uniform(0.02, 0.3)
    return _reset(producer, random)


@violent
def connection_goes_silent(world: World, random: Random) -> bool:
    agent = a_connected_agent(world, random)
    if agent is None or agent.connection is None:
        return False
    agent.connection.swallow()
    lasts(world, 11.0)
    return True


@violent
def messages_are_dropped(world: World, random: Random) -> bool:
    network, seconds = world.network, random.uniform(0.1, 3.0)
    network.drop_rate = random.choice((0.03, 0.2, 0.5))
    world.after(seconds, setattr, network, "drop_rate", 0.0)
    lasts(world, seconds)
    return True


@violent
def answers_come_twice(world: World, random: Random) -> bool:
    network, seconds = world.network, random.uniform(0.5, 5.0)
    network.repeat_rate = random.choice((0.2, 1.0))
    world.after(seconds, setattr, network, "repeat_rate", 0.0)
    lasts(world, seconds)
    return True
