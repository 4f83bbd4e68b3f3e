"""What must hold of the shared objects of a broker after every step, whatever they are."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from multihost_broker.objects.barrier import Barrier
from multihost_broker.objects.condition import Condition
from multihost_broker.objects.event import Event
from multihost_broker.objects.kinds import KINDS
from multihost_broker.objects.machine import Machine, Request
from multihost_broker.objects.pipe import Pipe
from multihost_broker.objects.queue import Queue
from multihost_broker.objects.semaphore import Semaphore

if TYPE_CHECKING:
    from multihost_broker.core import Core

#: (requests that wait, parties that have something of it)
Inside = tuple[Iterable[Request], Iterable[int]]


def audit_objects(core: Core) -> None:
    """Who uses what, who waits for what, and that there is reason to wait, in the books of all objects."""
    objects, live = core.objects, core.sessions.by_number
    machines = objects.machines
    # Queues with names of their own have none.
    unnamed = {name for name, machine in machines.items() if KINDS.get(machine.kind) is type(machine)}
    assert set(objects._makers) == unnamed, "each object has a maker"
    made = {name: party for party, names in objects._made.items() for name in names}
    assert made == objects._makers, "each maker knows what it has made"
    assert set(objects._made) | set(objects._used) <= set(live), "who makes or uses an object is here"
    for used in objects._used.values():
        assert set(used) <= set(machines), "what is used is there"
    waiting: dict[bytes, set[Request]] = {name: set() for name in machines}
    for (party, number), (request, name) in objects._waiting.items():
        assert request.waits and (request.party, request.number) == (party, number), "who waits waits"
        assert party in live, f"{party} waits for an object, and is gone"
        assert name in machines, "nobody waits for an object that is no more"
        waiting[name].add(request)
    for name, machine in machines.items():
        inside = INSIDE.get(type(machine))
        if inside is None:
            continue
        requests, parties = inside(machine)
        listed = list(requests)
        assert len(listed) == len(set(listed)), "nobody waits in two places"
        assert set(listed) == waiting[name], (
            f"{type(machine).__name__} and the registry know the same requests"
        )
        for party in parties:
            assert name in objects._used.get(party, ()), (
                f"{party} has a part in what it does not use, or is gone"
            )


def _semaphore(machine: Semaphore) -> Inside:
    held = sum(machine.holders.values())
    assert machine.value >= 0 and all(held > 0 for held in machine.holders.values()), "permits are counted"
    assert not (machine.waiting and machine.value), "nobody waits for a permit that is free"
    assert machine.orphans <= machine.value, "permits that a death has freed are free"
    if machine.maximum:
        assert machine.value + held <= machine.maximum, f"there are {machine.value + held} permits"
    return machine.waiting, machine.holders


def _condition(machine: Condition) -> Inside:
    return machine.waiting, [party for party, _ in machine.notified]


def _event(machine: Event) -> Inside:
    assert not (machine.flag and machine.waiting), "nobody waits for an event that is set"
    return machine.waiting, ()


def _barrier(machine: Barrier) -> Inside:
    assert len(machine.waiting) < machine.parties, "nobody waits at a barrier that is complete"
    assert not (machine.broken and (machine.waiting or machine.early or machine.acting)), (
        "nor at a broken one"
    )
    assert not machine.early or machine.acting, "who is early waits for who acts"
    acting = [machine.acting[0]] if machine.acting else []
    return [*machine.waiting, *machine.early], [*machine.members, *acting]


def _queue(machine: Queue) -> Inside:
    ready = sum(map(len, machine.ready))
    assert machine.count == ready, f"{ready} items are ready, not {machine.count}"
    size = sum(run.size for run in machine.ready)
    for consumer in machine.consumers.values():
        held = sum(map(len, consumer.early))
        assert consumer.held == held, f"a process has {held} items, not {consumer.held}"
        assert consumer.spoken < 0 or consumer.early, "who has no item has taken none"
        size += sum(run.size for run in consumer.early)
        for one, other in zip(list(consumer.early), list(consumer.early)[1:], strict=False):
            assert one.number + len(one) <= other.number, "items are numbered"
    assert machine.bytes == size, f"the items take {size} bytes, not {machine.bytes}"
    serials = [run.serial for run in machine.ready]
    assert serials == sorted(serials), "items are in their order"
    _waits(machine)
    listens = [listen for listen, _ in machine.recall.listening.values()]
    putters = [request for request, _ in machine.putters]
    return [*machine.getters, *putters, *machine.joiners, *listens], [*machine.consumers, *machine.producers]


def _waits(machine: Queue) -> None:
    assert not (machine.getters and machine.count), "nobody waits for an item that is there"
    assert not machine.putters or not machine._room(), "nobody waits for room that is there"
    assert not (machine.shut and machine.putters), "nobody waits to put into what is shut"
    assert not (machine.shut and machine.getters and not machine.items()), (
        "nobody waits for what will never come"
    )
    assert not machine.joiners or machine.unfinished, "nobody waits for tasks that are done"
    waiting = {request.party for request in machine.getters}
    for party, (_, consumer) in machine.recall.listening.items():
        assert machine.consumers.get(party) is consumer, "listeners listen"
        idle = consumer.spare() <= 0 or not waiting - {party}
        assert idle, "what somebody waits for is called back from who has it early"


def _pipe(machine: Pipe) -> Inside:
    requests: list[Request] = []
    parties: list[int] = []
    for at, side in enumerate(machine.sides):
        assert side.bytes == sum(map(len, side.inbox)), "bytes are counted"
        assert all(count > 0 for count in side.handles.values()), "handles are counted"
        assert side.open() or not (side.inbox or side.givers), "nothing is sent to a side that is closed"
        assert not side.takers or not machine._tells(at), "nobody waits for what has come, or never will"
        assert not side.givers or not side.room(len(side.givers[0].frames[0])), (
            "nobody waits for room that is there"
        )
        requests += [*side.takers, *side.givers]
        parties += [*side.handles, *side.readers, *side.loose]
    return requests, parties


INSIDE: dict[type[Machine], Callable[[Any], Inside]] = {
    Semaphore: _semaphore,
    Condition: _condition,
    Event: _event,
    Barrier: _barrier,
    Queue: _queue,
    Pipe: _pipe,
}


def audit_processes(core: Core) -> None:
    """Each process is in the books of who has started it and of who runs it, and these are here."""
    processes, live = core.processes, core.sessions.by_number
    owned = {number: owner for owner, each in processes._owned.items() for number in each}
    run = {number: worker for worker, each in processes._run.items() for number in each}
    waiting = set(processes._waiting)
    assert set(owned) == set(processes.by_number), "each process has an owner"
    assert waiting | set(run) == set(owned), "each process waits or runs"
    assert not waiting & set(run), "no process waits and runs"
    for number, process in processes.by_number.items():
        assert owned[number] == process.owner.number and process.owner.number in live, "the owner is here"
        if process.worker is not None:
            assert run[number] == process.worker.number in live, "who runs it is here"
