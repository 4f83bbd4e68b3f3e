"""Handles that have been pickled, and may never arrive where they were to go.

Who pickles something that others wait for notes here how to take that back. Who finds that the pickle will not be
unpickled, since pickling has failed in the end, or the process that it was for has ended, takes it back; what has
arrived is not affected:

    with shipments.collected() as promises:
        data = pickle.dumps(args)
    ...
    shipments.void(promises)
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

#: Takes one promise back. It neither waits nor raises.
Void = Callable[[], None]

#: Of so many promises of one attempt to pickle something a failure takes back the last.
RECENT = 256


class _Noted(threading.local):
    def __init__(self) -> None:
        self.count = 0
        self.recent: deque[Void] = deque(maxlen=RECENT)
        self.collections: list[list[Void]] = []
        #: How many of these last.
        self.lasting = 0


_noted = _Noted()


def note(void: Void) -> bool:
    """Something was pickled that others rely on to arrive; ``void`` takes that back. True: it may be unpickled by several
    until that is called."""
    _noted.count += 1
    _noted.recent.append(void)
    for each in _noted.collections:
        each.append(void)
    return _noted.lasting > 0


def mark() -> int:
    """Where this thread is, for :func:`void_since`."""
    return _noted.count


def void_since(marked: int) -> None:
    """What this thread has pickled since then comes to nothing."""
    fresh = min(_noted.count - marked, len(_noted.recent))
    void([_noted.recent.pop() for _ in range(fresh)])


@contextmanager
def collected(lasting: bool = False) -> Iterator[list[Void]]:
    """All that this thread pickles meanwhile. ``lasting``: for any number of processes."""
    promises: list[Void] = []
    _noted.collections.append(promises)
    _noted.lasting += lasting
    try:
        yield promises
    finally:
        _noted.lasting -= lasting
        # By identity: two empty lists are equal.
        _noted.collections[:] = [each for each in _noted.collections if each is not promises]


def void(promises: list[Void]) -> None:
    """What was promised will not arrive, unless it has."""
    while promises:
        promises.pop()()


__all__ = ["Void", "collected", "mark", "note", "void", "void_since"]
