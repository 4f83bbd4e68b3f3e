"""What the broker can tell about itself, as plain JSON types."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from multihost_common.messages import PRODUCER, WORKER

if TYPE_CHECKING:
    from multihost_broker.core import Core


def status(core: Core) -> dict[str, Any]:
    """Workers, producers, pools and jobs as they are now."""
    now = core.scheduler.now
    return {
        "epoch": core.config.epoch,
        "python": core.python,
        "workers": [
            {
                "session": each.number,
                "name": each.name,
                "host": each.host,
                "pid": each.pid,
                "slots": each.slots,
                "granted": sum(each.grants.values()),
                "held": sum(each.held.values()),
                "draining": each.draining,
                "silent": round(now - each.heard, 3),
            }
            for each in core.sessions.of_kind(WORKER)
        ],
        "producers": [
            {
                "session": each.number,
                "name": each.name,
                "host": each.host,
                "pid": each.pid,
                "pools": len(each.pools),
            }
            for each in core.sessions.of_kind(PRODUCER)
        ],
        "pools": [
            {
                "pool": pool.number,
                "name": pool.opened.name,
                "limit": pool.opened.limit,
                "slots": pool.granted,
                "jobs": [
                    {
                        "job": job.number & 0xFFFF_FFFF,
                        "name": job.opened.name,
                        "fed": job.fed,
                        "answered": job.answered.total,
                        "ready": job.ready_items,
                        "seconds_per_item": job.pace.seconds,
                    }
                    for job in pool.jobs.values()
                ],
            }
            for pool in core.pools.values()
        ],
    }
