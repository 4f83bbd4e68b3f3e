"""A condition: who waits for a notification, and who has been notified and not woken yet."""

from __future__ import annotations

from itertools import islice

from multihost_broker.objects.machine import Machine, Party, Request
from multihost_common.shared import CONDITION, Conditions


class Condition(Machine):
    """Made without anything. Its lock is an object of its own; who waits enlists here before releasing it.

    A notification is one for whoever waited when it was sent. It counts as taken once its receiver says so. Until then
    it passes to another one who waited at that time, should the receiver die.
    """

    kind = CONDITION

    def __init__(self, make: Request) -> None:
        super().__init__(make)
        #: Counts waits and notifications in the order in which they came.
        self._clock = 0
        #: Who waits, in this order, and since when.
        self.waiting: dict[Request, int] = {}
        #: (process, number of its request) -> when it was notified.
        self.notified: dict[tuple[Party, int], int] = {}

    def act(self, request: Request) -> None:
        """See :class:`multihost_common.shared.Conditions`."""
        self._clock += 1
        if request.op == Conditions.WAIT:
            self._wait(request)
        elif request.op == Conditions.NOTIFY:
            self._notify(request.amount, self._clock)
            request.done()
        elif request.op == Conditions.WOKEN:
            self.notified.pop((request.party, request.amount), None)
            request.done()
        elif request.op == Conditions.PASS:
            self._pass((request.party, request.amount))
            request.done()
        elif request.op == Conditions.COUNT:
            request.done(len(self.waiting))
        else:
            request.refuse("a condition knows no such operation")

    def _wait(self, request: Request) -> None:
        if request.now:
            request.busy()
        else:
            request.waits = True
            self.waiting[request] = self._clock

    def _notify(self, count: int, when: int) -> None:
        for each in list(islice(self.waiting, min(count, len(self.waiting)))):
            if self.waiting[each] > when:
                break
            del self.waiting[each]
            self.notified[each.party, each.number] = when
            each.done()

    def _pass(self, key: tuple[Party, int]) -> None:
        """Another one gets this notification, who waited when it was sent."""
        when = self.notified.pop(key, None)
        if when is not None:
            self._notify(1, when)

    def withdraw(self, request: Request) -> None:
        """It does not wait any more."""
        self.waiting.pop(request, None)

    def depart(self, party: Party) -> None:
        """What it was notified of and did not act upon is for others."""
        for key in [each for each in self.notified if each[0] == party]:
            self._pass(key)


__all__ = ["Condition"]
