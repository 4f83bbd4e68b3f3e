"""The shortest examples of what rules and schedules have found (:mod:`test_rules`, :mod:`test_simulation`)."""

from __future__ import annotations

import json
from hashlib import blake2b
from typing import Any

import pytest
from honest import Producer, Worker
from stage import Peer, Stage

from multihost_common import messages as m
from multihost_common.blocks import pack_lengths

#: A block of one chunk that has as many items as a message can name.
HUGE = (pack_lengths([2]), b"ab")


@pytest.fixture
def stage() -> Stage:
    return Stage()


def begun(stage: Stage, *, eager: bool = False, items: int = 1) -> tuple[Producer, Worker]:
    """A producer, a job of so many items, and a worker of one slot that has been leased them."""
    producer, worker = Producer(stage, "p1"), Worker(stage, "w1", 1)
    for each in (producer, worker):
        each.dial()
        stage.exchange(each)
    job = producer.jobs[producer.open_job(producer.open_pool(3, eager), once=False)]
    producer.feed(job, items, 1)
    stage.exchange(producer, worker)
    return producer, worker


def rude(stage: Stage, role: str, *messages: m.Message, slots: int = 0) -> Peer:
    """Somebody who says these after Hello."""
    peer = Peer(stage, "x", role)
    stage.connect(peer)
    peer.say(m.Hello(role, m.PROTOCOL_VERSION, "3.11", slots=slots))
    for message in messages:
        peer.say(message)
    stage.flush(peer)
    return peer


def test_a_job_forgets_workers_that_have_gone(stage: Stage) -> None:
    _, worker = begun(stage)
    (pool,) = stage.core.pools.values()
    (job,) = pool.jobs.values()
    assert job.workers == {worker.session}
    worker.leave()
    assert not job.workers


def test_contents_that_are_not_here_any_more_are_not_remembered_for_ever(stage: Stage) -> None:
    stage.core.blobs._limit = 0
    worker = Worker(stage, "w1", 1)
    worker.dial()
    stage.exchange(worker)
    producer = rude(stage, m.PRODUCER, m.OpenPool(1))
    for number in range(1, 1200):
        digest = number.to_bytes(m.DIGEST, "big")
        producer.say(m.Blob(digest, (b"content",)))
        producer.say(m.OpenJob(number, 1, digest))
        producer.say(m.Feed(number, 0, 1, 1, (pack_lengths([2]), b"ab")))
        producer.say(m.Cancel(number))
    stage.flush(producer)
    sent = len([each for each in worker.inbox if isinstance(each, m.Blob)])
    assert sent == 1199
    assert len(stage.core.sessions.by_number[worker.session].digests) < 1100


def test_what_a_draining_worker_has_is_adopted_by_a_broker_started_anew(stage: Stage) -> None:
    """It waits for that before it sends the result."""
    producer, worker = begun(stage)
    worker.begin(worker.pieces[0], 1)
    worker.drain()
    stage.exchange(worker)
    stage.restart()
    worker.dial()
    stage.exchange(worker)
    worker.finish(worker.pieces[0], 1)
    producer.dial()
    stage.exchange(producer, worker)
    assert producer.jobs[2].answered == {0}
    worker.rest()
    assert worker.left


def test_a_worker_that_comes_while_an_eager_pool_is_closed_gets_no_slots_of_it(stage: Stage) -> None:
    """Nobody would have told it to end its children."""
    producer, worker = begun(stage, eager=True)
    worker.begin(worker.pieces[0], 1)
    producer.close_pool(producer.pools[1], kill=True)
    stage.flush(producer)
    late = Worker(stage, "w2", 1)
    late.dial()
    stage.exchange(late)
    assert not late.pools


def test_items_whose_numbers_do_not_fit_a_message_are_refused(stage: Stage) -> None:
    feed = m.Feed(1, m.U64[1], 1, 1, HUGE)
    peer = rude(stage, m.PRODUCER, m.OpenPool(1), m.OpenJob(1, 1, resumed=True), feed)
    refused = [each for each in peer.inbox if isinstance(each, m.Refused)]
    assert [each.reason for each in refused] == ["E_FIELD"]


def test_more_items_than_one_message_can_name_are_cancelled(stage: Stage) -> None:
    most = m.COUNT[1]
    feeds = [m.Feed(1, number * most, most, most, HUGE) for number in range(2)]
    peer = rude(stage, m.PRODUCER, m.OpenPool(1), m.OpenJob(1, 1), *feeds, m.Cancel(1, 0, m.U64[1]))
    failed = [(each.start, each.count) for each in peer.inbox if isinstance(each, m.Failed)]
    assert failed == [(0, most), (most, most)]


def test_more_items_than_one_message_can_name_are_called_back(stage: Stage) -> None:
    most = m.COUNT[1]
    feeds = [m.Feed(1, number * most, most, most, HUGE) for number in range(4)]
    rude(stage, m.PRODUCER, m.OpenPool(1), m.OpenJob(1, 1), *feeds)
    rich = rude(stage, m.WORKER, slots=4)
    rude(stage, m.WORKER, slots=1)
    assert [each.count for each in rich.inbox if isinstance(each, m.Revoke)] == [most]


# -- detached jobs: what schedules have found ----------------------------------------------------------

KEY = b"k" * m.KEY
CODE = b"f"
SUBMIT = m.Submit(
    KEY, function=blake2b(CODE, digest_size=m.DIGEST).digest(), retention=3600.0, frames=(CODE,)
)


def client(stage: Stage, *messages: m.Message) -> Peer:
    """Somebody who has submitted a job, and says these; all of it is heard, and nothing behind the job is durable."""
    peer = rude(stage, m.ADMIN, m.decode(m.encode(SUBMIT)))
    stage.sync()
    for message in messages:
        peer.say(message)
    stage.flush(peer)
    return peer


def put(start: int = 0, count: int = 1) -> m.Put:
    return m.Put(KEY, start, count, 1, (pack_lengths([2] * count), b"ab" * count))


def told(peer: Peer, kind: type[m.Message]) -> list[Any]:
    return [each for each in peer.inbox if type(each) is kind]


@pytest.mark.parametrize("message", [put(1), m.Seal(KEY, 1)])
def test_who_submits_hears_that_the_job_was_cancelled_meanwhile(stage: Stage, message: m.Message) -> None:
    """Its Put or Seal was on the way into the journal, and got no answer at all."""
    peer = client(stage, put(), m.Ask("cancel", KEY.hex()), message)
    stage.sync()
    assert {each.reason for each in told(peer, m.Denied)} == {"E_STATE"}


def test_a_sealed_job_that_has_ended_is_as_long_as_it_was_after_a_restart(stage: Stage) -> None:
    """Who submits it again was told that it was another job."""
    peer = client(stage, put(), m.Seal(KEY, 1))
    stage.sync()
    peer.say(m.Ask("cancel", KEY.hex()))
    stage.flush(peer)
    stage.sync()
    stage.sync()
    stage.restart()
    again = client(stage)
    assert [(each.fed, each.sealed) for each in told(again, m.Stored)] == [(1, True)]


def finished_with_a_dead_letter(stage: Stage) -> tuple[Peer, Worker]:
    """A job of one item that has killed three children; its end is on the way into the journal."""
    worker = Worker(stage, "w1", 1)
    worker.dial()
    stage.exchange(worker)
    peer = client(stage, put(), m.Seal(KEY, 1))
    for _ in range(3):
        stage.sync()
    for _ in range(3):
        stage.exchange(worker)
        worker.begin(worker.pieces[0], 1)
        worker.die(worker.pieces[0], m.DIED)
    stage.exchange(worker)
    stage.sync()
    (job,) = stage.core.archive.jobs.values()
    assert job.ending and list(job.dead) == [0]
    return peer, worker


def test_a_dead_letter_is_retried_while_its_job_ends(stage: Stage) -> None:
    """It was refused for that, with a text that made no sense."""
    peer, worker = finished_with_a_dead_letter(stage)
    peer.say(m.Ask("retry", KEY.hex()))
    stage.flush(peer)
    for _ in range(6):
        stage.sync()
        stage.exchange(worker)
        worker.rest()
        stage.flush(worker)
    assert not told(peer, m.Refused)
    assert [json.loads(bytes(each.frames[0]))["count"] for each in told(peer, m.Answer)] == [1]
    stage.exchange(worker)
    assert worker.pieces


def test_an_initializer_that_fails_behind_a_cancel_changes_nothing(stage: Stage) -> None:
    worker = Worker(stage, "w1", 1)
    worker.dial()
    stage.exchange(worker)
    peer = client(stage, put(), m.Seal(KEY, 1))
    for _ in range(3):
        stage.sync()
    stage.exchange(worker)
    peer.say(m.Ask("cancel", KEY.hex()))
    stage.flush(peer)
    worker.break_pool(next(iter(worker.pools)))
    stage.flush(worker)
    stage.sync()
    (job,) = stage.core.archive.jobs.values()
    assert job.state == m.STOPPED
