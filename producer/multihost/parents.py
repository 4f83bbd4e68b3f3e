"""Signals to the parent: a process has the number of whoever started it, which on another host is nobody's, or a
stranger's. There ``os.kill`` with that number reaches the parent through the broker, and no other one."""

from __future__ import annotations

import functools
import os
import select
import signal
import sys
from typing import Any

from multihost_common import messages as m


def reach(parent: int) -> None:
    """From now on, in a child whose parent has this number on another host."""
    usual = os.kill
    home = os.getpid()

    # Under its name, so that it is pickled as that.
    @functools.wraps(usual)
    def kill(pid: int, signum: int, /) -> None:
        if pid != parent or os.getpid() != home or pid == home or _is_child(pid):
            usual(pid, signum)
        else:
            _send(int(signum))

    os.kill = sys.modules[kill.__module__].__dict__["kill"] = kill


def _is_child(pid: int) -> bool:
    """A process that was started here may have the same number, and is meant then."""
    try:
        if hasattr(os, "waitid"):
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            return True
        import psutil

        return psutil.Process(pid).ppid() == os.getpid()
    except Exception:  # noqa: BLE001 - there is none, whatever says so
        return False


def _send(signum: int) -> None:
    from multihost.engines.choosing import get_engine

    child: Any = sys.modules["multihost_worker.child"]
    lifeline = child.serving.lifeline
    if lifeline >= 0 and select.select([lifeline], [], [], 0)[0]:
        raise ProcessLookupError(3, os.strerror(3))
    if not 0 <= signum < signal.NSIG:
        raise OSError(22, os.strerror(22))
    if signum:
        # The child's own engine: it may be about to end, and all it has said is on its way before that.
        engine: Any = get_engine()
        engine._do(lambda: engine._send(m.Signal(0, signum)))
        engine.settle()


__all__ = ["reach"]
