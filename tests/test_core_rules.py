"""Rules of the two cores, one by one, in virtual time: silence, slots, content, drains, timeouts, memory."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest
from cluster import FUNCTION, SETUP, Cluster, Host, assert_empty, complete

from multihost_broker import events as be
from multihost_common import messages as m
from multihost_common.blocks import pack_lengths
from multihost_worker import events as ae


@pytest.fixture
def cluster() -> Cluster:
    return Cluster(audited=True)


def held(cluster: Cluster, host: str) -> int:
    """Items that the broker thinks this host has."""
    return sum(share.held for share in cluster.core.sessions.by_peer[host].shares.values())


# -- silence ---------------------------------------------------------------------------------------


def test_leases_of_a_silent_worker_return_after_ten_seconds_and_no_earlier(cluster: Cluster) -> None:
    cluster.cost = lambda item: 0.3
    cluster.host("h0", 1)
    cluster.pool()
    cluster.job(1, 200)
    cluster.run(1.5)
    cluster.hosts["h0"].cut = True
    cut = cluster.now
    cluster.run(8.5)
    assert held(cluster, "h0") > 0
    cluster.run(until=lambda: "h0" not in cluster.core.sessions.by_peer)
    assert 9.0 <= cluster.now - cut <= 11.0
    assert not cluster.core.owners[1 << 32 | 1].workers


def test_a_worker_that_is_silent_for_five_seconds_gets_nothing_new_until_it_is_heard(
    cluster: Cluster,
) -> None:
    cluster.cost = lambda item: 0.01
    cluster.host("h0", 1)
    cluster.pool()
    cluster.run(0.5)
    host = cluster.hosts["h0"]
    host.cut = True
    cluster.run(7.0)
    cluster.job(1, 10)
    cluster.run(0.5)
    assert not cluster.core.sessions.by_peer["h0"].leases
    host.mend()
    complete(cluster, 10)
    assert cluster.core.sessions.by_peer["h0"].number == 2, "still the same session"


def test_a_worker_whose_connection_has_ended_gets_nothing_new(cluster: Cluster) -> None:
    cluster.host("h0", 1)
    cluster.pool()
    cluster.run(0.5)
    cluster.hosts["h0"].cut = True
    cluster.tell_broker(be.Gone("h0"))
    gone = cluster.now
    cluster.job(1, 10)
    cluster.run(until=lambda: "h0" not in cluster.core.sessions.by_peer)
    assert cluster.now - gone < 3.5
    cluster.host("h1", 1)
    complete(cluster, 10)


def test_results_of_a_session_that_is_over_are_dropped(cluster: Cluster) -> None:
    cluster.cost = lambda item: 4.0
    cluster.host("h0", 1)
    cluster.pool()
    cluster.job(1, 5)
    cluster.run(1.0)
    host = cluster.hosts["h0"]
    host.cut = True
    cluster.run(12.0)
    cluster.host("h1", 1)
    cluster.run(1.0)
    host.mend()
    complete(cluster, 5)
    assert sorted(cluster.results()) == [0, 1, 2, 3, 4]
    cluster.say(m.ClosePool(1))
    cluster.run(until=cluster.closed)
    cluster.run(1.0)
    assert_empty(cluster)


def test_a_producer_whose_connection_has_ended_is_cancelled_within_five_seconds(cluster: Cluster) -> None:
    cluster.cost = lambda item: 1000.0
    cluster.host("h0", 2)
    cluster.pool()
    cluster.job(1, 20)
    cluster.run(1.0)
    assert cluster.hosts["h0"].children
    cluster.producer_lives = False
    cluster.tell_broker(be.Gone("producer"))
    gone = cluster.now
    cluster.run(until=lambda: not cluster.hosts["h0"].children)
    assert cluster.now - gone < 5.0
    cluster.run(0.1)
    assert_empty(cluster)


def test_a_producer_that_dials_again_within_three_seconds_goes_on(cluster: Cluster) -> None:
    client = b"c" * 16
    hello = m.Hello(m.PRODUCER, m.PROTOCOL_VERSION, "3.11", 5, "p", client=client)
    cluster.tell_broker(be.Received("old", m.PRODUCER, hello))
    session = cluster.core.sessions.by_peer["old"]
    cluster.tell_broker(be.Gone("old"))
    cluster.now += 2.0
    hello.session = session.number
    cluster.tell_broker(be.Received("new", m.PRODUCER, hello))
    assert cluster.core.sessions.by_peer["new"] is session
    assert "old" not in cluster.core.sessions.by_peer


def test_a_producer_that_was_never_welcomed_begins_anew(cluster: Cluster) -> None:
    hello = m.Hello(m.PRODUCER, m.PROTOCOL_VERSION, "3.11", 5, "p", client=b"c" * 16)
    cluster.tell_broker(be.Received("old", m.PRODUCER, hello))
    cluster.tell_broker(be.Received("old", m.PRODUCER, m.OpenPool(1)))
    session = cluster.core.sessions.by_peer["old"]
    cluster.tell_broker(be.Received("new", m.PRODUCER, hello))
    assert cluster.core.sessions.by_peer["new"] is not session
    assert not cluster.core.pools


# -- slots -----------------------------------------------------------------------------------------


def test_never_more_children_at_work_than_slots_even_when_each_runs_one_task(cluster: Cluster) -> None:
    cluster.cost = lambda item: 0.05
    host = cluster.host("h0", 3)
    cluster.pool(max_tasks=1)
    cluster.job(1, 60)
    complete(cluster, 60)
    assert host.started >= 60
    assert host.most_running == 3


def test_slots_of_a_draining_worker_go_to_others_as_they_fall_free(cluster: Cluster) -> None:
    cluster.cost = lambda item: 0.05 if item else 20.0
    h0 = cluster.host("h0", 2)
    cluster.pool(limit=2)
    cluster.job(1, 100)
    cluster.run(1.0)
    cluster.host("h1", 2)
    h0.tell(ae.Stop())
    cluster.run(15.0)
    assert sorted(cluster.results()) == list(range(1, 100))
    assert cluster.hosts["h1"].most_running == 1, "a pool of two runs two, with the one that drains"
    complete(cluster, 100)
    assert len(cluster.ran) == 100


def test_a_pool_that_has_fallen_quiet_gives_its_slots_to_one_that_wants_them(cluster: Cluster) -> None:
    cluster.cost = lambda item: 0.1
    cluster.host("h0", 4)
    for pool in (1, 2):
        cluster.pool(pool)
        cluster.job(pool, 40 if pool == 1 else 4000, pool)
    cluster.run(until=cluster.ended)
    cluster.run(4.0)
    assert cluster.core.pools[1 << 32 | 2].granted == 4
    assert cluster.hosts["h0"].most_running <= 4


def test_a_pool_that_lost_all_its_slots_hands_its_work_back(cluster: Cluster) -> None:
    cluster.cost = lambda item: 0.2
    cluster.host("h0", 1)
    cluster.host("h1", 1)
    cluster.pool(1)
    cluster.job(1, 30)
    cluster.run(1.0)
    cluster.pool(2)
    cluster.job(2, 10, 2)
    complete(cluster, 10, job=2)
    complete(cluster, 30)
    assert len(cluster.ran) == 40


def test_no_step_looks_at_all_open_jobs_when_one_more_comes(cluster: Cluster) -> None:
    """Measured in lines of Python that the broker runs, which no busy neighbour changes."""
    cluster.audited = False
    cluster.cost = lambda item: 50.0
    cluster.host("h0", 2)
    cluster.pool()

    def lines(jobs: range) -> int:
        ran = 0

        def trace(frame: Any, event: str, argument: Any) -> Any:
            nonlocal ran
            ran += event == "line"
            return trace

        sys.settrace(trace)
        try:
            for number in jobs:
                messages = (
                    m.Blob(FUNCTION, (b"function",)),
                    m.OpenJob(number, 1, FUNCTION),
                    m.Feed(number, 0, 2, 1, (pack_lengths([4] * 2), b"itemitem")),
                    m.EndJob(number, 2),
                )
                for message in messages:
                    cluster.core.handle(be.Received("producer", m.PRODUCER, message), cluster.now)
        finally:
            sys.settrace(None)
        return ran

    cluster.run(0.1)
    before = sys.gettrace()
    few = lines(range(1, 51))
    for start in range(51, 2001, 50):
        many = lines(range(start, start + 50))
    sys.settrace(before)
    assert many < 1.5 * few


# -- content ---------------------------------------------------------------------------------------


def test_content_that_comes_late_starts_what_waits_for_it(cluster: Cluster) -> None:
    cluster.host("h0", 1)
    cluster.say(m.OpenPool(1, 0, SETUP))
    cluster.say(m.OpenJob(1, 1, FUNCTION))
    cluster.say(m.Feed(1, 0, 1, 1, (pack_lengths([1]), b"x")))
    cluster.say(m.EndJob(1, 1))
    cluster.run(1.0)
    needed = [each.digest for each in cluster.inbox if isinstance(each, m.Need)]
    assert sorted(needed) == [FUNCTION, SETUP]
    cluster.say(m.Blob(SETUP, (b"setup",)))
    cluster.run(1.0)
    assert not cluster.ended()
    cluster.say(m.Blob(FUNCTION, (b"function",)))
    complete(cluster, 1)


def test_content_that_was_lost_on_the_way_to_a_worker_is_asked_for_again(cluster: Cluster) -> None:
    lost: list[m.Message] = []

    def lose(peer: str, message: m.Message) -> bool:
        if isinstance(message, m.Blob | m.Need) and len(lost) < 4:
            lost.append(message)
            return True
        return False

    cluster.lost = lose
    cluster.host("h0", 1)
    cluster.say(m.OpenPool(1))
    cluster.say(m.Blob(FUNCTION, (b"function",)))
    cluster.say(m.OpenJob(1, 1, FUNCTION))
    cluster.say(m.Feed(1, 0, 1, 1, (pack_lengths([1]), b"x")))
    cluster.say(m.EndJob(1, 1))
    complete(cluster, 1)
    assert lost and cluster.now < 110.0


# -- questions and refusals ------------------------------------------------------------------------


def answers(cluster: Cluster, what: str) -> dict[str, Any]:
    cluster.say(m.Ask(what))
    cluster.run(0.01)
    (answer,) = [each for each in cluster.inbox if isinstance(each, m.Answer)][-1:]
    told: dict[str, Any] = json.loads(bytes(answer.frames[0]))
    return told


def test_status_tells_of_workers_pools_and_jobs(cluster: Cluster) -> None:
    cluster.cost = lambda item: 0.01
    cluster.host("h0", 2)
    cluster.pool()
    cluster.job(1, 1000, name="fib")
    cluster.run(1.0)
    told = answers(cluster, "status")
    (worker,), (pool,) = told["workers"], told["pools"]
    assert (told["slots"], worker["host"], worker["granted"], worker["suspect"]) == (2, "h0", 2, False)
    (job,) = pool["jobs"]
    assert job["name"] == "fib" and job["items"] == 1000
    assert job["ready"] + job["leased"] + job["answered"] == 1000
    assert worker["held"] == pool["held"] == job["leased"] > 0
    assert job["seconds_per_item"] == pytest.approx(0.01)


def test_health_is_short_and_other_questions_are_refused(cluster: Cluster) -> None:
    cluster.host("h0", 2)
    cluster.run(0.1)
    assert answers(cluster, "health") == {"ok": True, "workers": 1, "slots": 2}
    cluster.say(m.Ask("weather"))
    cluster.run(0.1)
    (refused,) = [each for each in cluster.inbox if isinstance(each, m.Refused)]
    assert "status" in refused.text


def test_a_session_may_say_only_what_its_kind_says(cluster: Cluster) -> None:
    hello = m.Hello(m.ADMIN, m.PROTOCOL_VERSION, "3.11", 5)
    cluster.tell_broker(be.Received("x", m.PRODUCER, hello))
    actions = cluster.core.handle(be.Received("x", m.PRODUCER, m.OpenPool(1)), cluster.now)
    assert [each.message.reason for each in actions if isinstance(each, be.Send)] == ["E_ROLE"]  # type: ignore[attr-defined]
    assert not cluster.core.pools


def test_a_result_of_an_item_that_was_never_leased_is_refused(cluster: Cluster) -> None:
    cluster.cost = lambda item: 10.0
    cluster.host("h0", 1)
    cluster.pool()
    cluster.job(1, 100)
    cluster.run(0.5)
    forged = m.Result(1 << 32 | 1, 90, 5, 1, 1, m.VALUES, (pack_lengths([1]), b"x"))
    (send,) = cluster.core.handle(be.Received("h0", m.WORKER, forged), cluster.now)
    assert isinstance(send, be.Send) and isinstance(send.message, m.Refused)
    assert send.message.reason == "E_STATE"
    assert cluster.core.owners[1 << 32 | 1].jobs[1 << 32 | 1].answered.total == 0


def test_a_host_that_joins_twice_under_one_name_keeps_nothing_of_its_first_session(cluster: Cluster) -> None:
    cluster.cost = lambda item: 0.1
    host: Host = cluster.host("h0", 2)
    cluster.pool()
    cluster.job(1, 40)
    cluster.run(1.0)
    host.hello()
    complete(cluster, 40)
    cluster.say(m.ClosePool(1))
    cluster.run(until=cluster.closed)
    cluster.run(0.5)
    assert_empty(cluster)
