"""Rules of the two cores about what children do, and about drains, one by one, in virtual time."""

from __future__ import annotations

from typing import Any

import pytest
from cluster import Cluster, assert_empty, complete

from multihost_common import messages as m
from multihost_worker import events as ae


@pytest.fixture
def cluster() -> Cluster:
    return Cluster(audited=True)


# -- what children do ------------------------------------------------------------------------------


def test_a_pool_whose_initializer_fails_is_told_to_the_producer_and_its_jobs_are_dropped(
    cluster: Cluster,
) -> None:
    host = cluster.host("h0", 2)
    cluster.pool()
    cluster.job(1, 100)
    host._ready = lambda child: host.tell(ae.ChildFailed(child.number, "Traceback: no"))  # type: ignore[method-assign]
    cluster.run(1.0)
    (broken,) = [each for each in cluster.inbox if isinstance(each, m.PoolBroken)]
    assert (broken.pool, broken.text) == (1, "Traceback: no")
    assert not cluster.core.owners
    cluster.job(2, 5)
    cluster.run(0.5)
    assert sum(isinstance(each, m.PoolBroken) for each in cluster.inbox) == 2
    cluster.say(m.ClosePool(1, True))
    cluster.run(until=cluster.closed)
    assert_empty(cluster)


def test_children_that_end_before_they_are_ready_break_the_pool_instead_of_being_started_for_ever(
    cluster: Cluster,
) -> None:
    host = cluster.host("h0", 2)
    cluster.pool()
    cluster.job(1, 100)
    host._ready = lambda child: host._die(child, 11)  # type: ignore[method-assign]

    def died(child: Any, signal: int, item: int | None = None) -> None:
        host.children.pop(child.number)
        host.tell(ae.ChildDied(child.number, -1, 0, 0, signal, 0, False, "segmentation fault"))

    host._die = died  # type: ignore[method-assign]
    cluster.run(2.0)
    (broken,) = [each for each in cluster.inbox if isinstance(each, m.PoolBroken)]
    assert "segmentation fault" in broken.text
    assert host.started < 10


def test_a_timeout_counts_from_when_an_item_begins_not_from_when_it_was_given(cluster: Cluster) -> None:
    cluster.cost = lambda item: 0.4
    cluster.host("h0", 1)
    cluster.pool()
    cluster.job(1, 12, timeout=0.5)
    complete(cluster, 12)
    assert not cluster.failures()


def test_a_job_with_a_timeout_behind_one_without_has_it_too(cluster: Cluster) -> None:
    cluster.cost = lambda item: 0.02
    cluster.host("h0", 1)
    cluster.pool()
    cluster.job(1, 50)
    cluster.run(0.5)
    cluster.job(2, 3, timeout=1.0)
    cluster.cost = lambda item: 30.0 if item == 1 else 0.02
    cluster.run(until=lambda: cluster.ended(2))
    (failed,) = cluster.failures(2)
    assert (failed.start, failed.reason) == (1, "timeout")


def test_items_that_run_into_their_timeout_together_all_fail_on_time(cluster: Cluster) -> None:
    cluster.cost = lambda item: 100.0
    cluster.host("h0", 4)
    cluster.pool()
    begun = cluster.now
    cluster.job(1, 4, timeout=2.0)
    cluster.run(until=cluster.ended)
    assert [failed.reason for failed in cluster.failures()] == ["timeout"] * 4
    assert cluster.now - begun < 2.2


def test_an_item_that_takes_too_much_memory_is_run_again_alone_then_fails(cluster: Cluster) -> None:
    host = cluster.host("h0", 1)
    host.core.config.max_memory = 1 << 20
    cluster.cost = lambda item: 1.0 if item == 3 else 0.001
    cluster.pool()
    cluster.job(1, 10)

    def sample() -> None:
        for child in list(host.children.values()):
            hog = any(item == 3 for item, _ in child.claim)
            host.tell(ae.ChildMemory(child.number, 1 << 30 if hog else 1000))
        cluster.after(0.1, sample)

    cluster.after(0.1, sample)
    cluster.run(until=cluster.ended)
    (failed,) = cluster.failures()
    assert (failed.start, failed.reason, failed.deaths) == (3, "memory", 3)
    assert sorted(cluster.results()) == [0, 1, 2, 4, 5, 6, 7, 8, 9]


def test_an_item_whose_child_dies_before_it_says_what_it_runs_is_charged_and_so_ends(
    cluster: Cluster,
) -> None:
    host = cluster.host("h0", 1)
    cluster.pool()

    def import_crashes(child: Any, run: ae.Run) -> None:
        host.children.pop(child.number)
        cluster.after(
            0.001, lambda: host.tell(ae.ChildDied(child.number, -1, child.pid, 0, 11, 0, False, "segfault"))
        )

    host._run = import_crashes  # type: ignore[method-assign]
    cluster.job(1, 4)
    cluster.run(60.0, until=cluster.ended)
    assert sorted(failed.start for failed in cluster.failures()) == [0, 1, 2, 3]


def test_cancel_kills_a_child_that_is_seen_between_two_items_once_it_runs_an_unwanted_one(
    cluster: Cluster,
) -> None:
    host = cluster.host("h0", 1)
    cluster.cost = lambda item: 50.0
    cluster.pool()
    cluster.job(1, 10, chunksize=10)
    cluster.run(1.0)
    progress = host._progress
    looks: list[int] = []

    def nothing_runs_at_first(child: Any) -> ae.Progress:
        looks.append(child.number)
        return ae.Progress(child.number, -1, cluster.now) if len(looks) < 3 else progress(child)

    host._progress = nothing_runs_at_first  # type: ignore[method-assign]
    cluster.say(m.Cancel(1, 0, 0, True))
    cluster.run(until=lambda: not host.children)
    assert len(looks) >= 3 and cluster.now < 103.0


# -- drains ----------------------------------------------------------------------------------------


def test_a_drain_that_takes_too_long_hands_everything_back(cluster: Cluster) -> None:
    cluster.cost = lambda item: 1000.0 if cluster.now < 103.0 else 0.01
    cluster.host("h0", 2)
    cluster.pool()
    cluster.job(1, 10)
    cluster.run(1.0)
    host = cluster.hosts["h0"]
    host.tell(ae.Stop())
    cluster.run(until=lambda: host.exit is not None)
    assert cluster.now == pytest.approx(101.0 + 25.0)
    cluster.host("h1", 1)
    complete(cluster, 10)


def test_a_drain_that_the_broker_did_not_hear_of_is_said_again(cluster: Cluster) -> None:
    cluster.cost = lambda item: 2.0 if item == 0 else 0.001
    said: list[m.Message] = []

    def lose(peer: str, message: m.Message) -> bool:
        if isinstance(message, m.Drain):
            said.append(message)
        return isinstance(message, m.Drain) and len(said) == 1

    cluster.lost = lose
    cluster.host("h0", 2)
    cluster.pool()
    cluster.job(1, 3000)
    cluster.run(0.2)
    host = cluster.hosts["h0"]
    host.tell(ae.Stop())
    cluster.host("h1", 2)
    cluster.run(1.0)
    assert len(said) > 1
    assert cluster.core.sessions.by_peer["h0"].draining
    complete(cluster, 3000)
