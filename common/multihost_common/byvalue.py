"""Pickling what the other end cannot import: ``__main__``, lambdas, closures, local classes.

cloudpickle does it, with these changes that make processes elsewhere behave as forked ones do:

- All functions of one ``__main__`` share one namespace at the other end: what an initializer assigns
  with ``global``, a function that comes later finds. A global that is there already is kept: the first
  function that refers to it brings it, and from then on it is the process's own.
- A class travels as its definition, made once, together with the definition's digest. The other end
  builds it once, under its name in ``__main__``, so that an instance on its way back is of the very
  class that it came from. Its ``__slots__`` are there from the beginning.
- A plain function travels the same way: a process that has it does not build it, nor its globals, again.
- A function that may look for globals by name (``globals()``, ``eval``) brings all of them.

What has been made is kept until :func:`renew`, which every new pool calls: its processes see ``__main__``
as it is when they need it first. A global that cannot be pickled (a lock, an open file) stays behind;
whoever uses it there is told so.
"""

from __future__ import annotations

import io
import os
import pickle
import sys
import threading
import weakref
from collections import ChainMap
from contextlib import suppress
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

import cloudpickle  # type: ignore[import-untyped]

from multihost_common import classes, decorated, rawstate, shipments
from multihost_common.blake2 import blake2b
from multihost_common.classes import INSIDE

if TYPE_CHECKING:
    from collections.abc import Callable
    from pickle import PickleBuffer

_CloudPickler: Any = cloudpickle.Pickler

#: Bytes of a digest: enough among the definitions of one script.
DIGEST_BYTES = 16

#: Flag of the types that a class statement makes.
HEAP_TYPE = 1 << 9

#: What of a script's namespace travels unasked.
ATTRIBUTES = ("__name__", "__file__", "__package__", "__path__", "__doc__")

#: In the state of a function: globals that it does not name, each pickled by itself.
OTHERS = "__multihost_others__"

#: Which ``__main__`` is meant by what came from elsewhere; b"" until it is asked for.
_origin = b""

#: What a definition consists of: digest, qualified name, pickle, and some of these.
Definition: TypeAlias = tuple[bytes, str, bytes, int]

#: ``__main__`` has it by that name. It is part of what a function brings along, and brings nothing along itself.
PUBLIC, BROUGHT = 1, 2

#: Definitions as they travel, by id of the object, with a weak reference to it.
_made: dict[int, tuple[weakref.ref[Any], Definition]] = {}
_brought: dict[int, tuple[weakref.ref[Any], Definition]] = {}

#: What was built here, or has been sent from here, by digest. What came from elsewhere is kept alive,
#: the last ones of it: who makes functions without end must not fill the memory of the other end.
_built: dict[bytes, Any] = {}
MOST_BUILT = 1024
_sent: weakref.WeakValueDictionary[bytes, Any] = weakref.WeakValueDictionary()

#: Buffers, in bytes, that go where ``__getstate__`` was not asked, which may be there to leave them out.
RAW_BYTES = 64 << 20

#: Globals of functions are pickled by their bare state, as far as possible.
forked = False

_lock = threading.RLock()


def dumps(
    obj: object, buffer_callback: Callable[[PickleBuffer], bool] | None = None, raw: bool = False
) -> bytes:
    """The pickle (protocol 5) of ``obj``; what ``__main__`` has goes by value. Raises what pickling raises.

    ``raw``: as :mod:`~multihost_common.rawstate` has it; raises OverflowError if its buffers are larger than 64 MiB.
    """
    with io.BytesIO() as file:
        _Pickler(file, _bounded(buffer_callback) if raw else buffer_callback, raw=raw).dump(obj)
        return file.getvalue()


def _bounded(callback: Callable[[PickleBuffer], bool] | None) -> Callable[[PickleBuffer], bool]:
    """A ``buffer_callback`` that lets so many bytes pass, and not those of a file that is mapped, say."""
    left = RAW_BYTES

    def count(buffer: PickleBuffer) -> bool:
        nonlocal left
        left -= memoryview(buffer).nbytes
        if left < 0:
            raise OverflowError("too much to be sent because it would have been forked")
        return True if callback is None else callback(buffer)

    return count


def renew() -> None:
    """Make definitions anew from here on: ``__main__`` may have changed."""
    with _lock:
        _made.clear()
        _brought.clear()


class _Pickler(_CloudPickler):  # type: ignore[misc]
    def __init__(
        self,
        file: io.BytesIO,
        buffer_callback: Callable[[PickleBuffer], bool] | None = None,
        defines: object = None,
        absent: dict[str, str] | None = None,
        raw: bool = False,
    ) -> None:
        # Before the rest of it is made, which looks at it once.
        self.dispatch_table = _reducers()
        super().__init__(file, protocol=5, buffer_callback=buffer_callback)
        self._defines = defines
        #: Globals of what is defined that stay behind, and why.
        self._absent = absent or {}
        self._raw = raw
        self._main = getattr(sys.modules.get("__main__"), "__dict__", None)
        # Where cloudpickle looks up the namespace that functions share at the other end.
        self.globals_ref[id(self._main)] = _Main()

    def reducer_override(self, obj: Any) -> Any:
        """Classes and functions of ``__main__``, and those that have no name to be found by."""
        kind = type(obj)
        if kind is FunctionType:
            if obj is not self._defines and self._is_plain(obj):
                return self._definition(obj)
            return self._function(obj, super().reducer_override(obj))
        if not issubclass(kind, type):
            if self._raw and (made := self._reduced(obj)):
                return made
            return super().reducer_override(obj)
        if "_ctypes" in (kind.__module__, obj.__module__) and (made := classes.ctypes_made(obj)):
            return made
        if obj is not self._defines and _is_dynamic(obj):
            return self._definition(obj)
        return classes.adapted(obj, super().reducer_override(obj))

    def _reduced(self, obj: Any) -> tuple[Any, ...] | None:
        if type(obj) in self.dispatch_table:
            if rawstate.is_bound(obj):
                raise pickle.PicklingError(f"cannot pickle {type(obj).__name__!r} object, which is open here")
            return None
        return rawstate.reduced(obj)

    def _is_plain(self, function: FunctionType) -> bool:
        """A function of ``__main__`` that nothing but its code and its globals makes."""
        return function.__globals__ is self._main and function.__closure__ is None

    def _function(self, function: FunctionType, made: Any) -> Any:
        if made is NotImplemented or function.__globals__ is not self._main:
            return made
        if _reaches_all(function):
            made[2][1][OTHERS] = _others(function.__globals__, made[2][1]["__globals__"])
        if self._absent and function is self._defines:
            made[2][1]["__globals__"].update({name: Absent(name, why) for name, why in self._absent.items()})
        return (*made[:5], set_function_state)

    def _definition(self, obj: Any) -> Any:
        known = _known(obj)
        if known is not None:
            return build, known
        if id(obj) in _defining.ids:
            # Two that refer to each other: the outer one is on its way already.
            made = super().reducer_override(obj)
            return self._function(obj, made) if type(obj) is FunctionType else classes.adapted(obj, made)
        return build, _define(obj)


def _reducers() -> Any:
    """How objects are pickled that do not say so themselves: also those that multiprocessing knows of (sockets,
    connections), once it is in use."""
    theirs = sys.modules.get("multiprocessing.reduction")
    more = () if theirs is None else (theirs.ForkingPickler._extra_reducers,)
    return ChainMap(*more, decorated.REDUCERS, _CloudPickler.dispatch_table)


class _Defining(threading.local):
    """Objects whose definitions are being made in this thread."""

    def __init__(self) -> None:
        self.ids: set[int] = set()
        #: They are what a function does not name.
        self.others = False
        #: One of them would bring along others, if it were not one itself.
        self.cut = False


_defining = _Defining()


def _known(obj: Any) -> Definition | None:
    with _lock:
        made = _made.get(id(obj))
        if made is None and _defining.others:
            made = _brought.get(id(obj))
    if made is None or made[0]() is not obj:
        return None
    # So is what consists of it.
    _defining.cut = _defining.cut or bool(made[1][3] & BROUGHT)
    return made[1]


def _define(obj: Any) -> Definition:
    cut, _defining.cut = _defining.cut, False
    _defining.ids.add(id(obj))
    try:
        content = _dumps_definition(obj)
    finally:
        _defining.ids.discard(id(obj))
        brought, _defining.cut = _defining.cut, _defining.cut or cut
    digest = blake2b(content, digest_size=DIGEST_BYTES).digest()
    name = obj.__qualname__
    public = getattr(sys.modules.get("__main__"), name, None) is obj
    made = (digest, name, content, PUBLIC * public | BROUGHT * brought)
    with _lock:
        _keep(obj, made, _brought if brought else _made)
        _sent[digest] = obj
    return made


def _keep(obj: Any, made: Definition, book: dict[int, tuple[weakref.ref[Any], Definition]]) -> None:
    key = id(obj)
    book[key] = (weakref.ref(obj, lambda _: book.pop(key, None)), made)


def _dumps_definition(obj: Any) -> bytes:
    failure: Exception | None = None
    for raw in (True, False) if forked else (False,):
        absent: dict[str, str] = {}
        for _ in range(2):
            try:
                with io.BytesIO() as file:
                    _Pickler(file, _bounded(None) if raw else None, obj, absent, raw).dump(obj)
                    return file.getvalue()
            except Exception as error:  # noqa: BLE001
                failure = error
            absent = _failing_globals(obj, raw) if type(obj) is FunctionType and not absent else {}
            if not absent:
                break
    assert failure is not None
    raise failure


def _failing_globals(function: FunctionType, raw: bool) -> dict[str, str]:
    """Globals of a function that do not pickle, and why. ``raw``: not in that way either."""
    found = {}
    for name, value in INSIDE._function_getstate(function)[1]["__globals__"].items():
        try:
            _dumps_somehow(value, raw)
        except Exception as error:  # noqa: BLE001
            found[name] = f"{type(error).__name__}: {error}"
    return found


def _dumps_somehow(value: object, raw: bool) -> bytes:
    """As :func:`dumps`; where it cannot be done raw it is done otherwise."""
    if raw:
        with suppress(Exception):
            return dumps(value, raw=True)
    return dumps(value)


def _reaches_all(function: FunctionType) -> bool:
    """Whether it may use globals that its code does not name: ``globals()["name"]``, ``eval``, ``sys.modules[__name__]``."""
    code = function.__code__
    named = INSIDE._extract_code_globals(code)
    if (
        "__main__" not in code.co_names
        and not ("modules" in code.co_names and "__name__" in named)
        and not any(name in named for name in ("globals", "eval", "exec"))
    ):
        return False
    # Who brings all of them brings this one.
    _defining.cut = _defining.cut or _defining.others
    return not _defining.others


def _others(main: dict[str, Any], named: dict[str, Any]) -> dict[str, bytes]:
    """The pickles of all globals but those that are named, as they are for who asks for them."""
    found = {}
    cut, _defining.others = _defining.cut, True
    try:
        for name, value in list(main.items()):
            if name in named or name.startswith("__"):
                continue
            marked = shipments.mark()
            try:
                found[name] = _dumps_somehow(value, forked)
                if shipments.mark() != marked:
                    raise TypeError("an end of a pipe has to be named, or to be an argument")
            except Exception as error:  # noqa: BLE001
                shipments.void_since(marked)
                found[name] = dumps(Absent(name, f"{type(error).__name__}: {error}"))
    finally:
        _defining.others, _defining.cut = False, cut
    return found


def _is_dynamic(cls: type) -> bool:
    """Whether the other end cannot import this class (and it was made by Python code)."""
    return bool(cls.__flags__ & HEAP_TYPE) and not INSIDE._should_pickle_by_reference(cls)


# -- at the other end --------------------------------------------------------------------------------


def build(digest: bytes, name: str, content: bytes, flags: int = PUBLIC) -> Any:
    """The function or class with this digest: built now, or the one that is there."""
    found = _built.get(digest)
    if found is None:
        found = _sent.get(digest)
    if found is None:
        found = cloudpickle.loads(content)
        # cloudpickle forgets where a class was nested.
        found.__qualname__ = name
        with _lock:
            _built[digest] = found
            while len(_built) > MOST_BUILT:
                del _built[next(iter(_built))]
            # On its way back it is known by the same digest to who sent it.
            if type(found) is not FunctionType or not flags & BROUGHT:
                _keep(found, (digest, name, content, flags), _made)
        # What a decorator has replaced has its name only from within.
        if flags & PUBLIC:
            _publish(found, name)
    return found


def _publish(obj: Any, name: str) -> None:
    """Let it be found by name, where it would be if this process were a fork."""
    main = sys.modules.get("__main__")
    if obj.__module__ == "__main__" and name.isidentifier() and getattr(main, "__multihost_origin__", None):
        vars(main).setdefault(name, obj)


class Absent:
    """In place of a global that could not be pickled: whatever is done with it says so."""

    def __init__(self, name: str, why: str) -> None:
        self.__dict__["_told"] = (name, why)

    def __reduce__(self) -> tuple[type[Absent], tuple[str, str]]:
        return Absent, self.__dict__["_told"]

    def __getattr__(self, attribute: str) -> NoReturn:
        if attribute.startswith("__"):
            # Whoever asks what it can do is answered as ever.
            raise AttributeError(attribute)
        self._refuse()

    def _refuse(self, *args: object, **kwds: object) -> NoReturn:
        name, why = self.__dict__["_told"]
        raise RuntimeError(
            f"the global {name!r} of the script is not in this process, since it cannot be pickled ({why}); "
            "make it in the pool's initializer"
        )

    __call__ = __enter__ = __exit__ = __iter__ = __next__ = __len__ = __bool__ = __getitem__ = __setitem__ = (
        _refuse
    )
    __contains__ = __setattr__ = __add__ = __radd__ = __iadd__ = __lt__ = __gt__ = __le__ = __ge__ = _refuse


class _Main:
    """Stands for the namespace of the script; see :func:`namespace`."""

    def __reduce__(self) -> tuple[Callable[..., dict[str, Any]], tuple[bytes, dict[str, Any]]]:
        main = vars(sys.modules["__main__"])
        plain = {name: main[name] for name in ATTRIBUTES if isinstance(main.get(name), (str, list))}
        return namespace, (_own_origin(), plain)


def _own_origin() -> bytes:
    global _origin
    adopted: bytes | None = getattr(sys.modules.get("__main__"), "__multihost_origin__", None)
    if adopted is not None:
        return adopted
    with _lock:
        _origin = _origin or os.urandom(8)
    return _origin


def namespace(origin: bytes, attributes: dict[str, Any]) -> dict[str, Any]:
    """The namespace of the ``__main__`` that ``origin`` names. In a process of a pool it is made here."""
    main = sys.modules.get("__main__")
    if main is None or (origin != _origin and getattr(main, "__multihost_origin__", None) != origin):
        main = ModuleType("__main__")
        main.__dict__.update(attributes)
        main.__dict__["__multihost_origin__"] = origin
        sys.modules["__main__"] = main
    return main.__dict__


def set_function_state(function: FunctionType, state: tuple[dict[str, Any], dict[str, Any]]) -> None:
    """Complete a function of ``__main__``. Globals that this process has are its own."""
    there = function.__globals__
    slots = state[1]
    brought = slots["__globals__"]
    slots["__globals__"] = {name: value for name, value in brought.items() if name not in there}
    others = slots.pop(OTHERS, {})
    INSIDE._function_setstate(function, state)
    for name, content in others.items():
        if name not in there:
            there.setdefault(name, _load_other(name, content))


def _load_other(name: str, content: bytes) -> Any:
    try:
        return cloudpickle.loads(content)
    except Exception as error:  # noqa: BLE001
        # A module that this host does not have, say; perhaps nobody needs it here.
        return Absent(name, f"{type(error).__name__}: {error}")
