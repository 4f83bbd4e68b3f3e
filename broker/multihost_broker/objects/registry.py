"""Which objects there are, who uses them, and what is waiting: the door to the machines."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from multihost_broker.ledger import Ledger
from multihost_broker.objects.machine import Machine, Party, Request
from multihost_broker.objects.room import Room
from multihost_broker.sessions import Session
from multihost_common import messages as m


class Objects:
    """Every shared object of this broker.

    An object lives until the process that made it is gone, or has closed it (pipes: as long as others use them); with the session of a script go the
    objects of the children that ran its work.
    """

    def __init__(self, ledger: Ledger, kinds: dict[int, type[Machine]], room: int = 0) -> None:
        self._ledger = ledger
        self._kinds = kinds
        #: For the items of all queues.
        self.room = Room(room)
        self.machines: dict[bytes, Machine] = {}
        #: Object -> the session that made it; session -> its objects.
        self._makers: dict[bytes, Party] = {}
        self._made: dict[Party, dict[bytes, None]] = {}
        #: Session -> the objects that it has used.
        self._used: dict[Party, dict[bytes, None]] = {}
        #: (session, number) -> the request, and the object it is of; object -> its requests.
        self._waiting: dict[tuple[Party, int], tuple[Request, bytes]] = {}
        self._waiting_at: dict[bytes, dict[Request, None]] = {}
        #: Finds or makes an object that has a name of its own, or answers the request itself.
        self.opener: Callable[[bytes, Request], Machine | None] = _none
        self.reactions: dict[type, Callable[[Session, Any], None]] = {m.Act: self._on_act}

    def _on_act(self, session: Session, act: m.Act) -> None:
        request = Request(session.number, act, self._reply)
        if act.op == m.WITHDRAW:
            self._withdraw(session.number, act.amount)
        elif act.op == m.MAKE:
            self._make(act.object, request)
        elif act.op in (m.OPEN, m.DELETE):
            if self.opener(act.object, request) is not None:
                self._ask(act.object, request)
        else:
            self._ask(act.object, request)
        self.room.settle()

    def _reply(self, request: Request, acted: m.Acted) -> None:
        waiting = self._waiting.pop((request.party, request.number), None)
        if waiting is not None:
            self._waiting_at[waiting[1]].pop(request, None)
        session = self._ledger.sessions.by_number.get(request.party)
        if request.number and session is not None:
            self._ledger.tell(session, acted)

    # -- requests ------------------------------------------------------------------------------------

    def _make(self, name: bytes, request: Request) -> None:
        kind = self._kinds.get(request.amount)
        if name in self.machines or len(name) != m.OBJECT or kind is None:
            request.refuse("no such object can be made")
            return
        try:
            machine = self.machines[name] = kind(request)
        except ValueError as error:
            request.refuse(str(error))
            return
        machine.share(self.room)
        self._makers[name] = request.party
        self._made.setdefault(request.party, {})[name] = None
        self._used.setdefault(request.party, {})[name] = None
        request.done()

    def _ask(self, name: bytes, request: Request) -> None:
        machine = self.machines.get(name)
        if machine is None:
            request.done(status=m.UNKNOWN)
            return
        if request.op == m.CLOSE:
            self._close(name, machine, request.party)
            request.done()
            return
        if (request.party, request.number) in self._waiting:
            return
        self._used.setdefault(request.party, {})[name] = None
        machine.act(request)
        if request.waits:
            self._waiting[request.party, request.number] = request, name
            self._waiting_at.setdefault(name, {})[request] = None
        if machine.over:
            self.forget(name)

    def _withdraw(self, party: Party, number: int) -> None:
        waiting = self._waiting.get((party, number))
        if waiting is not None and not waiting[0].settled:
            request, name = waiting
            self.machines[name].withdraw(request)
            request.withdrawn()

    # -- the end -------------------------------------------------------------------------------------

    def _close(self, name: bytes, machine: Machine, party: Party) -> None:
        if self._makers.get(name) == party:
            self.forget(name)
        else:
            self._leave(name, machine, party)

    def _leave(self, name: bytes, machine: Machine, party: Party, died: bool = False) -> None:
        """The process uses this object no more."""
        self._used.get(party, {}).pop(name, None)
        for request in list(self._waiting_at.get(name, ())):
            # One withdrawal may answer others, too.
            if request.party == party and request.waits:
                machine.withdraw(request)
                request.withdrawn()
        if died:
            machine.died(party)
        machine.depart(party)
        if machine.over:
            self.forget(name)

    def forget(self, name: bytes) -> None:
        """The object is no more; who waits is told so."""
        machine = self.machines.pop(name)
        maker = self._makers.pop(name, None)
        if maker is not None:
            self._made[maker].pop(name, None)
        for used in self._used.values():
            used.pop(name, None)
        for request in list(self._waiting_at.get(name, ())):
            if request.waits:
                machine.withdraw(request)
                request.done(status=m.UNKNOWN)
        self._waiting_at.pop(name, None)
        machine.forgotten()

    def ended(self, session: Session, died: bool, parent: Session | None = None) -> None:
        """This session is over: free what it held, and what it made is no more. ``died``: it did not leave by itself.
        ``parent`` gets what outlives its maker."""
        party = session.number
        for name in list(self._used.get(party, ())):
            machine = self.machines.get(name)
            if machine is not None:
                self._leave(name, machine, party, died)
        self._used.pop(party, None)
        for name in list(self._made.get(party, ())):
            if parent is not None and self.machines[name].outlives:
                self._makers[name] = parent.number
                self._made.setdefault(parent.number, {})[name] = None
            else:
                self.forget(name)
        self._made.pop(party, None)
        self.room.settle()


def _none(name: bytes, request: Request) -> None:
    """There is no object that has a name of its own."""
    request.refuse("there are no such objects here")


__all__ = ["Objects"]
