"""The standard library's names for processes, and what they share, mean multihost's: what ``multihost run`` does.

In the place of ``multiprocessing`` and its modules there are *faces*, which look at who asks. A script, and the
libraries it uses, are given what is ours. The standard library itself, and ourselves, who build on it, get what it has:
a ThreadPool goes on to work with its own parts. Nothing is imported before somebody asks for it.

Child processes of such a script are changed in the same way, see :mod:`multihost.applying`.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

from multihost.applying import contexts, preparations
from multihost.registering import MAKERS
from multihost_common.hooks import after_import
from multihost_common.whereabouts import here

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from multihost.applying import Preparation
    from multihost.engines.base import Engine

#: Who is given the standard library's own. Those who take multiprocessing apart to build something else, joblib or
#: torch, need what they know: their processes stay on this host.
INSIDERS = frozenset(
    {
        "billiard",
        "cloudpickle",
        "concurrent",
        "copyreg",
        "joblib",
        "loky",
        "multihost",
        "multihost_broker",
        "multihost_common",
        "multihost_worker",
        "multiprocess",
        "multiprocessing",
        "pickle",
        "torch",
    }
)

#: Of whom it does not matter that they ask: whoever has them import something does.
_IMPORTERS = frozenset(
    {"importlib._bootstrap", "importlib._bootstrap_external", "importlib", "_frozen_importlib"}
)

#: What ``multiprocessing`` itself has of ours: the methods of a context.
_METHODS = frozenset({*MAKERS, "Process", "get_context", "get_start_method", "set_start_method"})

#: Modules of multiprocessing that have a counterpart here.
_MODULES = (
    "connection",
    "context",
    "managers",
    "pool",
    "queues",
    "shared_memory",
    "sharedctypes",
    "synchronize",
)

#: Modules that scripts reach without importing them.
_REACHED = frozenset(_MODULES)


class Face(ModuleType):
    """In the place of a module: what ``find`` knows is ours, all else the module's."""

    def __init__(self, module: ModuleType, find: Callable[[str], Any]) -> None:
        super().__init__(module.__name__, module.__doc__)
        for name in (
            "__package__",
            "__loader__",
            "__spec__",
            "__path__",
            "__file__",
            "__cached__",
            "__all__",
        ):
            if hasattr(module, name):
                self.__dict__[name] = getattr(module, name)
        self.__dict__["_behind"] = module
        self.__dict__["_find"] = find

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("__") and not _is_insider():
            found = self._find(name)
            if found is not None:
                return found
        return getattr(self._behind, name)

    def __setattr__(self, name: str, value: object) -> None:
        if isinstance(value, ModuleType):
            # A module of the package was imported.
            self.__dict__[name] = value
        setattr(self._behind, name, value)

    def __delattr__(self, name: str) -> None:
        delattr(self._behind, name)

    def __dir__(self) -> list[str]:
        return dir(self._behind)

    def __reduce__(self) -> tuple[Callable[[str], ModuleType], tuple[str]]:
        # cloudpickle sends the modules that a function refers to by name.
        return importlib.import_module, (self.__name__,)


def _is_insider() -> bool:
    """Whether the one who looks something up in a face is one of :data:`INSIDERS`."""
    frame = sys._getframe(2)
    while frame.f_back is not None:
        name = frame.f_globals.get("__name__") or ""
        if name not in _IMPORTERS:
            return name.partition(".")[0] in INSIDERS
        frame = frame.f_back
    return False


# -- what is ours ------------------------------------------------------------------------------------


class _Settings:
    """What was asked for."""

    installed = False
    processes: int | None = None
    method: str | None = None
    #: Of the script that this process works for: how its loopback is asked for (empty: not at all), and where it is. None:
    #: this is a script.
    loopback: tuple[bytes, str] | None = None


def _default() -> Any:
    """The context that the names of ``multiprocessing`` belong to."""
    global _context
    if _context is None:
        from multihost import context

        standard: Any = sys.modules["multiprocessing"]._behind.context
        _context = context.DefaultContext(standard._behind._default_context._default_context._name)
        if _Settings.method is not None:
            _context.set_start_method(_Settings.method)
    return _context


_context: Any = None


def _of_package(name: str) -> Any:
    if name in _METHODS:
        return getattr(_default(), name)
    # The standard library's own parts would have imported it by now.
    return importlib.import_module(f"multiprocessing.{name}") if name in _REACHED else None


def _of_module(part: str) -> Callable[[str], Any]:
    def find(name: str) -> Any:
        ours: Any = importlib.import_module(f"multihost.{part}")
        value = ours.__dict__.get(name)
        return value if name in ours.__all__ or getattr(value, "__module__", "") == ours.__name__ else None

    return find


def _of_futures(name: str) -> Any:
    if name != "ProcessPoolExecutor":
        return None
    from multihost.executor import Executor

    return Executor


# -- installing ----------------------------------------------------------------------------------------


def install(
    processes: int | None = None, method: str | None = None, loopback: tuple[bytes, str] | None = None
) -> None:
    """From now on, in this process. ``processes``: how many a pool has where the script names no number; ``method``: the
    start method it has set; ``loopback``: see :class:`_Settings`."""
    if _Settings.installed:
        return
    _Settings.loopback = loopback
    if loopback is not None and loopback[0] and loopback[1] != here():
        from multihost.loopback import reach

        reach(loopback[0])
    _Settings.installed, _Settings.processes, _Settings.method = True, processes, method
    after_import("multihost.pool", _set_processes)
    after_import("multiprocessing", _putting(_of_package))
    for part in _MODULES:
        after_import(f"multiprocessing.{part}", _putting(_of_module(part)))
    after_import("concurrent.futures", _putting(_of_futures))
    after_import("concurrent.futures.process", _putting(_of_futures))


def _putting(find: Callable[[str], Any]) -> Callable[[ModuleType], None]:
    return lambda module: _put(module, find)


def _set_processes(module: ModuleType) -> None:
    pool: Any = module
    pool.usual_processes = _Settings.processes


def _put(module: ModuleType, find: Callable[[str], Any]) -> None:
    """A face in the place of a module."""
    face = sys.modules[module.__name__] = Face(module, find)
    package, _, name = module.__name__.rpartition(".")
    for holder in (sys.modules.get(package), getattr(sys.modules.get(package), "_behind", None)):
        if holder is not None:
            setattr(holder, name, face)
    for name, value in list(module.__dict__.items()):
        # What was imported before.
        if isinstance(value, ModuleType) and value.__name__ == f"{module.__name__}.{name}":
            face.__dict__[name] = value


def _current_context() -> Any:
    return _default().get_context() if _Settings.installed and "multiprocessing" in sys.modules else None


def _preparation(engine: Engine) -> Preparation | None:
    if not _Settings.installed:
        return None
    method = _Settings.method if _context is None else _context.get_start_method(allow_none=True)
    return install, (_Settings.processes, method, _Settings.loopback or _own_loopback(engine))


def _own_loopback(engine: Any) -> tuple[bytes, str]:
    if engine.local:
        return b"", ""
    from multihost.loopback import service

    return service(engine), here()


contexts.append(_current_context)
preparations.append(_preparation)

__all__ = ["INSIDERS", "Face", "install"]
