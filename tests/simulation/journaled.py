"""What must hold of detached jobs, in the broker's books and between these and the journal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from multihost_broker.answered import Answered
from multihost_broker.detached import archive as limits
from multihost_broker.detached.books import (
    BLOCK,
    COLLECTED,
    DEATH,
    DIED,
    ENDED,
    FAILED,
    PUT,
    RANGE,
    RESULT,
    SEAL,
    SUBMIT,
    WORKERS,
)

if TYPE_CHECKING:
    from multihost_broker.core import Core
    from multihost_broker.detached.books import DetachedJob
    from multihost_broker.jobs import Job
    from multihost_common import messages as m

    from .journals import VirtualJournal


def audit_promise(disk: VirtualJournal, stored: m.Stored) -> None:
    """What is confirmed is durable: a block, or the answers to its items."""
    covered, sealed, begun, ended = Answered(), False, False, False
    for record in disk.records.values():
        if record.job != stored.key:
            continue
        begun = begun or record.kind == SUBMIT
        sealed = sealed or record.kind == SEAL
        ended = ended or record.kind == ENDED
        if record.kind == PUT:
            start, count, _ = BLOCK.unpack(record.header)
            covered.add(start, start + count)
        elif record.kind in (RESULT, FAILED):
            start, count = RANGE.unpack_from(record.header)
            covered.add(start, start + count)
    if ended or not begun:
        # What is not wanted any more is erased; or the broker will hear in a moment that it is.
        return
    missing = covered.missing(0, stored.fed)
    assert not missing, f"{stored} is told, and items {missing} are not durable"
    assert sealed or not stored.sealed, f"{stored} is told, and that is not durable"


def audit_archive(core: Core, disk: VirtualJournal) -> None:
    """The archive's books add up, and fit what the journal has."""
    archive = core.archive
    lent = 0
    for job in archive.jobs.values():
        lent += job.lent.bytes
        _audit_job(core, job, disk)
    assert archive.lent == lent, f"{lent} bytes of input are handed out, not {archive.lent}"
    largest = max((block.size for job in archive.jobs.values() for block in job.blocks.values()), default=0)
    assert lent <= limits.MOST_LENT + largest, f"{lent} bytes of input are in memory"
    assert set(archive._numbers) == {job.number for job in archive.jobs.values()}, "jobs by number"
    assert set(archive._eager) <= set(archive._numbers), "what is forgotten is not handed out"


def _audit_job(core: Core, job: DetachedJob, disk: VirtualJournal) -> None:
    queue, lent = set(job.queue), set(job.lent._blocks)
    assert sorted(job.blocks) == job._starts, "blocks by their first item"
    assert job.queue == sorted(queue), "blocks are handed out in order"
    assert not queue & lent, f"blocks {queue & lent} are handed out, and to be handed out"
    assert queue | lent <= set(job.blocks), "blocks that nobody needs are not handed out"
    live = job.live
    for block in job.blocks.values():
        if live and job.answered.missing(block.start, block.stop):
            assert block.start in queue or block.start in lent, f"block {block} is nowhere"
        assert block.ticket in disk.records, f"block {block} is not in the journal"
    assert job.ticket in disk.records, "a job is in the journal"
    covered = Answered()
    for block in job.blocks.values():
        covered.add(block.start, block.stop)
    if live:
        for start, stop in job.answered.missing(0, job.stored):
            assert not covered.missing(start, stop), f"input {start}..{stop} has no answer, and is not there"
    for item in job.dead:
        # While it is on its way out it is not there any more.
        assert job.ended or job.overlapping(item, item + 1), f"the input of dead letter {item} is not there"
    found = core.ledger.find(job.number)
    if found is not None and job.live:
        _audit_running(job, found[1])


def _audit_running(job: DetachedJob, running: Job) -> None:
    """What is handed out is known to the job that runs, with its deaths."""
    for start in job.lent._blocks:
        block = job.blocks[start]
        if job.token or block.stop > running.fed:
            continue
        for low, high in running.answered.missing(block.start, block.stop):
            for item in (each for each in {*running.deaths, *job.deaths} if low <= each < high):
                known, charged = running.deaths.get(item, 0), job.deaths.get(item, (0, ()))[0]
                assert known == charged, (
                    f"item {item} is charged with {known} deaths, and in the journal {charged}"
                )


def audit_restored(core: Core, disk: VirtualJournal) -> None:
    """A broker that was started anew knows all that the journal has."""
    audit_archive(core, disk)
    over = {record.job for record in disk.records.values() if record.kind == ENDED}
    for job in core.archive.jobs.values():
        assert bool(job.ended) == (job.key in over), "a job has ended if the journal says so"
        for item, deaths in _deaths_of(disk, job.key).items():
            if job.answered.missing(item, item + 1):
                known = job.deaths.get(item, (0, ()))[0]
                assert known == deaths, f"item {item} has killed {deaths} children, and {known} are known"


def journal_is_empty(core: Core, disk: VirtualJournal) -> None:
    """Nothing is left of jobs that are over, neither in the broker nor in the journal."""
    archive = core.archive
    assert not archive.jobs, f"detached jobs are left: {list(archive.jobs)}"
    assert not archive._functions, "functions of detached jobs are left"
    assert not archive._eager and not archive.lent, "input is left"
    assert archive.scribe.idle(), "somebody waits for the journal"
    left = [record.kind for record in disk.records.values() if record.kind not in (WORKERS, COLLECTED)]
    assert not left, f"records are left in the journal: {left}"
    kept = len(archive.garbage) + len(archive.tombstones) + 1
    assert len(disk.records) <= kept, "old notes are left in the journal"


def _deaths_of(disk: VirtualJournal, key: bytes) -> dict[int, int]:
    """Item -> deaths, as the journal has them."""
    found: dict[int, int] = {}
    for record in disk.records.values():
        if record.job == key and record.kind == DEATH:
            item, deaths = DIED.unpack(record.header)
            found[item] = max(found.get(item, 0), deaths)
    return found
