"""Seeded schedules of faults against the real cores in virtual time, and what must hold whatever happens.

A seed fixes everything: hosts, jobs, what an item costs and kills, which messages are lost, who crashes, is
cut off, joins or drains, and when. A failing seed is replayed by its number.
"""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from cluster import Cluster, Host, assert_empty

from multihost_common import messages as m
from multihost_worker import events as ae

SEEDS = range(150)

#: What may be lost on the way from a worker, and to it: all that a dying connection may swallow.
LOSABLE = (m.Result, m.Returned, m.Died, m.PoolClosed, m.Drain, m.Bye, m.Beat, m.Lease, m.Revoke, m.ClosePool)

#: Faults after which an item may run again. Joins, drains and cancels are none of them.
VIOLENT = ("crash", "cut", "kill", "lose", "hurry")
GENTLE = ("join", "drain", "cancel")


class Schedule:
    """One random run."""

    def __init__(self, seed: int, faults: tuple[str, ...]) -> None:
        self.random = Random(seed)
        self.cluster = Cluster()
        self.cluster.audited = True
        self.faults = faults
        self.sizes: dict[int, int] = {}
        self.once: set[int] = set()
        self.cancelled: set[int] = set()
        self.joined = 0
        self.losing = 0.0
        self._cast()

    def _cast(self) -> None:
        random, cluster = self.random, self.cluster
        costs = [random.lognormvariate(-5.5, 1.5) for _ in range(97)]
        cluster.cost = lambda item: costs[item % 97]
        cluster.lost = self._lost
        for _ in range(random.randint(1, 4)):
            self._join()
        self.pools = random.randint(1, 3)
        for pool in range(1, self.pools + 1):
            cluster.pool(pool, limit=random.choice((0, 0, 1, 3, 6)), max_tasks=random.choice((0, 0, 0, 4)))
        for job in range(1, random.randint(2, 5)):
            self.sizes[job] = random.choice((1, 2, 10, 60, 200))
            once = random.random() < 0.2
            if once:
                self.once.add(job)
            options = {"at_most_once": once, "timeout": random.choice((0.0, 0.0, 5.0))}
            size = random.choice((1, 1, 3, 10))
            cluster.job(job, self.sizes[job], random.randint(1, self.pools), size, **options)
        if "kill" in self.faults:
            poison = set(random.sample(range(200), random.choice((0, 1, 3))))
            cluster.kills = lambda item, host: item in poison or random.random() < 0.002

    def _lost(self, peer: str, message: m.Message) -> bool:
        return type(message) in LOSABLE and self.random.random() < self.losing

    # -- what happens ------------------------------------------------------------------------------

    def _join(self) -> None:
        self.joined += 1
        self.cluster.host(f"h{self.joined}", self.random.randint(1, 4))

    def _pick(self) -> Host | None:
        hosts = [host for host in self.cluster.hosts.values() if host.alive]
        return self.random.choice(hosts) if hosts else None

    def _strike(self, fault: str) -> None:
        random, cluster, host = self.random, self.cluster, self._pick()
        if fault == "join":
            self._join()
        elif fault == "lose":
            self.losing = random.choice((0.02, 0.2))
            cluster.after(random.uniform(0.1, 3.0), lambda: setattr(self, "losing", 0.0))
        elif fault == "cancel":
            job = random.choice(list(self.sizes))
            if random.random() < 0.3:
                self.cancelled.add(job)
                cluster.say(m.Cancel(job, 0, 0, True))
            else:
                start = random.randrange(self.sizes[job])
                # With the child that is killed goes what it has run and not sent yet.
                kill = "kill" in self.faults and random.random() < 0.5
                cluster.say(m.Cancel(job, start, random.randint(1, 20), kill))
        elif host is None or host.cut:
            return
        elif fault == "crash":
            host.crash()
        elif fault == "drain":
            if not host.core.books.draining:
                # The second time would be a hurry.
                host.tell(ae.Stop())
        elif fault == "hurry":
            host.tell(ae.Stop())
            host.tell(ae.Stop())
        elif fault == "kill" and host.children:
            child = random.choice(list(host.children.values()))
            host._die(child, 9)
        elif fault == "cut":
            host.cut = True
            redial = random.random() < 0.5
            cluster.after(random.uniform(0.5, 25.0), lambda: host.mend(redial))

    def run(self) -> None:
        """Let it all happen, then see to it that there is somebody to finish the work."""
        cluster, random = self.cluster, self.random
        for _ in range(random.randint(1, 8)):
            cluster.after(random.expovariate(2.0), lambda: self._strike(random.choice(self.faults)))
        cluster.run(8.0)
        self.losing = 0.0
        cluster.host("last", 2)
        left = [job for job in self.sizes if job not in self.cancelled]
        cluster.run(200.0, until=lambda: all(map(cluster.ended, left)))
        assert [job for job in left if not cluster.ended(job)] == []
        for pool in range(1, self.pools + 1):
            cluster.say(m.ClosePool(pool))
        cluster.run(40.0)
        assert all(map(cluster.closed, range(1, self.pools + 1)))

    # -- what must hold ----------------------------------------------------------------------------

    def check(self) -> None:
        cluster = self.cluster
        for job, size in self.sizes.items():
            answered: set[int] = set()
            for message in cluster.of_job((m.Result, m.Failed), job):
                answers = set(range(message.start, message.start + message.count))
                # Results cannot be cut, they may repeat what was answered before, but never only that.
                assert not answers <= answered, "an item has one answer"
                assert type(message) is m.Result or not answers & answered
                answered |= answers
            if job not in self.cancelled:
                assert answered == set(range(size)), "no item is lost"
        assert_empty(cluster)

    def repeated(self, jobs: set[int] | None = None) -> list[tuple[int, int]]:
        """(job, item) of what began more than once."""
        begun = Counter(each for each in self.cluster.begun if jobs is None or each[0] in jobs)
        return [each for each, times in begun.items() if times > 1]


@pytest.mark.parametrize("seed", SEEDS)
def test_whatever_happens_each_item_has_one_answer_and_nothing_is_left(seed: int) -> None:
    schedule = Schedule(seed, VIOLENT + GENTLE)
    schedule.run()
    schedule.check()
    once = {job | 1 << 32 for job in schedule.once}
    assert schedule.repeated(once) == [], "at most once"


@pytest.mark.parametrize("seed", SEEDS)
def test_without_a_loss_nothing_runs_twice(seed: int) -> None:
    schedule = Schedule(seed, GENTLE)
    schedule.run()
    schedule.check()
    assert schedule.repeated() == []
    assert not [
        each
        for job in schedule.sizes
        for each in schedule.cluster.failures(job)
        if each.reason != m.CANCELLED and (each.reason, job in schedule.once) != (m.LOST, True)
    ]
