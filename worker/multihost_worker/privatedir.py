"""The agent's private directory: gone when the agent is, however it ends.

An agent that ends in good order removes it. For one that is killed, a tiny process that waits for the
end of a pipe does; and should the host have lost power, the next agent sweeps what lies about. A lock
on a file inside tells a living agent's directory from a dead one's, also between containers that share
the directory for temporary files but not the process numbers.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

PREFIX = "multihost-worker-"

#: Seconds within which a new directory gets its lock.
YOUNG = 10.0

#: Children may still be dying, and writing, when the agent's end is noticed: hence more than one try.
_KEEPER = """
import os, shutil, signal, sys, time
for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(each, signal.SIG_IGN)
while os.read(0, 4096):
    pass
for _ in range(50):
    shutil.rmtree(sys.argv[1], ignore_errors=True)
    if not os.path.exists(sys.argv[1]):
        break
    time.sleep(0.1)
"""


class PrivateDir:
    """A directory of mode 0700 for one agent; :attr:`path` is a string."""

    def __init__(self) -> None:
        sweep()
        self.path = tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-")
        self._lock = os.open(Path(self.path) / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self._keeper = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _KEEPER, self.path],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            cwd="/",
        )

    def note(self, state: dict[str, Any]) -> None:
        """Leave ``state`` and the time for ``multihost health``."""
        part = Path(self.path) / "state.part"
        with suppress(OSError):
            part.write_text(json.dumps({**state, "at": time.monotonic()}))
            part.replace(Path(self.path) / "state")

    def close(self) -> None:
        """Remove it, with all that is in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)
        if self._keeper.stdin is not None:
            self._keeper.stdin.close()
        self._keeper.wait(10)


def states() -> list[dict[str, Any]]:
    """What the living agents of this user on this host have noted last."""
    found = []
    for path in _directories():
        if _alive(path):
            try:
                found.append(json.loads((path / "state").read_text()))
            except (OSError, ValueError):
                found.append({"at": 0.0, "registered": False})
    return found


def sweep() -> None:
    """Remove the directories of agents that have ended."""
    for path in _directories():
        if not _alive(path) and _old(path):
            shutil.rmtree(path, ignore_errors=True)


def _directories() -> list[Path]:
    mine = []
    for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with suppress(OSError):
            info = path.lstat()
            if info.st_uid == os.geteuid() and path.is_dir() and not path.is_symlink():
                mine.append(path)
    return mine


def _alive(path: Path) -> bool:
    """Whether somebody holds the lock."""
    try:
        fd = os.open(path / "lock", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(fd)
    return False


def _old(path: Path) -> bool:
    try:
        return time.time() - path.stat().st_mtime > YOUNG
    except OSError:
        return False
