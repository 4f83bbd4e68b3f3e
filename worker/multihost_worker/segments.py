"""Shared memory segments: large frames between an agent and its children, written once, copied nowhere.

The sender owns a segment (:class:`Segments`), passes its descriptor to a peer once and then names it
by number. The receiver (:class:`Mappings`) maps it once and lends views; when the last object that
refers to a view is gone, the number goes back and the sender writes there again. Touched pages are
the point: a first touch of fresh memory costs more than ten times the copy itself.
"""

from __future__ import annotations

import os
from _weakref import ref
from collections import deque
from mmap import mmap

from multihost_common.rope import parts_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from multihost_common.blocks import Frame
    from multihost_common.rope import Rope

#: What one sender keeps for recycling, bytes.
KEEP = 256 << 20

#: Segments that one sender has at most. Each takes descriptors at both ends; what is beyond is copied.
LIMIT = 64

_SMALLEST = 65_536


def allotment(peers: int) -> int:
    """How many segments each of so many peers may have, so that mapping them takes no more than
    about half of the files this process may have open."""
    files = os.sysconf("SC_OPEN_MAX")
    return LIMIT if files < 0 else min(LIMIT, files // 4 // max(4, peers))


def anonymous_file(size: int) -> int:
    """The descriptor of a file without a name."""
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("multihost", os.MFD_CLOEXEC)
    else:
        import tempfile

        fd, path = tempfile.mkstemp(prefix="multihost-")
        os.unlink(path)
    try:
        os.ftruncate(fd, size)
    except OSError:
        os.close(fd)
        raise
    return fd


class Segment:
    """A file without a name, mapped."""

    __slots__ = ("fd", "fresh", "mapping", "number", "size", "view")

    def __init__(self, number: int, size: int) -> None:
        self.number = number
        self.size = size
        self.fresh = True
        self.fd = anonymous_file(size)
        try:
            self.mapping = mmap(self.fd, size)
        except (OSError, ValueError):
            os.close(self.fd)
            raise
        self.view = memoryview(self.mapping)

    def write(self, frame: Frame | Rope) -> None:
        """Copy ``frame`` to the beginning."""
        # Filling new pages by write() spares the page faults, and the zeroing.
        fresh, self.fresh = self.fresh, False
        at = 0
        for part in parts_of(frame):
            if fresh:
                write_all(self.fd, part, at)
            else:
                self.view[at : at + len(part)] = part
            at += len(part)

    def close(self) -> None:
        """Unmap it. Peers that have it mapped keep it."""
        self.view.release()
        self.mapping.close()
        os.close(self.fd)


def write_all(fd: int, frame: Frame, at: int) -> None:
    """Write ``frame`` to a file from ``at`` on. Raises OSError, such as when there is room for a part of it only."""
    view = memoryview(frame).cast("B")
    while view:
        # As much as there is room for, perhaps; the next one says that there is none.
        written = os.pwrite(fd, view, at)
        at += written
        view = view[written:]


class Segments:
    """The segments a sender owns: those in use, and those to be used again."""

    def __init__(
        self, keep: int = KEEP, dropped: Callable[[int], None] | None = None, limit: int = LIMIT
    ) -> None:
        self.keep = keep
        self.limit = limit
        self.dropped = dropped
        self.used: dict[int, Segment] = {}
        self.free: dict[int, Segment] = {}
        self._kept = 0
        self._last = 0

    def acquire(self, length: int) -> Segment | None:
        """A segment for ``length`` bytes, or None: send them some other way."""
        size = max(_SMALLEST, 1 << (length - 1).bit_length())
        for segment in reversed(self.free.values()):
            if segment.size == size:
                del self.free[segment.number]
                self._kept -= size
                break
        else:
            if len(self.used) >= self.limit:
                return None
            if self.free and len(self.used) + len(self.free) >= self.limit:
                self._drop_oldest()
            self._last += 1
            try:
                segment = Segment(self._last, size)
            except (OSError, ValueError):
                return None
        self.used[segment.number] = segment
        return segment

    def release(self, number: int) -> None:
        """The receiver is done with it."""
        segment = self.used.pop(number, None)
        if segment is None:
            return
        if segment.size > self.keep:
            self._drop(segment)
            return
        self.free[number] = segment
        self._kept += segment.size
        while self._kept > self.keep:
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        oldest = self.free.pop(next(iter(self.free)))
        self._kept -= oldest.size
        self._drop(oldest)

    def _drop(self, segment: Segment) -> None:
        segment.close()
        if self.dropped is not None:
            self.dropped(segment.number)

    def close(self) -> None:
        """Unmap all."""
        for segment in [*self.used.values(), *self.free.values()]:
            segment.close()
        self.used.clear()
        self.free.clear()
        self._kept = 0


class Mappings:
    """The peer's segments as mapped here."""

    def __init__(self, views: int = LIMIT, hint: Callable[[], object] | None = None) -> None:
        #: Called, from any thread, when there is something in ``freed`` that was not told.
        self.hint = hint
        #: How many views may be out; those beyond are copies, so that the peer does not run short.
        self.views = views
        self._maps: dict[int, mmap] = {}
        #: The reference to each view that is out, by its identity: it cannot be hashed.
        self._lent: dict[int, tuple[Any, int]] = {}
        #: Numbers whose views are gone, to be told to the peer. Appended to from any thread.
        self.freed: deque[int] = deque()

    @property
    def lent(self) -> int:
        """How many views are out."""
        return len(self._lent)

    def attach(self, number: int, fd: int, size: int) -> None:
        """Map a segment that the peer passed; takes the descriptor over."""
        try:
            self._maps[number] = mmap(fd, size)
        finally:
            os.close(fd)

    def lend(self, number: int, length: int) -> Frame:
        """The first ``length`` bytes of a segment, without copying them."""
        mapping = self._maps[number]
        if len(self._lent) >= self.views:
            self.freed.append(number)
            with memoryview(mapping) as whole:
                return bytearray(whole[:length])
        from ctypes import c_char

        # A ctypes array, because it can be weakly referenced and every view, slice and numpy
        # array made of it keeps it alive; a memoryview tells neither.
        exporter = (c_char * len(mapping)).from_buffer(mapping)
        reference = ref(exporter, self._came_back)
        self._lent[id(reference)] = reference, number
        return memoryview(exporter).cast("B")[:length]

    def _came_back(self, reference: Any) -> None:
        known = self._lent.pop(id(reference), None)
        if known is not None:
            self.freed.append(known[1])
            if self.hint is not None:
                self.hint()

    def drop(self, number: int) -> None:
        """The peer has no more use for it; it is unmapped with the last view."""
        self._maps.pop(number, None)

    def close(self) -> None:
        """Forget all mappings; those with views out live on until these are gone."""
        self._maps.clear()
