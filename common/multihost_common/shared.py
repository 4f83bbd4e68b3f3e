"""What may be asked of each kind of shared object: the numbers that :class:`~multihost_common.messages.Act` carries."""

from __future__ import annotations

#: Kinds, and from 16 on the operations of each.
SEMAPHORE, CONDITION, EVENT, BARRIER, QUEUE, PIPE, CELL = 1, 2, 3, 4, 5, 6, 7


class Semaphores:
    """ACQUIRE one permit; it is answered with 1 instead of 0 if its holder has died. RELEASE one. VALUE: how many are free."""

    ACQUIRE, RELEASE, VALUE = 16, 17, 18


__all__ = ["BARRIER", "CELL", "CONDITION", "EVENT", "PIPE", "QUEUE", "SEMAPHORE", "Semaphores"]
