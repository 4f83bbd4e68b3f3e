"""Faults of shared objects, of processes and of what arrives once that are put into the cores on purpose, one at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from multihost_broker import nested, processes
from multihost_broker.objects import barrier, condition, event, pipe, queue, recall, registry, semaphore
from multihost_common import stream
from multihost_worker import nested as children

from .planted import PLANTED_IN_WHAT_IS_SHARED, Swap


def plant(make: Callable[[], list[Swap]]) -> Callable[[], list[Swap]]:
    """Enter a fault under the name of its function."""
    PLANTED_IN_WHAT_IS_SHARED[make.__name__] = make
    return make


def _nothing(*_: Any, **__: Any) -> None:
    """Does nothing."""


# -- what arrives once -------------------------------------------------------------------------------


@plant
def what_is_missing_is_not_missed() -> list[Swap]:
    """A message is taken though one before it has not come."""

    def take(self: Any, message: Any) -> bool:
        if message.seq and message.seq <= self.heard:
            return False
        self.heard = message.seq or self.heard
        return True

    return [(stream.Stream, "take", take)]


@plant
def nothing_is_said_again() -> list[Swap]:
    """What was on its way over a lost connection is lost."""

    def again(self: Any, heard: int) -> list[Any]:
        self.acknowledged(self.sent)
        return []

    return [(stream.Stream, "again", again)]


@plant
def a_child_is_told_in_another_order_than_its_worker() -> list[Swap]:
    """What is for children is numbered after all that is for their worker, and goes before it."""
    original = nested.NestedProducers.flush

    def flush(self: Any) -> Any:
        nested.NestedProducers.pack = pack  # type: ignore[method-assign]
        try:
            return original(self)
        finally:
            nested.NestedProducers.pack = _nothing  # type: ignore[method-assign]

    pack = nested.NestedProducers.pack
    return [(nested.NestedProducers, "pack", _nothing), (nested.NestedProducers, "flush", flush)]


@plant
def nobody_says_that_a_child_has_ended() -> list[Swap]:
    """What a child held stays held."""
    return [(children.Nested, "ended", lambda self, child, died: self._roots.pop(child, None) and None)]


# -- objects -----------------------------------------------------------------------------------------


@plant
def a_dead_holder_keeps_the_lock() -> list[Swap]:
    """A lock whose holder is gone is never free."""
    return [(semaphore.Semaphore, "_inherit", _nothing), (semaphore.Semaphore, "depart", _nothing)]


@plant
def a_lock_is_given_to_all_who_wait() -> list[Swap]:
    """A release is one for each of them."""
    original = semaphore.Semaphore._free

    def free(self: Any, count: int) -> None:
        original(self, max(count, len(self.waiting)))

    return [(semaphore.Semaphore, "_free", free)]


@plant
def items_of_the_dead_are_lost() -> list[Swap]:
    """What a consumer has got early goes with it."""

    def depart(self: Any, party: int) -> None:
        self.producers.discard(party)
        consumer = self.consumers.pop(party, None)
        if consumer is not None:
            self._drop(consumer.early)
            self._settle()

    return [(queue.Queue, "depart", depart)]


@plant
def what_comes_back_is_put_at_the_end() -> list[Swap]:
    """Items that a consumer had early lose their place."""

    def restore(self: Any, runs: list[Any]) -> None:
        self.ready.extend(runs)
        self.count += sum(map(len, runs))

    return [(queue.Queue, "_restore", restore)]


@plant
def items_are_with_two_processes() -> list[Swap]:
    """What is given back stays with who gives it back."""
    original = queue.Consumer.give_back

    def give_back(self: Any, first: int, count: int) -> list[Any]:
        runs = original(self, first, count)
        self.early.extend(runs)
        return runs

    return [(queue.Consumer, "give_back", give_back)]


@plant
def done_is_not_taken() -> list[Swap]:
    """Who is done with an item, and dies, leaves it to somebody else."""

    def task_done(self: Any, request: Any) -> None:
        if self.unfinished:
            self.unfinished -= 1
            request.done()
        else:
            request.refuse("task_done() called too many times")
        self._settle()

    return [(queue.Queue, "_task_done", task_done)]


@plant
def nobody_is_asked_to_give_back() -> list[Swap]:
    """Who waits for an item waits, though others have some early."""
    return [(recall.Recall, "tell_others", _nothing)]


@plant
def a_bounded_queue_takes_more() -> list[Swap]:
    """There is always room."""
    return [(queue.Queue, "_room", lambda self: queue.UNBOUNDED)]


@plant
def a_pipe_outlives_its_ends() -> list[Swap]:
    """Handles of the dead keep a side open."""
    return [(pipe.Pipe, "depart", _nothing)]


@plant
def a_barrier_waits_for_the_dead() -> list[Swap]:
    """It does not break."""
    return [(barrier.Barrier, "died", _nothing), (barrier.Barrier, "depart", _nothing)]


@plant
def a_notification_dies_with_its_receiver() -> list[Swap]:
    """It is not passed on."""
    return [(condition.Condition, "depart", _nothing)]


@plant
def an_event_wakes_one() -> list[Swap]:
    """The others wait on."""

    def act(self: Any, request: Any) -> None:
        if request.op == 16 and self.waiting:
            self.flag = True
            request.done()
            first = next(iter(self.waiting))
            del self.waiting[first]
            first.done()
        else:
            original(self, request)

    original = event.Event.act
    return [(event.Event, "act", act)]


@plant
def nobody_hears_that_an_object_is_no_more() -> list[Swap]:
    """Its maker is gone, and who waits for it waits."""

    def forget(self: Any, name: bytes) -> None:
        self.machines.pop(name)
        self._made[self._makers.pop(name)].pop(name, None)

    return [(registry.Objects, "forget", forget)]


@plant
def objects_outlive_their_makers() -> list[Swap]:
    """Nothing is forgotten when a session ends."""
    return [(registry.Objects, "ended", _nothing)]


# -- processes ---------------------------------------------------------------------------------------


@plant
def processes_are_not_lost_with_their_worker() -> list[Swap]:
    """Whoever started them waits."""
    return [(processes.Processes, "worker_ended", _nothing)]


@plant
def processes_outlive_who_has_started_them() -> list[Swap]:
    """They run, and nobody knows them."""
    original = processes.Processes.owner_ended

    def owner_ended(self: Any, owner: Any, parent: Any) -> None:
        if parent is not None:
            original(self, owner, parent)

    return [(processes.Processes, "owner_ended", owner_ended)]


@plant
def what_was_lost_on_its_way_is_not_asked_for() -> list[Swap]:
    """A process waits for content that was sent over a lost connection."""
    return [(processes.Processes, "restated", _nothing)]


__all__ = ["PLANTED_IN_WHAT_IS_SHARED"]
