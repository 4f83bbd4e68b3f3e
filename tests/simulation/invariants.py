"""What must hold in the cores after every step, and when all is over."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from multihost_common import messages as m

if TYPE_CHECKING:
    from collections.abc import Iterable

    from multihost_broker.core import Core
    from multihost_broker.jobs import Job
    from multihost_broker.sessions import Session
    from multihost_worker.core import Core as AgentCore


def audit(core: Core) -> None:
    """The broker's books add up, and each fed item of each open job is in exactly one place."""
    workers = [each for each in core.sessions.by_number.values() if each.kind == m.WORKER]
    for pool in core.pools.values():
        granted = held = 0
        for share in pool.workers.values():
            assert share.worker.shares[pool.number] is share, "a share is in both books"
            assert share.slots >= 0, f"{share.slots} slots are granted"
            assert share.held >= 0, f"{share.held} items are held"
            granted += share.slots
            held += share.held
        assert pool.granted == granted, f"{granted} slots are granted, not {pool.granted}"
        assert pool.held == held, f"{held} items are held, not {pool.held}"
        assert not pool.opened.limit or granted <= pool.opened.limit, "a pool is within its limit"
        for number, job in pool.pending.items():
            assert number in pool.jobs, "a pending job is open"
            assert job.ready_items, "a pending job has ready items"
        for job in pool.jobs.values():
            _audit_job(job, workers)
    for worker in workers:
        shares = worker.shares
        granted = 0
        for number, share in shares.items():
            granted += share.slots
            held = 0
            for leases in worker.leases.values():
                if leases.share is share:
                    held += leases.items
            assert share.held == held, (
                f"worker {worker.number} holds {held} of pool {number}, not {share.held}"
            )
        if worker.slots and not worker.draining:
            assert worker.free + granted == worker.slots, (
                f"{worker.free} + {granted} are {worker.slots} slots"
            )


def _audit_job(job: Job, workers: Iterable[Session]) -> None:
    """Each fed item is ready, or leased by one worker, or answered."""
    fed, ready = job.fed, 0
    places: list[tuple[int, int, str]] = []
    for kind in (job.ready, job.suspects):
        for span in kind:
            places.append((span.start, span.stop, "ready"))
            ready += span.stop - span.start
    assert ready == job.ready_items, f"{ready} items are ready, not {job.ready_items}"
    number = job.number
    for worker in workers:
        if number in worker.leases:
            for lease in worker.leases[number]:
                places.append((lease.span.start, lease.span.stop, "leased"))
    for start, stop in job.lost.ranges():
        places += [(low, high, "lost") for low, high in job.answered.missing(start, stop)]
    answered = job.answered
    for start, stop in zip(answered._starts, answered._stops, strict=True):
        places.append((start, stop, "answered"))
    places.sort()
    at = 0
    for start, stop, _ in places:
        if start != at:
            raise AssertionError(_misplaced(job, places))
        at = stop
    if at != fed:
        raise AssertionError(_misplaced(job, places))


def _misplaced(job: Job, places: list[tuple[int, int, str]]) -> str:
    shown = ", ".join(f"{start}..{stop} {what}" for start, stop, what in places)
    return f"each of the {job.fed} items of job {job.number} is in one place: {shown or 'nowhere'}"


def audit_lease(core: Core, lease: Any) -> None:
    """What has killed a child runs alone; what has an answer does not run."""
    pool = core.owners.get(lease.job)
    if pool is None:
        return
    job, stop = pool.jobs[lease.job], lease.start + lease.count
    assert job.answered.missing(lease.start, stop) == [(lease.start, stop)], "what is leased has no answer"
    if job.deaths and not lease.isolate:
        suspects = [item for item in job.deaths if lease.start <= item < stop]
        assert not suspects, f"items {suspects} have killed children and do not run alone"


def audit_agent(core: AgentCore) -> None:
    """The agent's books add up: what waits, what each child has, and who takes up a slot."""
    live = 0
    for pool in core.pools.values():
        waiting = sum([len(work.span) for work in pool.queue])
        waiting -= sum([len(work.span) for work in pool.queue.alone])
        assert pool.queue.items == waiting, f"{waiting} items wait, not {pool.queue.items}"
        active = 0
        for child in pool.children.values():
            active += child.live
            items, end = 0, 0
            for given in child.given:
                assert given.position >= end, f"child {child.number} was given positions twice"
                count = len(given.work.span)
                items, end = items + count, given.position + count
            assert child.items == items, f"child {child.number} has {items} items, not {child.items}"
            assert child.position >= end, f"child {child.number} will be given positions twice"
        assert pool.live == active, f"{active} children take up slots, not {pool.live}"
        live += active
    slots = core.config.slots
    assert not slots or live <= slots, f"{live} children take up {slots} slots"


def broker_is_empty(core: Core) -> None:
    """Everything was closed: the broker remembers nothing of it."""
    assert not core.pools, f"pools are left: {list(core.pools)}"
    assert not core.owners, f"jobs are left: {list(core.owners)}"
    assert not core.ledger.awaited, "content is awaited"
    assert not core.scheduler.needy, "pools want slots"
    assert not core.blobs._uses, "content is in use"
    for worker in core.sessions.of_kind(m.WORKER):
        assert not worker.shares, f"worker {worker.number} has shares of pools"
        assert not worker.leases, f"worker {worker.number} has leases"
        if not (worker.draining or worker.returning):
            assert worker.number in core.scheduler.free, f"worker {worker.number} is free"
            assert not worker.slots or worker.free == worker.slots, f"all slots of {worker.number} are free"


def agent_is_empty(core: AgentCore, name: str) -> None:
    """Everything was closed: the agent has nothing of it."""
    for what in ("pools", "jobs", "children"):
        assert not getattr(core, what), f"{name} still has {what}: {list(getattr(core, what))}"
    assert not core.blobs._uses, f"{name} still uses content"
