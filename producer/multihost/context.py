"""Contexts: the names of multiprocessing as methods of an object, the counterpart of :mod:`multiprocessing.context`.

    ctx = multihost.get_context()
    ctx.Process(target=f, args=(ctx.Queue(),)).start()

``fork``, ``spawn`` and ``forkserver`` are names of contexts here, too, so that a script may ask for them: all of them
start processes in the one way that works on other hosts.
"""

from __future__ import annotations

import importlib
import multiprocessing.context as _standard
from collections.abc import Callable, Iterable
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from typing import Any

from multihost import applying
from multihost.engines.choosing import get_engine, resolve_address
from multihost.process import Process

#: What a context starts that has no other kind of process.
_PROCESS = Process

#: The name of our own context among the start methods.
METHOD = "multihost"


def __getattr__(name: str) -> Any:
    # What else the standard library's module of this name has.
    return getattr(_standard, name)


def cpu_count() -> int:
    """Slots there are: of all workers, or the CPUs of this machine that this process may use."""
    if resolve_address(None):
        return max(1, get_engine().capacity)
    from multihost_common.cpus import available_cpus

    return available_cpus()


class ForkProcess(Process):
    """The process of the context ``fork``: it differs in its name, and in how objects of the script's are pickled."""

    _multihost_method = "fork"


class SpawnProcess(Process):
    """The process of the context ``spawn``."""

    _multihost_method = "spawn"


class ForkServerProcess(Process):
    """The process of the context ``forkserver``."""

    _multihost_method = "forkserver"


class Context(BaseContext):
    """What ``multihost.get_context`` answers: everything that multiprocessing has, between hosts."""

    Process: type[BaseProcess]

    def __init__(self, name: str = METHOD, process: type[BaseProcess] = _PROCESS) -> None:
        self._name = name
        self.Process = process

    def get_context(self, method: str | None = None) -> Context:  # type: ignore[override]
        """This context, or the one of this name. Raises ValueError if there is none."""
        if method is None:
            return self
        try:
            return contexts[method]
        except KeyError:
            raise ValueError(f"cannot find context for {method!r}") from None

    def cpu_count(self) -> int:
        """Slots there are."""
        return cpu_count()

    def get_all_start_methods(self) -> list[str]:
        """The names of all contexts."""
        return list(contexts)

    def Pool(  # noqa: N802
        self,
        processes: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        maxtasksperchild: int | None = None,
        **options: Any,
    ) -> Any:
        """A pool of processes; ``options``: see :class:`multihost.Pool`."""
        from multihost.pool import Pool

        return Pool(processes, initializer, initargs, maxtasksperchild, self.get_context(), **options)


class DefaultContext(Context):
    """The context that is meant where none is named. It can be chosen once, see :meth:`set_start_method`."""

    def __init__(self, usual: str = METHOD) -> None:
        super().__init__(usual)
        self._usual = usual
        self._chosen: Context | None = None

    def get_context(self, method: str | None = None) -> Context:  # type: ignore[override]
        """The context that was chosen, or the one of this name."""
        if method is not None:
            return super().get_context(method)
        if self._chosen is None:
            self._chosen = contexts[self._usual]
        return self._chosen

    def set_start_method(self, method: str | None, force: bool = False) -> None:
        """Choose. Raises RuntimeError if that was done, or the context used, before; unless ``force``."""
        if self._chosen is not None and not force:
            raise RuntimeError("context has already been set")
        if method is None and force:
            self._chosen = None
            return
        self._chosen = self.get_context(method)

    def get_start_method(self, allow_none: bool = False) -> str:
        """The name of the context."""
        if allow_none and self._chosen is None:
            return None  # type: ignore[return-value] # as multiprocessing has it
        name: str = self.get_context()._name
        return name


def _maker(name: str, module: str) -> Callable[..., Any]:
    """The method of contexts that makes what ``module`` has under this name."""
    usual = getattr(BaseContext, name)

    def make(self: Context, *args: Any, **kwds: Any) -> Any:
        return getattr(importlib.import_module(module), name)(*args, **kwds)

    make.__name__, make.__qualname__, make.__doc__ = name, f"Context.{name}", usual.__doc__
    return make


#: Where the names live of what a context makes.
_MODULES = {
    "multihost.synchronize": (
        "Barrier",
        "BoundedSemaphore",
        "Condition",
        "Event",
        "Lock",
        "RLock",
        "Semaphore",
    ),
    "multihost.connection": ("Pipe",),
    "multihost.queues": ("JoinableQueue", "Queue", "SimpleQueue"),
    "multihost.managers": ("Manager",),
    "multihost.sharedctypes": ("Array", "RawArray", "RawValue", "Value"),
}


for _module, _names in _MODULES.items():
    for _name in _names:
        setattr(Context, _name, _maker(_name, _module))

#: By the names that ``get_context`` knows.
contexts = {
    METHOD: Context(),
    "fork": Context("fork", ForkProcess),
    "spawn": Context("spawn", SpawnProcess),
    "forkserver": Context("forkserver", ForkServerProcess),
}

#: Of ``multihost`` itself.
default = DefaultContext()

# First: what is installed in multiprocessing's place is asked before it.
applying.contexts.insert(0, lambda: default._chosen)

get_context = default.get_context
get_start_method = default.get_start_method
set_start_method = default.set_start_method
get_all_start_methods = default.get_all_start_methods

__all__ = [
    "BaseContext",
    "Context",
    "DefaultContext",
    "ForkProcess",
    "ForkServerProcess",
    "Process",
    "SpawnProcess",
    "cpu_count",
    "get_all_start_methods",
    "get_context",
    "get_start_method",
    "set_start_method",
]
