"""Results on the disk while they cannot be sent: files in the agent's private directory, gone when it is.

Results are written end to end into files of some size, since one file each would be too many. A file is removed once all
that is in it has been read or is not needed any more.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import cast

import zmq

from multihost_common.blocks import Frame
from multihost_worker.segments import write_all

#: Bytes after which another file is begun.
FILE_BYTES = 32 << 20

#: Bytes that are read and have not left, above which nothing more is read; seconds between two looks at that.
WINDOW = 16 << 20
LOOK = 0.01


class _File:
    """One file: how much was written to it, and how many of the results in it are still to be read."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.size = 0
        self.live = 0


class Spool:
    """Results by number. ``limit``: bytes on the disk at most; None: half of what is free there when the first result
    is written."""

    def __init__(self, folder: str, limit: int | None = None) -> None:
        self._folder = folder
        self._limit = limit
        self._most = 0
        self._files = 0
        self._current: _File | None = None
        #: Where each result is: file, offset, length of each frame.
        self._places: dict[int, tuple[_File, int, list[int]]] = {}
        #: Bytes of all files.
        self.size = 0

    def write(self, number: int, frames: Sequence[Frame]) -> bool:
        """Put it on the disk. False: there is no room for it."""
        lengths = [memoryview(frame).nbytes for frame in frames]
        size = sum(lengths)
        try:
            if not self.size:
                self._most = _half_of_what_is_free(self._folder) if self._limit is None else self._limit
        except OSError:
            return False
        if self.size + size > self._most:
            return False
        file = self._file()
        try:
            _write(file.path, file.size, frames)
        except OSError:
            with suppress(OSError):
                os.truncate(file.path, file.size)
            self._drop_if_done(file)
            return False
        self._places[number] = (file, file.size, lengths)
        file.size += size
        file.live += 1
        self.size += size
        return True

    def _file(self) -> _File:
        if self._current is None or self._current.size >= FILE_BYTES:
            self._files += 1
            self._current = _File(os.path.join(self._folder, f"spool-{self._files}"))
        return self._current

    def take(self, number: int) -> list[Frame] | None:
        """Read a result, and remove it from the disk. None: it is not there, or cannot be read."""
        place = self._places.get(number)
        if place is None:
            return None
        file, offset, lengths = place
        try:
            return _read(file.path, offset, lengths)
        except OSError:
            return None
        finally:
            self.drop(number)

    def drop(self, number: int) -> None:
        """It is not needed any more."""
        place = self._places.pop(number, None)
        if place is not None:
            place[0].live -= 1
            self._drop_if_done(place[0])

    def _drop_if_done(self, file: _File) -> None:
        if file.live:
            return
        self.size -= file.size
        if file is self._current:
            self._current = None
        with suppress(OSError):
            os.unlink(file.path)


class Outflow:
    """Reads what is to be sent, no faster than it leaves: what waits in the socket is in memory again."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._wanted: deque[int] = deque()
        self._leaving: deque[tuple[zmq.MessageTracker, int]] = deque()
        self._bytes = 0

    def want(self, number: int) -> None:
        """This result is to be sent next of its job."""
        self._wanted.append(number)

    @property
    def waits(self) -> bool:
        """Is there something to be read?"""
        return bool(self._wanted)

    def next(self) -> tuple[int, list[Frame] | None] | None:
        """(number, frames) of a result that may be sent now, frames None if it cannot be read; None: not yet."""
        while self._leaving and self._leaving[0][0].done:
            self._bytes -= self._leaving.popleft()[1]
        if not self._wanted or self._bytes >= WINDOW:
            return None
        number = self._wanted.popleft()
        frames = self._spool.take(number)
        if frames:
            self._track(frames)
        return number, frames

    def _track(self, frames: list[Frame]) -> None:
        """Frames leave in their order, so it will do to know of the largest one."""
        at = max(range(len(frames)), key=lambda index: len(frames[index]))
        tracked = zmq.Frame(frames[at], track=True, copy=False, copy_threshold=0)
        self._leaving.append((cast("zmq.MessageTracker", tracked.tracker), len(tracked)))
        self._bytes += len(tracked)
        # Sent like any other frame, and its length is all that is asked of it before.
        frames[at] = cast("Frame", tracked)

    def parted(self) -> None:
        """The connection has ended: what was in its socket is gone, and what was not sent yet is kept in memory."""
        self._leaving.clear()
        self._bytes = 0


def _half_of_what_is_free(folder: str) -> int:
    info = os.statvfs(folder)
    return info.f_bavail * info.f_frsize // 2


def _write(path: str, offset: int, frames: Sequence[Frame]) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        for frame in frames:
            write_all(fd, frame, offset)
            offset += memoryview(frame).nbytes
    finally:
        os.close(fd)


def _read(path: str, offset: int, lengths: Sequence[int]) -> list[Frame]:
    frames: list[Frame] = []
    with open(path, "rb", buffering=0) as file:
        file.seek(offset)
        for length in lengths:
            frame = bytearray(length)
            view = memoryview(frame)
            while view:
                count = file.readinto(view)
                if not count:
                    raise OSError("the file is shorter than it was")
                view = view[count:]
            frames.append(frame)
    return frames
