"""``multiprocessing.Process``, on any host.

A process is the standard library's own object, with another way to start, to watch and to signal what it stands for.
So it is in the standard library's registry of children, which is what ``active_children`` and the end of a script
look at.
"""

from __future__ import annotations

import atexit
import os
import signal
import weakref
from collections.abc import Callable, Iterable, Mapping
from multiprocessing import context, process, util
from multiprocessing.process import BaseProcess, active_children, current_process, parent_process
from typing import Any

from multihost.engine import get_engine, resolve_address
from multihost.handle import setup_of
from multihost.launching import Launch, LaunchSpec
from multihost.reduction import dump_function, dump_item, renew
from multihost_common.messages import MAX_FRAMES


def __getattr__(name: str) -> Any:
    # What else the standard library's module of this name has.
    return getattr(process, name)


#: Seconds that ``pid`` and ``host`` wait at most for the process to be there.
LAUNCH_TIMEOUT = 10.0


class Process(BaseProcess):
    """A process of its own, on whichever host has most room. As ``multiprocessing.Process``.

    ``address``: of a broker (None: ``MULTIHOST_BROKER``; empty: this machine). ``host`` names the machine it runs on.
    """

    _start_method = None

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
    def _Popen(process_obj: Process) -> Popen:  # noqa: N802 - its name in multiprocessing
        return Popen(process_obj)

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
        if context.get_spawning_popen() is None:
            state["_config"] = {key: value for key, value in state["_config"].items() if key != "authkey"}
        return state


class Elsewhere:
    """In place of what watches a process, where it is not a child of this one."""

    sentinel = None

    def __init__(self, pid: int | None) -> None:
        self.pid = pid

    def poll(self) -> None:
        """It cannot be told."""


class Popen:
    """What starts, watches and signals a process."""

    method = "multihost"
    #: BaseProcess keeps a copy, which nobody uses: see :meth:`sentinel_fd`.
    sentinel = None

    _engine: Any

    def __init__(self, process_obj: Process) -> None:
        self.returncode: int | None = None
        self._pid = os.getpid()
        util._flush_std_streams()  # type: ignore[attr-defined]
        address = process_obj._address
        self._engine = get_engine(address)
        spec = self._spec(process_obj, local=not resolve_address(address))
        self._launch: Launch = self._engine.launching.launch(spec)
        _started.add(process_obj)
        _join_at_exit(self._engine)

    def _spec(self, process_obj: Process, local: bool) -> LaunchSpec:
        # It sees __main__ as it is now.
        renew()
        about = process_obj._target or type(process_obj)  # type: ignore[attr-defined]
        context.set_spawning_popen(self)  # type: ignore[arg-type]
        try:
            frames = _dump(Beginning(process_obj))
        finally:
            context.set_spawning_popen(None)
        code = b""
        if not local:
            from multihost.code import bundle_for

            code = bundle_for(about, bytes(frames[0]))
        setup = setup_of(local, "Process", None, (), process_obj.authkey)
        return LaunchSpec(setup, code, process_obj.name, frames)

    # -- for what the standard library pickles while a process is being started ----------------------

    def duplicate_for_child(self, fd: int) -> int:
        """The descriptor is asked for by the process, from this one."""
        return fd

    @staticmethod
    def DupFd(fd: int) -> object:  # noqa: N802 - its name in multiprocessing
        """The descriptor, for a process of this machine."""
        from multiprocessing import resource_sharer

        return resource_sharer.DupFd(fd)

    # -- what there is to know -----------------------------------------------------------------------

    @property
    def pid(self) -> int | None:
        """Its number on its host; None if it is not known after a while, since no worker is there."""
        self._await_launch()
        return self._launch.pid or None

    @property
    def host(self) -> str | None:
        """The name of its host, likewise."""
        self._await_launch()
        return self._launch.host or None

    def _await_launch(self) -> None:
        if os.getpid() == self._pid:
            self._engine.wait(self._launch.launched, LAUNCH_TIMEOUT)

    def sentinel_fd(self) -> int:
        """Readable once the process has ended."""
        return self._launch.sentinel()

    def poll(self) -> int | None:
        """Its exit code, or None while it runs."""
        if self.returncode is None and os.getpid() == self._pid:
            if self._launch.exited.done:
                self.returncode = self._launch.exitcode
            elif not self._engine.usable:
                # Its engine was closed, which ends all there is.
                self._launch.end("", -signal.SIGKILL, "")
                self.returncode = self._launch.exitcode
        return self.returncode

    def wait(self, timeout: float | None = None) -> int | None:
        """Its exit code, or None if it still runs after ``timeout`` seconds."""
        if self.poll() is None:
            self._engine.wait(self._launch.exited, timeout)
        return self.poll()

    def terminate(self) -> None:
        """Send it SIGTERM."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send it SIGKILL."""
        self._signal(signal.SIGKILL)

    def _signal(self, signum: int) -> None:
        if self.poll() is None:
            self._engine.launching.signal(self._launch, int(signum))

    def close(self) -> None:
        """Nobody waits for it any more."""
        self._launch.close()

    def __del__(self) -> None:
        launch = getattr(self, "_launch", None)
        if launch is not None:
            launch.close()


class Beginning:
    """What a process runs: itself."""

    def __init__(self, process_obj: Process) -> None:
        self.process = process_obj

    def __call__(self) -> int:
        # Nobody closes the other end: what this process is a child of takes it along when it ends.
        alive, self.end = os.pipe()
        code: int = self.process._bootstrap(parent_sentinel=alive)  # type: ignore[attr-defined]
        return code


def _dump(beginning: Beginning) -> list[Any]:
    data, buffers = dump_item(beginning)
    if len(buffers) >= MAX_FRAMES:
        # More than a message can carry beside the pickle.
        return [dump_function(beginning)]
    return [data, *buffers]


# -- the end -----------------------------------------------------------------------------------------


def _join_at_exit(engine: Any) -> None:
    """What multiprocessing does when the script ends comes before the end of this engine."""
    if engine not in _engines:
        _engines.add(engine)
        atexit.register(util._exit_function)  # type: ignore[attr-defined]


def _forget_children() -> None:
    """In a forked process: none of them is a child of this one."""
    process._children.difference_update(_started)  # type: ignore[attr-defined]
    _started.clear()


_engines: weakref.WeakSet[Any] = weakref.WeakSet()
_started: weakref.WeakSet[Process] = weakref.WeakSet()

os.register_at_fork(after_in_child=_forget_children)

__all__ = ["Process", "active_children", "current_process", "parent_process"]
