"""Children that are producers themselves: what a task or a process says to the broker goes through its agent.

The agent reads nothing of it. It tells the broker when such a child has ended, so that what it had is freed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from multihost_common import messages as m
from multihost_worker import events as e
from multihost_worker.books import Books


class Nested:
    """See the module. ``root_of`` answers the pool or process that a child belongs to, None: there is no such child."""

    def __init__(self, books: Books, root_of: Callable[[int], int | None]) -> None:
        self._books = books
        self._root_of = root_of
        #: Children that have said something, and to which pool or process they belong.
        self._roots: dict[int, int] = {}
        self.reactions: dict[type, Callable[[Any], None]] = {e.ChildSays: self._on_says, m.Via: self._on_via}

    def _on_says(self, event: e.ChildSays) -> None:
        root = self._roots.get(event.child)
        if root is None:
            root = self._root_of(event.child)
            if root is None:
                return
            self._roots[event.child] = root
        self._books.send(m.Via(event.child, root, frames=event.frames))

    def _on_via(self, via: m.Via) -> None:
        if via.child in self._roots:
            self._books.emit(e.Tell(via.child, via.frames))

    def forgotten(self) -> None:
        """The broker knows nothing of what these children have; they are told so."""
        refused = m.Refused("E_HELLO", "the broker knows nothing of this process")
        for child in self._roots:
            self._books.emit(e.Tell(child, m.encode(refused)))
        self._roots.clear()

    def ended(self, child: int, died: bool) -> None:
        """The child has ended; ``died``: it did not want to, and neither did who has the pool."""
        root = self._roots.pop(child, None)
        if root is not None:
            self._books.send(m.Via(child, root, frames=m.encode(m.Bye(m.DIED if died else "ended"))))


__all__ = ["Nested"]
