"""``multiprocessing.Process``, on any host.

A process is the standard library's own object, with another way to start, to watch and to signal what it stands for.
So it is in the standard library's registry of children, which is what ``active_children`` and the end of a script
look at.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterable, Mapping
from multiprocessing import process
from multiprocessing.context import get_spawning_popen
from multiprocessing.process import BaseProcess, active_children, current_process, parent_process
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from multihost.popen import Popen


def __getattr__(name: str) -> Any:
    # What else the standard library's module of this name has.
    return getattr(process, name)


class Process(BaseProcess):
    """A process of its own, on whichever host has most room. As ``multiprocessing.Process``.

    ``address``: of a broker (None: ``MULTIHOST_BROKER``; empty: this machine). ``host`` names the machine it runs on.
    """

    _start_method = None
    #: Of the context that it belongs to, if that has a method.
    _multihost_method: str | None = None

    def __init__(
        self,
        group: None = None,
        target: Callable[..., object] | None = None,
        name: str | None = None,
        args: Iterable[Any] = (),
        kwargs: Mapping[str, Any] = {},
        *,
        daemon: bool | None = None,
        address: str | None = None,
    ) -> None:
        super().__init__(group, target, name, args, kwargs, daemon=daemon)
        self._address = address

    @staticmethod
    def _Popen(process_obj: BaseProcess) -> Popen:  # noqa: N802 - its name in multiprocessing
        # Here, since a child imports this module, and seldom needs that one.
        from multihost.popen import Popen, WatchedPopen

        _started.add(process_obj)
        return Popen(process_obj) if isinstance(process_obj, Process) else WatchedPopen(process_obj)

    @property
    def host(self) -> str | None:
        """Name of the machine it runs or ran on; None if that is not known (yet)."""
        self._check_closed()  # type: ignore[attr-defined]
        popen = self._popen  # type: ignore[attr-defined]
        if self is current_process():
            import platform

            return platform.node()
        return popen.host if popen is not None else None

    @property
    def sentinel(self) -> int:
        """A descriptor that is readable once the process has ended. Raises ValueError before it is started."""
        self._check_closed()  # type: ignore[attr-defined]
        popen = self._popen  # type: ignore[attr-defined]
        if popen is None:
            raise ValueError("process not started")
        fd: int = popen.sentinel_fd()
        return fd

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        if state.get("_popen") is not None:
            # In another process it is somebody else's child.
            state["_popen"] = Elsewhere(self._popen.pid)  # type: ignore[attr-defined]
        if get_spawning_popen() is None:
            state["_config"] = {key: value for key, value in state["_config"].items() if key != "authkey"}
        return state


class Elsewhere:
    """In place of what watches a process, where it is not a child of this one."""

    sentinel = None

    def __init__(self, pid: int | None) -> None:
        self.pid = pid

    def poll(self) -> None:
        """It cannot be told."""


def _forget_children() -> None:
    """In a forked process: none of them is a child of this one."""
    process._children.difference_update(_started)  # type: ignore[attr-defined]
    _started.clear()


_started: weakref.WeakSet[BaseProcess] = weakref.WeakSet()

os.register_at_fork(after_in_child=_forget_children)

__all__ = ["Process", "active_children", "current_process", "parent_process"]
