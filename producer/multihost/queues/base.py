"""What both directions of a process's end of a queue have in common."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from multihost.engines.choosing import get_sharing

if TYPE_CHECKING:
    from multihost.engines.sharing import Sharing


class Base:
    """One process's end of the queue of this name. ``bounded``: the queue has a ``maxsize``."""

    def __init__(self, name: bytes, bounded: bool) -> None:
        self.name = name
        self.bounded = bounded
        #: Queue objects of this process that mean it, but for closed ones.
        self.users = 0
        self.reset()

    def reset(self) -> None:
        """Begin anew: also in a forked process, where what there was is the parent's."""
        self._sharing: Sharing | None = None
        self._lock = threading.RLock()

    @property
    def sharing(self) -> Sharing:
        """The way to the broker."""
        sharing = self._sharing
        if sharing is None:
            sharing = self._sharing = get_sharing()
            self._begun(sharing)
        return sharing

    def _begun(self, sharing: Sharing) -> None:
        """It is used for the first time."""

    def _close(self) -> None:
        """Nobody in this process uses it any more, and there is nothing left to send."""


__all__ = ["Base"]
