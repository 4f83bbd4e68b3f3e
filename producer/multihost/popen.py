"""What starts, watches and signals a process: the engine's side of :mod:`multihost.process`."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import weakref
from multiprocessing import process, util
from multiprocessing.context import set_spawning_popen
from typing import TYPE_CHECKING, Any

from multihost.applying import forks
from multihost.beginning import Beginning
from multihost.engines.choosing import get_engine
from multihost.engines.launching import Launch, LaunchSpec
from multihost.handle import setup_of
from multihost.reduction import dump_shared, renew
from multihost_common import shipments

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

#: Seconds that ``pid`` and ``host`` wait at most for the process to be there.
LAUNCH_TIMEOUT = 10.0


class Popen:
    """What starts, watches and signals a process."""

    method = "multihost"
    #: BaseProcess keeps a copy, which nobody uses: see :meth:`sentinel_fd`.
    sentinel = None

    _engine: Any

    def __init__(self, process_obj: BaseProcess) -> None:
        self.returncode: int | None = None
        self._pid = os.getpid()
        util._flush_std_streams()  # type: ignore[attr-defined]
        self._engine = get_engine(getattr(process_obj, "_address", None))
        spec = self._spec(process_obj, self._engine.local)
        self._held = _proxies(process_obj)
        self._launch: Launch = self._engine.launching.launch(spec)
        _join_at_exit(self._engine)

    def _spec(self, process_obj: BaseProcess, local: bool) -> LaunchSpec:
        # It sees __main__ as it is now.
        method = getattr(process_obj, "_multihost_method", None)
        forked = forks() if method is None else method == "fork"
        renew(forked)
        about = process_obj._target or type(process_obj)  # type: ignore[attr-defined]
        spawning: Any = self
        set_spawning_popen(spawning)
        try:
            with shipments.collected() as promises:
                data, buffers = dump_shared(Beginning(process_obj), forked)
        finally:
            set_spawning_popen(None)
        code = b""
        if not local:
            from multihost.code import bundle_for

            code = bundle_for(about, data)
        setup = setup_of(self._engine, local, "Process", None, (), process_obj.authkey)
        return LaunchSpec(setup, code, process_obj.name, [data, *buffers], promises)

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
            if self.returncode is not None:
                self._held = []
        return self.returncode

    def wait(self, timeout: float | None = None) -> int | None:
        """Its exit code, or None if it still runs after ``timeout`` seconds."""
        if self.poll() is None:
            try:
                self._engine.wait(self._launch.exited, timeout)
            except KeyboardInterrupt:
                _interrupt_all()
                raise
        return self.poll()

    @property
    def told(self) -> int:
        """The signal that it was sent last; 0: none."""
        return self._launch.signal

    def terminate(self) -> None:
        """Send it SIGTERM."""
        self.send(signal.SIGTERM)

    def kill(self) -> None:
        """Send it SIGKILL."""
        self.send(signal.SIGKILL)

    def send(self, signum: int) -> None:
        """Send it a signal, if it has not ended."""
        if self.poll() is None:
            self._engine.launching.signal(self._launch, int(signum))

    def close(self) -> None:
        """Nobody waits for it any more."""
        self._launch.close()

    def __del__(self) -> None:
        launch = getattr(self, "_launch", None)
        if launch is not None:
            launch.close()


class WatchedPopen(Popen):
    """Of a process that is not ours, but was started by our context: it asks for the sentinel once."""

    @property
    def sentinel(self) -> int:  # type: ignore[override]
        """Readable once the process has ended."""
        return self.sentinel_fd()


def _proxies(process_obj: BaseProcess) -> list[Any]:
    """The proxies of managers among the arguments. Their objects must be there when the process begins, also if this
    one refers to them no more."""
    managers: Any = sys.modules.get("multiprocessing.managers")
    if managers is None:
        return []
    process: Any = process_obj
    return [
        each for each in (*process._args, *process._kwargs.values()) if isinstance(each, managers.BaseProxy)
    ]


def _join_at_exit(engine: Any) -> None:
    """What multiprocessing does when the script ends comes before the end of this engine."""
    if engine not in _engines:
        _engines.add(engine)
        atexit.register(_exit)


def _exit() -> None:
    last = getattr(sys, "last_type", None)
    if last is not None and issubclass(last, KeyboardInterrupt):
        _interrupt_all(again=False)
    util._exit_function()  # type: ignore[attr-defined]


def _interrupt_all(again: bool = True) -> None:
    """Ctrl-C came to this process alone: those it has started are not of the terminal's foreground, and have it from here.
    ``again``: also those that have had one."""
    for each in list(process._children):  # type: ignore[attr-defined]
        if isinstance(each._popen, Popen) and (again or each._popen.told != signal.SIGINT):
            each._popen.send(signal.SIGINT)


_engines: weakref.WeakSet[Any] = weakref.WeakSet()

__all__ = ["Popen", "WatchedPopen"]
