"""What one consumer of a queue has early is asked back when another one waits for an item."""

from __future__ import annotations

from typing import Protocol

from multihost_broker.objects.machine import Party, Request


class Holder(Protocol):
    """A consumer, of which it is known what it has."""

    def spare(self) -> int:
        """Items that wait there for their user."""
        raise NotImplementedError


class Recall:
    """The consumers that can be told to give back what they have early: each by a LISTEN, which is answered then."""

    def __init__(self) -> None:
        self.listening: dict[Party, tuple[Request, Holder]] = {}

    def listen(self, request: Request, holder: Holder, wanted: bool) -> None:
        """This consumer can be told from now on, and is told at once if what it has is ``wanted``."""
        request.waits = True
        self.listening[request.party] = (request, holder)
        if wanted:
            self.tell(request.party)

    def tell(self, party: Party) -> None:
        """This one is to give back what it has early, if it has anything."""
        request, holder = self.listening[party]
        if holder.spare() > 0:
            del self.listening[party]
            request.done()

    def tell_all(self) -> None:
        """All of them are to give back what they have early."""
        for party in list(self.listening):
            self.tell(party)

    def tell_others(self, parties: set[Party]) -> None:
        """These wait for an item: others are to give back what they have early."""
        for party in list(self.listening):
            if parties != {party}:
                self.tell(party)

    def withdraw(self, request: Request) -> None:
        """Nobody waits any more for the answer to this LISTEN, if it is one."""
        if self.request_of(request.party) is request:
            del self.listening[request.party]

    def request_of(self, party: Party) -> Request | None:
        """Its LISTEN that is not answered."""
        found = self.listening.get(party)
        return None if found is None else found[0]


__all__ = ["Holder", "Recall"]
