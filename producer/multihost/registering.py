"""Makes ``multihost`` a start method of multiprocessing, when that is imported.

import multihost, multiprocessing
multiprocessing.set_start_method("multihost")       # or: multiprocessing.get_context("multihost")
"""

from __future__ import annotations

import functools
import sys

from multihost.applying import preparations
from multihost_common.hooks import after_import

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType
    from typing import Any

    from multihost.applying import Preparation
    from multihost.engines.base import Engine

METHOD = "multihost"

#: The methods of contexts whose results are of the context's kind. multiprocessing's own make what the module has that
#: they are defined in, whatever context was chosen.
MAKERS = (
    "Array", "Barrier", "BoundedSemaphore", "Condition", "Event", "JoinableQueue", "Lock", "Manager", "Pipe", "Pool",
    "Queue", "RLock", "RawArray", "RawValue", "Semaphore", "SimpleQueue", "Value", "cpu_count",
)  # fmt: skip


def register() -> None:
    """From now on, or from when it is imported on, multiprocessing knows the start method."""
    after_import("multiprocessing.context", _complete)


class _Contexts(dict[str, "Any"]):
    """The contexts of multiprocessing, and ours, which is imported when somebody asks for it."""

    def __missing__(self, method: str) -> Any:
        if method != METHOD:
            raise KeyError(method)
        from multihost.context import contexts

        return contexts[METHOD]


def _complete(module: ModuleType) -> None:
    context: Any = module
    if isinstance(context._concrete_contexts, _Contexts):
        return
    context._concrete_contexts = _Contexts(context._concrete_contexts)
    package: Any = sys.modules["multiprocessing"]
    for name in MAKERS:
        setattr(context.DefaultContext, name, _chosen(name, getattr(context.BaseContext, name)))
        if name in package.__dict__:
            # It was imported before.
            setattr(package, name, getattr(context._default_context, name))


def _chosen(name: str, usual: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(usual)
    def make(self: Any, *args: Any, **kwds: Any) -> Any:
        context = self.get_context()
        return (
            getattr(context, name)(*args, **kwds) if context._name == METHOD else usual(self, *args, **kwds)
        )

    return make


# -- in child processes --------------------------------------------------------------------------------


def choose() -> None:
    """Let it be the start method of this process, once multiprocessing is imported."""
    register()
    after_import("multiprocessing.context", _choose)


class _Later:
    """Our context, which is imported when it is used: multiprocessing may be imported by what that consists of."""

    _name = METHOD

    def __getattr__(self, name: str) -> Any:
        from multihost.context import contexts

        return getattr(contexts[METHOD], name)


def _choose(module: ModuleType) -> None:
    context: Any = module
    context._default_context._actual_context = _Later()


def _preparation(_: Engine) -> Preparation | None:
    context: Any = sys.modules.get("multiprocessing.context")
    chosen = None if context is None else context._default_context._actual_context
    return (choose, ()) if getattr(chosen, "_name", None) == METHOD else None


preparations.append(_preparation)

__all__ = ["choose", "register"]
