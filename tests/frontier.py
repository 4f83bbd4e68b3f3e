"""A broker's core with a named queue, a disk that syncs when it is told to, and processes that use the queue."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import Any

from simulation.journals import VirtualJournal

from multihost_broker import core as broker
from multihost_broker import events as be
from multihost_common import messages as m
from multihost_common.blocks import pack_lengths, unpack_lengths
from multihost_common.named import items_of, object_of, rows_of, unpack_items
from multihost_common.shared import NamedQueues
from multihost_common.tables import pack_rows

NAME = "frontier"


class Client:
    """A process that uses the queue: one end of it, in whichever session."""

    def __init__(self, site: Site, name: str) -> None:
        self.site = site
        self.name = name
        self.id = name.encode().ljust(16, b".")
        self.puts = 0
        self.maxsize = self.ticket = 0
        self.hello()

    def hello(self) -> None:
        """Say Hello to the broker that is there."""
        self.peer = f"{self.name}{next(self.site.numbers)}"
        self.site.tell(be.Received(self.peer, m.PRODUCER, m.Hello(m.PRODUCER, m.PROTOCOL_VERSION, "3.11", 5)))

    def bye(self) -> None:
        """It has ended, or was killed."""
        self.site.tell(be.Received(self.peer, m.PRODUCER, m.Bye()))

    def begin(
        self, op: int, amount: int = 0, frames: Sequence[bytes] = (), now: bool = False, object: bytes = b""
    ) -> int:
        """Ask, with nothing becoming durable yet; the number of the request."""
        number = next(self.site.numbers)
        act = m.Act(number, object or object_of(NAME), op, amount, now, frames=frames)
        self.site.tell(be.Received(self.peer, m.PRODUCER, m.decode(m.encode(act))))
        return number

    def ask(self, *args: Any, **options: Any) -> m.Acted | None:
        """Ask, and let the disk do its work; the answer, None while it waits."""
        number = self.begin(*args, **options)
        self.site.sync()
        return self.site.answers.get(number)

    def open(
        self, gets: bool = True, accepted: Sequence[int] = (), kept: Sequence[int] = (), name: str = NAME
    ) -> m.Acted | None:
        frames = [
            name.encode(),
            self.id,
            pack_rows([(self.maxsize, self.ticket)]),
            rows_of(accepted),
            rows_of(kept),
        ]
        acted = self.ask(m.OPEN, int(gets), frames, object=object_of(name))
        if acted is not None and acted.status == m.GRANTED:
            self.ticket = acted.amount
        return acted

    def put(self, *items: str, number: int = 0, now: bool = False) -> int:
        """Put these, nothing becoming durable yet."""
        self.puts += 1
        data = [item.encode() for item in items]
        frames = [pack_lengths([len(each) for each in data]), b"".join(data)]
        return self.begin(NamedQueues.PUT, number or self.puts, frames, now)

    def stored(self, *items: str, number: int = 0) -> bool:
        """Put these, and was it confirmed?"""
        asked = self.put(*items, number=number)
        self.site.sync()
        acted = self.site.answers.get(asked)
        return acted is not None and (acted.status, acted.amount) == (m.GRANTED, 0)

    def get(self, window: int = 1, kept: int = 0, now: bool = False) -> int:
        asked = self.begin(NamedQueues.GET, kept << NamedQueues.WINDOW_BITS | window, now=now)
        self.site.sync()
        return asked

    def items(self, asked: int) -> dict[int, str] | None:
        """What this GET was answered with, by number; None: it was not."""
        acted = self.site.answers.get(asked)
        if acted is None or acted.status != m.GRANTED:
            return None
        *frames, table = acted.frames
        data, found, begin = bytes(frames[1]), [], 0
        for length in unpack_lengths(frames[0]):
            found.append(data[begin : begin + length].decode())
            begin += length
        return dict(zip(items_of(unpack_items(table)), found, strict=True))

    def got(self, window: int = 1, kept: int = 0) -> dict[int, str]:
        """Items that there are, by number."""
        found = self.items(self.get(window, kept))
        assert found is not None
        return found

    def take(self, *items: int) -> m.Acted | None:
        return self.ask(NamedQueues.TAKEN, 0, [rows_of(items)])

    def size(self, kept: int = 0) -> int:
        acted = self.ask(NamedQueues.SIZE, kept)
        assert acted is not None
        return acted.amount


class Site:
    """A broker's core and its journal, in a time of their own."""

    def __init__(self) -> None:
        self.now = 100.0
        self.numbers = count(1)
        self.journal = VirtualJournal()
        self.answers: dict[int, m.Acted] = {}
        self.told: list[m.Message] = []
        self.reads: list[be.Read] = []
        self.notes: list[str] = []
        self.core = broker.Core()

    def tell(self, event: be.Event) -> None:
        self._carry_out(self.core.handle(event, self.now))

    def _carry_out(self, actions: Sequence[be.Action]) -> None:
        for action in actions:
            if isinstance(action, be.Write):
                self.journal.write(action)
            elif isinstance(action, be.Read):
                self.reads.append(action)
            elif isinstance(action, be.Note):
                self.notes.append(action.text)
            elif isinstance(action, be.Send) and isinstance(action.message, m.Acted):
                assert action.message.number not in self.answers, "answered twice"
                self.answers[action.message.number] = action.message
            elif isinstance(action, be.Send):
                self.told.append(action.message)

    def sync(self) -> None:
        """Let the disk do all there is to do."""
        while self.journal.pending or self.reads:
            if self.journal.pending:
                self.tell(self.journal.sync())
            if self.reads:
                self.tell(self.journal.read(self.reads.pop(0)))

    def restart(self) -> None:
        """The broker is killed, and another one begins with its journal."""
        self.journal.crash()
        self.reads.clear()
        epoch = self.core.config.epoch + 1000
        self.core = broker.Core(broker.CoreConfig(epoch=epoch, last_ticket=self.journal.last))
        self._carry_out(self.core.restore(self.journal.load(), self.now))

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.tell(be.Tick())
        self.sync()

    def client(self, name: str, gets: bool = True, maxsize: int = 0) -> Client:
        made = Client(self, name)
        made.maxsize = maxsize
        made.open(gets)
        return made

    def ask(self, what: str, about: str = "") -> m.Message:
        """What an operator is told."""
        peer = f"admin{next(self.numbers)}"
        self.tell(be.Received(peer, m.ADMIN, m.Hello(m.ADMIN, m.PROTOCOL_VERSION, "", 5)))
        self.told.clear()
        self.tell(be.Received(peer, m.ADMIN, m.Ask(what, about)))
        self.sync()
        return next(each for each in self.told if isinstance(each, (m.Answer, m.Refused)))

    @property
    def records(self) -> list[int]:
        """Kinds of what is on the disk."""
        return sorted(record.kind for record in self.journal.records.values())
