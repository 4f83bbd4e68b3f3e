"""What must hold in the cores after every step, and when all is over."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from multihost_broker.memory import OVERHEAD, Counted
from multihost_broker.scheduler import MOST_SENT
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
    _audit_memory(core, workers)
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


def _audit_memory(core: Core, workers: Iterable[Session]) -> None:
    """What is counted as input is what is here, and it is within its bound, but for the last Feed."""
    memory = core.ledger.memory
    if not memory.limit:
        return
    spans = [lease.span for worker in workers for leases in worker.leases.values() for lease in leases]
    for pool in core.pools.values():
        for job in pool.jobs.values():
            spans += [*job.ready, *job.suspects]
    # Input of detached jobs has a window of its own.
    blocks = {id(span.block): span.block for span in spans if isinstance(span.block, Counted)}
    used = sum(OVERHEAD + sum(map(len, block.frames)) for block in blocks.values())
    assert memory.used == used, f"{used} bytes of input are here, not {memory.used}"
    if not any(job.opened.resumed for pool in core.pools.values() for job in pool.jobs.values()):
        # Of what is stated anew, what had been here is taken again in any case.
        largest = max((OVERHEAD + sum(map(len, block.frames)) for block in blocks.values()), default=0)
        assert used <= memory.limit + largest, f"{used} bytes of input are here"


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


def audit_bounds(core: Core, now: float) -> None:
    """Nothing is remembered but of those who are here, and of what they have not closed."""
    sessions, ledger, scheduler = core.sessions, core.ledger, core.scheduler
    live = sessions.by_number
    assert len(sessions.by_peer) == len(live), "each session has one address"
    due = core.deadline()
    for session in live.values():
        assert session.lost_at() > now or (due is not None and due <= now), "who is lost is forgotten"
    house = core.archive.session
    owned = {number for session in (house, *live.values()) for number in session.pools}
    closing = {pool.number for pool in core.pools.values() if pool.owner.number not in (*live, house.number)}
    assert owned | closing == set(core.pools), "pools are of somebody who is here, or are being closed"
    assert all(core.pools[number].closing for number in closing), "what nobody owns is being closed"
    assert sessions.reserved <= {number >> 32 for number in core.pools}, "numbers are kept for pools"
    uses: Counter[bytes] = Counter(core.archive._functions.values())
    for process in core.processes.by_number.values():
        uses.update((process.launch.setup, process.launch.code))
    jobs = {}
    for pool in core.pools.values():
        uses.update((pool.opened.setup, pool.opened.code))
        for job in pool.jobs.values():
            jobs[job.number] = pool
            uses.update((job.opened.function, job.opened.code))
            assert job.workers <= set(live), "workers that have gone need not be told of a job's end"
            assert all(item < job.fed for item in job.deaths), "what was not fed has killed nobody"
            lengths = (len(job.answered), len(job.lost), len(job.stale), len(job.deaths))
            assert max(lengths) <= job.fed, "no more is remembered than there are items"
    assert core.owners == jobs, "each job is in its pool's books"
    del uses[b""]
    assert core.blobs._uses == uses, "content is kept for who uses it"
    assert sum(core.blobs._unused.values()) == core.blobs._unused_bytes, "bytes of unused content"
    for digest, numbers in ledger.awaited.items():
        assert digest not in core.blobs and numbers <= set(core.pools), "content is awaited that is not here"
    known = set(scheduler.free) | set(core._returns._waiting) | set(core._returns._claimants)
    assert (known | set(sessions._gone)) - {house.number} <= set(live), (
        "workers and producers that have gone are forgotten"
    )
    assert set(scheduler.needy) | set(scheduler._due) <= set(core.pools), (
        "pools that are closed are forgotten"
    )
    for worker in live.values():
        digests = worker.digests
        assert len(digests) <= MOST_SENT + 2 * len(core.blobs), "what was sent is forgotten in the end"


def broker_is_empty(core: Core) -> None:
    """Everything was closed: the broker remembers nothing of it."""
    memory = core.ledger.memory
    assert memory.used == 0, f"{memory.used} bytes of input are counted"
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
