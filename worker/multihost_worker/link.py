"""Framed messages between an agent and a child, on a Unix stream socket.

A message is eight bytes of length and the marshal of
``(kind, arguments, frames, new, freed, dropped)``. marshal, because both ends are the same
interpreter and nothing is faster; frames below 64 KiB are part of it. A larger frame is written to a
shared memory segment and stands here as ``(number, length)``. ``new`` lists (number, size) of the
segments whose descriptors come along, ``freed`` the numbers of the peer's segments not used any more,
``dropped`` those of the sender's own that will not be used again.
"""

from __future__ import annotations

import _socket
import os
from _socket import CMSG_SPACE, SCM_RIGHTS, SOL_SOCKET
from array import array
from collections import deque
from marshal import dumps, loads

from multihost_common.rope import whole
from multihost_worker.segments import LIMIT, Mappings, Segments

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket
    from _thread import LockType as Lock
    from collections.abc import Callable, Iterable
    from typing import Any, TypeAlias

    from multihost_common.blocks import Frame

    #: (kind, arguments, frames)
    Parsed: TypeAlias = tuple[int, tuple[Any, ...], list[Frame]]

# Agent to child.
SETUP, DEFINE, RUN, FORGET, STOP, SAID, PROCESS = 1, 2, 3, 4, 5, 6, 7
# Either way, where nothing else goes: only what comes along with each message counts.
FREED = 15
# Child to agent.
READY, FAILED, RESULT, SAY = 16, 17, 18, 19

#: Frames of this size and more travel in segments, bytes.
LARGE = 65_536
_BUFFER = 131_072
#: A message has at most 64 frames, each with a descriptor at most.
_ANCILLARY = CMSG_SPACE(4 * 64)
# What another thread runs meanwhile must not inherit them. (macOS does not have the flag.)
_CLOEXEC: int = getattr(_socket, "MSG_CMSG_CLOEXEC", 0)
# Version 2 writes no back references, which cost a table look-up an object.
_VERSION = 2


class LinkError(Exception):
    """The peer sent what cannot be a message."""


#: What :meth:`Link.next` can raise for such.
UNREADABLE = LinkError, ValueError, TypeError, KeyError, EOFError, MemoryError, OverflowError, OSError


class Link:
    """One end. The agent's is non-blocking and queues; the child's blocks."""

    def __init__(
        self,
        sock: socket,
        segments: Segments,
        views: int = LIMIT // 2,
        hint: Callable[[], object] | None = None,
    ) -> None:
        self.sock = sock
        self.fd = sock.fileno()
        self.segments = segments
        self.mappings = Mappings(views, hint)
        #: Numbers of own segments that the peer holds, and those that it has mapped.
        self.held: set[int] = set()
        self.known: set[int] = set()
        self.dropping: list[int] = []
        self.eof = False
        self.drained = False
        #: Held while something is sent, where several threads do.
        self.guard: Lock | None = None
        self._queue: deque[tuple[memoryview, list[int]]] = deque()
        self._buffer = bytearray(_BUFFER)
        self._view = memoryview(self._buffer)
        self._begin = 0
        self._end = 0
        self._fds: deque[int] = deque()

    # -- out ---------------------------------------------------------------------------------------

    def _pack(self, kind: int, args: tuple[Any, ...], frames: Iterable[Frame]) -> tuple[bytes, list[int]]:
        table: list[Any] = []
        new: list[tuple[int, int]] = []
        fds: list[int] = []
        for frame in frames:
            segment = self._share(frame, new, fds) if len(frame) >= LARGE else None
            table.append(whole(frame) if segment is None else (segment, len(frame)))
        freed: list[int] = []
        # One by one: another thread may let go of a view meanwhile.
        while self.mappings.freed:
            freed.append(self.mappings.freed.popleft())
        dropping: list[int] = []
        if self.dropping:
            dropping, self.dropping = self.dropping, dropping
        body = dumps((kind, args, table, new, freed, dropping), _VERSION)
        return len(body).to_bytes(8, "little") + body, fds

    def _share(self, frame: Frame, new: list[tuple[int, int]], fds: list[int]) -> int | None:
        """Write it to a segment; the number, or None if it has to travel in the message."""
        segment = self.segments.acquire(len(frame))
        if segment is None:
            return None
        number = segment.number
        try:
            segment.write(frame)
            if number not in self.known:
                # A duplicate, because the segment may be dropped before its descriptor has gone.
                fds.append(os.dup(segment.fd))
                new.append((number, segment.size))
                self.known.add(number)
        except OSError:
            self.segments.release(number)
            return None
        self.held.add(number)
        return number

    def send(self, kind: int, args: tuple[Any, ...] = (), frames: Iterable[Frame] = ()) -> bool:
        """Send or queue a message. True if all that was queued has gone."""
        if self.guard is None:
            return self._send(kind, args, frames)
        with self.guard:
            return self._send(kind, args, frames)

    def _send(self, kind: int, args: tuple[Any, ...], frames: Iterable[Frame]) -> bool:
        data, fds = self._pack(kind, args, frames)
        if self._queue or fds or self.eof:
            self._queue.append((memoryview(data), fds))
            return self.flush()
        try:
            sent = self.sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.eof = True
            return True
        if sent == len(data):
            return True
        self._queue.append((memoryview(data)[sent:], []))
        return self.flush()

    def untidy(self) -> bool:
        """Are there segments not used any more that the peer has not been told of?"""
        return bool(self.mappings.freed or self.dropping)

    def flush(self) -> bool:
        """Send what is queued, as far as it goes. True if all has gone."""
        while self._queue:
            data, fds = self._queue[0]
            try:
                if fds:
                    sent = self.sock.sendmsg([data], [(SOL_SOCKET, SCM_RIGHTS, array("i", fds))])
                else:
                    sent = self.sock.send(data)
            except BlockingIOError:
                return False
            except OSError:
                self.eof = True
                self._forget_queue()
                return True
            if fds:
                close_all(fds)
                fds.clear()
            if sent == len(data):
                self._queue.popleft()
            else:
                self._queue[0] = (data[sent:], [])
        return True

    def _forget_queue(self) -> None:
        for _, fds in self._queue:
            close_all(fds)
        self._queue.clear()

    # -- in ----------------------------------------------------------------------------------------

    def fill(self) -> bool:
        """Read once. False if it is not worth trying again at once; sets ``eof`` at the end, and
        ``drained`` when there was nothing."""
        room = len(self._buffer) - self._end
        try:
            count, ancillary, _, _ = self.sock.recvmsg_into([self._view[self._end :]], _ANCILLARY, _CLOEXEC)
        except BlockingIOError:
            self.drained = True
            return False
        except OSError:
            self.eof = True
            return False
        for _, kind, data in ancillary:
            if kind == SCM_RIGHTS:
                fds = array("i")
                fds.frombytes(data[: len(data) - len(data) % 4])
                self._fds.extend(fds)
        if count == 0:
            self.eof = True
            return False
        self.drained = False
        self._end += count
        return count == room or bool(ancillary)

    def next(self) -> Parsed | None:
        """The next message that is there in full, or None: then fill()."""
        have = self._end - self._begin
        if not have and len(self._buffer) == _BUFFER:
            return None
        need = 8
        if have >= 8:
            need += int.from_bytes(self._view[self._begin : self._begin + 8], "little")
            if have >= need:
                begin = self._begin + 8
                self._begin += need
                message = loads(self._view[begin : self._begin])
                if self._begin == self._end:
                    self._begin = self._end = 0
                return self._unpack(message)
        self._make_room(need)
        return None

    def _make_room(self, need: int) -> None:
        """See to it that the rest of a message of ``need`` bytes fits behind what is there."""
        size = len(self._buffer)
        if self._begin + need <= size and self._end < size:
            return
        rest = bytes(self._view[self._begin : self._end])
        if need > size or (size > _BUFFER >= need):
            self._buffer = bytearray(max(need, _BUFFER))
            self._view = memoryview(self._buffer)
        self._view[: len(rest)] = rest
        self._begin, self._end = 0, len(rest)

    def _unpack(self, message: Any) -> Parsed:
        kind, args, frames, new, freed, dropped = message
        for number, size in new:
            if not self._fds:
                raise LinkError(
                    "a segment came without its descriptor: raise the limit of open files (ulimit -n)"
                )
            self.mappings.attach(number, self._fds.popleft(), size)
        for number in freed:
            self.held.discard(number)
            self.segments.release(number)
        for at, frame in enumerate(frames):
            if type(frame) is tuple:
                frames[at] = self.mappings.lend(*frame)
        # After lend(): what is dropped here was used for the last time above, if at all.
        for number in dropped:
            self.mappings.drop(number)
        return kind, args, frames

    def receive(self) -> Parsed | None:
        """Wait for a message (blocking end). None at the end."""
        while True:
            message = self.next()
            if message is not None:
                return message
            self.fill()
            if self.eof:
                return None

    def close(self) -> None:
        """Close the socket; own segments that the peer held may be used again."""
        self.abandon()
        for number in self.held:
            self.segments.release(number)
        self.held.clear()

    def abandon(self) -> None:
        """Close what is open here, and say nothing of it."""
        self.eof = True
        self._forget_queue()
        close_all(self._fds)
        self._fds.clear()
        self.sock.close()
        self.mappings.close()


def close_all(fds: Iterable[int]) -> None:
    """Close these descriptors."""
    for fd in fds:
        os.close(fd)
