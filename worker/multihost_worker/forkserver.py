"""The forkserver: one small single-threaded process that forks children, reaps them and tells.

Requests and reports pass through its control socket (see :mod:`control`). When the other end of that
closes it kills the process group of every child, and ends.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # pyright: ignore[reportMissingImports]
import errno
import gc
import os
import select
import sys
from _socket import AF_UNIX, CMSG_SPACE, SCM_RIGHTS, SOCK_STREAM, socket
from array import array

from multihost_worker.child import Child
from multihost_worker.control import CONTROL, DIED, FORKED, KILL, RECORD, REFUSED, SIGNAL

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: What a process imports before anything of its own.
PROCESSES = ("multihost.process", "multihost_common.byvalue", "traceback")

#: What is added to a child's oom_score_adj.
_OOM_SCORE = 500


class ForkServer:
    """The process itself. ``main`` runs it until the control socket closes."""

    def __init__(self) -> None:
        self.control = socket(AF_UNIX, SOCK_STREAM, 0, CONTROL)
        os.set_inheritable(CONTROL, False)
        self._prepared = False
        self.pids: dict[int, int] = {}
        self.children: dict[int, int] = {}
        self.wake, self._woken = os.pipe()
        os.set_blocking(self.wake, False)
        os.set_blocking(self._woken, False)

    def serve(self) -> int:
        """Returns the exit status: 0 in the server, a child's own in a child."""
        for number in (_signal.SIGINT, _signal.SIGTERM, _signal.SIGHUP):
            _signal.signal(number, _signal.SIG_IGN)
        _signal.set_wakeup_fd(self._woken, warn_on_full_buffer=False)
        _signal.signal(_signal.SIGCHLD, _nothing)
        poller = select.poll()
        poller.register(CONTROL, select.POLLIN)
        poller.register(self.wake, select.POLLIN)
        while True:
            ready = dict(poller.poll())
            if self.wake in ready:
                os.read(self.wake, 4096)
                self.reap()
            if CONTROL in ready:
                request = self.request()
                if request is None:
                    self.end()
                    return 0
                status = self.carry_out(*request)
                if status is not None:
                    return status

    def request(self) -> tuple[int, int, int, list[int]] | None:
        """The next request, None when the agent is gone."""
        words = array("q")
        fds = array("i")
        data = b""
        while len(data) < RECORD:
            try:
                part, ancillary, _, _ = self.control.recvmsg(RECORD - len(data), CMSG_SPACE(4 * 8))
            except OSError:
                return None
            if not part:
                return None
            data += part
            for _, kind, raw in ancillary:
                if kind == SCM_RIGHTS:
                    fds.frombytes(raw)
        words.frombytes(data)
        return words[0], words[1], words[2], list(fds)

    def report(self, *values: int) -> None:
        """Tell the agent; it always reads, so this may block."""
        try:
            self.control.sendall(array("q", values).tobytes())
        except OSError:
            return

    def carry_out(self, kind: int, child: int, word: int, fds: list[int]) -> int | None:
        """None in the server; the exit status in a child that is done."""
        if kind == KILL:
            pid = self.pids.get(child)
            if pid is not None:
                _kill(pid)
            return None
        if kind == SIGNAL:
            _send_signal(self.pids.get(child, 0), word)
            return None
        if word and not self._prepared:
            self._prepare()
        try:
            pid = os.fork()
        except OSError as error:
            self.report(REFUSED, child, 0, error.errno or errno.EAGAIN, 0)
            _close(fds)
            return None
        if pid == 0:
            return self.child(fds, process=word > 0)
        _set_group(pid)
        _close(fds)
        self.pids[child] = pid
        self.children[pid] = child
        self.report(FORKED, child, pid, 0, 0)
        return None

    def _prepare(self) -> None:
        """Import once what every process needs: for each of them that would take longer than all else."""
        from contextlib import suppress

        self._prepared = True
        for name in PROCESSES:
            # Whoever needs what cannot be imported will be told.
            with suppress(Exception):
                __import__(name)
        gc.collect()
        # So that the collector of a child does not make all of it its own.
        gc.freeze()

    def child(self, fds: list[int], process: bool) -> int:
        """What the fork does first: become a process of its own, then serve."""
        status = 1
        try:
            server = os.getppid()
            _signal.set_wakeup_fd(-1)
            for number in (_signal.SIGCHLD, _signal.SIGTERM, _signal.SIGHUP):
                _signal.signal(number, _signal.SIG_DFL)
            _signal.signal(_signal.SIGINT, _signal.default_int_handler)
            _set_group(0)
            _die_with_parent(server)
            self.control.close()
            _close([self.wake, self._woken])
            if len(fds) < 2 + process:
                return 1
            lifeline = fds.pop() if process else -1
            _standard_streams(fds[2:])
            _raise_oom_score()
            _reseed()
            sys.modules["__main__"] = type(sys)("__main__")
            # Held until the end: its socket, once closed, says that this process is of no use.
            child = Child(socket(AF_UNIX, SOCK_STREAM, 0, fds[0]), fds[1], lifeline)
            status = child.serve()
        except BaseException as error:  # noqa: BLE001
            sys.excepthook(type(error), error, error.__traceback__)
        finally:
            finish(status)
        return status

    def reap(self) -> None:
        """Report every child that has ended, after what it started has been killed."""
        while self.children:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            child = self.children.pop(pid, None)
            if child is None:
                continue
            del self.pids[child]
            # The group outlives its leader, and no new process gets its number while it does.
            _kill_group(pid)
            peak = usage.ru_maxrss if sys.platform == "darwin" else usage.ru_maxrss * 1024
            self.report(DIED, child, pid, status, peak)

    def end(self) -> None:
        """Kill all, and wait for them: they were SIGKILLed."""
        for pid in self.children:
            _kill(pid)
        for pid in self.children:
            try:
                os.waitpid(pid, 0)
            except ChildProcessError:
                continue


def main(path: list[str], preload: list[str]) -> None:
    """The forkserver's program."""
    sys.path[:] = path
    os.closerange(CONTROL + 1, 65536)
    server = ForkServer()
    for name in preload:
        try:
            __import__(name)
        except ImportError:
            continue
    os._exit(server.serve())


def _nothing(*_: Any) -> None:
    """A handler, so that the signal interrupts poll() and wakes it by the descriptor."""


def _kill_group(pid: int) -> None:
    try:
        os.killpg(pid, _signal.SIGKILL)
    except OSError:
        return


def _kill(pid: int) -> None:
    """A child that has not been reaped, and its group, which it may have left."""
    _kill_group(pid)
    try:
        os.kill(pid, _signal.SIGKILL)
    except OSError:
        return


def _send_signal(pid: int, signum: int) -> None:
    if pid:
        try:
            os.kill(pid, signum)
        except (OSError, ValueError):
            return


def _set_group(pid: int) -> None:
    """Both parent and child do it, so that neither sees the time before."""
    try:
        os.setpgid(pid, pid)
    except OSError:
        return


def _die_with_parent(server: int) -> None:
    """Have the kernel kill this process with the forkserver, where it can."""
    if sys.platform == "linux":
        try:
            # What ctypes is made of; the package itself would double the time to import.
            from _ctypes import call_function, dlopen, dlsym

            own: Any = None
            call_function(dlsym(dlopen(own, 0), "prctl"), (1, int(_signal.SIGKILL), 0, 0, 0))
        except (ImportError, OSError):
            return
    if os.getppid() != server:
        os._exit(1)


def _standard_streams(outputs: list[int]) -> None:
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    for target, fd in enumerate(outputs, 1):
        os.dup2(fd, target)
        os.close(fd)
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            # A line is one write, also with PYTHONUNBUFFERED: lines of several children do not mix.
            stream.reconfigure(line_buffering=True, write_through=False)  # type: ignore[union-attr]


def _raise_oom_score() -> None:
    """Rather a child than its agent, when memory ends."""
    try:
        with open("/proc/self/oom_score_adj", "r+") as file:
            score = min(1000, int(file.read()) + _OOM_SCORE)
            file.seek(0)
            file.write(str(score))
    except (OSError, ValueError):
        return


def _reseed() -> None:
    """What was preloaded has been seeded once for all children."""
    if "random" in sys.modules:
        sys.modules["random"].seed()
    if "multiprocessing.process" in sys.modules:
        sys.modules["multiprocessing.process"].current_process().authkey = os.urandom(32)
    if "numpy.random" in sys.modules:
        sys.modules["numpy.random"].seed()


def finish(status: int) -> None:
    """End as a program ends: threads, exit handlers, output; then without the forkserver's own."""
    try:
        if "threading" in sys.modules:
            sys.modules["threading"]._shutdown()
        import atexit

        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
    except BaseException:  # noqa: BLE001
        status = status or 1
    finally:
        os._exit(status)


def _close(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)
