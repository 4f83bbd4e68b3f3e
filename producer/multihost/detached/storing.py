"""The input of a detached job on its way into the journal. No I/O, no clock.

Blocks are kept until the broker has them on its disk, and sent again from the first one that it does not have, over
another connection or once it has room for them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from multihost.detached.exchange import Exchange
from multihost.packing import Packed
from multihost_common.errors import JobError
from multihost_common.messages import Denied, Message, Put, Seal, Stored, Submit

#: Bytes that may be on the way, or in the broker and not yet on its disk.
WINDOW_BYTES = 8 << 20


class Storing(Exchange):
    """See the module. Wait until it is ``known`` what the journal has of the job; then :meth:`put` the rest, never while
    it is ``full``, and :meth:`seal`."""

    def __init__(self, submit: Submit) -> None:
        super().__init__()
        self._submit = submit
        #: The broker has told how much of the job it has.
        self.known = False
        #: Items that are in the journal.
        self.fed = 0
        #: What has been put and is not in the journal, oldest first, and how many of them were sent.
        self._blocks: deque[tuple[Put, int]] = deque()
        self._sent = 0
        self._bytes = 0
        #: The number of the next item, and of all items once the input has ended.
        self._next = 0
        self._count: int | None = None
        #: Submit was said and is not answered: the broker would drop what comes behind it.
        self._asking = True
        self._said_all = False

    @property
    def full(self) -> bool:
        """As much is on the way as may be."""
        return self._bytes >= WINDOW_BYTES

    def begin(self) -> Sequence[Message]:
        """Submit, which is the question how much is stored, too."""
        self.due = None
        self._asking, self._said_all, self._sent = True, False, 0
        return (self._submit,)

    def put(self, packed: Packed) -> Sequence[Message]:
        """The next items of the input."""
        block = Put(self._submit.key, self._next, packed.count, packed.chunksize, packed.frames)
        self._blocks.append((block, packed.size))
        self._next += packed.count
        self._bytes += packed.size
        self._drop()
        if self.over and self._next > self.fed:
            self.compare(self._next)
        return self._more()

    def seal(self) -> Sequence[Message]:
        """The input has ended."""
        self._count = self._next
        if self.over:
            # Somebody else was faster.
            self.compare(self._count)
        return self._more()

    def take(self, message: Message, now: float) -> Sequence[Message]:
        """What the broker has stored, or why it has not."""
        if type(message) is Stored and message.key == self._submit.key:
            if message.fed < self.fed:
                raise JobError(
                    f"job {self._submit.key.hex()} was forgotten by the broker before all of its input had come: its "
                    "retention was over, or somebody dropped it; submit it again"
                )
            self.fed = message.fed
            if not self.known:
                self.known, self._next = True, self.fed
            self._asking = False
            if message.sealed:
                self._sealed()
            self._drop()
            return self._more()
        if type(message) is Denied and message.key == self._submit.key:
            self._denied(message, now)
        self._refused(message)
        return ()

    def _more(self) -> Sequence[Message]:
        """What can be sent now."""
        if self._asking or self.over or self.due is not None or self._said_all:
            return ()
        messages: list[Message] = [self._blocks[at][0] for at in range(self._sent, len(self._blocks))]
        self._sent = len(self._blocks)
        if self._count is not None:
            self._said_all = True
            messages.append(Seal(self._submit.key, self._count))
        return messages

    def _drop(self) -> None:
        """Forget what is in the journal."""
        while self._blocks and self._blocks[0][0].start < self.fed:
            block, size = self._blocks.popleft()
            if block.start + block.count > self.fed:
                raise JobError(f"somebody else is submitting job {self._submit.key.hex()} with other input")
            self._bytes -= size
            self._sent = max(0, self._sent - 1)

    def compare(self, count: int) -> None:
        """Of a job that was sealed before: raise JobError unless its input has so many items."""
        if count != self.fed:
            raise JobError(
                f"job {self._submit.key.hex()} was submitted before, with {self.fed} items instead of {count}"
            )

    def _sealed(self) -> None:
        if self._count is not None:
            self.compare(self._count)
        self.over = True
