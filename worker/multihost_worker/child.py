"""The child's loop: take work, claim it, run it, send results.

What is here is paid per item, so the loops come in the shapes that matter and not in one general one.
"""

from __future__ import annotations

import os
import sys
from _signal import SIGURG, signal  # type: ignore[import-not-found]  # pyright: ignore[reportMissingImports]
from itertools import accumulate, pairwise
from time import monotonic_ns, perf_counter

from multihost_common.pickling import (
    NO_UNPICKLE,
    RAISED,
    Carried,
    Fresh,
    lengths_of,
    loads,
)
from multihost_worker.becoming import add_bundle, apply_setup
from multihost_worker.claims import COVERS, RUNNING, SINCE, SINCE_OF, Claims
from multihost_worker.link import DEFINE, FAILED, FORGET, FREED, PROCESS, READY, RUN, SETUP, STOP, Link
from multihost_worker.outbox import Failure, Outbox
from multihost_worker.segments import Segments

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket
    from collections.abc import Callable
    from typing import Any

    from multihost_common.blocks import Frame

CALL_MAP, CALL_STAR, CALL_APPLY = 0, 1, 2
#: What a claim should last, seconds: it can not be taken back.
CLAIM = 0.0005
#: Items that take less than this, seconds, are noted in groups: a note costs a third of a no-op item.
SHORT = 1e-6
#: Items of a group. A death inside it is charged to all of them, and each then runs alone.
GROUP = 128
#: What the child itself keeps of segments for its results.
KEEP = 128 << 20


#: The child that this process is, once it serves.
serving: Child | None = None


class Job:
    """What Define said, and how many chunks to claim at once."""

    __slots__ = ("at_most_once", "call", "content", "error", "retries", "short", "stride", "timed", "wrap")

    def __init__(self, call: Callable[[Any], Any], timed: bool, retries: int, at_most_once: bool) -> None:
        self.call = call
        #: The pickle of a callable that is to be new for each chunk, and what becomes of it then.
        self.content = b""
        self.wrap: Callable[[Any], Callable[[Any], Any]] | None = None
        self.timed = timed
        self.retries = retries
        self.at_most_once = at_most_once
        self.error = ""
        self.stride = 1
        self.short = False


class Child:
    """One child process, after its fork."""

    def __init__(self, sock: socket, page: int, lifeline: int = -1) -> None:
        self.pid = os.getpid()
        #: Of a process: readable once whoever started it is gone.
        self.lifeline = lifeline
        self.link = Link(sock, Segments(KEEP))
        self.link.segments.dropped = self._dropped
        self.claims = Claims(page)
        self.jobs: dict[int, Job] = {}
        self.outbox = Outbox(self.link)
        #: Waits for what the agent says next; an engine that reads the link in this process takes its place.
        self.receive = self.link.receive
        #: What such an engine still has to say goes before a result.
        self.settle: Callable[[], None] | None = None

    def _dropped(self, number: int) -> None:
        self.link.known.discard(number)
        self.link.dropping.append(number)

    def serve(self) -> int:
        """Do what the agent says until it says stop, or is gone. Returns the exit status."""
        global serving
        serving = self
        signal(SIGURG, self.outbox.prompted)
        while True:
            message = self.receive()
            if message is None:
                return 0
            kind, args, frames = message
            del message
            if kind == RUN:
                self._run(args, frames)
            elif kind == DEFINE:
                self._define(*args, *frames)
            elif kind == FORGET:
                self.jobs.pop(args[0], None)
            elif kind == FREED:
                # What was more than is kept is not held by this end any more.
                if self.link.untidy():
                    self.link.send(FREED)
            elif kind == SETUP:
                if not self._set_up(*args, *frames):
                    return 1
            elif kind == PROCESS:
                return _become(frames, self.lifeline)
            elif kind == STOP:
                return 0
            frames.clear()

    # -- set-up and functions ------------------------------------------------------------------------

    def _flush(self) -> None:
        if self.settle is not None:
            self.settle()
        self.outbox.flush()

    def _set_up(self, private_dir: str, segments: int, number: int, setup: Frame, code: Frame) -> bool:
        self.link.segments.limit = segments
        try:
            if len(code):
                add_bundle(private_dir, code)
            if len(setup):
                apply_setup(loads(setup), number)
        except BaseException as error:  # noqa: BLE001
            self.link.send(FAILED, (trace_text(error)[-8000:],))
            return False
        self.link.send(READY, (os.getpid(),))
        return True

    def _define(
        self,
        job: int,
        call: int,
        timed: bool,
        retries: int,
        once: bool,
        private_dir: str,
        blob: Frame,
        code: Frame,
    ) -> None:
        error = ""
        function: Any = None
        try:
            if len(code):
                add_bundle(private_dir, code)
            function = loads(blob)
        except BaseException as failure:  # noqa: BLE001
            error = trace_text(failure)
        page = self.claims.page if timed else None
        if type(function) is Fresh:
            made = Job(_star, timed, retries, once)
            made.content = function.content
            made.wrap = lambda function: _wrapped(function, call, page)
        else:
            made = Job(_wrapped(function, call, page), timed, retries, once)
        self.jobs[job] = made
        made.error = error

    # -- a block -------------------------------------------------------------------------------------

    def _run(self, args: tuple[Any, ...], frames: list[Frame]) -> None:
        position, number, start, count, chunksize, skip = args
        job = self.jobs.get(number)
        if job is None:
            job = Job(_star, False, 0, False)
            job.error = "the function of this job was not defined: please report this"
        lengths, data, buffers = frames[0], frames[1], frames[2:]
        frames.clear()
        if len(lengths) == 4:
            pieces: list[Frame] = [data]
        else:
            view = memoryview(data)
            offsets = accumulate(lengths_of(lengths), initial=0)
            pieces = [view[begin:end] for begin, end in pairwise(offsets)]
            del view
        del data
        if job.at_most_once:
            self._run_once(job, number, position, start, count, chunksize, skip, pieces, buffers)
        else:
            self._run_block(job, number, position, start, count, chunksize, skip, pieces, buffers)
        self.claims.page[RUNNING] = 0
        if job.wrap is not None:
            # The copy of the last chunk is not kept.
            job.call = _star

    def _run_block(
        self,
        job: Job,
        number: int,
        position: int,
        start: int,
        count: int,
        chunksize: int,
        skip: int,
        pieces: list[Frame],
        buffers: list[Frame],
    ) -> None:
        outbox = self.outbox
        outbox.begin(number, start, chunksize, position)
        done = chunk = 0
        chunks = len(pieces)
        while chunk < chunks:
            stop = min(chunk + job.stride, chunks)
            upto = min(count, stop * chunksize - skip)
            if not self.claims.claim(position + done, position + upto):
                break
            begun = outbox.begun = perf_counter()
            outbox.waits = True
            if job.error:
                outbox.values += [Failure((NO_UNPICKLE, job.error))] * (upto - done)
            elif job.wrap is None and chunksize == 1:
                self._singles(job, pieces, chunk, stop, position + done + 1, buffers)
            else:
                self._chunks(
                    job, pieces, chunk, stop, position + done + 1, buffers, chunksize, skip, upto - done
                )
            outbox.waits = False
            now = perf_counter()
            outbox.spent += now - outbox.begun
            took = now - begun
            _adapt(job, stop - chunk, upto - done, took)
            left = took / (stop - chunk) * (chunks - stop)
            done, chunk = upto, stop
            if left and outbox.due(now, took, left):
                self._flush()
        # A segment that held them goes back with these results, not with the next.
        pieces.clear()
        buffers.clear()
        if outbox.values:
            self._flush()

    def _run_once(
        self,
        job: Job,
        number: int,
        position: int,
        start: int,
        count: int,
        chunksize: int,
        skip: int,
        pieces: list[Frame],
        buffers: list[Frame],
    ) -> None:
        """At most once: an item is claimed alone, and its result sent before the next begins."""
        self.outbox.begin(number, start, 1, position)
        items: list[Any] = []
        held = -1
        for item in range(count):
            if not self.claims.claim(position + item, position + item + 1):
                return
            begun = perf_counter()
            chunk, at = divmod(skip + item, chunksize)
            self.claims.page[RUNNING] = position + item + 1
            error = job.error
            if chunk != held and not error:
                try:
                    items = _items_of(job, pieces[chunk], buffers, chunksize)
                    held = chunk
                except BaseException as failure:  # noqa: BLE001
                    error = trace_text(failure)
            if error:
                self.outbox.values.append(Failure((NO_UNPICKLE, error)))
            else:
                self._items(job, [items[at]], position + item + 1)
            self.outbox.spent += perf_counter() - begun
            self._flush()

    def _singles(
        self, job: Job, pieces: list[Frame], first: int, stop: int, running: int, buffers: list[Frame]
    ) -> None:
        """Chunks of one item each, pickled bare."""
        call, page, append = job.call, self.claims.page, self.outbox.values.append
        load = (lambda piece: loads(piece, buffers=buffers)) if buffers else loads
        running -= first
        answered = self.outbox.noted() - first
        begin = first
        while begin < stop:
            try:
                for at in range(begin, stop):
                    page[RUNNING] = running + at
                    append(call(load(pieces[at])))
                return
            except BaseException as error:  # noqa: BLE001
                # Counted anew: a signal's handler can raise after the value was noted.
                begin = self.outbox.noted() - answered
                if begin < stop:
                    append(self._retry_single(job, error, pieces[begin], buffers))
            begin += 1

    def _retry_single(self, job: Job, error: BaseException, piece: Frame, buffers: list[Frame]) -> Any:
        """Either unpickling raised or the function did: see which, off the fast path."""
        try:
            item = loads(piece, buffers=buffers)
        except BaseException as failure:  # noqa: BLE001
            return Failure((NO_UNPICKLE, trace_text(failure)))
        return _again(job, error, item)

    def _chunks(
        self,
        job: Job,
        pieces: list[Frame],
        first: int,
        stop: int,
        running: int,
        buffers: list[Frame],
        chunksize: int,
        skip: int,
        count: int,
    ) -> None:
        """Chunks of several items, each a pickled list, or of a callable that is new for each. ``skip`` items of the
        block's first chunk are not to be run, and ``count`` are in all."""
        for chunk in range(first, stop):
            self.claims.page[RUNNING] = running
            begin = skip if chunk == 0 else 0
            size = min(chunksize - begin, count)
            try:
                items = _items_of(job, pieces[chunk], buffers, chunksize)
                if begin or len(items) != size:
                    items = items[begin : begin + size]
            except BaseException as error:  # noqa: BLE001
                self.outbox.values += [Failure((NO_UNPICKLE, trace_text(error)))] * size
            else:
                self._items(job, items, running)
            running += size
            count -= size

    def _items(self, job: Job, items: list[Any], running: int) -> None:
        call, page, append = job.call, self.claims.page, self.outbox.values.append
        answered = self.outbox.noted()
        begin = 0
        if job.short:
            self._groups(job, items, running, answered)
            return
        while begin < len(items):
            try:
                for page[RUNNING], item in enumerate(items[begin:] if begin else items, running + begin):
                    append(call(item))
                return
            except BaseException as error:  # noqa: BLE001
                # Counted anew: a signal's handler can raise after the value was noted.
                begin = self.outbox.noted() - answered
                if begin < len(items):
                    append(_again(job, error, items[begin]))
            begin += 1

    def _groups(self, job: Job, items: list[Any], running: int, answered: int) -> None:
        """Items that are too short for a note each."""
        outbox, page = self.outbox, self.claims.page
        call, extend = job.call, outbox.values.extend
        page[COVERS] = GROUP
        begin = 0
        while begin < len(items):
            outbox.group_at = answered + begin
            outbox.group = group = items[begin : begin + GROUP]
            if len(group) < GROUP:
                page[COVERS] = len(group)
            page[RUNNING] = running + begin
            try:
                extend(map(call, group))
                # A prompt may have cut it short.
                begin += len(group)
            except BaseException as error:  # noqa: BLE001
                begin = outbox.noted() - answered
                if begin < len(items):
                    outbox.values.append(_again(job, error, items[begin]))
                begin += 1
        page[RUNNING] = running + begin
        page[COVERS] = 1


# -- parts -------------------------------------------------------------------------------------------


def _adapt(job: Job, chunks: int, items: int, took: float) -> None:
    """Claim as many chunks at once as take about half a millisecond, growing fourfold at most."""
    job.short = took < SHORT * items and not job.timed
    if took <= 0:
        return
    fit = int(CLAIM * chunks / took)
    job.stride = max(1, min(fit, job.stride * 4, 4096))


def _again(job: Job, error: BaseException, item: Any) -> Any:
    """What becomes of an item whose function raised ``error``: its retries, then a Failure."""
    for _ in range(job.retries):
        if not isinstance(error, Exception):
            break
        try:
            return job.call(item)
        except BaseException as failure:  # noqa: BLE001
            error = failure
    text = trace_text(error)
    # The frames hold the item, and through it perhaps a shared segment.
    error.__traceback__ = None
    return Failure((RAISED, error, text))


def _items_of(job: Job, piece: Frame, buffers: list[Frame], chunksize: int) -> list[Any]:
    """The items of a chunk; and the callable, where each chunk has one of its own."""
    items = loads(piece, buffers=buffers)
    if job.wrap is not None:
        # There need not be two at a time.
        job.call = _star
        content = job.content
        if type(items) is Carried:
            content, items = items.content, items.items
        job.call = job.wrap(loads(content))
    return [items] if chunksize == 1 else items


def _wrapped(function: Any, call: int, page: memoryview[int] | None) -> Callable[[Any], Any]:
    """What is called with an item. ``page``: where its time is noted, if it has a limit."""
    if call == CALL_STAR:
        function = _star(function)
    elif call == CALL_APPLY:
        function = _apply(function)
    made: Callable[[Any], Any] = function if page is None else _timed(function, page)
    return made


def _star(function: Callable[..., Any]) -> Callable[[Any], Any]:
    def call(item: Any) -> Any:
        return function(*item)

    return call


def _apply(function: Callable[..., Any]) -> Callable[[Any], Any]:
    def call(item: Any) -> Any:
        return function(*item[0], **item[1])

    return call


def _timed(function: Callable[[Any], Any], page: memoryview[int]) -> Callable[[Any], Any]:
    """Notes when the item began, then whose time that is: read the other way round it is never torn."""

    def call(item: Any) -> Any:
        page[SINCE] = monotonic_ns()
        page[SINCE_OF] = page[RUNNING]
        return function(item)

    return call


def trace_text(error: BaseException) -> str:
    """The traceback as multiprocessing shows it, from the user's first frame on."""
    import traceback

    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename == __file__:
        frames = frames.tb_next
    try:
        return "".join(traceback.format_exception(type(error), error, frames or error.__traceback__))
    except Exception as failure:  # noqa: BLE001
        return f"{type(error).__name__}, which cannot be shown ({type(failure).__name__})\n"


def _become(frames: list[Frame], lifeline: int) -> int:
    """Be the process that was launched; its exit code."""
    try:
        main = loads(frames[0], buffers=frames[1:])
    except BaseException as error:  # noqa: BLE001
        sys.stderr.write(trace_text(error))
        return 1
    frames.clear()
    code: int = main(lifeline)
    return code
