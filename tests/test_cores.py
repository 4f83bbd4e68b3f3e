"""Broker core and agent core together, in virtual time."""

from __future__ import annotations

import pytest
from cluster import Cluster, Host, complete

from multihost_broker import events as be
from multihost_common import messages as m
from multihost_worker import events as ae


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


def started(cluster: Cluster, hosts: int = 2, slots: int = 2, items: int = 1000, **options: object) -> None:
    for number in range(hosts):
        cluster.host(f"h{number}", slots)
    cluster.pool()
    cluster.job(1, items, **options)  # type: ignore[arg-type]


def test_every_item_has_one_result(cluster: Cluster) -> None:
    started(cluster)
    complete(cluster, 1000)
    assert len(cluster.ran) == 1000


def test_all_slots_of_all_hosts_work(cluster: Cluster) -> None:
    started(cluster, hosts=3, slots=4, items=3000)
    begin = cluster.now
    complete(cluster, 3000)
    ideal = 3000 * 0.001 / 12
    assert cluster.now - begin < 1.25 * ideal + 0.05


def test_a_pool_of_n_uses_n_slots(cluster: Cluster) -> None:
    cluster.host("h0", 4)
    cluster.pool(limit=3)
    cluster.job(1, 200)
    complete(cluster, 200)
    assert cluster.hosts["h0"].started == 3


def test_no_children_for_work_that_is_not_there(cluster: Cluster) -> None:
    cluster.host("h0", 64)
    cluster.pool()
    cluster.cost = lambda item: 1.0
    cluster.job(1, 2)
    complete(cluster, 2)
    assert cluster.hosts["h0"].started == 2


def test_the_end_is_even_when_the_longest_items_come_last(cluster: Cluster) -> None:
    cluster.cost = lambda item: 0.0005 + item * 1e-5
    started(cluster, hosts=2, slots=1, items=1000)
    begin = cluster.now
    complete(cluster, 1000)
    ideal = sum(map(cluster.cost, range(1000))) / 2
    assert cluster.now - begin < 1.03 * ideal + 0.1


def test_one_long_item_does_not_hold_up_those_behind_it(cluster: Cluster) -> None:
    cluster.cost = lambda item: 60.0 if item == 100 else 0.001
    started(cluster, hosts=1, slots=2, items=400)
    cluster.run(seconds=50, until=lambda: len(cluster.results()) == 399)
    assert len(cluster.results()) == 399
    assert cluster.now < 110.0
    complete(cluster, 400)


def test_one_long_item_on_another_host_does_not_either(cluster: Cluster) -> None:
    cluster.cost = lambda item: 60.0 if item == 100 else 0.001
    started(cluster, hosts=2, slots=1, items=400)
    cluster.run(seconds=50, until=lambda: len(cluster.results()) == 399)
    assert len(cluster.results()) == 399
    assert cluster.now < 110.0


def test_a_worker_that_joins_gets_work_within_a_second(cluster: Cluster) -> None:
    cluster.cost = lambda item: 0.5
    started(cluster, hosts=1, items=100)
    cluster.run(3.0)
    late = cluster.host("late", 2)
    joined = cluster.now
    cluster.run(until=lambda: any(child.runs for child in late.children.values()))
    assert cluster.now - joined < 1.0
    complete(cluster, 100)


def test_what_waits_behind_items_of_unknown_length_goes_to_a_worker_that_joins(cluster: Cluster) -> None:
    cluster.cost = lambda item: 60.0
    started(cluster, hosts=1, slots=2, items=4)
    cluster.run(3.0)
    late = cluster.host("late", 2)
    joined = cluster.now
    cluster.run(until=lambda: sum(bool(child.runs) for child in late.children.values()) == 2)
    assert cluster.now - joined < 1.0
    complete(cluster, 4)


def test_work_waits_for_the_first_worker(cluster: Cluster) -> None:
    cluster.pool()
    cluster.job(1, 10)
    cluster.run(5.0)
    cluster.host("h0")
    complete(cluster, 10)


def test_an_item_that_kills_once_is_run_again_and_with_it_only_what_was_not_sent_yet(
    cluster: Cluster,
) -> None:
    killed: list[int] = []
    unsent: list[int] = []

    def kills(item: int, host: Host) -> bool:
        if item == 7 and not killed:
            killed.append(item)
            (child,) = [each for each in host.children.values() if any(i == 7 for i, _ in each.claim)]
            unsent.extend(item for item, _ in child.done)
            return True
        return False

    cluster.kills = kills
    started(cluster, items=200)
    complete(cluster, 200)
    assert cluster.ran.count(7) == 1
    assert sorted(cluster.ran) == sorted([*range(200), *unsent])
    assert len(unsent) <= 5


def test_an_item_that_always_kills_fails_after_three_deaths_and_all_others_are_delivered(
    cluster: Cluster,
) -> None:
    cluster.kills = lambda item, host: item == 7
    started(cluster, items=200)
    cluster.run(until=cluster.ended)
    assert sorted(cluster.results()) == [item for item in range(200) if item != 7]
    (failed,) = cluster.failures()
    assert (failed.start, failed.count, failed.reason, failed.deaths) == (7, 1, "died", 3)
    assert failed.signal == 9 and failed.host in ("h0", "h1") and failed.rss > 0


def test_a_suspect_runs_in_a_fresh_child_of_its_own(cluster: Cluster) -> None:
    deaths: list[tuple[int, list[int]]] = []

    def kills(item: int, host: Host) -> bool:
        if item != 7:
            return False
        (child,) = [each for each in host.children.values() if any(i == 7 for i, _ in each.claim)]
        deaths.append((sum(run.stop - run.first for run in child.runs), list(child.ran)))
        return True

    cluster.kills = kills
    started(cluster, items=200)
    cluster.run(until=cluster.ended)
    assert deaths[1:] == [(1, []), (1, [])]


def test_at_most_once_never_runs_an_item_again(cluster: Cluster) -> None:
    cluster.kills = lambda item, host: item == 7
    started(cluster, items=50, at_most_once=True)
    cluster.run(until=cluster.ended)
    (failed,) = cluster.failures()
    assert (failed.start, failed.deaths) == (7, 1)
    assert sorted(cluster.ran) == [item for item in range(50) if item != 7]


def test_a_host_that_vanishes_is_replaced_within_ten_seconds(cluster: Cluster) -> None:
    cluster.cost = lambda item: 0.05
    started(cluster, items=400)
    cluster.run(2.0)
    cluster.hosts["h0"].crash()
    crashed = cluster.now
    held = sum(share.held for share in cluster.core.sessions.by_peer["h0"].shares.values())
    assert held
    cluster.run(until=lambda: "h0" not in cluster.core.sessions.by_peer)
    assert cluster.now - crashed < 11.0
    complete(cluster, 400)


def test_a_closed_connection_that_is_not_dialled_again_is_noticed_sooner(cluster: Cluster) -> None:
    cluster.cost = lambda item: 0.05
    started(cluster, items=400)
    cluster.run(2.0)
    cluster.hosts["h0"].crash()
    crashed = cluster.now
    cluster.tell_broker(be.Gone("h0"))
    cluster.run(until=lambda: "h0" not in cluster.core.sessions.by_peer)
    assert cluster.now - crashed < 5.0
    complete(cluster, 400)


def test_a_result_of_a_worker_thought_lost_counts_once(cluster: Cluster) -> None:
    cluster.cost = lambda item: 15.0
    started(cluster, hosts=2, slots=1, items=2)
    cluster.run(1.0)
    host = cluster.hosts["h0"]
    host.cut = True
    cluster.run(12.0)
    complete(cluster, 2)
    assert len(cluster.results()) == 2


def test_a_lost_lease_message_returns_after_three_beats(cluster: Cluster) -> None:
    cluster.cost = lambda item: 0.01
    started(cluster, hosts=1, slots=1, items=1)
    lost: list[m.Message] = []
    original = cluster._deliver

    def deliver(peer: str, message: m.Message) -> None:
        if type(message) is m.Lease and not lost:
            lost.append(message)
        else:
            original(peer, message)

    cluster._deliver = deliver  # type: ignore[method-assign]
    complete(cluster, 1)
    assert lost and cluster.now < 106.0


def test_drain_loses_nothing_and_runs_nothing_twice(cluster: Cluster) -> None:
    cluster.cost = lambda item: 0.02
    started(cluster, items=500)
    cluster.run(1.0)
    host = cluster.hosts["h0"]
    host.tell(ae.Stop())
    cluster.run(until=lambda: host.exit is not None)
    assert host.exit == 0
    complete(cluster, 500)
    assert len(cluster.ran) == 500


def test_a_second_stop_hands_back_at_once(cluster: Cluster) -> None:
    cluster.cost = lambda item: 1000.0 if cluster.now < 102.0 else 0.01
    started(cluster, hosts=1, items=10)
    cluster.run(1.0)
    host = cluster.hosts["h0"]
    host.tell(ae.Stop())
    assert host.exit is None
    host.tell(ae.Stop())
    assert host.exit == 0
    cluster.host("h1")
    complete(cluster, 10)
    assert not cluster.failures()


def test_an_item_over_its_timeout_fails_and_others_are_untouched(cluster: Cluster) -> None:
    cluster.cost = lambda item: 100.0 if item == 5 else 0.1
    started(cluster, hosts=1, items=20, timeout=1.0)
    cluster.run(until=cluster.ended)
    (failed,) = cluster.failures()
    assert (failed.start, failed.reason) == (5, "timeout")
    assert sorted(cluster.results()) == [item for item in range(20) if item != 5]
    assert len(cluster.ran) == 19
    assert cluster.now < 110.0


def test_cancel_of_a_job_frees_the_children_that_run_it(cluster: Cluster) -> None:
    cluster.cost = lambda item: 1000.0 if item < 100 else 0.01
    started(cluster, hosts=1, items=50)
    cluster.run(1.0)
    cluster.say(m.Cancel(1, 0, 0, True))
    cluster.cost = lambda item: 0.01
    cluster.job(2, 50)
    complete(cluster, 50, job=2)
    assert cluster.now < 110.0
    assert not cluster.ended(1)


def test_cancel_of_one_running_item_kills_only_its_child(cluster: Cluster) -> None:
    cluster.cost = lambda item: 1000.0 if item == 0 else 0.5
    started(cluster, hosts=1, items=20)
    cluster.run(1.2)
    cluster.say(m.Cancel(1, 0, 1, True))
    cluster.run(until=cluster.ended)
    (failed,) = cluster.failures()
    assert (failed.start, failed.count, failed.reason) == (0, 1, "cancelled")
    assert sorted(cluster.results()) == list(range(1, 20))


def test_the_producers_end_cancels_its_work(cluster: Cluster) -> None:
    cluster.cost = lambda item: 1000.0
    started(cluster, hosts=1, items=20)
    cluster.run(1.0)
    assert cluster.hosts["h0"].children
    cluster.say(m.Bye())
    cluster.run(2.0)
    assert not cluster.hosts["h0"].children
    assert not cluster.core.pools and not cluster.core.owners


def test_children_are_replaced_after_their_tasks(cluster: Cluster) -> None:
    cluster.host("h0", 2)
    cluster.pool(max_tasks=5)
    cluster.job(1, 40)
    complete(cluster, 40)
    assert cluster.hosts["h0"].started >= 8


def test_a_closed_pool_says_so_when_its_children_have_ended(cluster: Cluster) -> None:
    started(cluster, items=20)
    cluster.say(m.ClosePool(1))
    cluster.run(until=lambda: any(type(each) is m.PoolClosed for each in cluster.inbox))
    assert cluster.ended()
    assert not any(host.children for host in cluster.hosts.values())
    assert not cluster.core.pools


def test_a_pool_that_never_had_work_closes_too(cluster: Cluster) -> None:
    cluster.pool()
    cluster.say(m.ClosePool(1))
    cluster.run(1.0)
    assert any(type(each) is m.PoolClosed for each in cluster.inbox)


def test_an_idle_pools_slots_go_to_another_one(cluster: Cluster) -> None:
    cluster.host("h0", 2)
    cluster.pool(1)
    cluster.job(1, 20)
    complete(cluster, 20)
    cluster.pool(2)
    cluster.job(2, 20, pool=2)
    complete(cluster, 20, job=2)


def test_a_pool_that_comes_second_is_not_starved(cluster: Cluster) -> None:
    cluster.cost = lambda item: 0.1
    cluster.host("h0", 4)
    cluster.pool(1)
    cluster.job(1, 10_000)
    cluster.run(1.0)
    cluster.pool(2)
    cluster.job(2, 20, pool=2)
    complete(cluster, 20, job=2)
    assert cluster.now < 110.0
    assert not cluster.ended(1)


def test_a_chunk_is_never_cut_by_a_lease(cluster: Cluster) -> None:
    started(cluster, items=95, chunksize=10)
    complete(cluster, 95)


def test_a_death_in_a_chunk_is_charged_to_one_item(cluster: Cluster) -> None:
    cluster.kills = lambda item, host: item == 33
    started(cluster, items=95, chunksize=10)
    cluster.run(until=cluster.ended)
    assert [failed.start for failed in cluster.failures()] == [33]
    assert sorted(cluster.results()) == [item for item in range(95) if item != 33]


def test_a_second_python_is_refused_in_one_sentence(cluster: Cluster) -> None:
    hello = m.Hello(m.WORKER, m.PROTOCOL_VERSION, "3.12", 5, "h9", 1, 2, "h9")
    cluster.run(0.1)
    (send,) = cluster.core.handle(be.Received("h9", m.WORKER, hello), cluster.now)
    assert isinstance(send, be.Send) and isinstance(send.message, m.Refused)
    assert send.message.reason == "E_PYTHON" and "3.12" in send.message.text
