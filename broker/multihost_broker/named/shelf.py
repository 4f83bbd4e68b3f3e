"""The items of one named queue: which there are, in which order, which of them are in memory; and what the journal is told."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from multihost_broker.detached.scribe import Scribe
from multihost_broker.journal.records import Erase, Record, Spooled
from multihost_broker.named.books import GONE, ITEMS, LAST, MARK, PROGRESS, PUT, Block, Sender, Span
from multihost_common.blocks import Frame
from multihost_common.named import PLACE_BITS

#: Bytes of a queue's items that are in memory before what is put stays on the disk alone, and of all queues'.
MEMORY = 16 << 20
ALL_MEMORY = 256 << 20
#: Bytes, and records, that are read at once.
AHEAD = 4 << 20
MOST_READ = 256
#: Records that are not needed any more, of which the journal is told at once.
ERASED = 64

_PLACE = (1 << PLACE_BITS) - 1


class Budget:
    """Bytes of all queues' items that are in memory."""

    def __init__(self, limit: int = ALL_MEMORY) -> None:
        self.limit = limit
        self.used = 0


class Shelf:
    """See the module. ``stirred`` is called when items have been read, ``note`` with a line for the log; ``now`` tells the
    wall clock. Items are in ``ready``, or with those who were handed them."""

    def __init__(
        self,
        queue: bytes,
        scribe: Scribe,
        budget: Budget,
        now: Callable[[], float],
        note: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.queue = queue
        self.scribe = scribe
        self._budget = budget
        self._now = now
        self._note = note
        self.stirred: Callable[[], None] = lambda: None
        self.ready: deque[Span] = deque()
        #: Items in ``ready``.
        self.count = 0
        #: Items that were not accepted, wherever they are; and bytes of their blocks.
        self.left = 0
        self.bytes = 0
        #: Bytes in memory.
        self.loaded = 0
        #: Items, and bytes, that are on their way to the disk.
        self.unsynced = 0
        self.unsynced_bytes = 0
        self.blocks: dict[int, Block] = {}
        self.senders: dict[bytes, Sender] = {}
        self.garbage: list[int] = []
        #: The queue was deleted.
        self.gone = False
        self._reading = False

    # -- putting -------------------------------------------------------------------------------------

    def sender(self, client: bytes) -> Sender:
        """What is known of this end."""
        found = self.senders.get(client)
        if found is None:
            found = self.senders[client] = Sender()
        return found

    def put(
        self, client: bytes, number: int, frames: Sequence[Frame], count: int, then: Callable[[bool], None]
    ) -> None:
        """Take in PUT ``number`` of this end, unless it is here. ``then`` is called with whether it is durable."""
        sender = self.sender(client)
        if number <= sender.stored:
            then(True)
        elif sender.halted:
            then(False)
        elif number <= sender.written:
            self.scribe.follow(lambda: then(sender.stored >= number))
        else:
            self._write(client, sender, number, frames, count, then)

    def _write(
        self,
        client: bytes,
        sender: Sender,
        number: int,
        frames: Sequence[Frame],
        count: int,
        then: Callable[[bool], None],
    ) -> None:
        sender.written = number
        size = sum(map(len, frames[1:]))
        block = Block(self.scribe.next, count, size, client, len(frames) > 2)
        block.load(frames)
        self.unsynced += count
        self.unsynced_bytes += size
        self.scribe.write(
            Record(ITEMS, self.queue, PUT.pack(number, count) + client, tuple(frames)),
            partial(self._stored, block, sender, sender.round, number, then),
            partial(self._refused, block, sender, sender.round, then),
        )

    def _written(self, block: Block) -> None:
        self.unsynced -= block.count
        self.unsynced_bytes -= sum(map(len, (block.frames or ())[1:]))

    def _stored(
        self, block: Block, sender: Sender, round: int, number: int, then: Callable[[bool], None]
    ) -> None:
        self._written(block)
        if self.gone:
            return
        if sender.halted or sender.round != round:
            # It comes again, behind what was refused before it.
            self.erase([block.ticket])
            then(False)
            return
        sender.stored = number
        self._follow(sender, block.ticket)
        self._enter(block)
        if (
            self.loaded + block.size > MEMORY
            or self._budget.used + block.size > self._budget.limit
            or (len(self.ready) > 1 and self.ready[-2].block.frames is None)
        ):
            block.unload()
        else:
            self._count(block.size)
        then(True)

    def _refused(self, block: Block, sender: Sender, round: int, then: Callable[[bool], None]) -> None:
        self._written(block)
        if sender.round == round:
            sender.halted = True
        then(False)

    def _follow(self, sender: Sender, ticket: int) -> None:
        """This block is the sender's last one by now."""
        sender.newest = ticket
        if sender.mark:
            self.garbage.append(sender.mark)
            sender.mark = 0

    def _enter(self, block: Block) -> None:
        self.blocks[block.ticket] = block
        self.left += block.left
        self.bytes += block.size
        self._append(Span(block, 0, block.count))

    def _append(self, span: Span) -> None:
        self.ready.append(span)
        self.count += len(span)
        span.block.ready += len(span)

    # -- what is in memory ---------------------------------------------------------------------------

    def _count(self, size: int) -> None:
        self.loaded += size
        self._budget.used += size

    def _unload(self, block: Block) -> None:
        if block.frames is not None:
            block.unload()
            self._count(-block.size)

    def available(self) -> bool:
        """Can the next item be handed out? If it is on the disk, it is read."""
        if self.ready and self.ready[0].block.frames is not None:
            return True
        if self.ready:
            self._read()
        return False

    def _read(self) -> None:
        if self._reading:
            return
        wanted: dict[int, None] = {}
        size = 0
        for span in self.ready:
            block = span.block
            if block.frames is None and block.ticket not in wanted:
                if wanted and size + block.size > AHEAD:
                    break
                wanted[block.ticket] = None
                size += block.size
            if len(wanted) == MOST_READ:
                break
        self._reading = True
        self.scribe.read(tuple(wanted), partial(self._have_read, tuple(wanted)))

    def _have_read(self, wanted: tuple[int, ...], records: dict[int, Record]) -> None:
        self._reading = False
        if self.gone:
            return
        for ticket in wanted:
            block, record = self.blocks.get(ticket), records.get(ticket)
            if block is None or block.frames is not None or not block.ready:
                continue
            if record is None or isinstance(record.payload, Spooled):
                self._note(f"{block.left} items of a queue were damaged on the broker's disk")
                self.accept([(ticket << PLACE_BITS, block.count)])
            else:
                block.load(record.payload)
                self._count(block.size)
        self.stirred()

    # -- getting -------------------------------------------------------------------------------------

    def cut(self, left: int, room: int) -> list[Span]:
        """The next items, one or more: at most so many, and what goes into one message of so many bytes. The first one is
        available."""
        ready, spans = self.ready, list[Span]()
        while left and ready and ready[0].block.frames is not None and not (spans and ready[0].block.alone):
            span = ready[0]
            count = min(left, span.within(room))
            if not count and spans:
                break
            count = count or 1
            spans.append(ready.popleft() if count == len(span) else span.cut(count))
            left -= count
            room -= spans[-1].size
            if span.block.alone:
                break
        self.count -= sum(map(len, spans))
        return spans

    def handed(self, spans: Iterable[Span]) -> None:
        """The frames of these are on their way."""
        for span in spans:
            span.block.ready -= len(span)
            if not span.block.ready:
                self._unload(span.block)

    def put_back(self, spans: Iterable[Span]) -> None:
        """These were handed to somebody, and come back before all that came after them, but for what was accepted."""
        back = [part for span in spans for part in span.block.present(span.first, span.last)]
        if not back:
            return
        for span in back:
            self.count += len(span)
            span.block.ready += len(span)
        last = max(span.number for span in back)
        while self.ready and self.ready[0].number < last:
            back.append(self.ready.popleft())
        self.ready.extendleft(sorted(back, key=lambda span: -span.number))

    def pick(self, items: Iterable[int]) -> list[Span]:
        """Take these out of ``ready``, as far as they are there."""
        wanted = set(items)
        picked: list[Span] = []
        kept: deque[Span] = deque()
        for span in self.ready:
            base = span.block.ticket << PLACE_BITS
            places = [at for at in range(span.first, span.last) if base | at in wanted] if wanted else []
            if not places:
                kept.append(span)
                continue
            for at in places:
                picked.append(Span(span.block, at, at + 1))
                if at > span.first:
                    kept.append(span.cut(at - span.first))
                span.first = at + 1
            if len(span):
                kept.append(span)
        self.ready = kept
        self.count -= len(picked)
        self.handed(picked)
        return picked

    # -- the end of items ----------------------------------------------------------------------------

    def accept(self, rows: Iterable[tuple[int, int]], held: bool = False) -> int:
        """These items are with their users, and are no more; how many of them were there. ``held``: none of them is in
        ``ready``."""
        changed: dict[int, Block] = {}
        total = 0
        for first, count in rows:
            block = self.blocks.get(first >> PLACE_BITS)
            taken = block.take(first & _PLACE, count) if block is not None else 0
            if block is not None and taken:
                changed[block.ticket] = block
                total += taken
        self.left -= total
        if not held and any(block.ready for block in changed.values()):
            self._sift(changed)
        for block in changed.values():
            self._note_change(block)
        if self.garbage and (changed or len(self.garbage) >= ERASED):
            self.erase()
        return total

    def _sift(self, changed: dict[int, Block]) -> None:
        """Drop from ``ready`` what was accepted."""
        kept: deque[Span] = deque()
        for span in self.ready:
            if span.block.ticket in changed:
                parts = list(span.block.present(span.first, span.last))
                missing = len(span) - sum(map(len, parts))
                self.count -= missing
                span.block.ready -= missing
                kept.extend(parts)
            else:
                kept.append(span)
        self.ready = kept

    def _note_change(self, block: Block) -> None:
        """Have it written which items of this block are gone."""
        noted, block.noted = block.noted, 0
        if noted:
            self.garbage.append(noted)
        if block.left:
            bits = block.gone.to_bytes(-(-block.count // 8), "little")
            block.noted = self.scribe.write(
                Record(PROGRESS, self.queue, GONE.pack(block.ticket) + bits), essential=True
            )
            return
        self._unload(block)
        del self.blocks[block.ticket]
        self.bytes -= block.size
        sender = self.senders.get(block.sender)
        if sender is not None and sender.newest == block.ticket:
            # Who has put it may not know yet that it was stored, and put it once more.
            sender.newest, sender.when = 0, self._now()
            header = LAST.pack(sender.stored, sender.when) + block.sender
            sender.mark = self.scribe.write(Record(MARK, self.queue, header), essential=True)
        self.garbage.append(block.ticket)

    def erase(self, tickets: Iterable[int] = ()) -> None:
        """Have the journal drop these, and all that is not needed any more."""
        garbage, self.garbage = [*self.garbage, *tickets], []
        if garbage:
            self.scribe.write(Erase(tuple(garbage)), essential=True)

    def purge(self) -> int:
        """All that is in ``ready`` is no more; how many items that were."""
        spans, self.ready = self.ready, deque()
        self.count = 0
        for span in spans:
            span.block.ready = 0
        return self.accept([(span.number, len(span)) for span in spans], held=True)

    def forget_senders(self, before: float, here: Iterable[bytes], most: int) -> None:
        """Ends that are not here, that have no items and were last heard of before then, or there are more than so many."""
        present = set(here)
        idle = [
            (sender.when, client)
            for client, sender in self.senders.items()
            if client not in present and not sender.newest and sender.written == sender.stored
        ]
        idle.sort()
        for place, (when, client) in enumerate(idle):
            if when < before or len(idle) - place > most:
                mark = self.senders.pop(client).mark
                self.garbage += [mark] if mark else []
        self.erase()

    def clear(self) -> None:
        """The queue was deleted."""
        self.gone = True
        self._count(-self.loaded)

    # -- what an earlier start has left ----------------------------------------------------------------

    def restore(self, ticket: int, record: Record) -> None:
        """A record of kinds ITEMS, PROGRESS, MARK. Raises struct.error or IndexError for what is none."""
        header = record.header
        if record.kind == ITEMS:
            block = Block.restored(ticket, record)
            number, _ = PUT.unpack_from(header)
            sender = self.sender(block.sender)
            if number > sender.stored:
                sender.stored = sender.written = number
                self._follow(sender, ticket)
            self._enter(block)
        elif record.kind == MARK:
            number, when = LAST.unpack_from(header)
            sender = self.sender(header[LAST.size :])
            if number < sender.stored:
                self.garbage.append(ticket)
                return
            sender.stored = sender.written = number
            self._follow(sender, 0)
            sender.mark, sender.when = ticket, when
        else:
            self._restore_progress(ticket, header)

    def _restore_progress(self, ticket: int, header: bytes) -> None:
        (of,) = GONE.unpack_from(header)
        block = self.blocks.get(of)
        if block is None:
            self.garbage.append(ticket)
            return
        if block.noted:
            self.garbage.append(block.noted)
        block.noted = ticket
        was = block.left
        block.gone |= int.from_bytes(header[GONE.size :], "little") & ((1 << block.count) - 1)
        block.left = block.count - block.gone.bit_count()
        self.left -= was - block.left

    def restored(self) -> None:
        """All records of it are known."""
        spans, self.ready = self.ready, deque()
        self.count = 0
        for span in spans:
            span.block.ready = 0
            for part in span.block.present(span.first, span.last):
                self._append(part)
        for block in [block for block in self.blocks.values() if not block.left]:
            self._note_change(block)
        self.erase()


__all__ = ["ALL_MEMORY", "MEMORY", "Budget", "Shelf"]
