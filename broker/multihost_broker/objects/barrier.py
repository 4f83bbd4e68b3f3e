"""A barrier: who has come to it, and whether the others can still come."""

from __future__ import annotations

from multihost_broker.objects.machine import Machine, Party, Request
from multihost_common.shared import BARRIER, Barriers


class Barrier(Machine):
    """Made with two numbers: how many ``parties`` it waits for, and whether (1 or 0) the last of them runs an action
    before the others go on.

    It breaks when one that waits here is withdrawn, and when a process that has the barrier is killed: the others would
    wait for ever.
    """

    kind = BARRIER

    def __init__(self, make: Request) -> None:
        super().__init__(make)
        self.parties, self.action = (int.from_bytes(frame[:8], "little") for frame in make.frames[:2])
        if not 0 < self.parties < Barriers.BROKEN:
            raise ValueError("parties must be > 0")
        self.broken = False
        #: Processes that have it.
        self.members: set[Party] = set()
        #: Who waits, in the order in which they came.
        self.waiting: dict[Request, None] = {}
        #: Who runs the action, and the number of its request.
        self.acting: tuple[Party, int] | None = None
        #: Who came meanwhile, for the next time.
        self.early: dict[Request, None] = {}

    def act(self, request: Request) -> None:
        """See :class:`multihost_common.shared.Barriers`."""
        if request.op == Barriers.WAIT:
            self._wait(request)
        elif request.op == Barriers.RELEASE:
            self._released(request)
        elif request.op == Barriers.ABORT:
            self._break()
            request.done()
        elif request.op == Barriers.RESET:
            self._break()
            self.broken = False
            request.done()
        elif request.op == Barriers.JOIN:
            self.members.add(request.party)
            request.done()
        elif request.op == Barriers.STATE:
            request.done(len(self.waiting) + (self.acting is not None) + self.broken * Barriers.BROKEN)
        else:
            request.refuse("a barrier knows no such operation")

    def _wait(self, request: Request) -> None:
        self.members.add(request.party)
        if self.broken:
            request.done(Barriers.BROKEN)
        elif self.acting is None and len(self.waiting) + 1 == self.parties:
            self._complete(request)
        elif request.now:
            # It has not waited long enough, which is what breaks a barrier.
            self._break()
            request.busy()
        else:
            request.waits = True
            (self.waiting if self.acting is None else self.early)[request] = None

    def _complete(self, last: Request) -> None:
        """All are here."""
        last.done(self.parties - 1)
        if self.action:
            self.acting = last.party, last.number
        else:
            self._release()

    def _released(self, request: Request) -> None:
        """The action is done."""
        if self.acting != (request.party, request.amount):
            request.done(Barriers.BROKEN)
            return
        self.acting = None
        request.done()
        self._release()

    def _release(self) -> None:
        waiting, self.waiting = self.waiting, {}
        for index, each in enumerate(waiting):
            each.done(index)
        early, self.early = self.early, {}
        for each in early:
            self._wait(each)

    def _break(self) -> None:
        self.broken = True
        self.acting = None
        waiting = [*self.waiting, *self.early]
        self.waiting, self.early = {}, {}
        for each in waiting:
            each.done(Barriers.BROKEN)

    def withdraw(self, request: Request) -> None:
        """It waits no more, so the others would wait for ever."""
        waited = request in self.waiting or request in self.early
        self.waiting.pop(request, None)
        self.early.pop(request, None)
        if waited:
            self._break()

    def died(self, party: Party) -> None:
        """It will not come any more."""
        if party in self.members:
            self._break()

    def depart(self, party: Party) -> None:
        """Who runs the action does not come back from it."""
        self.members.discard(party)
        if self.acting is not None and self.acting[0] == party:
            self._break()


__all__ = ["Barrier"]
