"""Memory of this machine that processes map: where arrays lie if all processes are here.

It is a file without a name (``memfd_create``), which others open by way of the process that made it: nothing is left
behind, however that ends. Small arrays share one.
"""

from __future__ import annotations

import mmap
import os
import threading
import weakref
from contextlib import nullcontext
from typing import Any

from multihost.cells import Cell
from multihost.engines.choosing import get_sharing
from multihost_common.errors import BrokerLostError

#: Bytes of the memory that small arrays share, and up to which size they do.
ARENA_BYTES, SMALL_BYTES = 1 << 20, 1 << 16

#: Where an array begins is a multiple of so many bytes.
ALIGNMENT = 64


class Arena:
    """Mapped memory. ``origin``: process, descriptor there and inode of the file, ``size`` its bytes."""

    def __init__(self, fd: int, origin: tuple[int, int, int], size: int) -> None:
        self.origin = origin
        self.size = size
        self.memory = memoryview(mmap.mmap(fd, size))
        #: So much is given out.
        self.used = 0


class MappedCell(Cell):
    """The bytes of an object in memory that all its processes see: there is nothing to be told."""

    def __init__(self, arena: Arena, offset: int, size: int) -> None:
        self.arena = arena
        self.offset = offset
        self.prepare(arena.memory[offset : offset + size], size)
        # Nothing is read into it that another thread would have to wait for.
        self.mutex = nullcontext()

    def __reduce__(self) -> tuple[Any, ...]:
        if self.arena.origin[0] == os.getpid():
            # From now on others may have it, and nobody knows when they open it.
            get_sharing().given.add(self.arena)
        return mapped, (self.arena.origin, self.arena.size, self.offset, self.size)

    def refresh(self, offset: int, size: int) -> None:
        """It is as it is everywhere."""

    def publish(self, offset: int, size: int) -> None:
        """It is as it is everywhere."""

    def add(self, offset: int, old: bytes, real: bool) -> None:
        """It is as it is everywhere."""


def available() -> bool:
    """Can memory be shared in this way on this system?"""
    return hasattr(os, "memfd_create") and os.path.isdir("/proc/self/fd")


def make(content: bytes) -> MappedCell | None:
    """The bytes of a new object, which begin with this content; None: there is no more memory, or no descriptor."""
    size = len(content)
    try:
        arena, offset = _placed(size)
    except OSError:
        return None
    cell = MappedCell(arena, offset, size)
    if any(content):
        cell.buffer[:] = content
    return cell


def _placed(size: int) -> tuple[Arena, int]:
    global _current
    with _lock:
        arena = None if size > SMALL_BYTES or _current is None else _current()
        if size > SMALL_BYTES:
            arena = _new(size)
        elif arena is None or arena.used + size > arena.size:
            arena = _new(ARENA_BYTES)
            _current = weakref.ref(arena)
        offset = arena.used
        arena.used += -(-max(size, 1) // ALIGNMENT) * ALIGNMENT
    return arena, offset


def _new(size: int) -> Arena:
    fd = os.memfd_create("multihost")
    try:
        os.ftruncate(fd, size)
        arena = Arena(fd, (os.getpid(), fd, os.fstat(fd).st_ino), size)
    except BaseException:
        os.close(fd)
        raise
    # Others open it by this descriptor.
    weakref.finalize(arena, os.close, fd).atexit = False
    _arenas[arena.origin] = arena
    return arena


def mapped(origin: tuple[int, int, int], total: int, offset: int, size: int) -> MappedCell:
    """The bytes of an object that another process of this machine has made. Raises BrokerLostError if that has ended."""
    with _lock:
        arena = _arenas.get(origin)
        if arena is None:
            arena = _arenas[origin] = _opened(origin, total)
    return MappedCell(arena, offset, size)


def _opened(origin: tuple[int, int, int], size: int) -> Arena:
    pid, number, inode = origin
    fd = -1
    try:
        fd = os.open(f"/proc/{pid}/fd/{number}", os.O_RDWR | os.O_CLOEXEC)
        if os.fstat(fd).st_ino != inode:
            raise FileNotFoundError
        return Arena(fd, origin, size)
    except OSError:
        raise BrokerLostError("the shared array is no more: the process that made it has ended") from None
    finally:
        if fd >= 0:
            os.close(fd)


def _after_fork() -> None:
    global _lock, _current
    _lock = threading.Lock()
    # What is left of it is the parent's.
    _current = None


_lock = threading.Lock()
#: What small arrays are put into, as long as there is one.
_current: weakref.ref[Arena] | None = None
_arenas: weakref.WeakValueDictionary[tuple[int, int, int], Arena] = weakref.WeakValueDictionary()

os.register_at_fork(after_in_child=_after_fork)

__all__ = ["MappedCell", "available", "make", "mapped"]
