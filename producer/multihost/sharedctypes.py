"""Values and arrays of ctypes types that processes on any host share. The counterpart of :mod:`multiprocessing.sharedctypes`.

Such an object is a real ctypes object, of a subclass of its type, over this process's copy of the bytes. Each element
is read from the broker when it is asked for, and written there when it is assigned. What looks at the memory itself (a
numpy array made with ``frombuffer``, ``memoryview``) sees this process's copy alone: assign to ``array[:]`` to share it.
"""

from __future__ import annotations

import ctypes
import sys
import weakref
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from multihost.adding import before, note
from multihost.cells import Cell
from multihost.engines.choosing import all_here

typecode_to_type: dict[str, Any] = {
    "c": ctypes.c_char,
    "u": ctypes.c_wchar,
    "b": ctypes.c_byte,
    "B": ctypes.c_ubyte,
    "h": ctypes.c_short,
    "H": ctypes.c_ushort,
    "i": ctypes.c_int,
    "I": ctypes.c_uint,
    "l": ctypes.c_long,
    "L": ctypes.c_ulong,
    "q": ctypes.c_longlong,
    "Q": ctypes.c_ulonglong,
    "f": ctypes.c_float,
    "d": ctypes.c_double,
}

_SIMPLE: Any = ctypes._SimpleCData
_TEXTS = (ctypes.c_char, ctypes.c_wchar)


# -- making them ---------------------------------------------------------------------------------------


def RawValue(typecode_or_type: Any, *args: Any) -> Any:  # noqa: N802 - its name in multiprocessing
    """A shared ctypes object of this type (or of one letter, as the array module has them), without a lock."""
    return _share(typecode_to_type.get(typecode_or_type, typecode_or_type)(*args))


def RawArray(typecode_or_type: Any, size_or_initializer: Any) -> Any:  # noqa: N802 - its name in multiprocessing
    """A shared ctypes array of so many zeros, or of these elements, without a lock."""
    type_ = typecode_to_type.get(typecode_or_type, typecode_or_type)
    if isinstance(size_or_initializer, int):
        return _share((type_ * size_or_initializer)())
    return _share((type_ * len(size_or_initializer))(*size_or_initializer))


def Value(typecode_or_type: Any, *args: Any, lock: Any = True, ctx: object = None) -> Any:  # noqa: N802 - as above
    """A shared ctypes object and its lock: a new RLock, the one given, or (``lock`` False) none: see RawValue."""
    return _guarded(RawValue(typecode_or_type, *args), lock)


def Array(typecode_or_type: Any, size_or_initializer: Any, *, lock: Any = True, ctx: object = None) -> Any:  # noqa: N802
    """A shared ctypes array and its lock: a new RLock, the one given, or (``lock`` False) none: see RawArray."""
    return _guarded(RawArray(typecode_or_type, size_or_initializer), lock)


def _guarded(obj: Any, lock: Any) -> Any:
    if lock is False:
        return obj
    if lock in (True, None):
        lock = None
    elif not hasattr(lock, "acquire"):
        raise AttributeError(f"{lock!r} has no method 'acquire'")
    return synchronized(obj, lock)


def copy(obj: Any) -> Any:
    """A shared copy of a ctypes object."""
    type_ = _plain(type(obj))
    content = type_()
    _refresh(obj)
    ctypes.pointer(content)[0] = obj
    return _share(content)


def synchronized(obj: Any, lock: Any = None, ctx: object = None) -> Any:
    """A wrapper of a shared ctypes object that holds a lock (default: a new RLock) while it is used."""
    assert not isinstance(obj, SynchronizedBase), "object already synchronized"
    if isinstance(obj, _SIMPLE):
        return Synchronized(obj, lock)
    if isinstance(obj, ctypes.Array):
        return (SynchronizedString if obj._type_ is ctypes.c_char else SynchronizedArray)(obj, lock)
    cls = _plain(type(obj))
    made = class_cache.get(cls)
    if made is None:
        properties = {name: _property(name) for name in _fields(cls)}
        made = class_cache[cls] = type(f"Synchronized{cls.__name__}", (SynchronizedBase,), properties)
    return made(obj, lock)


def _share(content: Any) -> Any:
    """A shared object of the same type and content."""
    made = ctypes.string_at(ctypes.addressof(content), ctypes.sizeof(content))
    return _view(type(content), _mapped(content, made) or Cell.make(made), 0)


def _mapped(content: Any, made: bytes) -> Cell | None:
    """Arrays are in mapped memory where that reaches everybody, so that others than ctypes see what they look at. Not
    single values, to which something is added in one step."""
    if not isinstance(content, ctypes.Array) or not all_here():
        return None
    from multihost import arenas

    return arenas.make(made) if arenas.available() else None


def _view(type_: Any, cell: Cell, offset: int) -> Any:
    """A shared object of this type over these bytes."""
    view = _shared_type(type_).from_buffer(cell.buffer, offset)
    view._cell, view._offset = cell, offset
    return view


def _rebuild(type_: Any, lengths: Sequence[int], cell: Cell, offset: int) -> Any:
    for length in lengths:
        type_ = type_ * length
    return _view(type_, cell, offset)


def _described(type_: Any) -> tuple[Any, list[int]]:
    """An element's type and the length of each dimension: types of arrays have no name to pickle them by."""
    length = getattr(type_, "_length_", None)
    if length is not None and type_ is type_._type_ * length:
        element, lengths = _described(type_._type_)
        return element, [*lengths, length]
    return type_, []


def _fields(type_: Any) -> dict[str, Any]:
    """Types of the fields of a structure or union, by name; also of those that it is given by what has no name."""
    found: dict[str, Any] = {}
    for base in reversed(type_.__mro__):
        own = vars(base).get("_fields_", ())
        found.update({field[0]: field[1] for field in own})
        for name in vars(base).get("_anonymous_", ()):
            found.update(_fields(found[name]))
    return found


# -- shared types --------------------------------------------------------------------------------------


class _Viewing:
    """What all shared ctypes objects can do: they lie over a cell."""

    _plain: Any
    _cell: Cell
    _offset: int

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (*_described(self._plain), self._cell, self._offset)

    def _read(self, descriptor: Any, offset: int, size: int) -> Any:
        with self._cell.mutex:
            self._cell.refresh(self._offset + offset, size)
            return descriptor.__get__(self)

    def _write(self, descriptor: Any, value: Any, offset: int, size: int) -> None:
        _refresh(value)
        with self._cell.mutex:
            descriptor.__set__(self, value)
            self._cell.publish(self._offset + offset, size)

    def _add(self, old: Any, value: Any) -> None:
        """It is a number, and was ``old`` before something was added to it."""
        real = isinstance(old, float)
        with self._cell.mutex:
            before = bytes(self._plain(old))
            self._plain.value.__set__(self, value)
            self._cell.add(self._offset, before, real)


def _whole(name: str, type_: Any) -> property:
    """A property that is all of the object's bytes: ``value`` of a number, ``raw`` of characters."""
    descriptor = getattr(type_, name)
    size = ctypes.sizeof(type_)

    def set_value(self: Any, value: Any) -> None:
        self._write(descriptor, value, 0, size)

    return property(lambda self: self._read(descriptor, 0, size), set_value)


def _text(name: str, type_: Any) -> property:
    """A property of an array of characters, where a shorter text leaves the rest as it is."""
    descriptor = getattr(type_, name)
    width, size = ctypes.sizeof(type_._type_), ctypes.sizeof(type_)

    def set_value(self: Any, value: Any) -> None:
        with self._cell.mutex:
            descriptor.__set__(self, value)
            # With the zero that ends a value.
            length = (len(value) + 1) * width if name == "value" else memoryview(value).nbytes
            self._cell.publish(self._offset, min(size, length))

    return property(lambda self: self._read(descriptor, 0, size), set_value)


def _simple_members(type_: Any) -> dict[str, Any]:
    def show(self: Any) -> str:
        return f"{type_.__name__}({self.value!r})"

    return {"value": _whole("value", type_), "__repr__": show}


class _Elements(_Viewing):
    """Shared arrays."""

    _type_: Any
    _length_: int

    def __len__(self) -> int:
        return self._length_

    def _at(self, index: int) -> int:
        """The element's offset in bytes."""
        place = index + self._length_ if index < 0 else index
        if not 0 <= place < self._length_:
            raise IndexError("invalid index")
        return place * ctypes.sizeof(self._type_)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self._slice(index)
        offset = self._at(index)
        with self._cell.mutex:
            if not _is_simple(self._type_):
                return _view(self._type_, self._cell, self._offset + offset)
            self._cell.refresh(self._offset + offset, ctypes.sizeof(self._type_))
            return super().__getitem__(index)  # type: ignore[misc]

    def _slice(self, index: slice) -> Any:
        places = range(*index.indices(self._length_))
        if not _is_simple(self._type_):
            return [self[each] for each in places]
        with self._cell.mutex:
            if places:
                low, high = sorted((places[0], places[-1]))
                width = ctypes.sizeof(self._type_)
                self._cell.refresh(self._offset + low * width, (high - low + 1) * width)
            return super().__getitem__(index)  # type: ignore[misc]

    def __setitem__(self, index: Any, value: Any) -> None:
        width = ctypes.sizeof(self._type_)
        if isinstance(index, slice):
            places = range(*index.indices(self._length_))
            if isinstance(value, _Elements | SynchronizedArray):
                value = value[:]
        else:
            place = self._at(index) // width
            places = range(place, place + 1)
        if not _is_simple(self._type_):
            for each in value if isinstance(index, slice) else (value,):
                _refresh(each)
        with self._cell.mutex:
            super().__setitem__(index, value)  # type: ignore[misc]
            if places.step == 1:
                self._cell.publish(self._offset + places.start * width, len(places) * width)
            else:
                for each in places:
                    self._cell.publish(self._offset + each * width, width)

    def __iter__(self) -> Iterator[Any]:
        if not _is_simple(self._type_):
            yield from map(self.__getitem__, range(self._length_))
            return
        # All at once, and then from this process's copy: what is assigned meanwhile is seen.
        with self._cell.mutex:
            self._cell.refresh(self._offset, ctypes.sizeof(self))  # type: ignore[arg-type]
        for each in range(self._length_):
            yield super().__getitem__(each)  # type: ignore[misc]


def _array_members(type_: Any) -> dict[str, Any]:
    if type_._type_ in _TEXTS:
        return {name: _text(name, type_) for name in ("value", "raw") if hasattr(type_, name)}
    return {}


def _field(descriptor: Any, type_: Any) -> property:
    """A property that stands for a field of a structure or union."""
    offset, size = descriptor.offset, ctypes.sizeof(type_)
    text = issubclass(type_, ctypes.Array) and type_._type_ in _TEXTS
    whole = text or _is_simple(type_)
    # A text or a field of bits leaves part of these bytes as they are.
    partial = text or descriptor.size != size

    def get_value(self: Any) -> Any:
        if whole:
            return self._read(descriptor, offset, size)
        return _view(type_, self._cell, self._offset + offset)

    def set_value(self: Any, value: Any) -> None:
        with self._cell.mutex:
            if partial:
                self._cell.refresh(self._offset + offset, size)
            self._write(descriptor, value, offset, size)

    return property(get_value, set_value)


def _structure_members(type_: Any) -> dict[str, Any]:
    return {name: _field(getattr(type_, name), each) for name, each in _fields(type_).items()}


def _is_simple(type_: Any) -> bool:
    """Is an element of this type answered as a plain Python object?"""
    return type_.__base__ is _SIMPLE


def _shared_type(type_: Any) -> Any:
    """The subclass of a ctypes type whose objects are shared."""
    known = _types.get(type_)
    made = None if known is None else known()
    if made is None:
        base: type = _Viewing
        if issubclass(type_, ctypes.Array):
            base, members = _Elements, _array_members(type_)
        elif issubclass(type_, ctypes.Structure | ctypes.Union):
            members = _structure_members(type_)
        elif issubclass(type_, _SIMPLE) and type_._type_ not in "zZPO":
            members = _simple_members(type_)
        else:
            raise TypeError(f"{type_.__name__} points to memory of this process, so it cannot be shared")
        metaclass: Any = type(type_)
        made = metaclass(type_.__name__, (base, type_), {"_plain": type_})
        for name, member in members.items():
            # Now: making the type of an array of characters has put its own in this place.
            setattr(made, name, member)
        _types[type_] = weakref.ref(made)
    return made


def _plain(type_: Any) -> Any:
    """The ctypes type itself."""
    return type_._plain if issubclass(type_, _Viewing) else type_


def _refresh(value: Any) -> None:
    """If this is a shared object, have it as it is at the broker: it is going to be copied."""
    if isinstance(value, _Viewing):
        with value._cell.mutex:
            value._cell.refresh(value._offset, ctypes.sizeof(value))  # type: ignore[arg-type]


#: Both ends are weak: there is a type for each length of an array.
_types: weakref.WeakKeyDictionary[Any, weakref.ref[Any]] = weakref.WeakKeyDictionary()


# -- with a lock ---------------------------------------------------------------------------------------


class SynchronizedBase:
    """A shared ctypes object and the lock that is held while it is used. It is a context manager that holds it longer."""

    def __init__(self, obj: Any, lock: Any = None, ctx: object = None) -> None:
        if not lock:
            from multihost.synchronize import RLock

            lock = RLock()
        self._obj = obj
        self._lock = lock
        self.acquire = lock.acquire
        self.release = lock.release
        books: Any = getattr(lock, "_semlock", None)
        if hasattr(books, "hold") and isinstance(obj, _Viewing):
            obj._cell.hold = books.hold

    def __enter__(self) -> Any:
        return self._lock.__enter__()

    def __exit__(self, *args: object) -> None:
        self._lock.__exit__(*args)

    def __reduce__(self) -> tuple[Any, ...]:
        return synchronized, (self._obj, self._lock)

    def get_obj(self) -> Any:
        """The ctypes object itself."""
        return self._obj

    def get_lock(self) -> Any:
        """The lock."""
        return self._lock

    def __repr__(self) -> str:
        return f"<{type(self).__name__} wrapper for {self._obj}>"


def _property(name: str) -> property:
    """This attribute of the object, with the lock held."""

    def get_value(self: SynchronizedBase) -> Any:
        with self:
            return getattr(self._obj, name)

    def set_value(self: SynchronizedBase, value: Any) -> None:
        with self:
            setattr(self._obj, name, value)

    return property(get_value, set_value)


class Synchronized(SynchronizedBase):
    """A number or a character. To add to it, ``value += 1``, is one step."""

    @property
    def value(self) -> Any:
        """The number or character."""
        with self:
            value = self._obj.value
        note(sys._getframe(1), self, value)
        return value

    @value.setter
    def value(self, value: Any) -> None:
        old = before(sys._getframe(1), self)
        with self:
            if old is not None and isinstance(self._obj, _Viewing):
                self._obj._add(old, value)
            else:
                self._obj.value = value


class SynchronizedArray(SynchronizedBase):
    """An array."""

    def __len__(self) -> int:
        return len(self._obj)

    def __getitem__(self, i: Any) -> Any:
        with self:
            return self._obj[i]

    def __setitem__(self, i: Any, value: Any) -> None:
        with self:
            self._obj[i] = value

    def __iter__(self) -> Iterator[Any]:
        elements = iter(self._obj)
        # The first one reads them all.
        with self:
            first = list(islice(elements, 1))
        yield from first
        yield from elements


class SynchronizedString(SynchronizedArray):
    """An array of bytes."""

    value = _property("value")
    raw = _property("raw")


class_cache: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()

__all__ = ["Array", "RawArray", "RawValue", "Value", "copy", "synchronized"]
