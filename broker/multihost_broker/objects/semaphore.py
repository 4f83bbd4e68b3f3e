"""A semaphore or a lock: permits, who holds them, who waits for one."""

from __future__ import annotations

from collections import deque

from multihost_broker.objects.machine import Machine, Party, Request
from multihost_common.shared import SEMAPHORE, Semaphores


class Semaphore(Machine):
    """Made with two numbers: ``value`` permits that are free, and at most ``maximum`` (0: any number).

    A permit of a process that ends without giving it back is free again, and who gets one next is told so. Any
    process may release: where it holds none, it gives back for the one that has held longest.
    """

    kind = SEMAPHORE

    def __init__(self, make: Request) -> None:
        super().__init__(make)
        self.value, self.maximum = (int.from_bytes(frame[:8], "little") for frame in make.frames[:2])
        #: Permits of each process, who got one first first.
        self.holders: dict[Party, int] = {}
        self.waiting: deque[Request] = deque()
        #: Permits that are free since their holder died, and nobody has been told.
        self.orphans = 0

    def act(self, request: Request) -> None:
        """See :class:`multihost_common.shared.Semaphores`."""
        if request.op == Semaphores.ACQUIRE:
            if self.value:
                self._grant(request)
            elif request.now:
                request.busy()
            else:
                request.waits = True
                self.waiting.append(request)
        elif request.op == Semaphores.RELEASE:
            self._release(request)
        elif request.op == Semaphores.VALUE:
            request.done(self.value)
        else:
            request.refuse("a semaphore knows no such operation")

    def _grant(self, request: Request) -> None:
        self.value -= 1
        self.holders[request.party] = self.holders.get(request.party, 0) + 1
        orphan = min(1, self.orphans)
        self.orphans -= orphan
        request.done(orphan)

    def _release(self, request: Request) -> None:
        if self.maximum and self.value >= self.maximum:
            request.refuse("semaphore or lock released too many times")
            return
        holder = request.party if request.party in self.holders else next(iter(self.holders), None)
        if holder is not None:
            self.holders[holder] -= 1
            if not self.holders[holder]:
                del self.holders[holder]
        request.done()
        self._free(1)

    def _free(self, count: int) -> None:
        self.value += count
        while self.value and self.waiting:
            self._grant(self.waiting.popleft())

    def withdraw(self, request: Request) -> None:
        """Nobody waits for this permit any more."""
        self.waiting.remove(request)

    def depart(self, party: Party) -> None:
        """What the process held is free."""
        held = self.holders.pop(party, 0)
        self.orphans += held
        self._free(held)


__all__ = ["Semaphore"]
