"""How objects of the script's own classes travel where multiprocessing would not have pickled them.

A forked process has them as they stand: nobody asks their ``__getstate__``, nobody calls their ``__setstate__``, and
what these leave out is there. Across hosts they are pickled; so that it looks the same, by their bare state.

This is for classes of ``__main__`` alone, whose hooks are the script's own functions and all of whose bases are such
classes, too. What libraries say of their classes is obeyed.
"""

from __future__ import annotations

import copyreg
import sys
import threading
from functools import partial
from io import TextIOWrapper
from types import FunctionType, MethodType

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: What is passed over.
HOOKS = ("__getstate__", "__setstate__")

#: Who defines one of these knows of more than the state.
OTHERS = ("__reduce__", "__reduce_ex__", "__getnewargs__", "__getnewargs_ex__")

#: What is made anew: of locks of threads a fork has copies of its own, and so it is here.
LOCKS: dict[type, Any] = {
    type(threading.Lock()): threading.Lock,
    type(threading.RLock()): threading.RLock,
    threading.local: threading.local,
}

#: Where bases may come from: they have nothing that is not in the instance's attributes.
BASES = frozenset(
    {"__main__", "abc", "collections.abc", "multihost.context", "multihost.process", "multiprocessing.process", "typing"}
)  # fmt: skip


def reduced(obj: Any) -> tuple[Any, ...] | None:
    """What ``obj.__reduce_ex__`` would answer if the script's class had no hooks; None: it has none, or is not for this."""
    kind = type(obj)
    if kind in LOCKS:
        # Free, as it would be in a fork unless somebody held it just then.
        return LOCKS[kind], (), vars(obj) if kind is threading.local else None
    if kind.__module__ != "__main__" or not _is_hooked(kind, HOOKS):
        return None
    above = kind.__mro__[:-1]
    if not all(each.__module__ in BASES for each in above):
        return None
    if any(name in vars(each) for each in above for name in OTHERS):
        return None
    # object's own, or that of Process.
    bare = next(
        vars(each)["__getstate__"]
        for each in kind.__mro__
        if each.__module__ != "__main__" and "__getstate__" in vars(each)
    )
    return copyreg.__newobj__, (kind,), bare(obj), None, None, set_state  # type: ignore[attr-defined]


def is_bound(obj: object) -> bool:
    """Whether this can be pickled, and yet is nothing for another host: an open file, whose text would be copied, a socket."""
    if obj is sys.stdout or obj is sys.stderr:
        return False
    names = "socket.socket", "multiprocessing.connection._ConnectionBase"
    kinds = (
        getattr(sys.modules.get(module), kind, None)
        for module, _, kind in (each.rpartition(".") for each in names)
    )
    return isinstance(obj, (TextIOWrapper, *filter(None, kinds)))


def set_state(obj: Any, state: Any) -> None:
    """Give an object the state that it had: its ``__dict__``, or that and its slots."""
    slots = None
    if type(state) is tuple:
        state, slots = state
    if state:
        vars(obj).update({sys.intern(name): value for name, value in state.items()})
    for name, value in (slots or {}).items():
        # Also where the class lets nobody assign.
        object.__setattr__(obj, name, value)


def is_asked(value: Any) -> bool:
    """Whether pickling this callable runs a function of the script, by which it says what it consists of."""
    while type(value) is partial:
        value = value.func
    if type(value) is MethodType:
        value = value.__self__
    return _is_hooked(type(value), ("__getstate__", "__reduce__", "__reduce_ex__"))


def _is_hooked(kind: type, names: tuple[str, ...]) -> bool:
    found = (vars(each).get(name) for each in kind.__mro__ for name in names)
    return any(type(each) is FunctionType and each.__module__ == "__main__" for each in found)


__all__ = ["is_asked", "is_bound", "reduced", "set_state"]
