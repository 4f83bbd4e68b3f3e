"""Files beside the journal's database: large payloads, the ballast, and the lock that keeps others out."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path

from multihost_broker.journal.errors import StoreError, StoreFullError, StoreInUseError
from multihost_broker.journal.records import Spooled
from multihost_common.blake2 import blake2b
from multihost_common.blocks import Frame
from multihost_common.errors import ConfigError

#: macOS has no fdatasync.
sync_data: Callable[[int], None] = getattr(os, "fdatasync", os.fsync)

#: The ending of what is not complete yet.
PART = ".part"

#: Bytes free beyond the ballast, and a quarter of its size, for new work: else it would soon be full again.
LEAST_ROOM = 1 << 20

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC


def failed(what: str | Path, error: OSError) -> StoreError:
    """The error of a store for one of the operating system."""
    kind = StoreFullError if error.errno in _NO_ROOM else StoreError
    return kind(f"{what}: {error.strerror}")


def lock(directory: Path) -> int:
    """Lock ``directory`` for this process; the descriptor that holds the lock. StoreInUseError if another has it."""
    try:
        fd = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigError(
            f"{directory / 'lock'}: {error.strerror}; correct it, or choose another directory with --journal"
        ) from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise StoreInUseError(
            f"another broker has the journal in {directory}; stop that one or choose another directory with --journal"
        ) from None
    except OSError as error:
        os.close(fd)
        raise ConfigError(
            f"{directory} cannot be locked: {error.strerror}; choose another directory with --journal"
        ) from None
    return fd


def sync_directory(directory: Path) -> None:
    """Make names in ``directory`` durable."""
    fd = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class Spool:
    """Large payloads, a file each. A name is used once only, so a file never changes."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._prefix = ""
        self._names = count(1)
        #: Whether there is a name that is not durable yet.
        self._unsynced = False

    def open(self, epoch: int, used: Iterable[str]) -> None:
        """Begin: new names carry ``epoch``; files that are not in ``used`` were left by a crash, and go."""
        self._prefix = f"{epoch:x}"
        keep = set(used)
        try:
            if not self.directory.is_dir():
                self.directory.mkdir(mode=0o700)
                sync_directory(self.directory.parent)
            for name in self.names():
                if name not in keep:
                    (self.directory / name).unlink()
        except OSError as error:
            raise failed(self.directory, error) from None

    def names(self) -> list[str]:
        """Of the files that there are, complete or not. Raises StoreError."""
        try:
            return [path.name for path in self.directory.iterdir()] if self.directory.is_dir() else []
        except OSError as error:
            raise failed(self.directory, error) from None

    def put(self, frames: Sequence[Frame]) -> Spooled:
        """Write a file; its content is durable on return, its name after :meth:`sync`."""
        name = f"{self._prefix}-{next(self._names):x}"
        path = self.directory / name
        part = self.directory / (name + PART)
        digest = blake2b(digest_size=32)
        try:
            fd = os.open(part, _CREATE, 0o600)
            try:
                for frame in frames:
                    digest.update(frame)
                    _write(fd, frame)
                sync_data(fd)
            finally:
                os.close(fd)
            part.rename(path)
        except OSError as error:
            # Also after a failed sync: nothing relies on this file, and it is never synced again.
            with suppress(OSError):
                part.unlink(missing_ok=True)
            raise failed(path, error) from None
        self._unsynced = True
        return Spooled(name, tuple(map(len, frames)), digest.digest())

    def sync(self) -> None:
        """Make the names of all files durable."""
        if not self._unsynced:
            return
        try:
            sync_directory(self.directory)
        except OSError as error:
            # Never "full": whether the names are on disk is not known any more.
            raise StoreError(f"{self.directory}: {error.strerror}") from None
        self._unsynced = False

    def get(self, blob: Spooled) -> tuple[Frame, ...]:
        """The frames. Raises StoreError if the file is not what was written."""
        path = self.directory / blob.name
        try:
            content = path.read_bytes()
        except OSError as error:
            raise StoreError(f"the payload {path} cannot be read: {error.strerror}") from None
        if len(content) != sum(blob.lengths) or blake2b(content, digest_size=32).digest() != blob.digest:
            raise StoreError(f"the payload {path} is damaged: it is not what was written")
        return cut(content, blob.lengths)

    def drop(self, names: Iterable[str]) -> None:
        """Remove files. One that cannot be removed goes at the next start."""
        for name in names:
            with suppress(OSError):
                (self.directory / name).unlink()


def cut(content: bytes, lengths: Sequence[int]) -> tuple[Frame, ...]:
    """Frames that lie end to end."""
    if len(lengths) == 1:
        return (content,)
    view, frames, at = memoryview(content), [], 0
    for length in lengths:
        frames.append(view[at : at + length])
        at += length
    return tuple(frames)


def _write(fd: int, frame: Frame) -> None:
    view = memoryview(frame)
    while view:
        view = view[os.write(fd, view) :]


class Ballast:
    """A file that takes up room, to be given up for what has to be written when there is none left."""

    def __init__(self, path: Path, size: int) -> None:
        self.path = path
        self.size = size

    def make(self) -> bool:
        """Take the room; False if there is not enough for that and for new work."""
        if self._made():
            return True
        try:
            info = os.statvfs(self.path.parent)
        except OSError:
            return False
        if info.f_bavail * info.f_frsize < self.size + max(self.size // 4, LEAST_ROOM):
            return False
        # One of another size.
        self.release()
        if not self.size:
            return True
        try:
            fd = os.open(self.path, _CREATE, 0o600)
            try:
                _fill(fd, self.size)
            finally:
                os.close(fd)
        except OSError:
            self.release()
            return False
        return True

    def _made(self) -> bool:
        with suppress(OSError):
            return self.size > 0 and self.path.stat().st_blocks * 512 >= self.size
        return False

    def release(self) -> None:
        """Give the room up."""
        with suppress(OSError):
            self.path.unlink()


def _fill(fd: int, size: int) -> None:
    allocate = getattr(os, "posix_fallocate", None)
    if allocate is not None:
        try:
            allocate(fd, 0, size)
            return
        except OSError as error:
            if error.errno in _NO_ROOM:
                raise
    # There is no such call here, or not for this file system.
    block = bytes(1 << 20)
    for at in range(0, size, len(block)):
        _write(fd, memoryview(block)[: size - at])
