"""How what decorators of the standard library make travels by value: ``lru_cache``, ``cache``, ``cached_property``,
``singledispatch``."""

from __future__ import annotations

import weakref
from functools import cached_property, lru_cache
from typing import Any

from multihost_common.classes import INSIDE

#: Functions with a cache by the id of the function within, which they keep alive: one for each in a process.
_cached: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()


def cached(function: Any, maxsize: int | None, typed: bool) -> Any:
    """The function with its cache: the one that is there, or a new one, whose cache is empty."""
    found = _cached.get(id(function))
    if found is None:
        found = _cached[id(function)] = lru_cache(maxsize, typed)(function)
    return found


def _reduce_cached(function: Any) -> Any:
    if INSIDE._lookup_module_and_qualname(function) is not None:
        return function.__qualname__
    within, parameters = function.__wrapped__, function.cache_parameters()
    _cached.setdefault(id(within), function)
    return cached, (within, parameters["maxsize"], parameters["typed"])


def _reduce_weak(mapping: Any) -> Any:
    # singledispatch has one.
    return type(mapping), (dict(mapping.items()),)


def _reduce_property(made: Any) -> Any:
    # With a lock of its own before Python 3.12.
    return _property, (made.func, made.attrname)


def _property(function: Any, name: str | None) -> Any:
    made = cached_property(function)
    made.attrname = name
    return made


#: As pickle's dispatch tables have it.
REDUCERS = {
    type(lru_cache(_reduce_weak)): _reduce_cached,
    cached_property: _reduce_property,
    weakref.WeakKeyDictionary: _reduce_weak,
    weakref.WeakValueDictionary: _reduce_weak,
}

__all__ = ["REDUCERS", "cached"]
