"""State of one job on the producer's side: what is fed, what has come back. No I/O, no clock.

A :class:`MapJob` runs a function over a source of items and hands pieces of results to a sink; a
:class:`StreamJob` is open-ended: each call is one item with a receiver of its own. Both send ahead of
their results only within a window, and drop what was answered before: a result is taken once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from multihost.failures import Raised, load, raised
from multihost.kept import Kept
from multihost.packing import BLOCK_BYTES, BLOCK_CHUNKS, BLOCK_ITEMS, Packed, alone, block_of, pack
from multihost.sources import Calls, Ranges, Receiver, Sink, Source
from multihost_common.blocks import Frame
from multihost_common.messages import (
    CALL_MAP,
    Blob,
    EndJob,
    EndResults,
    Failed,
    Feed,
    Known,
    Message,
    OpenJob,
    Result,
)
from multihost_common.tables import pack_rows

#: What a chunk of adaptive size should take: long against the cost of a chunk (some microseconds),
#: short against the wait for the last one.
CHUNK_SECONDS = 0.004
#: And what it should not fall below towards the end of the input: it costs as much to send it.
LEAST_SECONDS = 0.0005
#: Work sent ahead of its results, per child: hides a round trip between hosts.
WINDOW_SECONDS = 0.4
#: Payload and items on the way at most, so that neither what goes in nor what comes out fills memory.
WINDOW_BYTES = 64 << 20
WINDOW_ITEMS = 1_000_000
#: Chunks per child sent ahead before a time has been measured, and at least.
WINDOW_CHUNKS = 4
#: What the first few items take says little where it is so short, seconds: most of it is the first call's.
COLD_SECONDS = 1e-4
COLD_ITEMS = 64


@dataclass(slots=True)
class Options:
    """How the broker treats each item. ``timeout`` in seconds, 0: none."""

    timeout: float = 0.0
    retries: int = 0
    at_most_once: bool = False


@dataclass(slots=True)
class Task:
    """The function of a job as it travels: pickled once, named by digest."""

    function: bytes
    function_digest: bytes
    code: bytes = b""
    code_digest: bytes = b""
    call: int = CALL_MAP
    name: str = ""


class BaseJob:
    """What both kinds of jobs have in common: messages, measurements, the window."""

    def __init__(self, pool: int, task: Task, options: Options, executor: bool = False) -> None:
        self.id = 0
        self.pool = pool
        self.capacity = 1
        #: Every item is answered and nothing more will come.
        self.over = False
        #: Why there will be no results, once there will be none.
        self.error: BaseException | None = None
        self.poked = False
        self.task = task
        self.options = options
        self.executor = executor
        self.fed = 0
        #: Seconds of a child per item, 0.0 while unknown.
        self.item_seconds = 0.0
        #: Payload bytes per item and per result, 0.0 while unknown.
        self.item_bytes = 0.0
        self.result_bytes = 0.0
        self.ended = False
        #: What was sent and has no answer, where it may have to be sent again.
        self.kept: Kept | None = None

    def open(self) -> list[Message]:
        """The blobs the job refers to, then OpenJob."""
        task, options = self.task, self.options
        messages: list[Message] = [Blob(task.function_digest, [task.function])]
        if task.code:
            messages.append(Blob(task.code_digest, [task.code]))
        messages.append(
            OpenJob(
                self.id,
                self.pool,
                task.function_digest,
                task.code_digest,
                task.call,
                options.timeout,
                options.retries,
                options.at_most_once,
                task.name[:200],
            )
        )
        return messages

    def resume(self) -> list[Message]:
        """The job stated anew, for a broker that may know all, some or nothing of it."""
        opened = self.open()[-1]
        assert isinstance(opened, OpenJob)
        opened.resumed = True
        messages: list[Message] = [opened]
        if self.kept is not None:
            messages += self.kept.feeds()
            known = pack_rows(self.kept.known())
            if known:
                messages.append(Known(self.id, (known,)))
        if self.ended:
            messages.append(EndJob(self.id, self.fed))
        return messages

    def idle(self) -> bool:
        """Is nothing under way?"""
        return self.over

    def has_more(self) -> bool:
        """May ``produce`` have something, after a message went either way?"""
        return True

    def handle(self, message: Result | Failed | EndResults) -> Calls:
        """Take in what came back; answers the calls to make without the engine's lock."""
        calls: Calls = []
        kind = type(message)
        if kind is Result:
            self._measure(message)  # type: ignore[arg-type]
            self._results(message, calls)  # type: ignore[arg-type]
        elif kind is Failed:
            self._failed(message, calls)  # type: ignore[arg-type]
        else:
            self.over = True
            self._finish(calls)
        return calls

    def _results(self, message: Result, calls: Calls) -> None:
        raise NotImplementedError

    def _failed(self, message: Failed, calls: Calls) -> None:
        raise NotImplementedError

    def _finish(self, calls: Calls) -> None:
        raise NotImplementedError

    def _measure(self, result: Result) -> None:
        count = result.count
        size = sum(map(len, result.frames)) / count
        self.result_bytes = size if not self.result_bytes else 0.5 * (self.result_bytes + size)
        seconds = max(result.spent * 1e-6 / count, 1e-8)
        before = self.item_seconds
        # The first item of a child often pays for imports: get over it soon.
        weight = 1.0 if not before else 0.5 if seconds < before else 0.3
        if seconds < before and count >= COLD_ITEMS:
            weight = 0.9
        self.item_seconds = before + (seconds - before) * weight

    def _weigh(self, packed: Packed) -> None:
        each = packed.size / packed.count
        self.item_bytes = each if not self.item_bytes else 0.5 * (self.item_bytes + each)

    def _limit(self, chunksize: int) -> int:
        """Items that may be on the way."""
        limit = WINDOW_CHUNKS * self.capacity * chunksize
        if self.item_seconds:
            limit = max(limit, int(WINDOW_SECONDS * self.capacity / self.item_seconds))
        limit = min(limit, WINDOW_ITEMS)
        size = max(self.item_bytes, self.result_bytes)
        if size:
            limit = min(limit, int(WINDOW_BYTES / size))
        return max(limit, (self.capacity + 1) * chunksize)

    def _feed(self, packed: Packed) -> Feed:
        self._weigh(packed)
        feed = Feed(self.id, self.fed, packed.count, packed.chunksize, packed.frames)
        self.fed += packed.count
        if self.kept is not None:
            self.kept.keep(feed)
        return feed

    def _end(self) -> EndJob:
        self.ended = True
        return EndJob(self.id, self.fed)


class MapJob(BaseJob):
    """A function over a source of items. ``chunksize`` None follows the measured time of an item."""

    def __init__(
        self,
        pool: int,
        task: Task,
        options: Options,
        source: Source,
        sink: Sink,
        chunksize: int | None = None,
        window: int | None = None,
        executor: bool = False,
    ) -> None:
        super().__init__(pool, task, options, executor)
        self.source = source
        self.sink = sink
        self.chunksize = chunksize
        self.window = window
        self.answered = Ranges()
        #: produce() had no item to feed; whoever fills the source then pokes.
        self.starving = False
        #: produce() had no room; whoever takes results out pokes once so many have been consumed.
        self.resume_at: int | None = None
        self._refused: dict[int, BaseException] = {}

    # -- input

    def produce(self) -> list[Message]:
        """The next block within the window, or EndJob, or nothing for now."""
        self.poked = False
        while not (self.ended or self.over or self.error is not None):
            messages = self._produce()
            # Room made while it was found wanting was not announced to anybody: look again.
            if messages or self.resume_at is None or self.sink.consumed() < self.resume_at:
                return messages
        return []

    def _produce(self) -> list[Message]:
        chunksize = self._chunk()
        limit = self._window(chunksize)
        done = self.sink.consumed()
        self.source.allow(done + limit)
        # Set before looking, so that an item put in right now is either seen or announced.
        self.starving = True
        total = self.source.total
        ready = self.source.ready()
        if total is not None and self.fed >= total:
            return [self._end()]
        # Negative when the window has shrunk meanwhile: items take longer than was thought.
        room = max(0, limit - (self.fed - done))
        # Work that goes out bit by bit costs a message for each bit, here and at every station.
        enough = max(chunksize, limit // 4)
        scant = room < min(enough, ready)
        count = 0 if scant else self._whole_chunks(min(ready, room), chunksize, ready, total)
        if not count:
            self.starving = ready < chunksize
            # Whoever fills the source may fill no more than there is room for.
            waits = scant or room < chunksize
            self.resume_at = self.fed - limit + enough if waits else None
            return []
        self.starving = False
        self.resume_at = None
        return [self._next(count, chunksize)]

    def refuse(self, item: int, error: BaseException) -> None:
        """This item is a place-holder, and its result is this error."""
        self._refused[item] = error

    def _whole_chunks(self, count: int, chunksize: int, ready: int, total: int | None) -> int:
        """How many of ``count`` items make a block: whole chunks, unless they are the last ones."""
        most = min(BLOCK_CHUNKS * chunksize, max(chunksize, BLOCK_ITEMS))
        if self.item_bytes:
            most = min(most, int(BLOCK_BYTES / self.item_bytes))
        if self.chunksize is None and total is not None and chunksize > 1:
            left = total - self.fed
            # The size of chunks shrinks towards the end, so not too many of one size at a time.
            if left * self.item_seconds > LEAST_SECONDS * self.capacity:
                most = min(most, left // 2)
        count = min(count, max(most, chunksize))
        if total is not None and count == ready:
            return count
        return count - count % chunksize

    def _next(self, count: int, chunksize: int) -> Feed:
        packed = pack(self.source.peek(count), chunksize)
        for offset, error in packed.refused.items():
            self._refused[self.fed + offset] = error
        self.source.drop(packed.count)
        return self._feed(packed)

    def _chunk(self) -> int:
        if self.chunksize is not None:
            return self.chunksize
        if not self.item_seconds:
            return 1
        size = min(int(CHUNK_SECONDS / self.item_seconds), BLOCK_ITEMS)
        each = max(self.item_bytes, self.result_bytes)
        if each:
            size = min(size, int(BLOCK_BYTES / each))
        if self.source.total is not None:
            left = self.source.total - self.fed
            # What is left may take longer than what was measured: everyone gets some of it.
            least = min(int(LEAST_SECONDS / self.item_seconds), left // (2 * self.capacity))
            size = min(size, max(least, left // (4 * self.capacity)))
        return max(1, size)

    def _window(self, chunksize: int) -> int:
        if self.window is not None:
            return max(self.window, chunksize)
        if self.chunksize is None and not self.item_seconds:
            return 2 * self.capacity
        if self.chunksize is None and self.item_seconds < COLD_SECONDS and self.answered.count < COLD_ITEMS:
            return 2 * self.capacity * chunksize
        return self._limit(chunksize)

    # -- results

    def _results(self, message: Result, calls: Calls) -> None:
        values, failed = load(message, self.executor)
        self._put(message.start, values, failed, calls)

    def _failed(self, message: Failed, calls: Calls) -> None:
        stop = message.start + message.count
        values = [
            raised(message, item, self.executor, self.options.timeout) for item in range(message.start, stop)
        ]
        self._put(message.start, values, True, calls)

    def _put(self, start: int, values: list[Any], failed: bool, calls: Calls) -> None:
        if self.error is not None:
            return
        if self._refused:
            failed = self._put_refused(start, values) or failed
        fresh = self.answered.add(start, start + len(values))
        for a, b in fresh:
            part = values if b - a == len(values) else values[a - start : b - start]
            self.sink.put(a, part, failed, calls)
            if self.kept is not None:
                self.kept.answered(a, b)
        total = self.source.total
        if total is not None and self.answered.count >= total:
            self._finish(calls)

    def _put_refused(self, start: int, values: list[Any]) -> bool:
        found = [item for item in self._refused if start <= item < start + len(values)]
        for item in found:
            values[item - start] = Raised(self._refused.pop(item))
        return bool(found)

    def _finish(self, calls: Calls) -> None:
        self.source.stop()
        self.sink.finish(self.fed, calls)

    def abort(self, error: BaseException) -> Calls:
        """Every item without a result gets this error."""
        calls: Calls = []
        if self.over or self.error is not None:
            return calls
        total = self.source.total
        # Of an input without a known end, one error more than was fed ends the iteration.
        total = self.fed + 1 if total is None else max(total, self.fed)
        for a, b in self.answered.missing(total):
            self.answered.add(a, b)
            self.sink.put(a, [Raised(error)] * (b - a), True, calls)
        self.error = error
        self.over = True
        self.source.stop()
        self.sink.finish(total, calls)
        return calls

    def stop(self) -> None:
        """Nobody wants the results any more: feed nothing more."""
        self.ended = True
        self.source.stop()


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
        room = min(self._limit(1) - len(self._receivers), BLOCK_CHUNKS)
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
