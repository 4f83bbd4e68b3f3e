"""``multiprocessing.shared_memory`` in a child. It is the standard library's, and of one host.

The standard library has one tracker for a script and its processes, which removes what they left behind. A child of ours
has another parent, so it would start a tracker of its own, and with the child would end what others still use.
"""

from __future__ import annotations

import os
import stat

from multihost_common.hooks import after_import

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType
    from typing import Any

_MEMORY = "shared_memory"


def prepare(tracker: tuple[int, int] | None) -> None:
    """From now on, in this child. ``tracker``: the script's process and its descriptor of the tracker, if it has one and
    is on this host."""
    fd = -1 if tracker is None else _open(*tracker)
    after_import("multiprocessing.resource_tracker", lambda module: _share(module, fd))


def _open(pid: int, fd: int) -> int:
    """The script's way to its tracker; -1: it is not to be had."""
    try:
        mine = os.open(f"/proc/{pid}/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK)
    except OSError:
        return -1
    if stat.S_ISFIFO(os.fstat(mine).st_mode):
        os.set_blocking(mine, True)
        return mine
    os.close(mine)
    return -1


def _share(module: ModuleType, fd: int) -> None:
    tracker: Any = module
    if fd >= 0:
        tracker._resource_tracker._fd = fd
        return
    # Nobody tracks it here: whoever made it removes it.
    for name in ("register", "unregister"):
        setattr(tracker, name, _ignoring(getattr(tracker, name)))


def _ignoring(usual: Any) -> Any:
    def call(name: str, rtype: str) -> None:
        if rtype != _MEMORY:
            usual(name, rtype)

    return call


__all__ = ["prepare"]
