"""Detached jobs in the broker's core: orders and messages that cross what is on its way into the journal."""

from __future__ import annotations

from typing import Any

import pytest
from cluster import Cluster
from test_detached import FUNCTION, KEY, Client, digest, finish

from multihost_common import messages as m
from multihost_common.blocks import pack_lengths


@pytest.fixture
def cluster() -> Cluster:
    return Cluster(audited=True)


@pytest.fixture
def client(cluster: Cluster) -> Client:
    return Client(cluster)


def heard(client: Client, *kinds: type[Any]) -> list[Any]:
    return [each for each in client.heard if type(each) in kinds]


@pytest.mark.parametrize("order", ["cancel", "collect"])
@pytest.mark.parametrize("what", ["input", "the end"])
def test_a_submitter_hears_what_became_of_what_it_put_when_the_job_is_ended_meanwhile(
    cluster: Cluster, client: Client, order: str, what: str
) -> None:
    client.submit()
    client.put(0, 10)
    cluster.run(1)
    cluster.disk = 5.0
    if what == "input":
        client.put(10, 10)
    else:
        cluster.say(m.Seal(KEY, 10))
    cluster.say(m.Ask(order, KEY.hex()))
    client.heard.clear()
    cluster.run(30)
    if order == "cancel":
        assert [(each.fed, each.sealed) for each in heard(client, m.Stored)] == [
            (20, False) if what == "input" else (10, True)
        ]
    else:
        assert [(each.reason, each.after) for each in heard(client, m.Denied)] == [("E_JOB", 0.0)]


def test_a_dead_letter_is_retried_just_when_the_last_result_comes(cluster: Cluster, client: Client) -> None:
    cluster.host("h0")
    cluster.kills = lambda item, host: item == 1
    cluster.cost = lambda item: 30.0 if item == 0 else 0.01
    client.whole(2)
    cluster.run(until=lambda: bool(cluster.core.archive.jobs[KEY].dead))
    cluster.run(1)
    cluster.disk = 1.0
    cluster.run(until=lambda: 0 in cluster.ran)
    cluster.run(0.1)
    cluster.kills = lambda item, host: False
    assert client.ask("retry", KEY.hex())["count"] == 1
    cluster.disk = 0.002
    finish(client, 2)


def test_a_dead_letter_is_dropped_and_retried_at_once(cluster: Cluster, client: Client) -> None:
    cluster.host("h0")
    cluster.kills = lambda item, host: item == 1
    client.whole(2)
    client.fetch_all()
    cluster.disk = 1.0
    cluster.say(m.Ask("drop", KEY.hex()))
    cluster.say(m.Ask("retry", KEY.hex()))
    cluster.run(30)
    client.cursor = 0
    fetched = client.fetch()
    assert (fetched.state, fetched.answered, fetched.over) == (m.DONE, 2, True)


def test_a_dead_letter_is_retried_and_the_job_cancelled_at_once(cluster: Cluster, client: Client) -> None:
    cluster.host("h0")
    cluster.kills = lambda item, host: item == 1
    client.whole(2)
    client.fetch_all()
    cluster.kills = lambda item, host: False
    cluster.cost = lambda item: 30.0
    cluster.disk = 1.0
    cluster.say(m.Ask("retry", KEY.hex()))
    cluster.say(m.Ask("cancel", KEY.hex()))
    cluster.run(100)
    assert client.fetch().state == m.STOPPED
    assert cluster.ran == [0]


def test_a_cancelled_or_done_job_does_not_break(cluster: Cluster, client: Client) -> None:
    cluster.host("h0")
    cluster.cost = lambda item: 10.0
    client.whole(1)
    job = cluster.core.archive.jobs[KEY]
    worker = cluster.core.sessions.by_peer["h0"]
    cluster.run(until=lambda: job.number in worker.shares)
    cluster.disk = 1.0
    cluster.run(until=lambda: bool(cluster.ran))
    cluster.run(0.1)
    cluster.to_broker("h0", m.WORKER, m.PoolBroken(job.number, "ValueError: no"))
    cluster.run(1.05)
    cluster.to_broker("h0", m.WORKER, m.PoolBroken(job.number, "ValueError: no"))
    cluster.run(30)
    assert client.fetch_all().state == m.DONE


def test_two_who_submit_the_same_job_at_once_are_both_told(cluster: Cluster, client: Client) -> None:
    told: list[m.Message] = []
    deliver = cluster._deliver
    cluster._deliver = lambda peer, message: (  # type: ignore[method-assign]
        told.append(message) if peer == "p2" else deliver(peer, message)
    )
    cluster.to_broker("p2", m.PRODUCER, m.Hello(m.PRODUCER, m.PROTOCOL_VERSION, "3.11", 5, "p"))
    cluster.disk = 1.0
    submit = m.Submit(KEY, function=digest(FUNCTION), frames=(FUNCTION,), retention=3600.0)
    put = m.Put(KEY, 0, 10, 1, (pack_lengths([4] * 10), b"item" * 10))
    for message in (submit, put):
        cluster.say(message)
        cluster.to_broker("p2", m.PRODUCER, message)
        cluster.run(5)
    assert [each.fed for each in heard(client, m.Stored)] == [0, 10]
    assert [each.fed for each in told if type(each) is m.Stored] == [0, 10]


@pytest.mark.parametrize("restarted", [False, True])
def test_of_a_job_that_is_cancelled_before_its_end_is_known_no_item_is_passed_over(
    cluster: Cluster, client: Client, restarted: bool
) -> None:
    cluster.host("h0")
    cluster.cost = lambda item: 100.0 if item == 3 else 0.01
    client.submit()
    client.put(0, 1)
    client.put(1, 9)
    client.put(10, 2)
    cluster.run(50)
    client.ask("cancel", KEY.hex())
    if restarted:
        cluster.run(10)
        cluster.restart()
        client.again()
    assert (fetched := client.fetch_all()).count == 12
    assert 0 < fetched.answered == len(client.answers) < 12


def test_the_key_of_another_job_is_found_out(cluster: Cluster, client: Client) -> None:
    client.submit(name="mine")
    client.heard.clear()
    cluster.say(m.Submit(KEY, function=digest(FUNCTION), frames=(FUNCTION,), retention=3600.0, name="yours"))
    cluster.run(1)
    assert [(each.reason, each.after) for each in heard(client, m.Denied, m.Stored)] == [("E_STATE", 0.0)]


def test_the_children_of_a_job_end_also_if_it_is_sealed_when_all_of_it_is_answered(
    cluster: Cluster, client: Client
) -> None:
    cluster.host("h0")
    client.submit()
    client.put(0, 4)
    cluster.run(5)
    assert sorted(cluster.ran) == [0, 1, 2, 3]
    cluster.say(m.Seal(KEY, 4))
    finish(client, 4)


@pytest.mark.parametrize("after", [0.1 * step for step in range(20)])
def test_dead_letters_that_are_retried_while_their_children_end_are_run(
    cluster: Cluster, client: Client, after: float
) -> None:
    cluster.host("h0")
    cluster.kills = lambda item, host: item in (1, 2)
    client.submit()
    client.put(0, 4)
    cluster.run(5)
    cluster.disk = 0.3
    cluster.say(m.Seal(KEY, 4))
    cluster.run(until=lambda: bool(cluster.core.archive.jobs[KEY].ended))
    cluster.say(m.Ask("retry", f"{KEY.hex()}:1"))
    cluster.run(after)
    cluster.kills = lambda item, host: False
    cluster.say(m.Ask("retry", KEY.hex()))
    cluster.run(5)
    cluster.disk = 0.002
    client.ask("retry", KEY.hex())
    finish(client, 4)
