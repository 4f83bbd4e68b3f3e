"""Faults that are put into the cores on purpose, one at a time: schedules must find each, or they prove nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

from multihost import iterators, jobs, kept, sources
from multihost_broker import (
    answered,
    leases,
    ledger,
    memory,
    producers,
    returns,
    scheduler,
    sessions,
    workers,
)
from multihost_broker.jobs import Job
from multihost_common import messages as m
from multihost_worker import books, core, minder, watch

#: (owner, name of the attribute, what takes its place)
Swap: TypeAlias = tuple[Any, str, Any]

PLANTED: dict[str, Callable[[], list[Swap]]] = {}

#: Those of detached jobs.
PLANTED_IN_THE_HOUSE: dict[str, Callable[[], list[Swap]]] = {}

#: Those of shared objects and processes.
PLANTED_IN_WHAT_IS_SHARED: dict[str, Callable[[], list[Swap]]] = {}


def plant(make: Callable[[], list[Swap]]) -> Callable[[], list[Swap]]:
    """Enter a fault under the name of its function."""
    PLANTED[make.__name__] = make
    return make


@contextmanager
def planted(name: str) -> Iterator[None]:
    """The cores have this fault inside; empty: none."""
    there = {**PLANTED, **PLANTED_IN_THE_HOUSE, **PLANTED_IN_WHAT_IS_SHARED}
    swaps = there[name]() if name else []
    before = [(owner, attribute, getattr(owner, attribute)) for owner, attribute, _ in swaps]
    try:
        for owner, attribute, other in swaps:
            setattr(owner, attribute, other)
        yield
    finally:
        for owner, attribute, original in before:
            setattr(owner, attribute, original)


def _nothing(*_: Any, **__: Any) -> None:
    """Does nothing."""


# -- leases ------------------------------------------------------------------------------------------


@plant
def beats_renew_everything() -> list[Swap]:
    """A beat renews all that the worker is thought to hold, whatever it names."""
    return [(workers.Workers, "beat", _nothing)]


@plant
def answers_count_for_any_attempt() -> list[Swap]:
    """What is returned, or has died, is taken off whoever holds it now, in whatever attempt."""
    original = leases.Leases.take

    def take(self: Any, start: int, stop: int, attempt: int | None = None) -> Any:
        return original(self, start, stop)

    return [(leases.Leases, "take", take)]


@plant
def results_leave_the_lease() -> list[Swap]:
    """A result is passed on, and its items are leased still."""
    original = leases.Leases.take

    def take(self: Any, start: int, stop: int, attempt: int | None = None) -> Any:
        return [] if attempt is None else original(self, start, stop, attempt)

    return [(leases.Leases, "take", take)]


@plant
def a_lost_workers_leases_are_lost() -> list[Swap]:
    """What a worker held is gone with it."""
    original = scheduler.Scheduler.leave

    def leave(self: Any, worker: Any) -> list[Any]:
        original(self, worker)
        return []

    return [(scheduler.Scheduler, "leave", leave)]


@plant
def a_lost_workers_slots_stay_granted() -> list[Swap]:
    """The pool is thought to have the slots still."""
    original = scheduler.Scheduler.leave

    def leave(self: Any, worker: Any) -> Any:
        shares = list(worker.shares.values())
        held = original(self, worker)
        for share in shares:
            share.pool.granted += share.slots
        return held

    return [(scheduler.Scheduler, "leave", leave)]


@plant
def silence_is_not_noticed() -> list[Swap]:
    """A peer whose connection does not end is thought to be there for ever."""
    return [(sessions, "LOST", 1e9), (sessions, "PRODUCER_LOST", 1e9)]


@plant
def hand_backs_count_twice() -> list[Swap]:
    """What a worker returns is taken off its books twice."""
    original = workers.Workers._on_returned

    def on_returned(self: Any, worker: Any, back: m.Returned) -> None:
        held = worker.leases.get(back.job)
        original(self, worker, back)
        if held is not None:
            held.share.hold(-back.count)

    return [(workers.Workers, "_on_returned", on_returned)]


@plant
def hand_backs_are_not_told() -> list[Swap]:
    """A worker takes work back from its children, or its queue, and keeps it to itself."""
    return [(books.Books, "give_back", _nothing)]


@plant
def hand_backs_run_at_the_end_of_the_world() -> list[Swap]:
    """What is returned is not offered to anybody until something else becomes ready."""
    original = workers.Workers._on_returned

    def on_returned(self: Any, worker: Any, back: m.Returned) -> None:
        found = worker.leases.get(back.job)
        if found is not None:
            pending = found.share.pool.pending
            was = found.job.number in pending
            original(self, worker, back)
            if not was:
                pending.pop(found.job.number, None)

    return [(workers.Workers, "_on_returned", on_returned)]


# -- deaths ------------------------------------------------------------------------------------------


@plant
def all_that_a_child_had_is_blamed() -> list[Swap]:
    """A death is charged to each item the child had been given."""

    def charge(self: Any, child: Any, event: Any) -> None:
        for given in list(child.given):
            for each in range(given.position, given.position + len(given.work.span)):
                self._charge_item(child, event, given, each)

    return [(minder.Minder, "_charge", charge)]


@plant
def poison_runs_for_ever() -> list[Swap]:
    """An item may kill as many children as it likes."""
    return [(workers, "MAX_DEATHS", 1 << 30)]


@plant
def two_deaths_are_enough() -> list[Swap]:
    """An item is given up after its second death."""
    return [(workers, "MAX_DEATHS", 2)]


@plant
def suspects_run_with_others() -> list[Swap]:
    """What has killed a child runs again like everything else."""
    return [(Job, "suspect", lambda self, span: self.put(span, True))]


@plant
def what_was_lost_runs_again_whatever_was_asked_for() -> list[Swap]:
    """An item of an at_most_once job, held by a worker that is lost, runs again."""
    return [(ledger.Ledger, "lose", lambda self, worker, pool, job, lease: job.put_back(lease))]


@plant
def timeouts_are_not_watched() -> list[Swap]:
    """Nobody looks how long an item has been running."""
    return [(watch.Watch, "look_at", _nothing)]


# -- answers -----------------------------------------------------------------------------------------


@plant
def every_result_is_passed_on() -> list[Swap]:
    """Results of items that have an answer already are sent to the producer all the same."""
    original = answered.Answered.add

    def add(self: Any, start: int, stop: int) -> list[tuple[int, int]]:
        original(self, start, stop)
        return [(start, stop)]

    return [(answered.Answered, "add", add)]


@plant
def the_producers_job_takes_results_twice() -> list[Swap]:
    """A job hands on to its sink whatever comes."""

    def add(self: Any, start: int, stop: int) -> list[tuple[int, int]]:
        self.count += stop - start
        return [(start, stop)]

    return [(sources.Ranges, "add", add), (answered.Answered, "add", every_result_is_passed_on()[0][2])]


@plant
def the_window_is_not_reopened() -> list[Swap]:
    """Answers make no room for further items."""
    return [(jobs.BaseJob, "has_more", lambda self: False)]


@plant
def readers_do_not_announce_room() -> list[Swap]:
    """A reader that takes results out does not tell the job."""
    return [(iterators.IMapIterator, "_resume", _nothing)]


# -- coming back -------------------------------------------------------------------------------------


@plant
def what_was_lost_on_the_way_back_stays_lost() -> list[Swap]:
    """Input that is stated anew is not run again, although its answers never arrived."""

    def refeed(self: Any, block: Any) -> bool:
        return bool(block.start < self.fed or self.feed(block))

    return [(Job, "refeed", refeed)]


@plant
def a_job_ends_while_it_is_stated_anew() -> list[Swap]:
    """The end of the results is told before the producer has said which of them it lacks."""

    def settle(self: Any, pool: Any, job: Any) -> None:
        if job.done() and not job.waits and job.number in pool.jobs:
            self.tell_owner(pool, m.EndResults(job.number & 0xFFFF_FFFF, job.count))
            self.close_job(pool, job)

    return [(ledger.Ledger, "settle", settle)]


@plant
def nothing_is_kept_to_be_fed_again() -> list[Swap]:
    """A producer that comes back states its jobs without their input."""
    return [(kept.Kept, "feeds", lambda self: [])]


@plant
def what_workers_have_is_run_by_others_too() -> list[Swap]:
    """A broker that was started anew does not heed what its workers say they hold."""
    return [(returns.Returns, "_adopt", _nothing)]


@plant
def content_is_asked_for_once() -> list[Swap]:
    """A Need, or its answer, that was lost with a connection is not repeated."""
    original = returns.Returns._on_restated

    def on_restated(self: Any, producer: Any, restated: m.Restated) -> None:
        awaited, self._ledger.awaited = self._ledger.awaited, {}
        original(self, producer, restated)
        awaited.update(self._ledger.awaited)
        self._ledger.awaited = awaited

    return [(returns.Returns, "_on_restated", on_restated)]


# -- pools -------------------------------------------------------------------------------------------


@plant
def a_drain_keeps_its_queue() -> list[Swap]:
    """A worker that drains says nothing of what it has not begun."""
    return [(core.Core, "_give_all_back", _nothing)]


@plant
def cancels_are_not_passed_on() -> list[Swap]:
    """Workers do not hear what nobody wants any more."""
    original = ledger.Ledger.tell

    def tell(self: Any, session: Any, message: m.Message) -> None:
        if type(message) is not m.Cancel:
            original(self, session, message)

    return [(ledger.Ledger, "tell", tell)]


@plant
def pools_are_closed_before_their_children_have_ended() -> list[Swap]:
    """The producer is told at once."""
    original = ledger.Ledger.order_close

    def order_close(self: Any, pool: Any) -> None:
        original(self, pool)
        pool.unconfirmed.clear()

    return [(ledger.Ledger, "order_close", order_close)]


@plant
def a_producers_end_leaves_its_work() -> list[Swap]:
    """Nobody cancels what a producer that is gone had under way."""
    return [(producers.Producers, "ended", _nothing)]


# -- memory ------------------------------------------------------------------------------------------


@plant
def what_was_dropped_is_not_asked_for() -> list[Swap]:
    """A producer that goes on is not told which of its input there was no room for."""
    original = memory.Memory._release

    def release(self: Any, account: Any) -> None:
        account.dropped.clear()
        original(self, account)

    return [(memory.Memory, "_release", release)]


@plant
def what_is_gone_counts_on() -> list[Swap]:
    """Input that has its answers takes up room for ever."""
    return [(memory.Counted, "__del__", _nothing)]
