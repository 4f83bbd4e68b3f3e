"""The bytes of shared ctypes objects: they are at the broker, and each process has a copy that it works on."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from typing import Any

from multihost.shared import Shared
from multihost_common.shared import CELL, Cells

#: No message carries more than so many bytes of a value or an array.
PIECE = 1 << 20

#: Bytes that are read at once where more of them are likely to be read.
BLOCK = 4096


class Cell:
    """The bytes of one object. ``buffer`` is this process's copy, over which its ctypes objects lie.

    Whoever reads calls :meth:`refresh` first, whoever has written calls :meth:`publish`, both with ``mutex`` held, so that
    no thread's bytes are overwritten by those that another one has just read. ``hold`` answers a number that changes with
    each time that this thread acquires the lock of the object, and 0 while it has not: nobody else writes meanwhile.
    """

    def __init__(self, shared: Shared, size: int) -> None:
        self.shared = shared
        self.prepare(bytearray(size), size)

    def prepare(self, buffer: Any, size: int) -> None:
        """Begin with these bytes."""
        self.size = size
        self.buffer = buffer
        self.mutex: Any = threading.RLock()
        self.hold: Callable[[], int] = int
        #: The hold that these ranges were read in, and how much was read alone.
        self._held = 0
        self._fresh: set[int] = set()
        self._reads = 0

    @classmethod
    def make(cls, content: bytes) -> Cell:
        """A new one that begins with this content."""
        size = len(content)
        cell = cls(Shared.make(CELL, size), size)
        if any(content):
            cell.buffer[:] = content
            cell.publish(0, size)
        _known[cell.shared.name] = cell
        return cell

    def __reduce__(self) -> tuple[Any, ...]:
        return cell_of, (self.shared, self.size)

    def refresh(self, offset: int, size: int) -> None:
        """Have this range as it is at the broker."""
        held = self.hold()
        if held != self._held or not held:
            self._held, self._reads = held, 0
            self._fresh.clear()
        if not held:
            self._read(offset, size)
            return
        self._reads += 1
        if self._reads == 1:
            # Most have a single value to read.
            self._read(offset, size)
            return
        blocks = range(offset // BLOCK, -(-(offset + size) // BLOCK))
        missing = [each for each in blocks if each not in self._fresh]
        if missing:
            start = missing[0] * BLOCK
            self._read(start, min(self.size, (missing[-1] + 1) * BLOCK) - start)
            self._fresh.update(blocks)

    def _read(self, offset: int, size: int) -> None:
        end = offset + size
        for at in range(offset, end, PIECE):
            length = min(PIECE, end - at)
            ask = self.shared.ask(Cells.READ, at + length * Cells.SPAN)
            if ask is not None:
                self.buffer[at : at + length] = b"".join(ask.frames)

    def publish(self, offset: int, size: int) -> None:
        """This range was written here."""
        end = offset + size
        for at in range(offset, end, PIECE):
            content = bytes(memoryview(self.buffer)[at : min(end, at + PIECE)])
            self.shared.tell(Cells.WRITE, at, (content,))

    def add(self, offset: int, old: bytes, real: bool) -> None:
        """The number here was ``old`` before something was added to it. ``real``: it is a floating point number."""
        new = bytes(self.buffer[offset : offset + len(old)])
        self.shared.tell(Cells.ADD, offset, (old, new, b"f") if real else (old, new))


#: Those of this process, by the name of the object.
_known: weakref.WeakValueDictionary[bytes, Cell] = weakref.WeakValueDictionary()
_knowing = threading.Lock()


def cell_of(shared: Shared, size: int) -> Cell:
    """The bytes of this object, of which there is one copy in this process."""
    with _knowing:
        cell = _known.get(shared.name)
        if cell is None:
            cell = _known[shared.name] = Cell(shared, size)
        return cell


def _after_fork() -> None:
    global _knowing
    _knowing = threading.Lock()
    for cell in list(_known.values()):
        cell.mutex = threading.RLock()


os.register_at_fork(after_in_child=_after_fork)

__all__ = ["Cell"]
