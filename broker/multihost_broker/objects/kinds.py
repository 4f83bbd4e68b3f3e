"""Every kind of shared object there is."""

from __future__ import annotations

from multihost_broker.objects.barrier import Barrier
from multihost_broker.objects.cell import Cell
from multihost_broker.objects.condition import Condition
from multihost_broker.objects.event import Event
from multihost_broker.objects.machine import Machine
from multihost_broker.objects.pipe import Pipe
from multihost_broker.objects.queue import Queue
from multihost_broker.objects.semaphore import Semaphore

KINDS: dict[int, type[Machine]] = {
    each.kind: each
    for each in (
        Barrier,
        Cell,
        Condition,
        Event,
        Pipe,
        Queue,
        Semaphore,
    )
}

__all__ = ["KINDS"]
