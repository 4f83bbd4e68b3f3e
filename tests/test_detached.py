"""Detached jobs in the broker's core: their input and answers go through the journal."""

from __future__ import annotations

import json
from hashlib import blake2b
from typing import Any

import pytest
from cluster import Cluster

from multihost_broker.detached import archive, tombstones
from multihost_broker.detached.archive import MOST_LENT, WINDOW
from multihost_broker.detached.books import COLLECTED, WORKERS
from multihost_common import messages as m
from multihost_common.blocks import pack_lengths

KEY = bytes(range(16))
FUNCTION, SETUP = b"function", b"setup"


def digest(content: bytes) -> bytes:
    return blake2b(content, digest_size=32).digest()


class Client:
    """Who submits and fetches: a producer's connection that takes what it hears about detached jobs."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.heard: list[Any] = []
        self.cursor = 0
        cluster.heard = self.hear
        #: Item -> what answered it first.
        self.answers: dict[int, Any] = {}
        self.fetched: m.Fetched | None = None

    def hear(self, message: m.Message) -> None:
        self.heard.append(message)
        if isinstance(message, m.Part):
            answer = m.decode(message.frames)
            assert isinstance(answer, (m.Result, m.Failed))
            for item in range(answer.start, answer.start + answer.count):
                self.answers.setdefault(item, answer)
            self.cursor = message.cursor + 1
        elif isinstance(message, m.Fetched):
            self.fetched, self.cursor = message, message.cursor

    def submit(self, key: bytes = KEY, **options: Any) -> None:
        frames = (SETUP, FUNCTION)
        options.setdefault("retention", 3600.0)
        self.cluster.say(
            m.Submit(key, setup=digest(SETUP), function=digest(FUNCTION), frames=frames, **options)
        )
        before = len(self.heard)
        self.cluster.run(until=lambda: any(type(each) is m.Stored for each in self.heard[before:]))

    def put(self, start: int, count: int, key: bytes = KEY, chunksize: int = 1, size: int = 4) -> None:
        chunks = -(-count // chunksize)
        self.cluster.say(
            m.Put(key, start, count, chunksize, (pack_lengths([size] * chunks), b"i" * size * chunks))
        )

    def whole(self, items: int, key: bytes = KEY, **options: Any) -> None:
        """A job of so many items, and wait until it is durable."""
        self.submit(key, **options)
        self.put(0, items, key)
        self.cluster.say(m.Seal(key, items))
        self.cluster.run(until=lambda: self.sealed(key))

    def of(self, kind: type[Any], key: bytes = KEY) -> list[Any]:
        return [each for each in self.heard if type(each) is kind and each.key == key]

    def sealed(self, key: bytes = KEY) -> bool:
        return any(each.sealed for each in self.of(m.Stored, key))

    def fetch(self, key: bytes = KEY, wait: bool = True) -> m.Fetched:
        self.fetched = None
        self.cluster.say(m.Fetch(key, self.cursor, wait))
        self.cluster.run(until=lambda: self.fetched is not None)
        assert self.fetched is not None
        return self.fetched

    def fetch_all(self, key: bytes = KEY) -> m.Fetched:
        while True:
            fetched = self.fetch(key)
            if fetched.over:
                return fetched

    def ask(self, what: str, about: str = "") -> Any:
        self.heard.clear()
        self.cluster.say(m.Ask(what, about))
        self.cluster.run(until=lambda: any(type(each) in (m.Answer, m.Refused) for each in self.heard))
        answer = next(each for each in self.heard if type(each) in (m.Answer, m.Refused))
        return json.loads(bytes(answer.frames[0])) if type(answer) is m.Answer else answer.text

    def again(self) -> None:
        """Dial anew, after the broker was started anew."""
        self.cluster.to_broker(
            "producer", m.PRODUCER, m.Hello(m.PRODUCER, m.PROTOCOL_VERSION, "3.11", 5, "p")
        )


@pytest.fixture
def cluster() -> Cluster:
    return Cluster(audited=True)


@pytest.fixture
def client(cluster: Cluster) -> Client:
    return Client(cluster)


def finish(client: Client, items: int) -> None:
    """The job gets to its end, each item has a result, and nothing is left in memory or in the journal but that."""
    fetched = client.fetch_all()
    assert (fetched.state, fetched.answered, fetched.count) == (m.DONE, items, items)
    assert sorted(client.answers) == list(range(items))
    assert {type(each) for each in client.answers.values()} == {m.Result}
    client.cluster.run(30)
    core = client.cluster.core
    assert not core.pools
    assert not core.owners
    assert core.archive.lent == 0
    client.ask("collect", KEY.hex())
    client.cluster.run(130)
    kinds = sorted({record.kind for record in client.cluster.journal.records.values()})
    assert set(kinds) <= {WORKERS, COLLECTED}, kinds


def test_a_detached_job_is_confirmed_run_and_fetched(cluster: Cluster, client: Client) -> None:
    cluster.host("h0")
    client.whole(100)
    finish(client, 100)
    assert sorted(cluster.ran) == list(range(100))


def test_nothing_is_confirmed_before_it_is_durable(cluster: Cluster, client: Client) -> None:
    cluster.host("h0")
    client.submit()
    cluster.disk = 5.0
    client.put(0, 10)
    cluster.run(4)
    assert [each.fed for each in client.of(m.Stored)] == [0]
    assert not cluster.ran
    cluster.run(3)
    assert [each.fed for each in client.of(m.Stored)] == [0, 10]


def test_the_submitter_may_go_away(cluster: Cluster, client: Client) -> None:
    client.whole(50)
    cluster.say(m.Bye())
    cluster.host("h0")
    cluster.run(5)
    client.again()
    finish(client, 50)


def test_a_broker_is_killed_at_any_moment_and_nothing_that_was_confirmed_is_lost(
    cluster: Cluster, client: Client
) -> None:
    cluster.cost = lambda item: 0.01
    cluster.host("h0")
    cluster.host("h1")
    client.whole(200)
    for pause in (0.0, 0.001, 0.01, 0.1, 0.2, 0.3, 0.5):
        cluster.run(pause)
        cluster.restart()
        cluster.run(0.3)
    cluster.restart()
    client.again()
    finish(client, 200)


def test_unconfirmed_input_may_be_lost_and_is_put_again(cluster: Cluster, client: Client) -> None:
    client.submit()
    client.put(0, 10)
    cluster.run(1)
    client.put(10, 10)
    cluster.run(0.0015)
    cluster.restart()
    client.again()
    client.submit()
    cluster.run(1)
    assert client.of(m.Stored)[-1].fed == 10
    client.put(10, 10)
    cluster.say(m.Seal(KEY, 20))
    cluster.run(until=client.sealed)
    cluster.host("h0")
    finish(client, 20)


def test_what_is_said_twice_is_confirmed_twice_and_run_once(cluster: Cluster, client: Client) -> None:
    cluster.host("h0")
    client.submit()
    for _ in range(2):
        cluster.say(m.Submit(KEY))
        client.put(0, 10)
        client.put(10, 5)
        cluster.say(m.Seal(KEY, 15))
    cluster.run(1)
    client.submit()
    client.put(0, 10)
    cluster.say(m.Seal(KEY, 15))
    cluster.run(1)
    assert not client.of(m.Denied)
    finish(client, 15)
    assert sorted(cluster.ran) == list(range(15))


def test_a_gap_is_denied(cluster: Cluster, client: Client) -> None:
    client.submit()
    client.put(5, 10)
    cluster.run(1)
    assert [each.reason for each in client.of(m.Denied)] == ["E_STATE"]


def test_on_a_full_disk_new_work_is_denied_and_goes_on_when_there_is_room(
    cluster: Cluster, client: Client
) -> None:
    cluster.host("h0")
    client.submit()
    client.put(0, 10)
    cluster.run(1)
    cluster.journal.full = True
    client.put(10, 10)
    client.put(20, 10)
    cluster.say(m.Seal(KEY, 30))
    cluster.run(1)
    denied = client.of(m.Denied)
    assert [each.reason for each in denied] == ["E_FULL"]
    assert denied[0].after > 0
    # What was taken runs on, and its results are kept.
    assert sorted(cluster.ran) == list(range(10))
    cluster.journal.full = False
    client.submit()
    cluster.run(1)
    assert client.of(m.Stored)[-1].fed == 10
    client.put(10, 20)
    cluster.say(m.Seal(KEY, 30))
    cluster.run(until=client.sealed)
    finish(client, 30)


def test_who_goes_on_from_a_submitter_that_found_the_disk_full_is_not_left_waiting(
    cluster: Cluster, client: Client
) -> None:
    cluster.host("h0")
    client.submit()
    cluster.journal.full = True
    cluster.disk = 2.0
    client.put(0, 10)
    cluster.run(0.5)
    # The old one has ended; what it said last is on its way into the journal, and will be refused.
    client.submit()
    cluster.journal.full = False
    cluster.disk = 0.002
    client.put(0, 10)
    cluster.say(m.Seal(KEY, 10))
    cluster.run(10, until=client.sealed)
    finish(client, 10)


def test_the_content_must_be_what_it_is_said_to_be(cluster: Cluster, client: Client) -> None:
    cluster.say(m.Submit(KEY, function=digest(b"another"), retention=1.0, frames=(FUNCTION,)))
    cluster.run(1)
    assert "not what it names" in client.of(m.Denied)[0].text


def test_memory_is_bounded_by_a_window(cluster: Cluster, client: Client) -> None:
    client.submit()
    cluster.run(0.1)
    blocks, size = 60, 1 << 20
    for number in range(blocks):
        client.put(number, 1, size=size)
    cluster.say(m.Seal(KEY, blocks))
    cluster.run(until=client.sealed)
    assert WINDOW <= cluster.core.archive.lent <= WINDOW + size + 4
    most = 0

    def watch() -> bool:
        nonlocal most
        most = max(most, cluster.core.archive.lent)
        return bool(client.fetched)

    cluster.host("h0")
    cluster.say(m.Fetch(KEY, 1 << 60, True))
    cluster.run(until=watch)
    assert most <= WINDOW + size + 4 < MOST_LENT
    client.cursor = 0
    finish(client, blocks)


def test_an_item_that_kills_is_a_dead_letter_and_can_be_retried(cluster: Cluster, client: Client) -> None:
    cluster.host("h0")
    cluster.kills = lambda item, host: item == 7
    client.whole(20)
    fetched = client.fetch_all()
    assert (fetched.state, fetched.answered) == (m.DONE, 20)
    assert client.answers[7].reason == m.DIED
    (letter,) = client.ask("dead")["dead"]
    assert (letter["key"], letter["item"], letter["deaths"]) == (KEY.hex(), 7, 3)
    cluster.run(100)
    cluster.kills = lambda item, host: False
    assert client.ask("retry", f"{KEY.hex()[:6]}:7") == {"key": KEY.hex(), "count": 1}
    client.answers.clear()
    client.cursor = 0
    finish(client, 20)
    assert cluster.ran.count(7) == 1


def test_deaths_are_counted_over_broker_restarts(cluster: Cluster, client: Client) -> None:
    deaths = 0

    def kills(item: int, host: Any) -> bool:
        nonlocal deaths
        deaths += item == 7
        return item == 7

    cluster.host("h0")
    cluster.kills = kills
    client.whole(20)
    cluster.run(until=lambda: deaths == 1)
    cluster.run(0.01)
    cluster.restart()
    cluster.run(until=lambda: deaths == 2)
    cluster.run(0.01)
    cluster.restart()
    client.again()
    client.fetch_all()
    assert client.answers[7].reason == m.DIED
    assert deaths == 3


def test_what_has_killed_under_an_earlier_broker_is_answered_by_the_first_run_that_ends(
    cluster: Cluster, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "MOST_READ", 1)
    killed: list[int] = []

    def kills(item: int, host: Any) -> bool:
        killed.append(item)
        return item == 19 and killed.count(19) == 1

    cluster.host("h0")
    cluster.kills = kills
    cluster.cost = lambda item: 0.001 if item or 19 in killed else 60.0
    client.submit()
    client.put(0, 1)
    client.put(1, 19)
    cluster.say(m.Seal(KEY, 20))
    cluster.run(until=lambda: 19 in killed)
    cluster.run(0.01)
    cluster.hosts.pop("h0").crash()
    cluster.restart()
    cluster.host("h1", 1)
    client.again()
    finish(client, 20)
    # Its block was read once work had begun, and then it went first: further behind than any lease before.
    assert cluster.ran.count(19) == 1


def test_a_dead_letter_can_be_dropped_and_stays_dropped(cluster: Cluster, client: Client) -> None:
    cluster.host("h0")
    cluster.kills = lambda item, host: item == 7
    client.whole(20)
    client.fetch_all()
    assert client.ask("drop", KEY.hex()) == {"key": KEY.hex(), "count": 1}
    assert client.ask("dead") == {"dead": []}
    cluster.run(100)
    cluster.restart()
    client.again()
    assert client.ask("dead") == {"dead": []}
    (job,) = client.ask("jobs")["jobs"]
    assert (job["state"], job["answered"], job["failed"], job["bytes"]) == (m.DONE, 20, 1, 0)


def test_a_cancelled_job_keeps_what_it_has(cluster: Cluster, client: Client) -> None:
    cluster.cost = lambda item: 0.05
    cluster.host("h0")
    client.whole(100)
    cluster.run(1.0)
    ran = len(cluster.ran)
    answer = client.ask("cancel", KEY.hex())
    assert 0 < answer["count"] < 100
    cluster.run(5)
    assert len(cluster.ran) <= ran + 8
    fetched = client.fetch_all()
    assert fetched.state == m.STOPPED
    assert len(client.answers) == fetched.answered < 100
    assert not cluster.core.pools


def test_a_broken_initializer_ends_the_job_with_its_traceback(cluster: Cluster, client: Client) -> None:
    cluster.cost = lambda item: 10.0
    cluster.host("h0")
    client.whole(10)
    job = cluster.core.archive.jobs[KEY]
    worker = cluster.core.sessions.by_peer["h0"]
    cluster.run(until=lambda: job.number in worker.shares)
    cluster.to_broker("h0", m.WORKER, m.PoolBroken(job.number, "ValueError: no"))
    fetched = client.fetch_all()
    assert (fetched.state, fetched.text) == (m.BROKEN, "ValueError: no")


def test_a_job_is_forgotten_after_its_retention_time(cluster: Cluster, client: Client) -> None:
    cluster.host("h0")
    client.whole(10, retention=100.0)
    client.fetch_all()
    cluster.run(90)
    assert client.ask("jobs")["jobs"]
    cluster.run(20)
    assert not client.ask("jobs")["jobs"]
    assert not [each for each in cluster.journal.records.values() if each.job]


def test_a_collected_job_is_gone(cluster: Cluster, client: Client) -> None:
    cluster.host("h0")
    client.whole(10)
    client.fetch_all()
    assert client.ask("collect", KEY.hex()) == {"key": KEY.hex(), "count": 10}
    assert client.ask("jobs") == {"jobs": []}
    client.heard.clear()
    cluster.say(m.Fetch(KEY, 0, True))
    cluster.run(1)
    assert client.of(m.Denied)[0].reason == "E_JOB"


def test_a_job_that_was_collected_is_not_run_again_and_that_is_forgotten_in_the_end(
    cluster: Cluster, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tombstones, "KEPT", 300.0)
    cluster.host("h0")
    client.whole(10)
    client.fetch_all()
    client.ask("collect", KEY.hex())
    cluster.restart()
    client.again()
    cluster.run(1)
    client.heard.clear()
    cluster.say(m.Submit(KEY, function=digest(FUNCTION), retention=3600.0, frames=(FUNCTION,)))
    cluster.run(1)
    assert "has been collected" in client.of(m.Denied)[0].text
    cluster.run(400.0)
    assert not [each for each in cluster.journal.records.values() if each.kind != 8]
    client.again()
    client.whole(10)
    assert len(cluster.ran) >= 10


def test_jobs_of_no_worker_wait_and_all_run(cluster: Cluster, client: Client) -> None:
    keys = [bytes([number]) * 16 for number in range(30)]
    for key in keys:
        client.whole(5, key)
    cluster.restart()
    cluster.host("h0", 2)
    client.again()
    for key in keys:
        client.cursor = 0
        client.answers.clear()
        assert client.fetch_all(key).answered == 5
        assert len(client.answers) == 5
    cluster.run(60)
    assert not cluster.core.pools


def test_an_empty_job_is_done_at_once(cluster: Cluster, client: Client) -> None:
    client.submit()
    cluster.say(m.Seal(KEY, 0))
    cluster.run(until=client.sealed)
    assert client.fetch_all().state == m.DONE


def test_workers_may_not_order_and_only_an_admin_may_drain(cluster: Cluster, client: Client) -> None:
    cluster.host("h0")
    cluster.run(1)
    assert "only an admin token" in client.ask("drain", "h0")
    cluster.to_broker("admin", m.ADMIN, m.Hello(m.ADMIN, m.PROTOCOL_VERSION, "3.11", 5, "p"))
    cluster.to_broker("admin", m.ADMIN, m.Ask("drain", "h0"))
    told: list[m.Message] = []
    host = cluster.hosts["h0"]
    take = host.take

    def listen(message: m.Message) -> None:
        told.append(message)
        take(message)

    host.take = listen  # type: ignore[method-assign]
    cluster.run(1)
    assert m.Leave() in told
