"""The agent's end of the forkserver: start it, ask it, hear what it reports, end it."""

from __future__ import annotations

import fcntl
import os
import select
import signal
import sys
import time
from _socket import SCM_RIGHTS, SHUT_WR, SOL_SOCKET, socketpair
from array import array
from collections import deque
from typing import TYPE_CHECKING

from multihost_worker.control import CONTROL, RECORD

if TYPE_CHECKING:
    from _socket import socket
    from collections.abc import Mapping, Sequence


class Server:
    """One forkserver at a time; ``start`` makes one if there is none."""

    def __init__(self, env: Mapping[str, str] | None = None, preload: Sequence[str] = ()) -> None:
        self._env = dict(env or {})
        self._preload = list(preload)
        self._sock: socket | None = None
        self._queue: deque[tuple[bytes, list[int]]] = deque()
        self._rest = b""
        self.pid = 0
        self.fd = -1
        self.eof = False

    @property
    def waiting(self) -> bool:
        """Something is queued: watch for room."""
        return bool(self._queue)

    def start(self) -> bool:
        """Start the process unless it runs. True if it was started now."""
        if self._sock is not None:
            return False
        ours, theirs = socketpair()
        ours.setblocking(False)
        # Far from CONTROL: dup2 of a descriptor onto itself would leave it to be closed by exec.
        high = fcntl.fcntl(theirs.fileno(), fcntl.F_DUPFD_CLOEXEC, 64)
        try:
            self.pid = _spawn(high, self._env, self._preload)
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
            os.close(high)
        self._sock = ours
        self.fd = ours.fileno()
        self.eof = False
        return True

    def request(self, kind: int, child: int, fds: Sequence[int], word: int = 0) -> bool:
        """Ask for something. False if there is no forkserver."""
        if self._sock is None:
            return False
        data = array("q", (kind, child, word, 0, 0)).tobytes()
        self._queue.append((data, _duplicates(fds)))
        self.flush()
        return True

    def flush(self) -> None:
        """Send what is queued, as far as it goes."""
        while self._queue and self._sock is not None:
            data, fds = self._queue[0]
            try:
                rights = [(SOL_SOCKET, SCM_RIGHTS, array("i", fds))] if fds else []
                sent = self._sock.sendmsg([data], rights)
            except BlockingIOError:
                return
            except OSError:
                self._forget_queue()
                return
            for fd in fds:
                os.close(fd)
            if sent == len(data):
                self._queue.popleft()
            else:
                self._queue[0] = (data[sent:], [])

    def _forget_queue(self) -> None:
        for _, fds in self._queue:
            for fd in fds:
                os.close(fd)
        self._queue.clear()

    def reports(self) -> list[tuple[int, int, int, int, int]]:
        """All reports that have come; sets ``eof`` when the process is gone."""
        data = self._rest
        while self._sock is not None:
            try:
                part = self._sock.recv(65_536)
            except BlockingIOError:
                break
            except OSError:
                part = b""
            if not part:
                self.eof = True
                break
            data += part
        whole = len(data) - len(data) % RECORD
        self._rest = data[whole:]
        words = array("q")
        words.frombytes(data[:whole])
        return [
            (words[at], words[at + 1], words[at + 2], words[at + 3], words[at + 4])
            for at in range(0, len(words), 5)
        ]

    def reset(self) -> None:
        """The process has ended: reap it and be ready to start another."""
        self._forget_queue()
        self._rest = b""
        if self._sock is not None:
            self._sock.close()
            self._sock = None
        self.fd = -1
        self._reap()

    def _reap(self) -> None:
        pid, self.pid = self.pid, 0
        if pid:
            try:
                # It has closed its socket, so it ends now; make sure that it does.
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            except (ChildProcessError, ProcessLookupError):
                return

    def close(self, pids: Sequence[int] = (), timeout: float = 5.0) -> None:
        """Have it kill and reap all children and end; if it does not in time, kill it and them."""
        if self._sock is None:
            return
        self._forget_queue()
        deadline = time.monotonic() + timeout
        try:
            self._sock.shutdown(SHUT_WR)
        except OSError:
            self.eof = True
        poller = select.poll()
        poller.register(self.fd, select.POLLIN)
        while not self.eof and (left := deadline - time.monotonic()) > 0:
            if poller.poll(left * 1000):
                self.reports()
        if not self.eof:
            for pid in pids:
                kill_group(pid)
        self.reset()

    def abandon(self) -> None:
        """In a forked process: close the descriptors, and let the process be."""
        self._forget_queue()
        if self._sock is not None:
            self._sock.close()
            self._sock = None
        self.fd, self.pid = -1, 0


def kill_group(pid: int) -> None:
    """SIGKILL for a child and what it has started."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except OSError:
        return


def _duplicates(fds: Sequence[int]) -> list[int]:
    """Another descriptor for each; all or, with OSError, none."""
    made: list[int] = []
    try:
        for fd in fds:
            made.append(os.dup(fd))
    except OSError:
        for fd in made:
            os.close(fd)
        raise
    return made


def _spawn(control: int, env: dict[str, str], preload: list[str]) -> int:
    program = (
        f"import sys; sys.path[:] = {sys.path!r}; from multihost_worker.forkserver import main; "
        f"main({sys.path!r}, {preload!r})"
    )
    return os.posix_spawn(
        sys.executable,
        [sys.executable, *_flags(), "-c", program],
        {**os.environ, **env},
        file_actions=[(os.POSIX_SPAWN_DUP2, control, CONTROL)],
        # Its own group: what the terminal sends to the foreground is not for it or its children.
        setpgroup=0,
        setsigmask=[],
        setsigdef=[signal.SIGCHLD, signal.SIGPIPE],
    )


def _flags() -> list[str]:
    """The options this interpreter was started with, as far as they matter to another."""
    flags = sys.flags
    found = ["-" + letter for name, letter in _LETTERS if getattr(flags, name)]
    found += ["-O"] * flags.optimize
    found += [f"-W{option}" for option in sys.warnoptions]
    for name, value in sys._xoptions.items():
        found += ["-X", name if value is True else f"{name}={value}"]
    return found


_LETTERS = (
    ("isolated", "I"),
    ("ignore_environment", "E"),
    ("no_user_site", "s"),
    ("no_site", "S"),
    ("dont_write_bytecode", "B"),
)
