"""The machine of a queue, and processes that are numbers."""

from __future__ import annotations

from collections.abc import Sequence

from multihost_broker.objects import queue as queues
from multihost_broker.objects.machine import Request
from multihost_common import messages as m
from multihost_common.blocks import pack_lengths, unpack_lengths
from multihost_common.shared import QUEUE, Queues


class Site:
    """A queue and its processes. What is put is text, and so is what is got."""

    def __init__(self, maxsize: int = 0) -> None:
        self.numbers = 0
        self.answers: dict[int, m.Acted] = {}
        self.waiting: dict[int, Request] = {}
        make = self.request(0, m.MAKE, QUEUE, frames=[maxsize.to_bytes(8, "little")])
        self.queue = queues.Queue(make)

    def request(
        self, party: int, op: int, amount: int = 0, now: bool = False, frames: Sequence[bytes] = ()
    ) -> Request:
        self.numbers += 1
        act = m.Act(self.numbers, b"q" * m.OBJECT, op, amount, now, frames=frames)
        return Request(party, act, self._answer)

    def _answer(self, request: Request, acted: m.Acted) -> None:
        assert request.number not in self.answers, "answered twice"
        self.answers[request.number] = acted
        self.waiting.pop(request.number, None)

    def ask(
        self, party: int, op: int, amount: int = 0, now: bool = False, frames: Sequence[bytes] = ()
    ) -> int:
        request = self.request(party, op, amount, now, frames)
        self.queue.act(request)
        assert request.waits != (request.number in self.answers)
        if request.waits:
            self.waiting[request.number] = request
        return request.number

    def status(self, number: int) -> int | None:
        """None: it waits."""
        acted = self.answers.get(number)
        return None if acted is None else acted.status

    def put(self, party: int, *items: str, now: bool = False, buffers: Sequence[bytes] = ()) -> int:
        data = [item.encode() for item in items]
        frames = [pack_lengths([len(each) for each in data]), b"".join(data), *buffers]
        return self.ask(party, Queues.PUT, now=now, frames=frames)

    def get(self, party: int, window: int = 1, taken: int = 0, now: bool = False) -> int:
        return self.ask(party, Queues.GET, taken << Queues.WINDOW_BITS | window, now)

    def items(self, number: int) -> list[str]:
        """What this GET was answered with."""
        return unpacked(self.answers[number])

    def size(self, party: int = 9, taken: int = 0) -> int:
        return self.answers[self.ask(party, Queues.SIZE, taken)].amount

    def give_back(self, party: int, first: int, count: int) -> None:
        self.ask(party, Queues.GIVE_BACK, first << Queues.WINDOW_BITS | count)

    def maxsize_told(self) -> int:
        """What who puts is told of the room."""
        return self.answers[self.put(1, "a")].amount

    def withdraw(self, number: int) -> None:
        request = self.waiting.pop(number)
        self.queue.withdraw(request)
        request.withdrawn()

    def depart(self, party: int) -> None:
        for number, request in list(self.waiting.items()):
            if request.party == party:
                self.withdraw(number)
        self.queue.depart(party)


def unpacked(acted: m.Acted) -> list[str]:
    """The items in the frames of an answer."""
    assert acted.status == m.GRANTED
    if not acted.frames:
        return []
    data, found, begin = bytes(acted.frames[1]), [], 0
    for length in unpack_lengths(acted.frames[0]):
        found.append(data[begin : begin + length].decode())
        begin += length
    assert begin == len(data)
    return found
