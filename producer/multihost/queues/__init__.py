"""The counterpart of :mod:`multiprocessing.queues`."""

from __future__ import annotations

from multihost.queues.items import ShutDown
from multihost.queues.queue import Empty, Full, JoinableQueue, Queue, SimpleQueue

for _class in (JoinableQueue, Queue, SimpleQueue):
    # What is shown and pickled of them is the name that they are known by.
    _class.__module__ = __name__

__all__ = ["Empty", "Full", "JoinableQueue", "Queue", "ShutDown", "SimpleQueue"]
