"""Rules drawn by chance against the real broker core: honest peers, peers that send what no honest one does, lost
connections, and time. The books are audited after every event, and in the end everything has its answer.

``make rules`` draws many more examples than the tests do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from drawn import FLAGS, Drawn, examples, find, long_run, run
from honest import MadeJob, Piece, Producer, Worker
from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule
from rude import KINDS, Rude, answer, any_message, deposit, hello, numbers_of, work
from simulation.invariants import broker_is_empty
from stage import Client

from multihost_broker import events as be
from multihost_common import messages as m

#: A dying connection may swallow these, one by one, between the broker and a worker, without either hearing of it.
LOSABLE = (m.Lease, m.Result, m.Returned, m.Died, m.Beat, m.Revoke, m.ClosePool, m.PoolClosed, m.Drain, m.Bye)

COUNTS = st.integers(1, 6)
RARELY = st.sampled_from((False, False, False, True))

#: Seconds that pass: next to nothing, a beat, and what each limit of the broker allows, and a little more.
SPANS = st.sampled_from((0.0, 0.001, 0.005, 0.5, 1.0, 3.1, 5.1, 10.1, 61.0, 1e4))


class Rules(Drawn):
    """See the module."""

    patience = 150

    def __init__(self) -> None:
        super().__init__()
        self.producers: list[Producer] = []
        self.workers: list[Worker] = []

    # -- who is there --------------------------------------------------------------------------------

    @initialize(
        limit=st.sampled_from((0, 0, 1, 3)), eager=FLAGS, once=RARELY, slots=st.integers(1, 3), items=COUNTS
    )
    def begin(self, limit: int, eager: bool, once: bool, slots: int, items: int) -> None:
        """Something is under way, so that every rule has something to be applied to."""
        self.a_producer_comes()
        self.a_worker_comes(slots)
        producer = self.producers[0]
        job = producer.jobs[producer.open_job(producer.open_pool(limit, eager), once)]
        producer.feed(job, items, 1)
        self._settle()

    def clients(self) -> list[Client]:
        """Everybody who is honest and has not left."""
        everybody: list[Client] = [*self.producers, *self.workers]
        return [each for each in everybody if not each.left]

    @rule(data=st.data())
    def somebody_comes(self, data: Any) -> None:
        kind = data.draw(st.sampled_from(("producer", "worker", "rude", "rude")))
        if kind == "producer" and len(self.producers) < 2:
            self.a_producer_comes()
        elif kind == "worker" and len(self.workers) < 3:
            self.a_worker_comes(data.draw(st.integers(1, 3)))
        elif kind == "rude" and len(self.rude) < 3:
            self.a_rude_peer_comes(data)

    def a_producer_comes(self) -> None:
        producer = Producer(self.stage, f"p{next(self._names)}")
        self.producers.append(producer)
        producer.dial()
        self.stage.exchange(producer)

    def a_worker_comes(self, slots: int) -> None:
        worker = Worker(self.stage, f"w{next(self._names)}", slots)
        self.workers.append(worker)
        worker.dial()
        self.stage.exchange(worker)

    def a_rude_peer_comes(self, data: Any) -> None:
        role = data.draw(st.sampled_from((m.WORKER, m.WORKER, m.PRODUCER, m.PRODUCER, m.ADMIN, "metrics")))
        peer = Rude(self.stage, f"x{next(self._names)}", role)
        self.rude.append(peer)
        self.stage.connect(peer)
        if role != "metrics":
            self._rudely(peer, hello(data.draw, role, numbers_of(self.stage.core)))

    # -- producers -----------------------------------------------------------------------------------

    def _producer(self, data: Any) -> Producer | None:
        return self._pick(data, [each for each in self.producers if each.session and not each.left])

    def _job(self, data: Any, wanted: Callable[[MadeJob], bool]) -> tuple[Producer, MadeJob] | None:
        return self._pick(
            data,
            [
                (producer, job)
                for producer in self.producers
                if not producer.left
                for job in producer.jobs.values()
                if not job.over and wanted(job)
            ],
        )

    @rule(data=st.data(), limit=st.sampled_from((0, 1, 3)), eager=FLAGS, once=RARELY, items=COUNTS)
    def a_job_is_opened(self, data: Any, limit: int, eager: bool, once: bool, items: int) -> None:
        producer = self._producer(data)
        if producer is None or len(producer.jobs) > 6:
            return
        pools = [number for number, pool in producer.pools.items() if pool.usable]
        if len(pools) < 2:
            pools.append(0)
        pool = data.draw(st.sampled_from(pools)) or producer.open_pool(limit, eager and limit > 0)
        producer.feed(producer.jobs[producer.open_job(pool, once)], items, 1)

    @rule(data=st.data(), items=COUNTS, chunksize=st.sampled_from((1, 1, 2, 5)), ended=RARELY)
    def input_is_fed(self, data: Any, items: int, chunksize: int, ended: bool) -> None:
        found = self._job(data, lambda job: not job.ended)
        if found is not None:
            producer, job = found
            producer.feed(job, items, chunksize)
            if ended:
                producer.end(job)

    @rule(data=st.data(), start=st.integers(0, 8), items=COUNTS, kill=FLAGS, whole=RARELY)
    def a_producer_cancels(self, data: Any, start: int, items: int, kill: bool, whole: bool) -> None:
        found = self._job(data, lambda job: True)
        if found is not None:
            found[0].cancel(found[1], start, 0 if whole else items, kill)

    # -- workers -------------------------------------------------------------------------------------

    def _worker(self, data: Any) -> Worker | None:
        return self._pick(data, [each for each in self.workers if each.ready])

    def _piece(self, data: Any, of: Callable[[Worker], list[Piece]]) -> tuple[Worker, Piece] | None:
        return self._pick(data, [(each, piece) for each in self.workers for piece in of(each)])

    @rule(data=st.data(), items=COUNTS, done=FLAGS)
    def items_begin(self, data: Any, items: int, done: bool) -> None:
        found = self._piece(data, Worker.idle)
        if found is not None:
            worker, piece = found
            worker.begin(piece, items)
            if done and piece.begun:
                worker.finish(piece, piece.begun)

    @rule(data=st.data(), items=COUNTS)
    def items_are_done(self, data: Any, items: int) -> None:
        found = self._piece(data, Worker.busy)
        if found is not None:
            found[0].finish(found[1], items)

    @rule(data=st.data(), reason=st.sampled_from((m.DIED, m.DIED, m.DIED, m.TIMED_OUT)))
    def a_child_dies(self, data: Any, reason: str) -> None:
        found = self._piece(data, Worker.busy)
        if found is not None:
            found[0].die(found[1], reason)

    @rule(data=st.data(), items=COUNTS)
    def items_are_given_back(self, data: Any, items: int) -> None:
        found = self._piece(data, Worker.idle)
        if found is not None:
            found[0].give_back(found[1], items)

    # -- who goes ------------------------------------------------------------------------------------

    @rule(data=st.data())
    def something_ends(self, data: Any) -> None:
        """Each of these leaves less to go wrong, so they are rare."""
        ends = (
            self._a_job_ends, self._a_pool_is_closed, self._a_producer_ends, self._a_worker_drains,
            self._a_worker_is_killed, self._an_initializer_fails, self._the_broker_is_killed,
            self._the_broker_is_killed,
        )  # fmt: skip
        data.draw(st.sampled_from(ends))(data)

    def _a_job_ends(self, data: Any) -> None:
        found = self._job(data, lambda job: not job.ended)
        if found is not None:
            found[0].end(found[1])

    def _a_pool_is_closed(self, data: Any) -> None:
        producer = self._producer(data)
        if producer is not None:
            pool = self._pick(data, [each for each in producer.pools.values() if not each.closed])
            if pool is not None:
                producer.close_pool(pool, data.draw(FLAGS))

    def _a_producer_ends(self, data: Any) -> None:
        producer = self._producer(data)
        if producer is not None and producer.ready and len(self.producers) > 1:
            self._ends(producer, data.draw(FLAGS))
            self.producers.remove(producer)

    def _ends(self, client: Client, politely: bool) -> None:
        if politely:
            client.leave()
        else:
            self.stage.hang_up(client, 0, 0)
            client.left = True

    def _a_worker_drains(self, data: Any) -> None:
        worker = self._worker(data)
        if worker is not None:
            worker.drain()

    def _an_initializer_fails(self, data: Any) -> None:
        worker = self._worker(data)
        pool = self._pick(data, [*worker.pools] if worker else [])
        if worker is not None and pool is not None:
            worker.break_pool(pool)

    def _a_worker_is_killed(self, data: Any) -> None:
        worker = self._worker(data)
        if worker is not None and len(self.workers) > 1:
            self._ends(worker, politely=False)
            self.workers.remove(worker)

    def _the_broker_is_killed(self, data: Any) -> None:
        self.stage.restart()
        for client in self.clients() if data.draw(FLAGS) else ():
            client.dial()

    # -- the disk, and what is lost --------------------------------------------------------------------

    @rule(most=st.sampled_from((1, 2, None)), full=RARELY)
    def the_disk_syncs(self, most: int | None, full: bool) -> None:
        self.stage.journal.full = full
        self.stage.sync(most)

    @rule(data=st.data(), down=FLAGS)
    def a_message_is_lost(self, data: Any, down: bool) -> None:
        """Of a connection that goes on; or the broker hears that one has ended."""
        boxes = [each.inbox if down else each.outbox for each in self.workers if not each.cut]
        lost = self._pick(
            data, [(box, at) for box in boxes for at, each in enumerate(box) if type(each) in LOSABLE]
        )
        if lost is not None:
            del lost[0][lost[1]]
        else:
            self.stage.mourn(1)

    # -- time ----------------------------------------------------------------------------------------

    @rule(seconds=SPANS, tick=FLAGS)
    def time_passes(self, seconds: float, tick: bool) -> None:
        """Everybody stands still."""
        self.stage.now += seconds
        if tick:
            self.stage.tick()

    @rule(beats=st.integers(1, 4))
    def seconds_pass(self, beats: int) -> None:
        """In good order."""
        for _ in range(beats):
            self._second()

    def _second(self) -> None:
        self.stage.sync()
        self._beat()
        self._listen()
        for worker in self.workers:
            worker.rest()
            self.stage.flush(worker)
        self.workers = [each for each in self.workers if not each.left]

    # -- who is not honest ---------------------------------------------------------------------------

    @precondition(lambda self: self.rude)
    @rule(data=st.data(), most=st.integers(1, 4), strange=RARELY)
    def a_rude_peer_says_anything(self, data: Any, most: int, strange: bool) -> None:
        """Of what its role allows; or of all that there is (``strange``)."""
        peer = data.draw(st.sampled_from(self.rude))
        kinds = [cls for cls in KINDS if strange or peer.role in cls.senders] or KINDS
        for _ in range(most):
            self._rudely(peer, any_message(data.draw, kinds, numbers_of(self.stage.core)))

    @precondition(lambda self: any(each.role == m.WORKER for each in self.rude))
    @rule(data=st.data(), most=st.integers(1, 4), repeat=RARELY)
    def a_rude_worker_answers(self, data: Any, most: int, repeat: bool) -> None:
        """What it was leased, or what others were, and perhaps twice."""
        peer = data.draw(st.sampled_from([each for each in self.rude if each.role == m.WORKER]))
        for _ in range(most):
            said = answer(data.draw, self.stage.core, peer.leases)
            if said is not None:
                for _ in range(1 + repeat):
                    self._rudely(peer, said)

    @precondition(lambda self: any(each.role == m.PRODUCER for each in self.rude))
    @rule(data=st.data(), most=st.integers(1, 4))
    def a_rude_producer_works(self, data: Any, most: int) -> None:
        """What an honest one might say, with any numbers."""
        peer = data.draw(st.sampled_from([each for each in self.rude if each.role == m.PRODUCER]))
        for _ in range(most):
            self._rudely(peer, work(data.draw, self.stage.core, peer.address))

    @precondition(lambda self: any(each.role in (m.PRODUCER, m.ADMIN) for each in self.rude))
    @rule(data=st.data(), most=st.integers(1, 6), synced=FLAGS)
    def a_rude_peer_submits(self, data: Any, most: int, synced: bool) -> None:
        """A detached job, or what looks like one."""
        peer = data.draw(st.sampled_from([each for each in self.rude if each.role in (m.PRODUCER, m.ADMIN)]))
        for _ in range(most):
            self._rudely(peer, deposit(data.draw, self.stage.core))
            if synced:
                self.stage.sync()

    def _rudely(self, peer: Rude, message: m.Message) -> None:
        if type(message) is m.PoolBroken and peer.role == m.WORKER:
            self.stage.broken.add(message.pool)
        peer.say(m.decode(m.encode(message)))
        self.stage.exchange(peer)

    @precondition(lambda self: self.rude)
    @rule(data=st.data())
    def a_rude_peer_is_gone_or_not(self, data: Any) -> None:
        """The broker is told so, and it goes on; or it is there again."""
        peer = data.draw(st.sampled_from(self.rude))
        self.stage.tell(be.Gone(peer.address))
        if data.draw(FLAGS):
            self.stage.connect(peer, tell=False)
            self._rudely(peer, hello(data.draw, peer.role, numbers_of(self.stage.core)))

    # -- the end -------------------------------------------------------------------------------------

    def _end(self) -> None:
        self.stage.forget_detached_jobs()
        if all(each.draining for each in self.workers):
            self.a_worker_comes(2)
        for producer in self.producers:
            for job in producer.jobs.values():
                if not (job.ended or job.over):
                    producer.end(job)
        self._until(lambda: all(job.over for each in self.producers for job in each.jobs.values()), "answers")
        for producer in self.producers:
            for pool in producer.pools.values():
                if not pool.closed:
                    producer.close_pool(pool, kill=False)
        self._until(
            lambda: all(pool.closed for each in self.producers for pool in each.pools.values()), "pools"
        )
        for producer in self.producers:
            producer.leave()
        core = self.stage.core
        self._until(lambda: len(core.sessions.by_number) == len(self.workers) and not core.pools, "the end")
        # Claims of what is long over are given up.
        for _ in range(12):
            self._second()
        broker_is_empty(core)
        for worker in self.workers:
            assert not (worker.pieces or worker.kept or worker.pools), f"{worker.name} has something left"

    def _work(self) -> None:
        for worker in self.workers:
            for piece in worker.idle():
                worker.begin(piece, piece.stop - piece.start)
            for piece in worker.busy():
                worker.finish(piece, piece.begun)
        self._settle()


@long_run
def test_whatever_is_said_the_books_hold_and_everything_has_its_answer() -> None:
    run(Rules, examples(800))


@pytest.mark.parametrize(
    "name",
    [
        "results_leave_the_lease",
        "a_lost_workers_leases_are_lost",
        "hand_backs_count_twice",
        "every_result_is_passed_on",
        "what_was_lost_on_the_way_back_stays_lost",
        "a_producers_end_leaves_its_work",
    ],
)
def test_a_planted_fault_is_found(name: str) -> None:
    find(Rules, name)
