"""The books of one detached job: what is stored of its input, what has an answer, what became of it.

All of it is durable: it is entered when the journal has it. Payloads are in the journal alone.
"""

from __future__ import annotations

import struct
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from multihost_broker.answered import Answered
from multihost_broker.sessions import Session
from multihost_common import messages as m

#: Kinds of records in the journal. Never change what a number means.
SUBMIT, PUT, SEAL, RESULT, FAILED, DEATH, ENDED, WORKERS, COLLECTED = range(1, 10)

#: What their headers begin with: (wall clock, number of the job), (start, count, chunksize), count, (start, count),
#: (item, deaths), (wall clock, state, items of input by then), workers. Behind it: the message, or its header; a reason.
SUBMITTED, BLOCK, COUNTED, RANGE, DIED, END, HINT = map(
    struct.Struct, ("<dQ", "<QII", "<Q", "<QI", "<QI", "<dBQ", "<I")
)

#: The states that a job ends in, as they are recorded.
ENDS = (m.DONE, m.BROKEN, m.STOPPED)

#: Reasons that make an item a dead letter: it is kept, to be run again once the cause is gone.
DEADLY = frozenset({m.DIED, m.MEMORY, m.TIMED_OUT, m.LOST})


class Input(NamedTuple):
    """A block of input in the journal."""

    start: int
    stop: int
    chunksize: int
    ticket: int
    size: int

    @property
    def chunks(self) -> int:
        """How many chunks it has."""
        return -(-(self.stop - self.start) // self.chunksize)


class Lent:
    """Blocks that have been handed out, and not all of whose items have an answer."""

    __slots__ = ("_blocks", "bytes", "chunks")

    def __init__(self) -> None:
        self._blocks: dict[int, Input] = {}
        self.bytes = self.chunks = 0

    def __len__(self) -> int:
        return len(self._blocks)

    def add(self, block: Input) -> None:
        """It is handed out."""
        self._blocks[block.start] = block
        self.bytes += block.size
        self.chunks += block.chunks

    def take(self, block: Input) -> int:
        """It is not out any more; its bytes, 0 if it was not."""
        known = self._blocks.pop(block.start, None)
        if known is None:
            return 0
        self.bytes -= known.size
        self.chunks -= known.chunks
        return known.size


class Answer(NamedTuple):
    """One record of answers in the journal."""

    ticket: int
    start: int
    stop: int
    size: int


@dataclass(slots=True)
class Letter:
    """A dead letter: an item that has no result, and why. ``since``: wall clock, seconds."""

    ticket: int
    failed: m.Failed
    since: float
    #: It is to be taken off the list.
    dropped: bool = False


class DetachedJob:
    """See the module. ``number``: of its pool and of its job in this broker; ``submitted``: wall clock, seconds."""

    __slots__ = (
        "_answers", "_starts", "answered", "blocks", "count", "dead", "deaths", "end_ticket", "ended", "ending", "failed",
        "fed", "gone", "key", "lent", "number", "opened", "queue", "rejected", "restored", "retried", "state",
        "stored", "submitted", "text", "ticket", "token", "touched", "unsynced", "watchers",
    )  # fmt: skip

    def __init__(self, key: bytes, number: int, opened: m.Submit, ticket: int, submitted: float) -> None:
        self.key = key
        self.number = number
        #: Without its content, which is in the journal, in the record of that ticket.
        self.opened = opened
        self.ticket = ticket
        self.submitted = self.touched = submitted
        self.state = m.FILLING
        #: Why it is broken.
        self.text = ""
        #: Items that have come, items that are durable, items in all once it is sealed (-1: not yet).
        self.fed = self.stored = 0
        self.count = -1
        #: Input was refused: what follows it is dropped until the submitter begins again.
        self.rejected = False
        #: Blocks that are needed still, by their first item.
        self.blocks: dict[int, Input] = {}
        self._starts: list[int] = []
        #: First items of blocks to hand out, in order; those that are out.
        self.queue: list[int] = []
        self.lent = Lent()
        #: The read of such blocks that is under way; 0: none.
        self.token = 0
        #: Answers on their way into the journal.
        self.unsynced = 0
        self.answered = Answered()
        self._answers = array("Q")
        #: Items that have no result.
        self.failed = 0
        self.dead: dict[int, Letter] = {}
        #: Items that are to be run once more.
        self.retried: set[int] = set()
        #: Item -> how many children have died of it, and the tickets that say so.
        self.deaths: dict[int, tuple[int, tuple[int, ...]]] = {}
        #: Wall clock, seconds; 0.0: it has not ended.
        self.ended = 0.0
        self.end_ticket = 0
        #: The state that it is to end in, while that is on its way into the journal.
        self.ending = ""
        #: It was forgotten.
        self.gone = False
        #: It was there before this start of the broker.
        self.restored = False
        #: Session number -> (who waits, for answers from which cursor on).
        self.watchers: dict[int, tuple[Session, int]] = {}

    @property
    def live(self) -> bool:
        """Is there, or will there be, something to do?"""
        return not self.ended and not self.ending and not self.gone

    @property
    def total(self) -> int:
        """Items in all; 0 while that is not known."""
        return self.count if self.count >= 0 else self.stored if self.ended else 0

    def letters(self) -> list[int]:
        """Items that are dead letters, in order."""
        return sorted(item for item, letter in self.dead.items() if not letter.dropped)

    @property
    def complete(self) -> bool:
        """Does every item have an answer, and will no more come?"""
        return 0 <= self.count == self.answered.total

    # -- input -------------------------------------------------------------------------------------

    def store(self, block: Input) -> None:
        """The next block is durable."""
        at = bisect_left(self._starts, block.start)
        self._starts.insert(at, block.start)
        self.blocks[block.start] = block
        self.stored = max(self.stored, block.stop)
        self.fed = max(self.fed, self.stored)

    def overlapping(self, start: int, stop: int) -> list[Input]:
        """The blocks that have some of these items."""
        low = max(0, bisect_right(self._starts, start) - 1)
        high = bisect_left(self._starts, stop)
        found = (self.blocks[each] for each in self._starts[low:high])
        return [block for block in found if block.stop > start]

    def drop(self, block: Input) -> None:
        """Nobody needs the block any more."""
        del self.blocks[block.start]
        del self._starts[bisect_left(self._starts, block.start)]
        at = bisect_left(self.queue, block.start)
        if self.queue[at : at + 1] == [block.start]:
            del self.queue[at]

    def enqueue(self, start: int) -> None:
        """The block that begins there is to be handed out."""
        at = bisect_left(self.queue, start)
        if self.queue[at : at + 1] != [start]:
            self.queue.insert(at, start)

    # -- answers -----------------------------------------------------------------------------------

    def answer(self, answer: Answer) -> list[Input]:
        """These items have their answer; the blocks of which nothing is left to do."""
        self._answers.extend(answer)
        self.answered.add(answer.start, answer.stop)
        finished = []
        for block in self.overlapping(answer.start, answer.stop):
            if not self.answered.missing(block.start, block.stop):
                finished.append(block)
        return finished

    def needed(self, block: Input) -> bool:
        """May an item of this block be run (again)?"""
        return any(block.start <= item < block.stop for item in self.dead) or bool(
            self.answered.missing(block.start, block.stop)
        )

    def answers(self, cursor: int) -> Iterator[Answer]:
        """Answers with tickets from ``cursor`` on."""
        rows = self._answers
        for at in range(4 * self._index(cursor), len(rows), 4):
            yield Answer(*rows[at : at + 4])

    def _index(self, ticket: int) -> int:
        return bisect_left(range(len(self._answers) // 4), ticket, key=lambda row: self._answers[4 * row])

    def bury(self, item: int) -> None:
        """The record of a dead letter is not there any more."""
        letter = self.dead.pop(item)
        at = 4 * self._index(letter.ticket)
        del self._answers[at : at + 4]

    def unanswer(self, item: int) -> None:
        """A dead letter is to be run once more: it has no answer."""
        self.bury(item)
        self.answered.discard(item, item + 1)
        self.failed -= 1
        self.deaths.pop(item, None)
        self.retried.add(item)

    def forget_deaths(self, start: int, stop: int) -> tuple[int, ...]:
        """These items have their result; tickets that do not matter any more."""
        over = [item for item in self.deaths if start <= item < stop and item not in self.dead]
        return tuple(ticket for item in over for ticket in self.deaths.pop(item)[1])


def contents(opened: m.Submit) -> list[bytes]:
    """The digests of the content that comes with it, in order."""
    return list(dict.fromkeys(each for each in (opened.setup, opened.code, opened.function) if each))
