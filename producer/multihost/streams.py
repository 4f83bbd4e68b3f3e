"""A job of single calls, each with a receiver of its own: what `apply` and `submit` are made of. No I/O, no clock."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from itertools import islice

from multihost.failures import Raised, load, raised
from multihost.jobs import BaseJob, Options, Task
from multihost.packing import BLOCK_BYTES, BLOCK_CHUNKS, Packed, alone, block_of
from multihost.sources import Calls, Receiver
from multihost_common.blocks import Frame
from multihost_common.messages import (
    Failed,
    Message,
    Result,
)


class StreamJob(BaseJob):
    """An open-ended job: calls of one function, in the order in which they were made."""

    def __init__(self, pool: int, task: Task, options: Options, executor: bool = False) -> None:
        super().__init__(pool, task, options, executor)
        self._waiting: deque[tuple[bytes, Sequence[Frame], Receiver]] = deque()
        self._receivers: dict[int, Receiver] = {}
        self._closing = False

    def submit(self, data: bytes, buffers: Sequence[Frame], receiver: Receiver) -> None:
        """One more call; the caller pokes the engine afterwards (from any thread).

        Raises the job's error if it was aborted meanwhile.
        """
        call = (data, buffers, receiver)
        self._waiting.append(call)
        # The error is set before the waiting calls are answered, so one of the two sees this one.
        if self.error is not None and call in self._waiting:
            self._waiting.remove(call)
            raise self.error

    def idle(self) -> bool:
        """Is no call under way, and the end told if there is one?"""
        if self._waiting or self._receivers:
            return False
        return self.ended or self.over or not self._closing

    def has_more(self) -> bool:
        """Are there calls that have not been sent, or is the end to be told?"""
        return bool(self._waiting) or self._closing

    @property
    def under_way(self) -> int:
        """Calls without an answer."""
        return len(self._waiting) + len(self._receivers)

    def close(self) -> None:
        """No more calls; the job ends after those there are."""
        self._closing = True

    def produce(self) -> list[Message]:
        """The next calls within the window, as one block."""
        self.poked = False
        if self.ended or self.over or self.error is not None:
            return []
        room = 0 if self.held else min(self._limit(1) - len(self._receivers), BLOCK_CHUNKS)
        pickles: list[bytes] = []
        packed: Packed | None = None
        size = 0
        for data, buffers, receiver in self._take(room):
            if buffers:
                packed = alone(data, buffers)
                self._register(receiver, self.fed + len(pickles))
                break
            self._register(receiver, self.fed + len(pickles))
            pickles.append(data)
            size += len(data)
            if size >= BLOCK_BYTES:
                break
        feeds: list[Message] = [self._feed(block_of(pickles))] if pickles else []
        if packed is not None:
            feeds.append(self._feed(packed))
        if self._closing and not self._waiting and not feeds:
            return [self._end()]
        return feeds

    def _take(self, count: int) -> Iterator[tuple[bytes, Sequence[Frame], Receiver]]:
        item = self.fed
        waiting = self._waiting
        while count > 0 and waiting:
            call = waiting.popleft()
            if call[2].claim(item):
                item += 1
                count -= 1
                yield call

    def _register(self, receiver: Receiver, item: int) -> None:
        self._receivers[item] = receiver

    def drop_waiting(self, spare: int = 0) -> tuple[list[Receiver], range]:
        """Take out the calls that were not fed yet, and name the items that were, and have no answer.

        The first ``spare`` of them all stay.
        """
        items = sorted(self._receivers)
        spare_waiting = max(0, spare - len(items))
        dropped: list[Receiver] = []
        while len(self._waiting) > spare_waiting:
            dropped.append(self._waiting.pop()[2])
        recalled = items[spare:]
        return dropped[::-1], range(recalled[0], recalled[-1] + 1) if recalled else range(0)

    def _results(self, message: Result, calls: Calls) -> None:
        values, _ = load(message, self.executor)
        pop = self._receivers.pop
        for item, value in enumerate(values, message.start):
            receiver = pop(item, None)
            if receiver is not None:
                call = receiver.take(value)
                if call is not None:
                    calls.append(call)
        if self.kept is not None:
            self.kept.answered(message.start, message.start + message.count)

    def _failed(self, message: Failed, calls: Calls) -> None:
        for item in range(message.start, message.start + message.count):
            receiver = self._receivers.pop(item, None)
            if receiver is not None:
                self._give(receiver, raised(message, item, self.executor, self.options.timeout), calls)
        if self.kept is not None:
            self.kept.answered(message.start, message.start + message.count)

    def _give(self, receiver: Receiver, value: object, calls: Calls) -> None:
        call = receiver.take(value)
        if call is not None:
            calls.append(call)

    def _finish(self, calls: Calls) -> None:
        from multihost_common.errors import MultihostError

        left = list(islice(self._receivers.values(), len(self._receivers)))
        self._receivers.clear()
        lost = Raised(MultihostError("the job ended before this call was answered; call again"))
        for receiver in left:
            self._give(receiver, lost, calls)

    def abort(self, error: BaseException) -> Calls:
        """Every call without a result gets this error."""
        calls: Calls = []
        self.error = error
        self.over = True
        left = [*self._receivers.values(), *self.drop_waiting()[0]]
        self._receivers.clear()
        for receiver in left:
            self._give(receiver, Raised(error), calls)
        return calls
