"""The child's loop: take work, claim it, run it, send results.

What is here is paid per item, so the loops come in the shapes that matter and not in one general one.
"""

from __future__ import annotations

import os
import sys
from itertools import accumulate
from time import monotonic_ns, perf_counter

from multihost_common.pickling import (
    DONE,
    NO_UNPICKLE,
    RAISED,
    dumps,
    dumps_outcome,
    dumps_value,
    lengths_of,
    loads,
    pieces_frames,
)
from multihost_worker.claims import RUNNING, SINCE, SINCE_OF, Claims
from multihost_worker.link import DEFINE, FAILED, FORGET, READY, RESULT, RUN, SETUP, STOP, Link
from multihost_worker.segments import Segments

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket
    from collections.abc import Callable, Sequence
    from typing import Any

    from multihost_common.blocks import Frame

CALL_MAP, CALL_STAR, CALL_APPLY = 0, 1, 2
VALUES, OUTCOMES = 0, 1

#: Results are sent when a block is done, or when so much time has passed since the last ones.
FLUSH = 0.005
#: What a claim should last, seconds: it can not be taken back.
CLAIM = 0.0005
#: Pickled results of one message, about, bytes.
MESSAGE = 1 << 20
#: What the child itself keeps of segments for its results.
KEEP = 128 << 20

#: Values of these types share nothing when they are pickled together.
_SIMPLE = {type(None), bool, int, float, str, bytes}


class Failure:
    """Stands in the list of values where an item has none."""

    __slots__ = ("outcome",)

    def __init__(self, outcome: tuple[Any, ...]) -> None:
        self.outcome = outcome


class Job:
    """What Define said, and how many chunks to claim at once."""

    __slots__ = ("at_most_once", "call", "error", "retries", "stride", "timed")

    def __init__(self, call: Callable[[Any], Any], timed: bool, retries: int, at_most_once: bool) -> None:
        self.call = call
        self.timed = timed
        self.retries = retries
        self.at_most_once = at_most_once
        self.error = ""
        self.stride = 1


class Child:
    """One child process, after its fork."""

    def __init__(self, sock: socket, page: int) -> None:
        self.link = Link(sock, Segments(KEEP))
        self.link.segments.dropped = self._dropped
        self.claims = Claims(page)
        self.jobs: dict[int, Job] = {}
        self.values: list[Any] = []
        self.sent = perf_counter()
        self.spent = 0.0

    def _dropped(self, number: int) -> None:
        self.link.known.discard(number)
        self.link.dropping.append(number)

    def serve(self) -> int:
        """Do what the agent says until it says stop, or is gone. Returns the exit status."""
        while True:
            message = self.link.receive()
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
            elif kind == SETUP:
                if not self._set_up(args[0], *frames):
                    return 1
            elif kind == STOP:
                return 0
            frames.clear()

    # -- set-up and functions ------------------------------------------------------------------------

    def _set_up(self, private_dir: str, setup: Frame, code: Frame) -> bool:
        try:
            if len(code):
                _add_bundle(private_dir, code)
            if len(setup):
                apply_setup(loads(setup))
        except BaseException as error:
            self.link.send(FAILED, (trace_text(error)[-8000:],))
            return False
        self.link.send(READY, (os.getpid(),))
        return True

    def _define(
        self, job: int, call: int, timed: bool, retries: int, once: bool, private_dir: str, blob: Frame, code: Frame
    ) -> None:
        error = ""
        function: Any = None
        try:
            if len(code):
                _add_bundle(private_dir, code)
            function = loads(blob)
        except BaseException as failure:
            error = trace_text(failure)
        if call == CALL_STAR:
            function = _star(function)
        elif call == CALL_APPLY:
            function = _apply(function)
        if timed:
            function = _timed(function, self.claims.page)
        self.jobs[job] = made = Job(function, timed, retries, once)
        made.error = error

    # -- a block -------------------------------------------------------------------------------------

    def _run(self, args: tuple[Any, ...], frames: list[Frame]) -> None:
        position, number, start, count, chunksize, skip = args
        job = self.jobs.get(number)
        if job is None:
            job = Job(_star, False, 0, False)
            job.error = "the function of this job was not defined: please report this"
        offsets = [0, *accumulate(lengths_of(frames[0]))]
        data, buffers = frames[1], frames[2:]
        frames.clear()
        if len(offsets) == 2:
            pieces: Sequence[Frame] = [data]
        else:
            view = memoryview(data)
            pieces = [view[begin:end] for begin, end in zip(offsets, offsets[1:], strict=False)]
            del view
        del data
        if job.at_most_once:
            self._run_once(job, number, position, start, count, chunksize, skip, pieces, buffers)
        else:
            self._run_block(job, number, position, start, count, chunksize, skip, pieces, buffers)
        self.claims.page[RUNNING] = 0

    def _run_block(
        self,
        job: Job,
        number: int,
        position: int,
        start: int,
        count: int,
        chunksize: int,
        skip: int,
        pieces: Sequence[Frame],
        buffers: list[Frame],
    ) -> None:
        done = 0
        flushed = 0
        chunk = 0
        chunks = len(pieces)
        while chunk < chunks:
            stop = min(chunk + job.stride, chunks)
            upto = min(count, stop * chunksize - skip)
            if not self.claims.claim(position + done, position + upto):
                break
            begun = perf_counter()
            if job.error:
                self.values += [Failure((NO_UNPICKLE, job.error))] * (upto - done)
            elif chunksize == 1:
                self._singles(job, pieces, chunk, stop, position + done + 1, buffers)
            else:
                self._chunks(job, pieces, chunk, stop, position + done + 1, buffers, chunksize, skip, upto - done)
            now = perf_counter()
            self.spent += now - begun
            _adapt(job, stop - chunk, now - begun)
            skip_next = stop * chunksize - upto
            done, chunk = upto, stop
            if chunk < chunks:
                skip = stop * chunksize - done
                if now - self.sent >= FLUSH:
                    self._flush(number, start + flushed, chunksize, position + done)
                    flushed = done
            else:
                skip = skip_next
        del pieces
        buffers.clear()
        if self.values:
            self._flush(number, start + flushed, chunksize, position + done)

    def _run_once(
        self,
        job: Job,
        number: int,
        position: int,
        start: int,
        count: int,
        chunksize: int,
        skip: int,
        pieces: Sequence[Frame],
        buffers: list[Frame],
    ) -> None:
        """At most once: an item is claimed alone, and its result sent before the next begins."""
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
                    loaded = loads(pieces[chunk], buffers=buffers)
                    items = [loaded] if chunksize == 1 else loaded
                    held = chunk
                except BaseException as failure:
                    error = trace_text(failure)
            if error:
                self.values.append(Failure((NO_UNPICKLE, error)))
            else:
                self._items(job, [items[at]], position + item + 1)
            self.spent += perf_counter() - begun
            self._flush(number, start + item, 1, position + item + 1)

    def _singles(
        self, job: Job, pieces: Sequence[Frame], first: int, stop: int, running: int, buffers: list[Frame]
    ) -> None:
        """Chunks of one item each, pickled bare."""
        call, page, append = job.call, self.claims.page, self.values.append
        running -= first
        at = first
        while at < stop:
            try:
                if buffers:
                    page[RUNNING] = running + at
                    append(call(loads(pieces[at], buffers=buffers)))
                    at += 1
                    continue
                for at in range(at, stop):  # noqa: B020
                    page[RUNNING] = running + at
                    append(call(loads(pieces[at])))
                return
            except BaseException as error:
                append(self._retry_single(job, error, pieces[at], buffers))
            at += 1

    def _retry_single(self, job: Job, error: BaseException, piece: Frame, buffers: list[Frame]) -> Any:
        """Either unpickling raised or the function did: see which, off the fast path."""
        try:
            item = loads(piece, buffers=buffers)
        except BaseException as failure:
            return Failure((NO_UNPICKLE, trace_text(failure)))
        return _again(job, error, item)

    def _chunks(
        self,
        job: Job,
        pieces: Sequence[Frame],
        first: int,
        stop: int,
        running: int,
        buffers: list[Frame],
        chunksize: int,
        skip: int,
        count: int,
    ) -> None:
        """Chunks of several items, each a pickled list. ``skip`` items of the block's first chunk
        are not to be run, and ``count`` are in all."""
        for chunk in range(first, stop):
            self.claims.page[RUNNING] = running
            begin = skip if chunk == 0 else 0
            size = min(chunksize - begin, count)
            try:
                items = loads(pieces[chunk], buffers=buffers)
                if begin or len(items) != size:
                    items = items[begin : begin + size]
            except BaseException as error:
                self.values += [Failure((NO_UNPICKLE, trace_text(error)))] * size
            else:
                self._items(job, items, running)
            running += size
            count -= size

    def _items(self, job: Job, items: list[Any], running: int) -> None:
        call, page, append = job.call, self.claims.page, self.values.append
        rest = iter(items)
        first = running
        while True:
            try:
                for item in rest:
                    page[RUNNING] = running
                    append(call(item))
                    running += 1
                return
            except BaseException as error:
                append(_again(job, error, items[running - first]))
                running += 1

    # -- results -------------------------------------------------------------------------------------

    def _flush(self, job: int, start: int, chunksize: int, position: int) -> None:
        """Send the values there are; they belong to items from ``start`` on."""
        values, self.values = self.values, []
        _flush_output()
        kinds = set(map(type, values))
        if kinds <= _SIMPLE:
            self._send(job, start, len(values), VALUES, position, [dumps(values, 5)], ())
            return
        batch = _Batch(self, job, start, position)
        if Failure in kinds:
            batch.outcomes(values)
        else:
            batch.chunks(values, chunksize)
        values.clear()
        batch.send()

    def _send(
        self,
        job: int,
        start: int,
        count: int,
        encoding: int,
        position: int,
        pieces: list[bytes],
        buffers: Sequence[Frame],
    ) -> None:
        spent, self.spent = round(self.spent * 1e6), 0.0
        args = (job, start, count, spent, encoding, position)
        self.link.send(RESULT, args, pieces_frames(pieces, buffers))
        self.sent = perf_counter()


class _Batch:
    """Pieces on their way into as few messages as the rules allow: one encoding a message, a piece
    with buffers alone, none far larger than it must be."""

    def __init__(self, child: Child, job: int, start: int, position: int) -> None:
        self.child, self.job, self.start, self.position = child, job, start, position
        self.encoding = VALUES
        self.count = 0
        self.size = 0
        self.pieces: list[bytes] = []

    def outcomes(self, values: list[Any]) -> None:
        for value in values:
            outcome = value.outcome if type(value) is Failure else (DONE, value)
            self.add(OUTCOMES, 1, *dumps_outcome(outcome))

    def chunks(self, values: list[Any], chunksize: int) -> None:
        for begin in range(0, len(values), chunksize):
            part = values[begin : begin + chunksize]
            try:
                piece, buffers = dumps_value(part)
            except Exception:
                self.outcomes(part)
            else:
                self.add(VALUES, len(part), piece, buffers)

    def add(self, encoding: int, count: int, piece: bytes, buffers: Sequence[Frame]) -> None:
        if self.pieces and (buffers or encoding != self.encoding or self.size + len(piece) > MESSAGE):
            self.send()
        self.encoding = encoding
        self.count += count
        self.size += len(piece)
        self.pieces.append(piece)
        if buffers:
            self.send(buffers)

    def send(self, buffers: Sequence[Frame] = ()) -> None:
        if not self.pieces:
            return
        self.child._send(
            self.job, self.start, self.count, self.encoding, self.position, self.pieces, buffers
        )
        self.start += self.count
        self.count = self.size = 0
        self.pieces = []


# -- parts -------------------------------------------------------------------------------------------


def _adapt(job: Job, chunks: int, took: float) -> None:
    """Claim as many chunks at once as take about half a millisecond, growing fourfold at most."""
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
        except BaseException as failure:
            error = failure
    text = trace_text(error)
    # The frames hold the item, and through it perhaps a shared segment.
    error.__traceback__ = None
    return Failure((RAISED, error, text))


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
    except Exception as failure:
        return f"{type(error).__name__}, which cannot be shown ({type(failure).__name__})\n"


def _add_bundle(private_dir: str, code: Frame) -> None:
    from multihost_worker.bundles import unpack

    path = unpack(private_dir, code)
    if path not in sys.path:
        sys.path.insert(1, path)


def apply_setup(setup: dict[str, Any]) -> None:
    """Become what the producer's processes look like, then run the pool's initializer."""
    if setup.get("environ") is not None:
        os.environ.clear()
        os.environ.update(setup["environ"])
    if setup.get("cwd") is not None:
        os.chdir(setup["cwd"])
    if setup.get("sys_path") is not None:
        sys.path[:] = setup["sys_path"]
    if setup.get("argv") is not None:
        sys.argv[:] = setup["argv"]
    if setup.get("name"):
        from multiprocessing.process import current_process

        current_process().name = setup["name"]
    if setup.get("initializer"):
        initializer = loads(setup["initializer"])
        initializer(*(loads(setup["initargs"]) if setup.get("initargs") else ()))


def _flush_output() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):
            continue
