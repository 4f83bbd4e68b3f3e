"""State of one job on the producer's side: what is fed, what has come back. No I/O, no clock.

A :class:`MapJob` runs a function over a source of items and hands pieces of results to a sink; a
:class:`multihost.streams.StreamJob` is open-ended. Both send ahead of their results only within a window, and drop what
was answered before: a result is taken once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from multihost.failures import Raised, answers, load
from multihost.kept import Kept
from multihost.packing import BLOCK_BYTES, BLOCK_CHUNKS, BLOCK_ITEMS, Packed, pack
from multihost.sources import Calls, Ranges, Sink, Source, fresh_parts
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
CHUNK_SECONDS = 0.002
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
    #: The function has a state, and is new for each chunk.
    fresh: bool = False
    #: Pickles it once more, for the next chunk; None where what was sent will do.
    again: Callable[[], bytes | None] | None = None


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
        #: There is no room for more input: nothing new is to be fed.
        self.held = False

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
        if self.held:
            # Whoever lets it go on pokes.
            self.resume_at = None
            return []
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
        packed = pack(self.source.peek(count), chunksize, self.task.again)
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
        self._put(message.start, *load(message, self.executor), calls)

    def _failed(self, message: Failed, calls: Calls) -> None:
        self._put(message.start, *answers(message, self.executor, self.options.timeout), calls)

    def _put(self, start: int, values: list[Any], failed: bool, calls: Calls) -> None:
        if self.error is not None:
            return
        if self._refused:
            failed = self._put_refused(start, values) or failed
        for begin, part in fresh_parts(self.answered, start, values):
            self.sink.put(begin, part, failed, calls)
            if self.kept is not None:
                self.kept.answered(begin, begin + len(part))
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
