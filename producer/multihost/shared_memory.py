"""``multiprocessing.shared_memory``: the standard library's. Such memory is of one host, and who looks for it on another one
is told so."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import shared_memory as _standard
from typing import Any


def __getattr__(name: str) -> Any:
    return getattr(_standard, name)


@contextmanager
def _told() -> Iterator[None]:
    """What is not there may be on another host."""
    try:
        yield
    except FileNotFoundError as error:
        import platform

        raise FileNotFoundError(
            errno.ENOENT,
            f"{os.strerror(errno.ENOENT)} on {platform.node()} (shared memory is of one host: between hosts, "
            "use multihost.Array or a manager, or pass the data)",
            error.filename,
        ) from None


class SharedMemory(_standard.SharedMemory):
    """A block of memory for processes of one host. As ``multiprocessing.shared_memory.SharedMemory``."""

    def __init__(self, name: str | None = None, create: bool = False, size: int = 0, **options: Any) -> None:
        with _told():
            super().__init__(name, create, size, **options)


class ShareableList(_standard.ShareableList[Any]):
    """A list in memory for processes of one host. As ``multiprocessing.shared_memory.ShareableList``."""

    def __init__(self, sequence: Any = None, *, name: str | None = None) -> None:
        with _told():
            super().__init__(sequence, name=name)


__all__ = ["ShareableList", "SharedMemory"]
