"""A pipe: two sides, messages that go from one to the other in order, and who holds a handle of which side."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from multihost_broker.objects.machine import Machine, Party, Request
from multihost_common.shared import PIPE, Pipes

if TYPE_CHECKING:
    from multihost_common.blocks import Frame

#: Messages, and bytes of them, that wait at a side before who sends more has to wait. Who sends a larger one waits until
#: it is received, as with a pipe of the system's.
MESSAGES = 1024
BYTES = 1 << 20

#: Bytes of the largest message.
LARGEST = 256 << 20

#: Messages, and bytes of them, that go to a reader at once.
BATCH = 60
BATCH_BYTES = 256 << 10

#: Messages, and bytes of them, that a process may send unanswered, before it sends one that is answered. More
#: are dropped: it does not keep to the protocol.
LOOSE = 64
LOOSE_BYTES = 256 << 10

#: Handles of one side that are on their way. Who ships more loses the first ones.
SHIPPED = 4096


class _Side:
    """One side: what has come and is not received, who waits to receive, and who waits to send to it."""

    __slots__ = ("bytes", "givers", "handles", "inbox", "loose", "readers", "shipped", "takers")

    def __init__(self) -> None:
        self.inbox: deque[Frame] = deque()
        self.bytes = 0
        #: Process -> its handles.
        self.handles: dict[Party, int] = {}
        #: Tickets of handles that are on their way.
        self.shipped: dict[bytes, None] = {}
        #: Requests to receive, or to be told when that is possible.
        self.takers: deque[Request] = deque()
        #: Requests to send to this side, while it is full.
        self.givers: deque[Request] = deque()
        #: Processes that have received here, or asked whether they could.
        self.readers: set[Party] = set()
        #: Process that sends to this side -> (messages, bytes) since the last one that was answered, or all were received.
        self.loose: dict[Party, tuple[int, int]] = {}

    def open(self) -> bool:
        return bool(self.handles or self.shipped)

    def alone(self) -> bool:
        """Is there one handle, and no more?"""
        return not self.shipped and len(self.handles) == 1 and 1 in self.handles.values()

    def room(self, size: int) -> bool:
        return len(self.inbox) < MESSAGES and self.bytes + size <= BYTES

    def put(self, message: Frame) -> None:
        self.inbox.append(message)
        self.bytes += len(message)

    def give_back(self, messages: list[Frame]) -> None:
        self.inbox.extendleft(reversed(messages))
        self.bytes += sum(map(len, messages))

    def take(self, most: int) -> list[Frame]:
        """The next message, and as many after it as go together."""
        if self.givers and not self.inbox:
            giver = self.givers.popleft()
            giver.done()
            return [giver.frames[0]]
        taken: list[Frame] = []
        size = 0
        while self.inbox and (not taken or (len(taken) < most and size + len(self.inbox[0]) <= BATCH_BYTES)):
            taken.append(self.inbox.popleft())
            size += len(taken[-1])
        self.bytes -= size
        if not self.inbox:
            self.loose.clear()
        return taken

    def clear(self) -> None:
        self.inbox.clear()
        self.bytes = 0


class Pipe(Machine):
    """See :class:`multihost_common.shared.Pipes`.

    A side is open while there is a handle of it. With the last one goes what has not been received; at the other
    side what has come can be received still, then that is at its end, and nothing can be sent.
    """

    kind = PIPE
    outlives = True

    def __init__(self, make: Request) -> None:
        super().__init__(make)
        self.sides = _Side(), _Side()
        #: Only side 0 receives.
        self.one_way = len(make.frames) > 1 and bytes(make.frames[1]) == b"\1"
        for side in self.sides:
            side.handles[make.party] = 1
        self._operations = {
            Pipes.SEND: self._send,
            Pipes.RECV: self._recv,
            Pipes.POLL: self._recv,
            Pipes.OPEN: self._open,
            Pipes.SHUT: self._shut,
            Pipes.SHIP: self._ship,
            Pipes.VOID: self._void,
            Pipes.CALL: self._call,
        }

    @property
    def over(self) -> bool:
        """There is no handle of it any more, nor will there be."""
        return not any(side.open() for side in self.sides)

    def act(self, request: Request) -> None:
        """See :class:`multihost_common.shared.Pipes`."""
        operation = self._operations.get(request.op)
        if operation is None:
            request.refuse("a pipe knows no such operation")
        else:
            operation(request, request.amount & 1)

    # -- messages ------------------------------------------------------------------------------------

    def _send(self, request: Request, at: int) -> None:
        to = self.sides[1 - at]
        if len(request.frames) != 1 or (self.one_way and at == 0):
            request.refuse("one message at a time, by a side that sends")
        elif len(request.frames[0]) > LARGEST:
            size = len(request.frames[0]) >> 20
            request.refuse(f"a message of {size} MiB is too large for a pipe: it takes {LARGEST >> 20} MiB")
        elif not to.open():
            request.done(1)
        elif not request.number:
            self._send_loosely(request, to, 1 - at)
        elif not to.givers and to.room(len(request.frames[0])):
            self._accept(request, to)
            self._serve(1 - at)
        elif request.now:
            request.busy()
        else:
            request.waits = True
            to.givers.append(request)
            self._serve(1 - at)

    def _call(self, request: Request, at: int) -> None:
        """What comes next for a process that sends and receives in turns goes to it before it asks."""
        if self.one_way or len(request.frames) != 1:
            request.refuse("one message at a time, by a side that sends and receives")
            return
        to = self.sides[1 - at]
        if to.open():
            self._send_loosely(request, to, 1 - at)
        if self.sides[at].readers == {request.party}:
            self._recv(request, at)
        else:
            request.busy()

    def _send_loosely(self, request: Request, to: _Side, side: int) -> None:
        messages, size = to.loose.get(request.party, (0, 0))
        to.loose[request.party] = messages + 1, size + len(request.frames[0])
        if messages < LOOSE and size < LOOSE_BYTES:
            to.put(request.frames[0])
            self._serve(side)

    def _accept(self, request: Request, to: _Side) -> None:
        to.loose.pop(request.party, None)
        to.put(request.frames[0])
        request.done()

    def _recv(self, request: Request, at: int) -> None:
        side = self.sides[at]
        if request.party not in side.readers:
            self._joins(request.party, side)
        if self.one_way and at == 1:
            request.refuse("this side only sends")
        elif self._tells(at):
            self._answer(request, at)
            self._serve(at)
        elif request.now:
            request.busy()
        elif request.number:
            request.waits = True
            side.takers.append(request)

    def _joins(self, party: Party, side: _Side) -> None:
        """One more process receives here: nothing goes to another one that has not asked for it."""
        side.readers.add(party)
        for each in list(side.takers):
            if each.op == Pipes.CALL:
                side.takers.remove(each)
                each.busy()

    def _tells(self, at: int) -> bool:
        """Is there a message, or will there never be one?"""
        side = self.sides[at]
        return bool(side.inbox or side.givers) or not self.sides[1 - at].open()

    def _answer(self, request: Request, at: int) -> None:
        side = self.sides[at]
        if request.op == Pipes.POLL:
            request.done()
            return
        taken = side.take(min(request.amount >> 1, BATCH) if side.alone() else 1)
        self._admit(side)
        request.done(len(taken) | (Pipes.MORE if self._tells(at) else 0), taken)

    def _admit(self, side: _Side) -> None:
        """Take in what waited for room, as far as there is some now."""
        while side.givers and side.room(len(side.givers[0].frames[0])):
            self._accept(side.givers.popleft(), side)

    def _serve(self, at: int) -> None:
        """Answer who waits to receive, as far as that goes."""
        side = self.sides[at]
        while side.takers and self._tells(at):
            self._answer(side.takers.popleft(), at)

    # -- handles -------------------------------------------------------------------------------------

    def _open(self, request: Request, at: int) -> None:
        side = self.sides[at]
        if request.frames:
            side.shipped.pop(bytes(request.frames[0]), None)
        side.handles[request.party] = side.handles.get(request.party, 0) + 1
        request.done()

    def _shut(self, request: Request, at: int) -> None:
        handles = self.sides[at].handles
        left = handles.get(request.party, 0) - 1
        if left > 0:
            handles[request.party] = left
        else:
            handles.pop(request.party, None)
        request.done()
        self._settle()

    def _ship(self, request: Request, at: int) -> None:
        side = self.sides[at]
        if request.frames:
            if len(request.frames[0]):
                side.shipped[bytes(request.frames[0])] = None
            side.give_back(list(request.frames[1:]))
            if len(side.shipped) > SHIPPED:
                del side.shipped[next(iter(side.shipped))]
            self._serve(at)
        request.done()

    def _void(self, request: Request, at: int) -> None:
        if request.frames:
            self.sides[at].shipped.pop(bytes(request.frames[0]), None)
        request.done()
        self._settle()

    def _settle(self) -> None:
        """Tell each side what the other one's end means to it."""
        for side in self.sides:
            if not side.open():
                side.clear()
                while side.givers:
                    side.givers.popleft().done(1)
        for at in (0, 1):
            self._serve(at)

    # -- the end -------------------------------------------------------------------------------------

    def withdraw(self, request: Request) -> None:
        """Nobody waits for this any more."""
        side = self.sides[request.amount & 1]
        if request.op == Pipes.SEND:
            to = 1 - (request.amount & 1)
            self.sides[to].givers.remove(request)
            # It may have kept back others, or the end from being told.
            self._admit(self.sides[to])
            self._serve(to)
        else:
            side.takers.remove(request)

    def depart(self, party: Party) -> None:
        """Its handles are no more."""
        for side in self.sides:
            side.handles.pop(party, None)
            side.loose.pop(party, None)
            side.readers.discard(party)
        self._settle()

    def size(self) -> int:
        """Bytes that have been sent and not received."""
        return sum(side.bytes for side in self.sides)


__all__ = ["Pipe"]
