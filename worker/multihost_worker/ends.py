"""The agent's ends of what joins it to one child: their link, the claims, what it prints, and its lifeline."""

from __future__ import annotations

import os
import select
from contextlib import suppress
from typing import TYPE_CHECKING

from multihost_worker.claims import ClaimBook
from multihost_worker.link import close_all

if TYPE_CHECKING:
    from _socket import socket
    from collections.abc import Callable

    from multihost_worker.link import Link

    #: Gets (pool, process id, stream, bytes).
    Capture = Callable[[int, int, int, bytes], None]

#: How much of a dead child's standard error goes into ChildDied.
_TAIL = 2000
#: Bytes of output read at once, and how often in a row; a pipe holds no more than both together.
_CAPTURED = 65_536
_READS = 16


class Pairs:
    """Both ends of it all, before there is a child. Raises OSError with nothing left open.

    ``captured``: what it prints comes here. ``process``: it is a process, with a lifeline: a pipe that is readable at
    the other end once whoever started it is gone.
    """

    def __init__(self, captured: bool, process: bool) -> None:
        from _socket import socketpair

        self.book = ClaimBook()
        self.sockets: list[socket] = []
        self.pipes: list[int] = []
        self.lifeline: list[int] = []
        try:
            self.sockets += socketpair()
            self.sockets[0].setblocking(False)
            for _ in range(2 if captured else 0):
                self.pipes += os.pipe()
            if process:
                self.lifeline += os.pipe()
        except OSError:
            self.close()
            raise

    def theirs(self) -> list[int]:
        """Descriptors for the child, in the order in which it expects them."""
        return [self.sockets[1].fileno(), self.book.fd, *self.pipes[1::2], *self.lifeline[:1]]

    def give_away(self) -> None:
        """The child has its ends: close them here."""
        self.sockets[1].close()
        close_all(self.pipes[1::2])
        close_all(self.lifeline[:1])

    def close(self) -> None:
        """There will be no child."""
        self.book.close()
        for each in self.sockets:
            each.close()
        close_all(self.pipes)
        close_all(self.lifeline)


class Ends:
    """What the agent has of one child."""

    __slots__ = (
        "book", "child", "killed", "lifeline", "link", "number", "oom", "outputs", "pid", "pool", "printed", "tail",
    )  # fmt: skip

    def __init__(self, child: int, pool: int, pairs: Pairs, link: Link, oom: int, number: int) -> None:
        self.child = child
        self.pool = pool
        self.link = link
        #: Among those of its pool; 0: it is a process of its own.
        self.number = number
        self.book = pairs.book
        self.pid = 0
        self.killed = False
        self.oom = oom
        self.lifeline = pairs.lifeline[1] if pairs.lifeline else -1
        #: Descriptor to stream number.
        self.outputs: dict[int, int] = {}
        #: Whether there is something to read of them, without an exception for each of which there is not.
        self.printed = select.poll()
        self.tail = b""
        for stream, fd in enumerate(pairs.pipes[::2], 1):
            os.set_blocking(fd, False)
            self.outputs[fd] = stream
            self.printed.register(fd, select.POLLIN)

    def ready(self) -> list[int]:
        """Outputs that there is something to read of."""
        return [fd for fd, _ in self.printed.poll(0)] if self.outputs else []

    def read(self, fd: int, capture: Capture | None) -> bool:
        """Read what it has printed. False: that was the end of it."""
        stream = self.outputs.get(fd, 0)
        # Bounded: who prints for ever must not keep the loop from all else.
        for _ in range(_READS if stream else 0):
            try:
                data = os.read(fd, _CAPTURED)
            except BlockingIOError:
                return True
            if not data:
                return False
            if stream == 2:
                self.tail = (self.tail + data)[-_TAIL:]
            if capture is not None:
                capture(self.pool, self.pid, stream, data)
        return True

    def close_output(self, fd: int) -> None:
        """It prints nothing more here."""
        if self.outputs.pop(fd, None) is not None:
            self.printed.unregister(fd)
            os.close(fd)

    def orphan(self) -> None:
        """Whoever started it is gone: tell it so."""
        if self.lifeline >= 0:
            # A byte: a forked process may have this end, too, so that closing it tells nobody.
            with suppress(OSError):
                os.write(self.lifeline, b"x")
        self._cut()

    def _cut(self) -> None:
        if self.lifeline >= 0:
            os.close(self.lifeline)
            self.lifeline = -1

    def close(self) -> None:
        """The child has ended."""
        self.link.close()
        self.book.close()
        self._cut()

    def abandon(self) -> None:
        """Close all that is open here, and say nothing of it."""
        self.link.abandon()
        self.book.close()
        self._cut()
        close_all(self.outputs)
        self.outputs.clear()


__all__ = ["Ends", "Pairs"]
