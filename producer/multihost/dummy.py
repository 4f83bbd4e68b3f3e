"""``multiprocessing.dummy``: the names of multiprocessing for threads of this process, which share all they have.

All but :func:`Pool`, that is: its threads are on the workers, see :class:`multihost.pool.ThreadPool`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from multiprocessing import dummy as _standard
from multiprocessing.dummy import (
    Array,
    Barrier,
    BoundedSemaphore,
    Condition,
    DummyProcess,
    Event,
    JoinableQueue,
    Lock,
    Namespace,
    Pipe,
    Process,
    Queue,
    RLock,
    Semaphore,
    Value,
    active_children,
    connection,
    current_process,
    freeze_support,
    shutdown,
)
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from multihost.threadpool import ThreadPool


def __getattr__(name: str) -> Any:
    return getattr(_standard, name)


def Manager() -> Any:  # noqa: N802
    """This module: threads share objects without any help."""
    return sys.modules[__name__]


def Pool(  # noqa: N802
    processes: int | None = None,
    initializer: Callable[..., object] | None = None,
    initargs: Iterable[Any] = (),
    *,
    address: str | None = None,
) -> ThreadPool:
    """A pool of threads on the workers: functions and what they are given are pickled."""
    from multihost.threadpool import ThreadPool

    return ThreadPool(processes, initializer, initargs, address=address)


__all__ = [
    "Array",
    "Barrier",
    "BoundedSemaphore",
    "Condition",
    "DummyProcess",
    "Event",
    "JoinableQueue",
    "Lock",
    "Manager",
    "Namespace",
    "Pipe",
    "Pool",
    "Process",
    "Queue",
    "RLock",
    "Semaphore",
    "Value",
    "active_children",
    "connection",
    "current_process",
    "freeze_support",
    "shutdown",
]
