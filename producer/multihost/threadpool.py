"""``multiprocessing.pool.ThreadPool``, with its threads on the workers: for work that waits, for the network, say.

The standard library's ThreadPool does all but the work itself. Each of its threads stands for one thread of a process
on some host, hands that what is to be called, and waits for the outcome. So functions, arguments and results travel as
in :class:`multihost.Pool`, and nothing is shared with this process as it is between threads.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from multiprocessing import pool as _standard
from multiprocessing import util
from multiprocessing.context import ForkContext
from multiprocessing.dummy import DummyProcess
from typing import TYPE_CHECKING, Any, TypeAlias

from multihost.connection import Connection, Pipe
from multihost.engines.choosing import get_engine
from multihost.process import Process
from multihost.reduction import dump_function, load_outcomes
from multihost_common.errors import MultihostError, RemoteError, WorkerLostError
from multihost_common.pickling import DONE, NO_UNPICKLE, RAISED, dumps_outcome, loads, pieces_frames

if TYPE_CHECKING:
    from types import TracebackType

    from multihost_common.blocks import Frame

#: Threads that a process has at least before there is another one.
THREADS = 4

#: Bytes of a message at most; what is larger goes in parts.
PART = 32 << 20

#: So often a call may end its process before it is given up.
DEATHS = 3

#: Function and arguments that each thread of a process calls first.
Initializer: TypeAlias = "tuple[Callable[..., object], tuple[Any, ...]] | None"


class ThreadPool(_standard.ThreadPool):
    """A pool of threads in a few processes on the workers. As ``multiprocessing.pool.ThreadPool``, but that what is
    called is pickled.

    ``processes``: how many threads (None: as many as there are slots). ``initializer`` is called in each of them first.
    ``address``: of a broker (None: ``MULTIHOST_BROKER``; empty: this machine). A call whose process dies is made again,
    in a process of its own; after three deaths it raises WorkerLostError.
    """

    _state: str = _standard.INIT

    def __init__(
        self,
        processes: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        *,
        address: str | None = None,
    ) -> None:
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        slots = max(1, get_engine(address).capacity)
        threads = slots if processes is None else processes
        crew = self._crew = _Crew(
            threads, slots, (initializer, tuple(initargs)) if initializer else None, address
        )
        self.Process = partial(_thread, crew)  # type: ignore[assignment,method-assign]
        # Not ThreadPool's own: what it makes of the context is for this process alone.
        _standard.Pool.__init__(self, threads, context=ForkContext())
        self._terminate = util.Finalize(self, _terminate, (crew, self._terminate), exitpriority=16)  # type: ignore[has-type]

    def join(self) -> None:
        """Wait for the threads to end, after :meth:`close` or :meth:`terminate`, and for their processes."""
        super().join()
        self._crew.join()


def _terminate(crew: _Crew, terminate: Callable[[], object]) -> None:
    crew.kill()
    terminate()


def _thread(crew: _Crew, ctx: object, *, target: object, args: tuple[Any, ...]) -> DummyProcess:
    """A thread of this process, in place of the one that a pool asks for."""
    return DummyProcess(target=_work, args=(crew, *args[:2]))


def _work(crew: _Crew, inqueue: Any, outqueue: Any) -> None:
    """Have the tasks done one after the other, until there are no more."""
    lane = crew.lane()
    try:
        while (task := inqueue.get()) is not None:
            job, index, function, args, kwds = task
            result = lane.call(function, args, kwds)
            del task, function, args, kwds
            outqueue.put((job, index, result))
            del result
    finally:
        crew.leave(lane)


# -- the processes, from here ------------------------------------------------------------------------------


class _Crew:
    """The processes of a pool."""

    def __init__(self, threads: int, slots: int, initializer: Initializer, address: str | None) -> None:
        self.initializer = initializer
        self.address = address
        self.killed = False
        self._lock = threading.Lock()
        count = min(slots, -(-threads // THREADS)) if threads > 0 else 0
        sizes = [threads // count + (index < threads % count) for index in range(count)]
        self._free = [lane for size in sizes for lane in _Host(self, size).lanes]
        #: All that were started and are not known to have ended.
        self._processes: set[Process] = set()

    def lane(self) -> _Lane:
        """A thread for one of this process's. Raises IndexError if there are too many of those."""
        with self._lock:
            return self._free.pop()

    def leave(self, lane: _Lane) -> None:
        """That one of ours ends."""
        lane.leave()
        with self._lock:
            self._free.append(lane)

    def start(self, ends: list[Connection]) -> Process:
        """A process that answers what comes from these connections, a thread each."""
        process = Process(target=_serve, args=(ends, self.initializer), daemon=True, address=self.address)
        with self._lock:
            if self.killed:
                raise MultihostError("the pool was terminated")
            process.start()
            self._processes = {each for each in self._processes if each.is_alive()} | {process}
        for end in ends:
            end.close()
        return process

    def kill(self) -> None:
        """End all processes at once."""
        with self._lock:
            self.killed = True
            for process in self._processes:
                process.kill()

    def join(self) -> None:
        """Wait until they have ended."""
        for process in list(self._processes):
            process.join()


class _Host:
    """One process, and the connections to its threads. It is started when one is needed, and again if it has died."""

    def __init__(self, crew: _Crew, size: int) -> None:
        self.crew = crew
        self.lanes = [_Lane(self, index) for index in range(size)]
        self._lock = threading.Lock()
        self._process: Process | None = None
        self._ends: list[Connection] = []

    def end(self, index: int) -> Connection:
        """The connection to one of its threads."""
        with self._lock:
            if not self._ends or self._ends[index].closed:
                pipes = [Pipe(address=self.crew.address) for _ in self.lanes]
                self._process = self.crew.start([there for _, there in pipes])
                self._ends = [here for here, _ in pipes]
            return self._ends[index]

    def lost(self, end: Connection) -> None:
        """This connection is at its end, and the process with it."""
        with self._lock:
            if end in self._ends:
                self._ends = []

    def leave(self, index: int) -> None:
        """One of its threads is not needed any more."""
        with self._lock:
            if self._ends:
                self._ends[index].close()

    def fate(self) -> str:
        """What is known of the end of its process."""
        process = self._process
        if process is None:
            return "it did not start"
        process.join()
        return f"exit code {process.exitcode} on {process.host}"


class _Lane:
    """One thread of a process."""

    def __init__(self, host: _Host, index: int) -> None:
        self._host = host
        self._index = index

    def call(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwds: dict[str, Any]
    ) -> tuple[bool, Any]:
        """(True, what it returns) or (False, what it raises)."""
        try:
            data = dump_function((function, args, kwds))  # type: ignore[arg-type]
            outcome = self.ask(data)
            return self._call_alone(data) if outcome is None else outcome
        except Exception as error:  # noqa: BLE001
            return False, error

    def _call_alone(self, data: bytes) -> tuple[bool, Any]:
        """Its process has died, perhaps because of another call."""
        host = _Host(self._host.crew, 1)
        try:
            for _ in range(DEATHS - 1):
                outcome = host.lanes[0].ask(data)
                if outcome is not None:
                    return outcome
        finally:
            host.leave(0)
        raise WorkerLostError(
            f"the process of this call has died {DEATHS} times, the last time with {host.fate()}; "
            "it is not made again"
        )

    def ask(self, data: bytes) -> tuple[bool, Any] | None:
        """The outcome of the call that is pickled here; None: the process has died."""
        end = self._host.end(self._index)
        try:
            _send(end, [data])
            frames = _receive(end)
        except (EOFError, ConnectionError):
            if self._host.crew.killed:
                raise MultihostError("the pool was terminated") from None
            self._host.lost(end)
            return None
        return load_outcomes(pieces_frames([bytes(frames[0])], frames[1:]))[0]

    def leave(self) -> None:
        """The thread is not needed any more."""
        self._host.leave(self._index)


# -- the processes themselves --------------------------------------------------------------------------------


def _serve(ends: list[Connection], initializer: Initializer) -> None:
    """What a process does: answer what comes from each connection, in a thread of its own."""
    threads = [threading.Thread(target=_answer, args=(end, initializer), daemon=True) for end in ends]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _answer(end: Connection, initializer: Initializer) -> None:
    failure = None
    if initializer is not None:
        function, args = initializer
        try:
            function(*args)
        except BaseException as error:  # noqa: BLE001
            failure = RemoteError(f"the pool's initializer failed:\n{_trace(error)}")
    try:
        while True:
            data = _receive(end)[0]
            outcome = (RAISED, failure, "") if failure is not None else _outcome(data)
            piece, buffers = dumps_outcome(outcome)
            del data, outcome
            _send(end, [piece, *buffers])
            del piece, buffers
    except (EOFError, OSError, MultihostError):
        # Nobody is there any more.
        return


def _outcome(data: Frame) -> tuple[Any, ...]:
    try:
        function, args, kwds = loads(data)
    except BaseException as error:  # noqa: BLE001
        return NO_UNPICKLE, _trace(error)
    try:
        return DONE, function(*args, **kwds)
    except BaseException as error:  # noqa: BLE001
        text = _trace(error)
        # Its frames hold the arguments.
        error.__traceback__ = None
        return RAISED, error, text


def _trace(error: BaseException) -> str:
    """The traceback as multiprocessing shows it, from the user's first frame on."""
    import traceback

    frames: TracebackType | None = error.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename in (__file__, _standard.__file__):
        frames = frames.tb_next
    return "".join(traceback.format_exception(type(error), error, frames or error.__traceback__))


# -- what is said ------------------------------------------------------------------------------------------


def _send(end: Connection, frames: Sequence[Frame]) -> None:
    """Their number, their lengths, and all of them, in messages that are not too large."""
    first = memoryview(frames[0])
    lengths = b"".join(len(frame).to_bytes(8, "little") for frame in frames)
    end.send_bytes(b"".join((bytes([len(frames)]), lengths, first[:PART])))
    for rest in (first[PART:], *(memoryview(frame) for frame in frames[1:])):
        for begin in range(0, len(rest), PART):
            end.send_bytes(rest[begin : begin + PART])


def _receive(end: Connection) -> list[Frame]:
    """The frames that were sent."""
    message = end.recv_bytes()
    begin = 1 + 8 * message[0]
    parts = [message[begin:]]
    frames: list[Frame] = []
    for at in range(1, begin, 8):
        left = int.from_bytes(message[at : at + 8], "little") - sum(map(len, parts))
        while left > 0:
            parts.append(end.recv_bytes())
            left -= len(parts[-1])
        frames.append(parts[0] if len(parts) == 1 else b"".join(parts))
        parts = []
    return frames


__all__ = ["ThreadPool"]
