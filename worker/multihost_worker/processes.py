"""Processes of their own: children beside the slots, in no pool, each of which runs one thing and ends."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from multihost_common import messages as m
from multihost_common.blocks import Frame
from multihost_worker import events as e
from multihost_worker.books import Books

SIGKILL = 9

#: Seconds that a process has after whoever started it has gone.
ORPHANED = 10.0

#: Seconds for which a broker may have been dead before anybody notices, with what it was told last.
LATELY = 60.0

#: Processes of one host at once; one more ends before it begins.
MOST_PROCESSES = 4096


class Process:
    """One process, and the child that it is once its content is here."""

    __slots__ = ("child", "kill_at", "launch", "pid", "signals", "text")

    def __init__(self, launch: m.Launch) -> None:
        self.launch = launch
        #: Number of its child; 0: it waits for content.
        self.child = 0
        #: 0: it has not begun.
        self.pid = 0
        #: When it is killed, since nobody waits for it any more.
        self.kill_at: float | None = None
        #: Those that came before it could take any.
        self.signals: list[int] = []
        #: Why it could not begin, or was ended.
        self.text = ""


class Processes:
    """Reacts to what the broker says about processes, and to what their children do; what other children do is
    left to ``others``. ``next_child`` numbers a child, ``spare`` is called when
    a process has ended, ``ended`` with the number of each child that has."""

    def __init__(
        self,
        books: Books,
        next_child: Callable[[], int],
        others: Mapping[type, Callable[[Any], None]],
        spare: Callable[[], None],
        ended: Callable[[int, bool], None],
    ) -> None:
        self._books = books
        self._next_child = next_child
        self._others = others
        self._spare = spare
        self._ended = ended
        self.by_number: dict[int, Process] = {}
        self.by_child: dict[int, Process] = {}
        self._orphans: dict[int, Process] = {}
        #: When some have ended, and how.
        self._ended_lately: deque[tuple[float, m.Exited]] = deque(maxlen=MOST_PROCESSES)
        self.reactions: dict[type, Callable[[Any], None]] = {
            m.Launch: self._on_launch,
            m.Signal: self._on_signal,
            e.ChildReady: self._on_ready,
            e.ChildFailed: self._on_failed,
            e.ChildDied: self._on_died,
            e.ChildMemory: self._on_memory,
        }

    def root_of(self, child: int) -> int | None:
        """The process that this child is, if it is one."""
        process = self.by_child.get(child)
        return None if process is None else process.launch.process

    # -- what the broker says ------------------------------------------------------------------------

    def _on_launch(self, launch: m.Launch) -> None:
        known = self.by_number.get(launch.process)
        if known is not None:
            self._tell_launched(known)
            return
        if len(self.by_number) >= MOST_PROCESSES:
            text = f"there are {MOST_PROCESSES} processes on this host already"
            self._books.send(m.Exited(launch.process, self._books.config.host, 1, text))
            return
        process = self.by_number[launch.process] = Process(launch)
        for digest in (launch.setup, launch.code):
            self._books.blobs.use(digest)
        self._books.ask_for(launch.setup, launch.code)
        self._begin(process)

    def content_came(self) -> None:
        """Those that wait for content may begin."""
        if len(self.by_child) < len(self.by_number):
            for process in list(self.by_number.values()):
                if not process.child:
                    self._begin(process)

    def restate(self) -> None:
        """Another broker is there: tell it of those that run, and of those that have ended without its knowing."""
        for process in self.by_number.values():
            self._tell_launched(process)
        for _, exited in self._ended_lately:
            self._books.send(exited)

    def ask_again(self) -> None:
        """What was asked for before may have been lost."""
        for process in self.by_number.values():
            if not process.child:
                self._books.ask_for(process.launch.setup, process.launch.code)

    def _begin(self, process: Process) -> None:
        launch, books = process.launch, self._books
        if books.missing(launch.setup, launch.code):
            return
        process.child = self._next_child()
        self.by_child[process.child] = process
        setup, code = self._content(launch.setup), self._content(launch.code)
        books.emit(e.StartChild(process.child, launch.process, setup, code, True))
        books.emit(e.Begin(process.child, launch.frames))
        launch.frames = ()

    def _content(self, digest: bytes) -> Frame:
        return (self._books.blobs.get(digest) if digest else None) or b""

    def _on_signal(self, signal: m.Signal) -> None:
        process = self.by_number.get(signal.process)
        if process is None:
            return
        if not process.child:
            self._end(process, -(signal.signal or SIGKILL))
        elif not signal.signal:
            self._orphan(process)
        elif signal.signal == SIGKILL:
            self._books.emit(e.KillChild(process.child))
        elif process.pid:
            self._books.emit(e.SignalChild(process.child, signal.signal))
        else:
            process.signals.append(signal.signal)

    def _orphan(self, process: Process) -> None:
        """Whoever started it is gone. It may want to know, and to end in its own way."""
        if process.kill_at is None:
            process.kill_at = self._books.now + ORPHANED
            self._orphans[process.child] = process
            self._books.emit(e.Orphan(process.child))

    def deadline(self) -> float | None:
        """When :meth:`tick` has something to do."""
        # They have come in the order in which they are due.
        return next((each.kill_at for each in self._orphans.values()), None)

    def tick(self) -> None:
        """Kill those that have had their time."""
        for process in list(self._orphans.values()):
            if process.kill_at is not None and process.kill_at <= self._books.now:
                del self._orphans[process.child]
                self._books.emit(e.KillChild(process.child))

    # -- what the children do ------------------------------------------------------------------------

    def _on_ready(self, event: e.ChildReady) -> None:
        process = self.by_child.get(event.child)
        if process is None:
            self._others[e.ChildReady](event)
            return
        process.pid = event.pid
        self._tell_launched(process)
        for signal in process.signals:
            self._books.emit(e.SignalChild(process.child, signal))
        process.signals.clear()

    def _tell_launched(self, process: Process) -> None:
        if process.pid:
            self._books.send(m.Launched(process.launch.process, self._books.config.host, process.pid))

    def _on_failed(self, event: e.ChildFailed) -> None:
        process = self.by_child.get(event.child)
        if process is None:
            self._others[e.ChildFailed](event)
        else:
            process.text = event.text

    def _on_died(self, event: e.ChildDied) -> None:
        process = self.by_child.get(event.child)
        if process is None:
            self._others[e.ChildDied](event)
            return
        # One that ends by an exception has not done what others may count on.
        self._ended(event.child, bool(event.signal or event.exitcode))
        if not process.pid:
            if event.signal != SIGKILL:
                process.text = process.text or event.text or "it ended before it could begin"
            process.pid = event.pid
            self._tell_launched(process)
        elif event.oom:
            process.text = "it was killed by the kernel for want of memory"
        self._end(process, -event.signal if event.signal else event.exitcode)

    def _on_memory(self, event: e.ChildMemory) -> None:
        process = self.by_child.get(event.child)
        most = self._books.config.max_memory
        if process is None:
            self._others[e.ChildMemory](event)
        elif most and event.rss > most and not process.text:
            process.text = f"it was killed: it had {event.rss} bytes of memory, and {most} are allowed"
            self._books.emit(e.KillChild(process.child))

    # -- the end -------------------------------------------------------------------------------------

    def _end(self, process: Process, exitcode: int) -> None:
        launch = process.launch
        self._forget(process)
        exited = m.Exited(launch.process, self._books.config.host, exitcode, process.text[-m.TEXT :])
        lately = self._ended_lately
        while lately and lately[0][0] < self._books.now - LATELY:
            lately.popleft()
        lately.append((self._books.now, exited))
        self._books.send(exited)
        self._spare()

    def _forget(self, process: Process) -> None:
        launch = process.launch
        del self.by_number[launch.process]
        self.by_child.pop(process.child, None)
        self._orphans.pop(process.child, None)
        self._books.blobs.release(launch.setup)
        self._books.blobs.release(launch.code)

    def kill_all(self) -> None:
        """End them all; nobody is told."""
        for process in list(self.by_number.values()):
            self._forget(process)
            if process.child:
                self._books.emit(e.KillChild(process.child))


__all__ = ["Process", "Processes"]
