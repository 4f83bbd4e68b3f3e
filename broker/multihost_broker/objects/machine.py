"""What every shared object is to the broker: a machine that takes requests and answers each of them once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar

from multihost_common import messages as m

if TYPE_CHECKING:
    from multihost_broker.objects.room import Room
    from multihost_common.blocks import Frame

#: A process that uses an object: the number of its session.
Party = int


class Request:
    """What one process asks of one object. Whoever takes it answers it once: now, or when it can be done."""

    __slots__ = ("_answer", "amount", "frames", "now", "number", "op", "party", "settled", "waits")

    def __init__(self, party: Party, act: m.Act, answer: Callable[[Request, m.Acted], None]) -> None:
        self.party = party
        self.number = act.number
        self.op = act.op
        self.amount = act.amount
        #: What is not answered cannot wait.
        self.now = act.now or not act.number
        self.frames = act.frames
        #: The machine has it, and will answer later.
        self.waits = False
        #: It is being done and cannot be withdrawn.
        self.settled = False
        self._answer = answer

    def done(self, amount: int = 0, frames: Sequence[Frame] = (), status: int = m.GRANTED) -> None:
        """It is done."""
        self._reply(m.Acted(self.number, status, amount, "", frames=frames))

    def busy(self) -> None:
        """It would have had to wait."""
        self._reply(m.Acted(self.number, m.BUSY))

    def withdrawn(self) -> None:
        """It was withdrawn."""
        self._reply(m.Acted(self.number, m.WITHDRAWN))

    def refuse(self, text: str) -> None:
        """It is not allowed, and why."""
        self._reply(m.Acted(self.number, m.FORBIDDEN, 0, text))

    def _reply(self, acted: m.Acted) -> None:
        self.waits = False
        self._answer(self, acted)


class Machine:
    """One shared object. Subclasses say what its operations do."""

    #: What a MAKE request names in ``amount``.
    kind: ClassVar[int]

    #: It goes on while others use it when the child of a worker that made it has ended, and ends with the session that has
    #: that child's pool or process.
    outlives: ClassVar[bool] = False

    def __init__(self, make: Request) -> None:
        """Made by this request; its frames are the machine's own. Raises ValueError for what makes no object."""

    def share(self, room: Room) -> None:
        """What it keeps takes of this room, which it has with others."""

    def act(self, request: Request) -> None:
        """Answer the request, or keep it (``request.waits = True``) and answer it later."""
        raise NotImplementedError

    def withdraw(self, request: Request) -> None:
        """This request, which waits, is not wanted any more: forget it. (It is answered by who calls.)"""
        raise NotImplementedError

    def died(self, party: Party) -> None:
        """The process was killed. Called before it departs; what it had asked for has been withdrawn."""

    def depart(self, party: Party) -> None:
        """The process is gone, or has closed the object; what it had asked for has been withdrawn. Free what it held."""
        raise NotImplementedError

    def forgotten(self) -> None:
        """It is no more; nobody waits."""

    @property
    def over(self) -> bool:
        """Nobody can use it any more: it is forgotten."""
        return False

    def size(self) -> int:
        """Bytes of payload that are kept here."""
        return 0


__all__ = ["Machine", "Party", "Request"]
