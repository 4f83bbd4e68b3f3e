"""Being told when a connection has something to receive: through a descriptor, or by :func:`multihost.connection.wait`."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

from multihost_common import messages as m
from multihost_common.shared import Pipes

if TYPE_CHECKING:
    from multihost.engines.base import Completion
    from multihost.engines.sharing import Ask, Sharing


class Watch:
    """One request to be told, of one connection, and what is done when it is answered.

    The descriptor is readable while ``ready`` is true: from when the answer has come until what it told of is received
    and nothing is left.
    """

    def __init__(self, sharing: Sharing, name: bytes, side: int) -> None:
        self._sharing = sharing
        self._name = name
        self._side = side
        self._lock = threading.Lock()
        self._fds: tuple[int, int] | None = None
        self._ask: Ask | None = None
        self._closed = False
        #: There is something to receive, as far as is known.
        self.ready = False
        #: There was nothing to receive when that was last looked at, and no request waits yet.
        self.empty = False
        #: That was told to who waits, and nothing has been received since: another process may have done so.
        self.told = False
        #: Done when the answer comes.
        self.completion: Completion | None = None

    @property
    def begun(self) -> bool:
        """Does a request wait, or has its answer come?"""
        return self._ask is not None

    def begin(self) -> None:
        """Ask to be told, unless that is done."""
        if self._ask is None and not self._closed:
            self._ask = self._sharing.begin(self._name, Pipes.POLL, self._side, then=self._answered)

    def called(self, ask: Ask) -> None:
        """What was asked for ahead has come, or will not."""
        if ask.status != m.BUSY or ask.error is not None:
            self._answered(ask)

    def _answered(self, ask: Ask) -> None:
        if ask.status == m.WITHDRAWN and ask.error is None:
            return
        with self._lock:
            self._tell(True)
            completion = self.completion
        if completion is not None:
            completion.done = True

    def _tell(self, ready: bool) -> None:
        """``ready`` or not, also to who looks at the descriptor."""
        if ready != self.ready and self._fds is not None and not self._closed:
            if ready:
                os.write(self._fds[1], b"r")
            else:
                os.read(self._fds[0], 1)
        self.ready = ready

    def fileno(self) -> int:
        """The descriptor, made when it is asked for first."""
        with self._lock:
            if self._fds is None:
                self._fds = os.pipe()
                self._sharing.attended += 1
                if self.ready:
                    os.write(self._fds[1], b"r")
            fd = self._fds[0]
        self.begin()
        return fd

    def looked(self, ready: bool) -> None:
        """It was just found out whether there is something to receive."""
        with self._lock:
            if not ready and self._ask is not None and self._ask.done:
                # What it told of is gone: somebody else has received it.
                self._ask = None
            self._tell(ready)
            self.empty = not ready
            attended = self._fds is not None
        if attended:
            self.begin()

    def received(self, more: bool) -> None:
        """Something was received; ``more``: there is something left."""
        with self._lock:
            self._tell(more)
            self.empty = not more
            self.told = False
            if self._ask is not None and self._ask.done:
                self._ask = None
            attended = self._fds is not None
        if attended and not more:
            self.begin()

    def close(self, ours: bool = True) -> None:
        """Nobody is to be told any more. ``ours`` False: this is a forked process, the request is its parent's."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            fds, self._fds = self._fds, None
            ask = self._ask
        if fds is not None:
            for fd in fds:
                with suppress(OSError):
                    os.close(fd)
        if ours:
            self._sharing.attended -= fds is not None
            if ask is not None and not ask.done:
                self._sharing.withdraw(ask)


__all__ = ["Watch"]
