"""What objects have been asked and have answered, written down by somebody else, and what must hold of that."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

from multihost_broker.objects.machine import Machine
from multihost_broker.objects.queue import Queue
from multihost_common import messages as m
from multihost_common.blocks import unpack_lengths
from multihost_common.shared import CELL, QUEUE, Cells, Queues

WINDOW = (1 << Queues.WINDOW_BITS) - 1


def items_of(frames: Sequence[Any]) -> list[bytes]:
    """The items in the frames of a PUT, or of the answer to a GET."""
    data, at, items = bytes(frames[1]), 0, list[bytes]()
    for length in unpack_lengths(frames[0]):
        items.append(data[at : at + length])
        at += length
    assert at == len(data), "lengths add up"
    return items


class Ledger:
    """Of one object."""

    def asked(self, party: int, act: m.Act) -> None:
        """This has arrived, and is dealt with next."""

    def answered(self, party: int, act: m.Act, acted: m.Acted) -> None:
        """This is the answer."""

    def parts(self, party: int) -> None:
        """The party is gone, and what it had is dealt with next."""

    def audit(self, machine: Machine) -> None:
        """The object is as it must be."""


class QueueLedger(Ledger):
    """Each item is in one place: ready, with one process, or taken; and they are handed out in their order."""

    def __init__(self) -> None:
        #: In the order in which they came; and so many of them have been handed out once.
        self.accepted: list[bytes] = []
        self._known: set[bytes] = set()
        self.handed = 0
        #: Party -> number -> item.
        self.early: dict[int, dict[int, bytes]] = {}
        self.next: dict[int, int] = {}
        self.ready: set[bytes] = set()
        self.taken: set[bytes] = set()
        #: What was to be put, by party and request, as far as it has not been taken in.
        self.coming: dict[tuple[int, int], deque[bytes]] = {}
        #: Items that have come back; for those that somebody had waited for there may be no room any more.
        self.back = 0
        self.discards = False

    def asked(self, party: int, act: m.Act) -> None:
        if act.op in (Queues.TAKEN, Queues.SIZE, Queues.TASK_DONE):
            self._take(party, act.amount)
        elif act.op == Queues.GET:
            self._take(party, act.amount >> Queues.WINDOW_BITS)
        elif act.op == Queues.GIVE_BACK:
            first = act.amount >> Queues.WINDOW_BITS
            early = self.early.get(party, {})
            for number in [each for each in early if first <= each < first + (act.amount & WINDOW)]:
                self.ready.add(early.pop(number))
                self.back += 1
        elif act.op == Queues.PUT:
            self.coming[party, act.number] = deque(items_of(act.frames))
        elif act.op == Queues.SHUTDOWN and act.amount:
            self.discards = True
        elif act.op == m.CLOSE:
            self.parts(party)

    def _take(self, party: int, below: int) -> None:
        early = self.early.get(party, {})
        for number in [each for each in early if each < below]:
            self.taken.add(early.pop(number))

    def parts(self, party: int) -> None:
        early = self.early.pop(party, {})
        self.back += len(early)
        self.ready.update(early.values())
        self.next.pop(party, None)
        for key in [key for key in self.coming if key[0] == party]:
            del self.coming[key]

    def _accept(self, item: bytes) -> None:
        """This is in the queue now: it was next."""
        key = next(iter(self.coming), None)
        assert key is not None and self.coming[key][0] == item, f"{item!r} was put before its turn"
        self.coming[key].popleft()
        if not self.coming[key]:
            del self.coming[key]
        self.accepted.append(item)
        self._known.add(item)
        self.ready.add(item)

    def answered(self, party: int, act: m.Act, acted: m.Acted) -> None:
        if act.op == Queues.PUT:
            if acted.status == m.GRANTED and acted.amount != Queues.SHUT:
                for item in list(self.coming.get((party, act.number), ())):
                    self._accept(item)
            self.coming.pop((party, act.number), None)
        elif act.op == Queues.GET and acted.status == m.GRANTED and acted.frames:
            self._hand(party, acted)

    def _hand(self, party: int, acted: m.Acted) -> None:
        assert acted.amount == self.next.get(party, 0), "items are numbered from 0 on"
        again = True
        for number, item in enumerate(items_of(acted.frames), acted.amount):
            if item not in self._known:
                self._accept(item)
            assert item in self.ready, f"{item!r} is handed out, and is with somebody, or was taken"
            if self.handed < len(self.accepted) and item == self.accepted[self.handed]:
                self.handed += 1
                again = False
            else:
                assert again and item in self.accepted[: self.handed], (
                    f"{item!r} is handed out before its turn"
                )
            self.ready.discard(item)
            self.early.setdefault(party, {})[number] = item
            self.next[party] = number + 1

    def audit(self, machine: Machine) -> None:
        assert isinstance(machine, Queue)
        most = machine.maxsize + self.back
        assert not machine.maxsize or machine.items() <= most, f"{machine.items()} items, and room for {most}"
        ready = [item for run in machine.ready for item in items_of(run.frames())]
        for item in ready:
            if item not in self._known:
                self._accept(item)
        if self.discards:
            assert set(ready) <= self.ready and len(set(ready)) == len(ready), "no item is there twice"
            return
        assert sorted(ready) == sorted(self.ready), f"{sorted(ready)} are ready, and not {sorted(self.ready)}"
        for party, consumer in machine.consumers.items():
            early = [item for run in consumer.early for item in items_of(run.frames())]
            mine = [item for _, item in sorted(self.early.get(party, {}).items())]
            assert early == mine, f"{party} has {mine}, and the queue believes {early}"
        places = [*ready, *self.taken, *(item for each in self.early.values() for item in each.values())]
        assert sorted(places) == sorted(self.accepted), "each item is in one place"


class CellLedger(Ledger):
    """Reads answer what was written last."""

    def __init__(self, size: int) -> None:
        self.data = bytearray(size)

    def asked(self, party: int, act: m.Act) -> None:
        if act.op == Cells.WRITE:
            new = b"".join(map(bytes, act.frames))
            self.data[act.amount : act.amount + len(new)] = new

    def answered(self, party: int, act: m.Act, acted: m.Acted) -> None:
        if act.op == Cells.READ and acted.status == m.GRANTED:
            length, at = divmod(act.amount, Cells.SPAN)
            assert bytes(acted.frames[0]) == self.data[at : at + length], "what was written is read"


def books_of(make: m.Act) -> Ledger:
    """An empty one for the object that this makes."""
    if make.amount == QUEUE:
        return QueueLedger()
    if make.amount == CELL:
        return CellLedger(int.from_bytes(make.frames[0][:8], "little"))
    return Ledger()
