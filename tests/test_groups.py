"""Items too short for a note each: which of them is charged with a death, and what a prompt still sees."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
import tasks
from cluster import Cluster
from nursery import Nursery, nothing_left
from workload import SHORT_KILLER, short_unless_killer

import multihost
from multihost_worker import events as ae
from multihost_worker.child import GROUP

if TYPE_CHECKING:
    from conftest import MakePool

#: Items of a chunk. The first chunks tell the child that its items are short.
CHUNK = 2000


@pytest.fixture
def nurse() -> Iterator[Nursery]:
    with nothing_left(), Nursery() as made:
        made.begin(function=tasks.short_unless)
        yield made


def short(count: int, **others: float) -> list[float]:
    items: list[float] = list(range(count))
    for at, item in others.items():
        items[int(at[2:])] = item
    return items


def warm(nurse: Nursery) -> int:
    nurse.give(short(4 * CHUNK), chunksize=CHUNK)
    nurse.outcomes(4 * CHUNK)
    nurse.events.clear()
    return 4 * CHUNK


def test_a_death_among_short_items_names_a_few_of_which_one_ran(nurse: Nursery) -> None:
    start = warm(nurse)
    position = nurse.give(short(CHUNK, at1234=-9), chunksize=CHUNK, start=start)
    died = nurse.death()
    assert died.signal == signal.SIGKILL
    assert died.position <= position + 1234 < died.position + died.covers
    assert 1 < died.covers <= GROUP


def test_the_last_of_a_chunk_covers_nothing_of_the_next(nurse: Nursery) -> None:
    start = warm(nurse)
    position = nurse.give(short(2 * CHUNK, at1999=-9), chunksize=CHUNK, start=start)
    died = nurse.death()
    assert died.position <= position + 1999 < died.position + died.covers == position + CHUNK


def test_a_long_item_is_noted_exactly_after_long_ones(nurse: Nursery) -> None:
    warm(nurse)
    nurse.give([0.002] * 20, chunksize=5, start=4 * CHUNK)
    nurse.until(lambda: sum(each.count for each in nurse.results()) == 20)
    position = nurse.give([0.002, 600.0, 0.002], chunksize=3, start=5 * CHUNK)
    running = nurse.running(position=position + 1)
    assert (running.position, running.covers) == (position + 1, 1)


def test_what_came_before_a_long_item_is_sent_while_it_runs(nurse: Nursery) -> None:
    start = warm(nurse)
    # 1,004 lies in the same group as 1,000: the first long item must not hide the second.
    nurse.give(short(CHUNK, at1000=0.2, at1004=600.0), chunksize=CHUNK, start=start)
    nurse.until(lambda: sum(each.count for each in nurse.results()) == 1004)
    nurse.kill()
    died = nurse.death()
    assert died.position <= start + 1004 < died.position + died.covers


def test_errors_among_short_items_stay_where_they_belong() -> None:
    with nothing_left(), Nursery() as nurse:
        nurse.begin(function=tasks.short_unless_odd)
        nurse.give([0] * 4 * CHUNK, chunksize=CHUNK)
        nurse.outcomes(4 * CHUNK)
        nurse.events.clear()
        items = [int(at % 77 == 3) for at in range(CHUNK)]
        nurse.give(items, chunksize=CHUNK, start=4 * CHUNK)
        outcomes = nurse.outcomes(CHUNK)
        raised = [at - 4 * CHUNK for at, outcome in outcomes.items() if outcome != 0]
        assert raised == [at for at, item in enumerate(items) if item]


def test_all_of_a_group_run_again_alone_and_only_the_killer_fails() -> None:
    cluster = Cluster()
    host = cluster.host("h0", 2)
    tell, deaths = host.tell, 0

    def tell_vaguely(event: ae.Event) -> None:
        nonlocal deaths
        if isinstance(event, ae.ChildDied) and event.signal:
            deaths += 1
            # The first death cannot be told from one of its neighbours.
            if deaths == 1:
                event.position, event.covers = event.position - 3, 8
        tell(event)

    host.tell = tell_vaguely  # type: ignore[method-assign]
    cluster.kills = lambda item, host: item == 40
    cluster.pool()
    cluster.job(1, 100, chunksize=50)
    cluster.run(60.0, until=cluster.ended)
    (failed,) = cluster.failures()
    assert (failed.start, failed.count, failed.deaths) == (40, 1, 3)
    assert sorted(cluster.results()) == [item for item in range(100) if item != 40]
    assert deaths == 3


def test_one_of_many_short_items_kills_every_child(make_pool: MakePool) -> None:
    pool = make_pool(2)
    count = 60_000
    results = pool.imap(short_unless_killer, range(count), chunksize=3000)
    failed = []
    for item in range(count):
        try:
            assert next(results) == item
        except multihost.WorkerLostError as error:
            failed.append((item, str(error)))
    ((item, text),) = failed
    assert item == SHORT_KILLER
    assert "SIGKILL" in text
