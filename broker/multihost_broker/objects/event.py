"""An event: a flag, and who waits until it is set."""

from __future__ import annotations

from multihost_broker.objects.machine import Machine, Party, Request
from multihost_common.shared import EVENT, Events


class Event(Machine):
    """Made without anything; the flag is not set."""

    kind = EVENT

    def __init__(self, make: Request) -> None:
        super().__init__(make)
        self.flag = False
        #: In the order in which they came.
        self.waiting: dict[Request, None] = {}

    def act(self, request: Request) -> None:
        """See :class:`multihost_common.shared.Events`."""
        if request.op == Events.WAIT:
            self._wait(request)
        elif request.op == Events.SET:
            self.flag = True
            request.done()
            released, self.waiting = self.waiting, {}
            for each in released:
                each.done()
        elif request.op == Events.CLEAR:
            self.flag = False
            request.done()
        elif request.op == Events.IS_SET:
            request.done(int(self.flag))
        else:
            request.refuse("an event knows no such operation")

    def _wait(self, request: Request) -> None:
        if self.flag:
            request.done()
        elif request.now:
            request.busy()
        else:
            request.waits = True
            self.waiting[request] = None

    def withdraw(self, request: Request) -> None:
        """It does not wait any more."""
        self.waiting.pop(request, None)

    def depart(self, party: Party) -> None:
        """Nobody holds an event."""


__all__ = ["Event"]
