"""What the broker can tell about itself, as plain JSON types."""

from __future__ import annotations

from typing import Any

from multihost_broker.jobs import Job
from multihost_broker.ledger import Ledger
from multihost_broker.objects.registry import Objects
from multihost_broker.pools import Pool
from multihost_broker.processes import Process, Processes
from multihost_broker.sessions import NUMBER, Session, Sessions
from multihost_common.messages import PRODUCER, WORKER

#: Jobs told of one pool: the oldest ones. How many there are is told too.
MOST_JOBS = 100


def health(sessions: Sessions) -> dict[str, Any]:
    """Whether it works at all, and with whom."""
    workers = [each for each in sessions.of_kind(WORKER) if not each.draining]
    return {"ok": True, "workers": len(workers), "slots": sum(each.slots for each in workers)}


def status(ledger: Ledger, processes: Processes, objects: Objects) -> dict[str, Any]:
    """Workers, producers, pools, jobs and what is shared, as they are now. Times in seconds."""
    now = ledger.scheduler.now
    workers = ledger.sessions.of_kind(WORKER)
    pools = ledger.pools.values()
    return {
        "slots": sum(each.slots for each in workers if not each.draining),
        "granted": sum(pool.granted for pool in pools),
        "ready": sum(job.ready_items for pool in pools for job in pool.jobs.values()),
        "held": sum(pool.held for pool in pools),
        "blobs": len(ledger.blobs),
        "workers": [_worker(each, now) for each in workers],
        "producers": [_producer(each, now) for each in ledger.sessions.of_kind(PRODUCER)],
        "pools": [_pool(pool) for pool in pools],
        "processes": [_process(each) for each in processes.by_number.values()],
        "objects": len(objects.machines),
        "object_bytes": sum(each.size() for each in objects.machines.values()),
    }


def _worker(worker: Session, now: float) -> dict[str, Any]:
    shares = worker.shares.values()
    return {
        "session": worker.number,
        "name": worker.name,
        "host": worker.host,
        "pid": worker.pid,
        "slots": worker.slots,
        "granted": sum(share.slots for share in shares),
        "held": sum(share.held for share in shares),
        "draining": worker.draining,
        "connected": worker.gone_at is None,
        "suspect": worker.suspect(now),
        "silent": round(now - worker.heard, 3),
    }


def _producer(producer: Session, now: float) -> dict[str, Any]:
    return {
        "session": producer.number,
        "name": producer.name,
        "host": producer.host,
        "pid": producer.pid,
        "nested": producer.nested,
        "pools": len(producer.pools),
        "connected": producer.gone_at is None,
        "silent": round(now - producer.heard, 3),
    }


def _process(process: Process) -> dict[str, Any]:
    return {
        "process": process.number & NUMBER,
        "producer": process.owner.number,
        "name": process.launch.name,
        "host": process.host,
        "pid": process.pid,
    }


def _pool(pool: Pool) -> dict[str, Any]:
    return {
        "pool": pool.number & NUMBER,
        "producer": pool.owner.number,
        "name": pool.opened.name,
        "limit": pool.opened.limit,
        "slots": pool.granted,
        "workers": len(pool.workers),
        "held": pool.held,
        "closing": pool.closing or pool.draining,
        "broken": bool(pool.broken),
        "open_jobs": len(pool.jobs),
        "jobs": [_job(job) for job in list(pool.jobs.values())[:MOST_JOBS]],
    }


def _job(job: Job) -> dict[str, Any]:
    return {
        "job": job.number & NUMBER,
        "name": job.opened.name,
        "items": job.count if job.count >= 0 else None,
        "fed": job.fed,
        "answered": job.answered.total,
        "ready": job.ready_items,
        "suspects": len(job.suspects),
        "leased": job.fed - job.answered.total - job.ready_items,
        "seconds_per_item": job.pace.seconds,
    }
