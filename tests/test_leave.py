"""``Leave``: the broker has a worker end, as SIGTERM does."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import shells
import tasks
from cluster import Cluster, assert_empty

from multihost.engines.choosing import close_engines
from multihost.pool import Pool
from multihost_broker.events import Event, Send
from multihost_broker.server import Config, Server
from multihost_common import messages as m
from multihost_worker import core as agent
from multihost_worker import events as ae


def leaving(cluster: Cluster, times: int = 1) -> None:
    for _ in range(times):
        cluster.hosts["h0"].deliver(m.decode(m.encode(m.Leave())))


def test_a_worker_told_to_leave_finishes_what_runs_and_gives_the_rest_back() -> None:
    cluster = Cluster(audited=True)
    cluster.cost = lambda item: 1.0
    cluster.host("h0", 2)
    cluster.pool()
    cluster.job(1, 12)
    cluster.run(0.5)
    leaving(cluster)
    cluster.run(0.1)
    cluster.host("h1", 2)
    cluster.run(until=lambda: cluster.hosts["h0"].exit is not None)
    assert cluster.hosts["h0"].exit == 0
    cluster.run(until=cluster.ended)
    assert sorted(cluster.results()) == list(range(12))
    assert sorted(cluster.ran) == list(range(12)), "nothing has run twice"
    assert not cluster.failures()
    cluster.say(m.ClosePool(1))
    cluster.run(until=cluster.closed)
    cluster.run(1.0)
    assert_empty(cluster)


def test_a_worker_with_nothing_left_does_not_wait_for_a_broker_that_ends_with_it() -> None:
    core = agent.Core(agent.CoreConfig(slots=1))
    core.handle(ae.Connected(), 0.0)
    said = core.handle(ae.Stop(), 0.0)
    assert [type(each) for each in said if not isinstance(each, ae.Send)] == []
    assert ae.Exit(0) in core.handle(ae.Disconnected(), 0.1)


def test_being_told_twice_is_not_a_second_sigterm() -> None:
    cluster = Cluster()
    cluster.cost = lambda item: 1.0
    cluster.host("h0", 2)
    cluster.pool()
    cluster.job(1, 2)
    cluster.run(0.5)
    leaving(cluster, 3)
    cluster.run(until=cluster.ended)
    assert sorted(cluster.ran) == [0, 1]
    cluster.run(0.1)
    assert cluster.hosts["h0"].exit == 0


def test_a_producer_cannot_send_it() -> None:
    assert m.Leave.senders == {m.BROKER}


def test_a_real_worker_leaves_when_it_is_told(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("MULTIHOST_KEYS", str(tmp_path / "keys"))
    server = Server(Config(bind="tcp://127.0.0.1:0", keys=tmp_path / "keys"))
    core, asked = server.core, threading.Event()
    handle = core.handle

    def have_them_leave(event: Event, now: float) -> list[Any]:
        actions: list[Any] = handle(event, now)
        if asked.is_set():
            asked.clear()
            actions += [Send(worker.peer, m.Leave()) for worker in core.sessions.of_kind(m.WORKER)]
        return actions

    core.handle = have_them_leave  # type: ignore[method-assign]
    thread = threading.Thread(target=server.run)
    thread.start()
    log = tmp_path / "log"
    try:
        argv = shells.multihost_argv("worker", server.address, "--keys", tmp_path / "keys", "-c", 2)
        with shells.Shell(argv) as worker, Pool(4, address=server.address) as pool:
            worker.wait_for("registered with the broker")
            result = pool.map_async(
                tasks.append_and_nap, [(str(log), item) for item in range(200)], chunksize=1
            )
            shells.until(lambda: log.exists() and len(log.read_text().split()) > 20, "some have run")
            asked.set()
            worker.wait_for("told to leave by an operator, through the broker at tcp://")
            assert worker.wait() == 0
            with shells.Shell(argv):
                assert result.get(60) == list(range(200))
        ran = log.read_text().split()
        assert sorted(map(int, ran)) == list(range(200)), "nothing has run twice"
    finally:
        close_engines()
        server.stop()
        thread.join(10)
        shells.settle()
    assert not thread.is_alive()
