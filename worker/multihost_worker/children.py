"""The shell around child processes: carries out the core's child actions and tells its events.

Nothing here blocks. An outside loop watches descriptors (``watch``), calls ``process`` for those that
are ready and ``tick`` at the ``deadline``, and everything that has come becomes events.
"""

from __future__ import annotations

import itertools
import os
import select
import signal
import time
from typing import TYPE_CHECKING, Any

from multihost_worker import events as e
from multihost_worker import memory
from multihost_worker.control import DIED, FORKED, KILL, REFUSED, SIGNAL, START
from multihost_worker.ends import Ends, Pairs
from multihost_worker.link import (
    DEFINE,
    FAILED,
    FORGET,
    FREED,
    PROCESS,
    READY,
    RESULT,
    RUN,
    SAID,
    SAY,
    SETUP,
    STOP,
    UNREADABLE,
    Link,
)
from multihost_worker.prompter import Prompter
from multihost_worker.segments import Segments, allotment
from multihost_worker.server import Server, kill_group

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

#: What ``watch`` is told and ``process`` takes, with the values select.poll() has.
READ, WRITE = select.POLLIN, select.POLLOUT


class Children:
    """Child processes of this host and their forkserver.

    ``emit`` is called with each event, from within ``do``, ``process`` and ``sample`` only; it may
    call ``do``. ``capture(pool, pid, stream, data)`` gets what children write to standard output (1)
    and error (2), and no data when the child has ended; without it they write where this process does. ``watch(fd, events)`` is told which
    descriptors to poll for READ, READ | WRITE, or nothing any more (0). ``preload`` names modules
    that the forkserver imports before it forks; ``server`` may be one that has been started already.
    ``hint`` is called, from any thread, when :meth:`tidy` has something to do.
    """

    def __init__(
        self,
        emit: Callable[[e.Event], None],
        *,
        capture: Callable[[int, int, int, bytes], None] | None = None,
        private_dir: str | None = None,
        env: Mapping[str, str] | None = None,
        watch: Callable[[int, int], None] | None = None,
        preload: Sequence[str] = (),
        clock: Callable[[], float] = time.monotonic,
        server: Server | None = None,
        hint: Callable[[], object] | None = None,
    ) -> None:
        self._emit = emit
        self._hint = hint
        #: Has :meth:`tidy` something to do?
        self.untidy = False
        self._capture = capture
        self._clock = clock
        self._watch = watch
        self._private_dir = private_dir
        self._own_dir: str | None = None
        self._children: dict[int, Ends] = {}
        self._owners: dict[int, Ends] = {}
        #: What is watched now: descriptor to events.
        self.watched: dict[int, int] = {}
        self._prompter = Prompter(clock)
        self._segments = Segments(dropped=self._dropped, limit=allotment(1))
        self._server = server or Server(env, preload)
        #: Children are numbered from here on.
        self.first_number = 1
        self._closed = False
        self._acts: dict[type, Callable[[Any], None]] = {
            e.StartChild: self._start_child,
            e.Define: self._define,
            e.Run: self._run,
            e.Tell: self._say,
            e.Forget: self._forget,
            e.StopChild: self._stop,
            e.KillChild: self._kill,
            e.Begin: self._begin,
            e.SignalChild: self._signal,
            e.Orphan: self._orphan,
            e.Reclaim: self._reclaim,
            e.Inspect: self._inspect,
        }
        _alive.add(self)

    # -- what the loop calls -------------------------------------------------------------------------

    def start(self) -> None:
        """Start the forkserver, so that it is warm when the first child is wanted. Does not wait."""
        self._server.start()
        self._flushed_server()

    def do(self, action: e.Action) -> None:
        """Carry out a child action. Never blocks; for a child that is gone it does nothing."""
        self._acts[type(action)](action)

    def process(self, fd: int, mask: int) -> None:
        """Read all that has come on ``fd``, send what is queued for it, and emit the events."""
        if fd == self._server.fd:
            self._process_server(mask)
            return
        owner = self._owners.get(fd)
        if owner is None:
            return
        if fd in owner.outputs:
            self._read_output(owner, fd)
            return
        if mask & WRITE and owner.link.flush():
            self._set(fd, READ)
        if mask & ~WRITE:
            self._read(owner)
            if owner.link.eof and owner.child in self._children:
                self._hung_up(owner)

    def poll(self, timeout: float | None) -> bool:
        """Wait for descriptors that are ready and process them: a loop for those who have none."""
        poller = select.poll()
        for fd, events in self.watched.items():
            poller.register(fd, events)
        due = self.deadline()
        if due is not None:
            left = due - self._clock()
            timeout = left if timeout is None else min(left, timeout)
        ready = poller.poll(None if timeout is None else max(0.0, timeout * 1000))
        self.tick()
        for fd, mask in ready:
            if fd in self.watched:
                self.process(fd, mask)
        return bool(ready)

    def deadline(self) -> float | None:
        """When ``tick`` is due, by the clock."""
        return self._prompter.due

    def tick(self) -> None:
        """See to it that no child sits on results; does nothing before the deadline."""
        if (due := self._prompter.due) is not None and self._clock() >= due:
            self._prompter.look((each.pid, each.book) for each in self._children.values())

    def tidy(self) -> None:
        """Tell the children which of their segments are not used any more, so that they let go of them."""
        if self.untidy:
            self.untidy = False
            for each in list(self._children.values()):
                if each.link.untidy():
                    self._send(each, FREED)

    def _freed(self) -> None:
        if not self.untidy:
            self.untidy = True
            if self._hint is not None:
                self._hint()

    def sample(self) -> None:
        """Emit ChildMemory for every child."""
        for each in list(self._children.values()):
            if each.pid:
                self._emit(e.ChildMemory(each.child, memory.resident(each.pid)))

    def pids(self) -> dict[int, int]:
        """Process id of each child that has been forked and has not ended."""
        return {each.child: each.pid for each in self._children.values() if each.pid}

    def close(self, kill: bool = True, timeout: float = 5.0) -> None:
        """End all children and the forkserver. Without ``kill`` children end first what they have,
        for at most ``timeout`` seconds, and their events are emitted."""
        if self._closed:
            return
        deadline = self._clock() + timeout
        if not kill:
            for number in list(self._children):
                self._stop(e.StopChild(number))
            while self._children and (left := deadline - self._clock()) > 0:
                self.poll(left)
        self._closed = True
        pids = list(self.pids().values())
        self._set(self._server.fd, 0)
        self._server.close(pids, max(0.5, deadline - self._clock()))
        for each in list(self._children.values()):
            self._read_outputs(each)
            self._forget_child(each)
        self._segments.close()
        _alive.discard(self)
        if self._own_dir is not None:
            import shutil

            shutil.rmtree(self._own_dir, ignore_errors=True)

    def abandon(self) -> None:
        """After a fork, in the new process: let go of all, and touch nothing of the old one's."""
        self._closed = True
        self._server.abandon()
        for each in self._children.values():
            each.abandon()
        self._segments.close()
        for books in (self._children, self._owners, self.watched):
            books.clear()

    # -- actions -------------------------------------------------------------------------------------

    def _start_child(self, action: e.StartChild) -> None:
        limit = allotment(len(self._children) + 1)
        try:
            where = self._code_dir(action.code)
            each = self._fork(action, limit // 2)
        except OSError as error:
            text = f"no process could be started: {error.strerror or error}"
            self._emit(e.ChildDied(action.child, -1, 0, 1, 0, 0, False, text))
            return
        self._children[action.child] = each
        for fd in (each.link.fd, *each.outputs):
            self._owners[fd] = each
            self._set(fd, READ)
        self._send(each, SETUP, (where, limit, each.number), (action.setup, action.code))

    def _fork(self, action: e.StartChild, views: int) -> Ends:
        """Ask the forkserver for a process. Raises OSError with nothing left open."""
        self.start()
        pairs = Pairs(self._capture is not None, action.process)
        try:
            self._server.request(START, action.child, pairs.theirs(), int(action.process))
        except OSError:
            pairs.close()
            raise
        pairs.give_away()
        self._flushed_server()
        link = Link(pairs.sockets[0], self._segments, views, self._freed)
        number = 0 if action.process else self._free_number(action.pool)
        return Ends(action.child, action.pool, pairs, link, memory.oom_kills(), number)

    def _free_number(self, pool: int) -> int:
        """The smallest number that no child of this pool has. People count on them being small."""
        taken = {each.number for each in self._children.values() if each.pool == pool}
        return next(number for number in itertools.count(self.first_number) if number not in taken)

    def _code_dir(self, code: Any) -> str:
        if not len(code):
            return ""
        if self._private_dir is None:
            import tempfile

            self._private_dir = self._own_dir = tempfile.mkdtemp(prefix="multihost-")
        return self._private_dir

    def _define(self, action: e.Define) -> None:
        each = self._children.get(action.child)
        if each is not None:
            where = self._code_dir(action.code)
            args = (action.job, action.call, action.timeout > 0, action.retries, action.at_most_once, where)
            self._send(each, DEFINE, args, (action.function, action.code))

    def _run(self, action: e.Run) -> None:
        each = self._children.get(action.child)
        if each is not None:
            each.book.give(action.position + action.count)
            self._prompter.given()
            args = (action.position, action.job, action.start, action.count, action.chunksize, action.skip)
            self._send(each, RUN, args, action.frames)

    def _forget(self, action: e.Forget) -> None:
        each = self._children.get(action.child)
        if each is not None:
            self._send(each, FORGET, (action.job,))

    def _stop(self, action: e.StopChild) -> None:
        each = self._children.get(action.child)
        if each is not None:
            self._send(each, STOP)

    def _kill(self, action: e.KillChild) -> None:
        each = self._children.get(action.child)
        if each is not None:
            each.killed = True
            self._server.request(KILL, action.child, [])
            self._flushed_server()

    def _begin(self, action: e.Begin) -> None:
        each = self._children.get(action.child)
        if each is not None:
            self._send(each, PROCESS, (), action.frames)

    def _signal(self, action: e.SignalChild) -> None:
        if action.child in self._children:
            self._server.request(SIGNAL, action.child, [], action.signal)
            self._flushed_server()

    def _orphan(self, action: e.Orphan) -> None:
        each = self._children.get(action.child)
        if each is not None:
            each.orphan()

    def _reclaim(self, action: e.Reclaim) -> None:
        each = self._children.get(action.child)
        if each is not None:
            self._emit(e.Reclaimed(action.child, each.book.reclaim()))

    def _inspect(self, action: e.Inspect) -> None:
        each = self._children.get(action.child)
        if each is not None:
            self._emit(e.Progress(action.child, *each.book.progress(self._clock())))

    # -- traffic -------------------------------------------------------------------------------------

    def _set(self, fd: int, events: int) -> None:
        if fd < 0 or self.watched.get(fd, 0) == events:
            return
        if events:
            self.watched[fd] = events
        else:
            self.watched.pop(fd, None)
        if self._watch is not None:
            self._watch(fd, events)

    def _say(self, action: e.Tell) -> None:
        each = self._children.get(action.child)
        if each is not None:
            self._send(each, SAID, (), action.frames)

    def _send(self, each: Ends, kind: int, args: tuple[Any, ...] = (), frames: Sequence[Any] = ()) -> None:
        if not each.link.eof:
            self._set(each.link.fd, READ if each.link.send(kind, args, frames) else READ | WRITE)

    def _read(self, each: Ends) -> None:
        """Everything that is there, as events. The core may answer with actions meanwhile."""
        link = each.link
        more = True
        while more and not link.eof:
            more = link.fill()
            while (message := self._next(each)) is not None:
                self._tell(each, *message)

    def _next(self, each: Ends) -> tuple[int, tuple[Any, ...], list[Any]] | None:
        try:
            return each.link.next()
        except UNREADABLE as error:
            each.tail = f"its messages could not be read: {error}".encode()
            each.link.eof = True
            return None

    def _tell(self, each: Ends, kind: int, args: tuple[Any, ...], frames: list[Any]) -> None:
        if kind == RESULT:
            job, start, count, spent, encoding, position = args
            # What an item printed is told before its result is.
            self._read_outputs(each)
            each.book.passed(position)
            self._emit(e.ChildResult(each.child, job, start, count, spent, encoding, frames))
        elif kind == SAY:
            self._emit(e.ChildSays(each.child, frames))
        elif kind == READY:
            each.pid = args[0]
            self._emit(e.ChildReady(each.child, args[0]))
        elif kind == FAILED:
            self._emit(e.ChildFailed(each.child, args[0]))

    def _read_outputs(self, each: Ends) -> None:
        for fd in each.ready():
            self._read_output(each, fd)

    def _read_output(self, each: Ends, fd: int) -> None:
        if not each.read(fd, self._capture):
            self._close_output(each, fd)

    def _close_output(self, each: Ends, fd: int) -> None:
        self._set(fd, 0)
        self._owners.pop(fd, None)
        each.close_output(fd)

    def _hung_up(self, each: Ends) -> None:
        """A child that has closed its socket is ending, or useless; its death is reported."""
        self._set(each.link.fd, 0)
        if not self._server.request(KILL, each.child, []) and each.pid:
            kill_group(each.pid)
        self._flushed_server()

    # -- the forkserver ------------------------------------------------------------------------------

    def _flushed_server(self) -> None:
        self._set(self._server.fd, READ | WRITE if self._server.waiting else READ)

    def _process_server(self, mask: int) -> None:
        server = self._server
        fd = server.fd
        if mask & WRITE:
            server.flush()
            self._flushed_server()
        if not mask & ~WRITE:
            return
        for kind, child, pid, status, peak in server.reports():
            each = self._children.get(child)
            if each is None:
                continue
            if kind == FORKED:
                each.pid = pid
            elif kind == REFUSED:
                each.tail = f"no process could be made: {os.strerror(status)}".encode()
                self._died(each, 1, 0, 0)
            elif kind == DIED:
                code = os.waitstatus_to_exitcode(status)
                self._died(each, max(code, 0), max(-code, 0), peak)
        if server.eof and server.fd == fd:
            self._server_ended(fd)

    def _server_ended(self, fd: int) -> None:
        """The forkserver is gone, and with it who could reap: kill its children, tell, and start
        another one when the next child is wanted."""
        self._set(fd, 0)
        lost = list(self._children.values())
        for each in lost:
            if each.pid:
                kill_group(each.pid)
        self._server.reset()
        for each in lost:
            each.tail = each.tail or b"the forkserver was killed"
            self._died(each, 0, signal.SIGKILL, 0)

    def _died(self, each: Ends, exitcode: int, signum: int, rss: int) -> None:
        if self._children.get(each.child) is not each:
            return
        each.link.drained = False
        while not (each.link.eof or each.link.drained):
            self._read(each)
        self._read_outputs(each)
        position, covers = each.book.position(), each.book.covers()
        oom = signum == signal.SIGKILL and not each.killed and memory.oom_kills() > each.oom
        text = each.tail.decode(errors="replace")
        self._forget_child(each)
        self._emit(e.ChildDied(each.child, position, each.pid, exitcode, signum, rss, oom, text, covers))

    def _forget_child(self, each: Ends) -> None:
        if self._children.get(each.child) is each:
            del self._children[each.child]
        self._set(each.link.fd, 0)
        self._owners.pop(each.link.fd, None)
        for fd in list(each.outputs):
            self._close_output(each, fd)
        if self._capture is not None:
            self._capture(each.pool, each.pid, 1, b"")
        each.close()

    def _dropped(self, number: int) -> None:
        for each in self._children.values():
            if number in each.link.known:
                each.link.known.discard(number)
                each.link.dropping.append(number)


def _after_fork() -> None:
    for each in list(_alive):
        each.abandon()
    _alive.clear()


#: A process forked from this one must not hold the sockets: its children would not see this one end.
_alive: set[Children] = set()
os.register_at_fork(after_in_child=_after_fork)
