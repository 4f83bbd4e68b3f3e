"""A semaphore or a lock: permits, who holds them, who waits for one."""

from __future__ import annotations

from multihost_broker.objects.machine import Machine, Party, Request
from multihost_common.shared import SEMAPHORE, Semaphores

#: The most permits to begin with.
MAX_VALUE = (1 << 31) - 1


class Semaphore(Machine):
    """Made with three numbers: ``value`` permits that are free, at most ``maximum`` (0: any number), and whether it is
    ``owned``, which is to say a lock, and which one: see :class:`multihost_common.shared.Semaphores`.

    Any process may release: where it holds none, it gives back for the one that has held longest. A lock whose holder
    is killed is free again, and who gets it next is told so; a recursive one also when its holder ends in good order.
    So is a permit of a semaphore whose holder is killed, unless
    somebody has released what it did not hold: then the semaphore counts something else than holders. In all other
    cases a permit stays taken, as in multiprocessing: the last of several readers releases what the first one has
    acquired, who may have ended.
    """

    kind = SEMAPHORE

    def __init__(self, make: Request) -> None:
        super().__init__(make)
        numbers = [int.from_bytes(frame[:8], "little") for frame in make.frames[:3]]
        self.value, self.maximum, self.owned = [*numbers, 0, 0, 0][:3]
        if max(self.value, self.maximum) > MAX_VALUE or 0 < self.maximum < self.value:
            raise ValueError("too many permits")
        #: Somebody has released what it did not hold.
        self.signals = False
        #: Permits of each process, who got one first first.
        self.holders: dict[Party, int] = {}
        self.waiting: dict[Request, None] = {}
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
                self.waiting[request] = None
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
        holder: Party | None = request.party
        if holder not in self.holders:
            self.signals = True
            holder = next(iter(self.holders), None)
        if holder is not None:
            self.holders[holder] -= 1
            if not self.holders[holder]:
                del self.holders[holder]
        request.done()
        self._free(1)

    def _free(self, count: int) -> None:
        self.value += count
        while self.value and self.waiting:
            first = next(iter(self.waiting))
            del self.waiting[first]
            self._grant(first)

    def withdraw(self, request: Request) -> None:
        """Nobody waits for this permit any more."""
        self.waiting.pop(request, None)

    def died(self, party: Party) -> None:
        """What the process held is free, as far as it is known to be in use."""
        if self.owned or not self.signals:
            self._inherit(party)

    def depart(self, party: Party) -> None:
        """The lock that the process held is free, if nobody else can release it."""
        if self.owned == Semaphores.RECURSIVE:
            self._inherit(party)
        self.holders.pop(party, None)

    def _inherit(self, party: Party) -> None:
        held = self.holders.pop(party, 0)
        self.orphans += held
        self._free(held)


__all__ = ["Semaphore"]
