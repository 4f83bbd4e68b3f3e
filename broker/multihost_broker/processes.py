"""Processes of their own, beside the slots: which worker runs each, and what becomes of it.

A process goes to the least loaded worker and stays there. It ends with its worker's session, and with its owner's:
whoever started it is told of the one, and it is killed for the other.

To a broker that was started anew, workers name the processes that they run, and those that have ended lately; producers
name those that they wait for. One that a worker has named by the time that workers are back is adopted, in whatever order they come.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from multihost_broker.ledger import Ledger
from multihost_broker.sessions import NUMBER, UNLIMITED, Session
from multihost_common import messages as m

#: Bytes of what those run that wait for a worker; one more ends before it begins.
MOST_WAITING = 1 << 30

#: What a process that was lost with its host ended by, as far as anybody can tell.
SIGKILL = 9


class Process:
    """One process. Its number is its session's and its own, as those of pools are."""

    __slots__ = (
        "doubtful",
        "host",
        "launch",
        "number",
        "orphan",
        "owner",
        "pid",
        "signals",
        "size",
        "worker",
    )

    def __init__(self, owner: Session, launch: m.Launch) -> None:
        self.number = owner.number << 32 | launch.process
        self.owner = owner
        self.launch = launch
        #: Bytes of what it runs.
        self.size = sum(map(len, launch.frames))
        launch.process = self.number
        #: Whoever started it has gone, and somebody else owns it now, who does not know it.
        self.orphan = False
        #: It was stated anew: some worker may run it already.
        self.doubtful = False
        #: What it is to be sent if some worker does.
        self.signals: list[int] = []
        #: Who runs it; None: nobody yet.
        self.worker: Session | None = None
        #: Where it runs, once it does.
        self.host = ""
        self.pid = 0

    def runs_already(self) -> bool:
        """Whoever started it knows that it runs, and has only asked for it."""
        return len(self.launch.frames) == 1 and not len(self.launch.frames[0])


class Processes:
    """Reacts to what producers and workers say about processes."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self.by_number: dict[int, Process] = {}
        #: Those that no worker has yet, in the order in which they came.
        self._waiting: dict[int, Process] = {}
        self._waiting_bytes = 0
        #: Session -> its processes: those that it has started, and those that it runs.
        self._owned: dict[int, dict[int, Process]] = {}
        self._run: dict[int, dict[int, Process]] = {}
        #: What workers that have come back have said of processes that nobody has asked for (yet), by the worker's session.
        self._strays: dict[int, dict[int, m.Launched | m.Exited]] = {}
        ledger.process_owner = self._owner_of
        self.reactions: dict[type, Callable[[Session, Any], None]] = {
            m.Launch: self._on_launch,
            m.Launched: self._hear,
            m.Exited: self._hear,
            m.Signal: self._on_signal,
        }

    def _owner_of(self, number: int, worker: Session) -> Session | None:
        process = self.by_number.get(number)
        return process.owner if process is not None and process.worker is worker else None

    # -- beginning -----------------------------------------------------------------------------------

    def _on_launch(self, owner: Session, launch: m.Launch) -> None:
        if launch.process > NUMBER:
            self._ledger.refuse(owner.peer, "E_FIELD", "processes are numbered with 32 bits")
            return
        known = self.by_number.get(owner.number << 32 | launch.process)
        if known is not None:
            self._tell_launched(known)
            return
        process = Process(owner, launch)
        if self._waiting and self._waiting_bytes + process.size > MOST_WAITING:
            text = f"{MOST_WAITING >> 20} MiB of processes wait for a worker already"
            self._ledger.tell(owner, m.Exited(process.number & NUMBER, "", 1, text))
            return
        self.by_number[process.number] = self._waiting[process.number] = process
        self._waiting_bytes += process.size
        self._owned.setdefault(owner.number, {})[process.number] = process
        for digest in (launch.setup, launch.code):
            self._ledger.blobs.use(digest)
        self._ask_for_content(process)
        if owner.stated is not None:
            # It is stated anew, so some worker may run it.
            process.doubtful = True
            for number in list(self._strays):
                self._adopt(process, number)
        else:
            self._place(process)

    def _ask_for_content(self, process: Process) -> None:
        for digest in (process.launch.setup, process.launch.code):
            if digest and digest not in self._ledger.blobs:
                self._ledger.tell(process.owner, m.Need(digest))

    def restated(self, owner: Session) -> None:
        """The producer has another connection: content that was sent over the last one may have been lost."""
        for process in self._owned.get(owner.number, {}).values():
            if process.worker is None:
                self._ask_for_content(process)

    def released(self, owner: Session) -> None:
        """The workers are back that may run what this producer waits for."""
        for process in list(self._owned.get(owner.number, {}).values()):
            if process.doubtful:
                process.doubtful = False
                if process.runs_already():
                    self._end(
                        process, "", -SIGKILL, "the broker was started anew, and no worker has the process"
                    )
                elif process.signals:
                    self._end(process, "", -process.signals[0], "")
                else:
                    self._place(process)

    def _adopt(self, process: Process, number: int) -> None:
        """The worker with this session may have said what has become of the process."""
        worker = self._ledger.sessions.by_number.get(number)
        said = None if worker is None else self._strays[number].pop(process.number, None)
        if worker is not None and said is not None and process.worker is None:
            process.doubtful = False
            self._assign(process, worker)
            for signal in process.signals:
                self._ledger.tell(worker, m.Signal(process.number, signal))
            self._hear(worker, said)

    def place(self) -> None:
        """There may be a worker, or content, for those that wait."""
        for process in list(self._waiting.values()):
            self._place(process)

    def _place(self, process: Process) -> None:
        if process.doubtful:
            return
        launch = process.launch
        scheduler = self._ledger.scheduler
        worker = None if scheduler.missing(launch.setup, launch.code) else self._least_loaded()
        if worker is None:
            return
        self._assign(process, worker)
        scheduler.give_blobs(worker, (launch.setup, launch.code))
        self._ledger.tell(worker, launch)

    def _assign(self, process: Process, worker: Session) -> None:
        self._unwait(process)
        process.worker = worker
        self._run.setdefault(worker.number, {})[process.number] = process

    def _unwait(self, process: Process) -> None:
        if self._waiting.pop(process.number, None) is not None:
            self._waiting_bytes -= process.size

    def _least_loaded(self) -> Session | None:
        scheduler = self._ledger.scheduler
        usable = [each for each in scheduler.workers.values() if each.usable(scheduler.now)]
        return min(usable, key=self._load, default=None)

    def _load(self, worker: Session) -> float:
        """What this worker would have to do with one more, in relation to what it can."""
        slots = worker.slots or UNLIMITED
        return (slots - worker.free + len(self._run.get(worker.number, ())) + 1) / slots

    def _hear(self, worker: Session, said: m.Launched | m.Exited) -> None:
        """A worker says what has become of a process."""
        process = self.by_number.get(said.process)
        if process is not None and process.worker is worker:
            self._take(process, worker, said)
        elif worker.returning or (worker.claims_until or 0.0) > self._ledger.scheduler.now:
            self._strays.setdefault(worker.number, {})[said.process] = said
            if process is not None and process.doubtful:
                self._adopt(process, worker.number)
        elif type(said) is m.Launched:
            # Whoever started it has gone, or was told that it is lost.
            self._ledger.tell(worker, m.Signal(said.process, SIGKILL))

    def clear(self, worker: Session) -> None:
        """Nobody has come back for what this worker still runs."""
        for said in self._strays.pop(worker.number, {}).values():
            if type(said) is m.Launched:
                self._ledger.tell(worker, m.Signal(said.process, SIGKILL))

    def _take(self, process: Process, worker: Session, said: m.Launched | m.Exited) -> None:
        if isinstance(said, m.Exited):
            self._end(process, said.host or worker.host, said.exitcode, said.text)
            return
        launched = said
        process.host, process.pid = launched.host or worker.host, launched.pid
        # What it runs is of no use to anybody else.
        process.launch.frames = (b"",)
        self._tell_launched(process)

    def _tell_launched(self, process: Process) -> None:
        if process.pid and not process.orphan:
            self._ledger.tell(process.owner, m.Launched(process.number & NUMBER, process.host, process.pid))

    # -- signals -------------------------------------------------------------------------------------

    def _on_signal(self, owner: Session, signal: m.Signal) -> None:
        if not signal.process:
            self._signal_parent(owner, signal.signal)
            return
        process = self.by_number.get(owner.number << 32 | signal.process)
        if process is None or not signal.signal or signal.process > NUMBER:
            return
        if process.doubtful:
            process.signals.append(signal.signal)
        elif process.worker is None:
            # It has not begun, so it does not ignore it either.
            self._end(process, "", -signal.signal, "")
        else:
            self._ledger.tell(process.worker, m.Signal(process.number, signal.signal))

    def _signal_parent(self, child: Session, signum: int) -> None:
        """Whoever has started this one is to have a signal. Nobody else can be named."""
        root, parent = self._ledger.ancestry(child)
        process = self.by_number.get(root)
        # An orphan is somebody's who does not know it.
        if parent is not None and signum and not (process is not None and process.orphan):
            self._ledger.tell(parent, m.Signal(0, signum))

    # -- the end -------------------------------------------------------------------------------------

    def _end(self, process: Process, host: str, exitcode: int, text: str) -> None:
        self._forget(process)
        if not process.orphan:
            self._ledger.tell(process.owner, m.Exited(process.number & NUMBER, host, exitcode, text))

    def _forget(self, process: Process) -> None:
        number = process.number
        del self.by_number[number]
        self._unwait(process)
        self._drop(self._owned, process.owner, number)
        if process.worker is not None:
            self._drop(self._run, process.worker, number)
        self._ledger.blobs.release(process.launch.setup)
        self._ledger.blobs.release(process.launch.code)

    def _drop(self, books: dict[int, dict[int, Process]], session: Session, number: int) -> None:
        processes = books[session.number]
        del processes[number]
        if not processes:
            del books[session.number]

    def owner_ended(self, owner: Session, parent: Session | None) -> None:
        """The session is over: what it has started is killed. If it was a process of ``parent``'s itself, they are told
        that they are orphans, and have a while to end."""
        for process in list(self._owned.get(owner.number, {}).values()):
            if process.worker is None or parent is None:
                self._forget(process)
            else:
                self._drop(self._owned, owner, process.number)
                self._owned.setdefault(parent.number, {})[process.number] = process
                process.owner, process.orphan = parent, True
            if process.worker is not None:
                self._ledger.reach(process.worker, m.Signal(process.number, SIGKILL if parent is None else 0))

    def worker_ended(self, worker: Session, why: str) -> None:
        """The session is over, and with it what the worker has run."""
        self._strays.pop(worker.number, None)
        host = worker.host or "a worker"
        for process in list(self._run.get(worker.number, {}).values()):
            self._end(
                process, worker.host, -SIGKILL, f"{host} was lost, and the process with it: its worker {why}"
            )


__all__ = ["Process", "Processes"]
