"""Faults of detached jobs that are put into the core on purpose, one at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from multihost_broker.detached import archive, books, deposits, fetches, recovery, scribe
from multihost_broker.journal.records import Forget, Record

from .planted import PLANTED_IN_THE_HOUSE, Swap


def plant(make: Callable[[], list[Swap]]) -> Callable[[], list[Swap]]:
    """Enter a fault under the name of its function."""
    PLANTED_IN_THE_HOUSE[make.__name__] = make
    return make


def _nothing(*_: Any, **__: Any) -> None:
    """Does nothing."""


def _skipping(kind: int) -> list[Swap]:
    original = recovery.Recovery._restore

    def restore(self: Any, job: Any, ticket: int, record: Record) -> None:
        if record.kind != kind:
            original(self, job, ticket, record)

    return [(recovery.Recovery, "_restore", restore)]


# -- what is durable ---------------------------------------------------------------------------------


@plant
def it_is_confirmed_before_it_is_durable() -> list[Swap]:
    """What follows from a change follows at once."""
    original = scribe.Scribe.write

    def write(self: Any, change: Any, done: Any = _nothing, refused: Any = _nothing, **options: Any) -> int:
        ticket = original(self, change, _nothing, refused, **options)
        done()
        return ticket

    return [(scribe.Scribe, "write", write)]


@plant
def orders_are_answered_before_they_are_durable() -> list[Swap]:
    """An order that the broker forgets when it is killed was answered."""
    return [(scribe.Scribe, "follow", lambda self, done: done())]


@plant
def deaths_are_forgotten_on_restart() -> list[Swap]:
    """What an item has killed is not known to the next broker."""
    return _skipping(books.DEATH)


@plant
def results_are_forgotten_on_restart() -> list[Swap]:
    """What has an answer is not known to the next broker."""
    return _skipping(books.RESULT)


@plant
def the_seal_is_forgotten_on_restart() -> list[Swap]:
    """The next broker waits for more input."""
    return _skipping(books.SEAL)


@plant
def the_end_is_forgotten_on_restart() -> list[Swap]:
    """What was cancelled runs again."""
    return _skipping(books.ENDED)


@plant
def what_is_collected_stays_in_the_journal() -> list[Swap]:
    """The next broker has it again."""
    original = scribe.Scribe.write

    def write(self: Any, change: Any, *args: Any, **options: Any) -> int:
        # A ticket is needed all the same.
        other = Forget(b"nobody's") if isinstance(change, Forget) else change
        return original(self, other, *args, **options)

    return [(scribe.Scribe, "write", write)]


# -- input -------------------------------------------------------------------------------------------


@plant
def input_is_erased_when_it_is_handed_out() -> list[Swap]:
    """Should the broker be killed, it is gone."""
    original = archive.Archive._feed

    def feed(self: Any, job: Any, pool: Any, running: Any, block: Any, record: Any) -> None:
        original(self, job, pool, running, block, record)
        self.garbage.append(block.ticket)

    return [(archive.Archive, "_feed", feed)]


@plant
def a_block_is_handed_out_twice() -> list[Swap]:
    """It stays in the queue."""
    original = archive.Archive._next

    def following(self: Any, job: Any) -> Any:
        blocks = original(self, job)
        if len(blocks) == 1:
            job.enqueue(blocks[0].start)
        return blocks

    return [(archive.Archive, "_next", following)]


@plant
def the_bound_of_all_jobs_is_not_heeded() -> list[Swap]:
    """As much is in memory as the jobs like."""
    original = archive.Archive._next

    def following(self: Any, job: Any) -> Any:
        before, archive.MOST_LENT = archive.MOST_LENT, 1 << 60
        try:
            return original(self, job)
        finally:
            archive.MOST_LENT = before

    return [(archive.Archive, "_next", following)]


@plant
def what_is_over_is_given_back_twice() -> list[Swap]:
    """The bytes that are in memory are counted wrongly."""
    original = archive.Archive._rest

    def rest(self: Any, job: Any) -> None:
        self.lent -= job.lent.bytes
        original(self, job)

    return [(archive.Archive, "_rest", rest)]


@plant
def what_was_refused_leaves_a_gap() -> list[Swap]:
    """The submitter is denied, and the job goes on behind the block."""

    def not_put(self: Any, session: Any, job: Any) -> None:
        self._full(session, job.key)

    return [(deposits.Deposits, "_not_put", not_put)]


@plant
def nobody_is_told_of_a_full_disk() -> list[Swap]:
    """The submitter waits."""
    return [(deposits.Deposits, "_full", _nothing)]


# -- answers -----------------------------------------------------------------------------------------


@plant
def who_waits_is_not_told() -> list[Swap]:
    """Answers that come while somebody waits for them are not served."""
    return [(fetches.Fetches, "_tell", lambda self, job: job.watchers.clear())]


@plant
def the_cursor_skips_an_answer() -> list[Swap]:
    """The next Fetch begins too late."""
    original = fetches.Fetches._fetched

    def fetched(self: Any, session: Any, job: Any, cursor: int) -> None:
        original(self, session, job, cursor + 1)

    return [(fetches.Fetches, "_fetched", fetched)]


@plant
def a_retry_keeps_the_dead_letter() -> list[Swap]:
    """The item runs again, and keeps its answer."""
    return [(books.DetachedJob, "unanswer", lambda self, item: self.retried.add(item))]


__all__ = ["PLANTED_IN_THE_HOUSE"]
