"""Callables with a state: what they change in themselves lasts until the end of a chunk, as in multiprocessing.

There the callable is pickled once more for each chunk. A plain function is not affected by that, and is sent and
unpickled once; anything else has a new copy for each chunk, see :class:`multihost_common.pickling.Fresh`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

from multihost.reduction import ATOMS, dump_once
from multihost_common.rawstate import is_asked

#: Callables that nothing can change once they are made.
_FIXED = frozenset({"_operator", "operator"})

#: Automatic chunks are not larger, as far as that can be seen: each is in memory as a whole, here and on its way.
CHUNK_BYTES = 64 << 20

#: A pickle that only names something is shorter than that.
_SHORT = 512

#: What makes an object, in a pickle.
_MAKING = frozenset({"REDUCE", "BUILD", "NEWOBJ", "NEWOBJ_EX", "OBJ", "INST"})


def has_state(function: Any, content: bytes) -> bool:
    """Whether calls may change what ``function`` carries along. ``content``: its pickle."""
    return not (_is_fixed(function) or (len(content) < _SHORT and _names_only(content)))


def _is_fixed(value: Any) -> bool:
    kind = type(value)
    if kind in ATOMS or isinstance(value, (FunctionType, type, ModuleType)):
        # Globals and closures belong to the process.
        return True
    if kind is tuple or kind is frozenset:
        return all(map(_is_fixed, value))
    if kind is partial:
        return _is_fixed(value.func) and all(map(_is_fixed, (*value.args, *value.keywords.values())))
    if kind is MethodType or kind is BuiltinFunctionType:
        return _is_fixed(value.__self__)
    return kind.__module__ in _FIXED


def _names_only(content: bytes) -> bool:
    """It is found by its name, as the functions of extension modules are."""
    import pickletools

    return all(opcode.name not in _MAKING for opcode, _, _ in pickletools.genops(content))


def usual_chunksize(length: int, processes: int, first: Any = None) -> int:
    """The size of chunks where nobody asked for one, as multiprocessing has it; but not more than 64 MiB of items that
    are as large as the ``first``."""
    size = -(-length // (4 * max(1, processes)))
    return max(1, min(size, CHUNK_BYTES // max(1, sys.getsizeof(first))))


def pickling_again(function: Any, content: bytes) -> Callable[[], bytes | None] | None:
    """For a callable of the script that says itself how it is pickled, which is asked for each chunk; None: for others."""
    if not is_asked(function):
        return None
    begun = False

    def again() -> bytes | None:
        nonlocal begun
        if not begun:
            # What was pickled to begin with is the first chunk's.
            begun = True
            return None
        made = dump_once(function)
        return None if made == content else made

    return again


__all__ = ["has_state", "pickling_again", "usual_chunksize"]
