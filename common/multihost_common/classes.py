"""How classes travel by value, where it is not quite as cloudpickle has it."""

from __future__ import annotations

import operator
import sys
import threading
import types
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from types import MemberDescriptorType
from typing import Any

import cloudpickle  # type: ignore[import-untyped]

#: cloudpickle's own parts, which it does not list as public.
INSIDE: Any = sys.modules[cloudpickle.Pickler.__module__]


def adapted(cls: Any, made: Any) -> Any:
    """What cloudpickle has ``made`` of a class, as it is to be."""
    if type(made) is not tuple:
        return made
    if type(cls).__module__ == "_ctypes":
        made = _without_fields(made)
    if made[0] is not INSIDE._make_skeleton_class:
        return made
    return (skeleton, *_with_slots(cls, made)[1:])


def ctypes_made(cls: Any) -> Any:
    """How those classes travel that have no name to be found by: arrays of so many elements, and what makes structures."""
    if issubclass(cls, type):
        found = [each for each in vars(sys.modules["_ctypes"]).values() if type(each) is cls]
        return (type, (found[0],)) if found else None
    if hasattr(cls, "_length_") and cls is cls._type_ * cls._length_:
        return operator.mul, (cls._type_, cls._length_)
    return None


def _without_fields(made: Any) -> Any:
    """A ctypes class without its descriptors of fields, which ctypes makes from ``_fields_`` once the rest is there."""
    attributes, slots = made[2]
    kept = {name: each for name, each in attributes.items() if type(each).__name__ != "CField"}
    fields = {"_fields_": kept.pop("_fields_")} if "_fields_" in kept else {}
    return (*made[:2], ({**kept, **fields}, slots), *made[3:])


def _with_slots(cls: Any, made: Any) -> Any:
    """A class with ``__slots__`` has them from the beginning: cloudpickle sets them when it is too late, and its
    instances would have a ``__dict__``, which those of the class here have not."""
    slots = vars(cls).get("__slots__")
    # Named tuples have no room for any, and what makes them refuses to be told so.
    if not isinstance(slots, (str, tuple, list, dict)) or issubclass(cls, tuple):
        return made
    attributes, rest = made[2]
    kept = {
        name: each
        for name, each in attributes.items()
        if name != "__slots__" and not isinstance(each, MemberDescriptorType)
    }
    new = list(made[1])
    new[3] = {**new[3], "__slots__": slots}
    return (made[0], tuple(new), (kept, rest), *made[3:])


# -- at the other end --------------------------------------------------------------------------------

_building = threading.RLock()


def skeleton(
    kind: type, name: str, bases: tuple[Any, ...], attributes: dict[str, Any], tracker: str, extra: Any
) -> Any:
    """A class without its attributes. What the script's metaclasses and ``__init_subclass__`` do with a class that is
    defined has been done where it was; what came of it travels."""
    # Of the script's metaclasses none is asked.
    library = next(each for each in kind.__mro__ if each.__module__ != "__main__")
    make: Any = kind if library is kind else partial(library.__new__, kind)
    # As cloudpickle does, so that a class that has travelled has the same pickle again.
    attributes = {sys.intern(each): value for each, value in attributes.items()}
    with _building, _undisturbed(bases):
        made = types.new_class(name, bases, {"metaclass": make}, lambda space: space.update(attributes))
    return INSIDE._lookup_class_or_track(tracker, made)


@contextmanager
def _undisturbed(bases: Sequence[Any]) -> Iterator[None]:
    hook = "__init_subclass__"
    above = {each for base in bases for each in getattr(base, "__mro__", ())}
    hooked = {
        each: vars(each)[hook] for each in above if each.__module__ == "__main__" and hook in vars(each)
    }
    for each in hooked:
        type.__setattr__(each, hook, classmethod(partial(_pass_on, each)))
    try:
        yield
    finally:
        for each, own in hooked.items():
            type.__setattr__(each, hook, own)


def _pass_on(above: type, cls: type, **options: Any) -> None:
    after: Any = super(above, cls)
    after.__init_subclass__(**options)


__all__ = ["INSIDE", "adapted", "ctypes_made", "skeleton"]
