"""Messages that arrive once and in order, however often the connection is lost.

Jobs and leases are stated anew after a lost connection; what is said about shared objects and processes cannot be: to
put an item twice is not to put it. So each end numbers such messages, keeps them until the other one has heard them,
and sends them again where Hello and Welcome show that it has not. An end that has forgotten the other one begins anew
(Welcome says ``fresh``), and what was kept is lost.
"""

from __future__ import annotations

from collections import deque
from typing import Protocol

from multihost_common.messages import Act, Acted, Exited, Launch, Launched, Message, Signal, Via

#: What is numbered.
STREAMED: frozenset[type[Message]] = frozenset({Act, Acted, Exited, Launch, Launched, Signal, Via})

#: Messages, and bytes of their payload, after which the sender is told at once that they were heard.
MANY = 64
MUCH = 4 << 20


class Numbered(Protocol):
    """A message of :data:`STREAMED`."""

    seq: int


class Stream:
    """One end. It sends no message itself."""

    __slots__ = ("_kept", "_told", "_unheard", "heard", "sent", "size")

    def __init__(self) -> None:
        self._kept: deque[tuple[Message, int]] = deque()
        #: Bytes of payload that are kept.
        self.size = 0
        #: Numbers of the last message sent, and of the last one taken.
        self.sent = 0
        self.heard = 0
        self._told = 0
        self._unheard = 0

    # -- out ---------------------------------------------------------------------------------------

    def stamp(self, message: Message) -> None:
        """This is sent next: number it, and keep it."""
        self.sent += 1
        message.seq = self.sent  # type: ignore[attr-defined]
        size = _size(message)
        self._kept.append((message, size))
        self.size += size

    def take_back(self) -> None:
        """What was stamped last cannot be sent, and was not."""
        _, size = self._kept.pop()
        self.size -= size
        self.sent -= 1

    def acknowledged(self, upto: int) -> None:
        """The other end has heard all messages up to this number."""
        first = self.sent - len(self._kept) + 1
        for _ in range(min(upto, self.sent) - first + 1):
            self.size -= self._kept.popleft()[1]

    def again(self, heard: int) -> list[Message]:
        """What is to be sent once more to an end that has heard all up to this number."""
        self.acknowledged(heard)
        return [message for message, _ in self._kept]

    # -- in ----------------------------------------------------------------------------------------

    def take(self, message: Message) -> bool:
        """A message has come. False: it was there before. What has no number is not of the stream."""
        number: int = message.seq  # type: ignore[attr-defined]
        if not number:
            return True
        if number != self.heard + 1:
            return False
        self.heard = number
        self._unheard += _size(message)
        return True

    def due(self, now: bool = False) -> bool:
        """Is the other end to be told how far it was heard? (True: it is told, then.) ``now``: if it does not know."""
        behind = self.heard - self._told
        if not behind or not (now or behind >= MANY or self._unheard >= MUCH):
            return False
        self._told = self.heard
        self._unheard = 0
        return True

    def reset(self) -> None:
        """The other end has forgotten all."""
        self.__init__()  # type: ignore[misc]


def _size(message: Message) -> int:
    return sum(map(len, getattr(message, "frames", ())))


__all__ = ["STREAMED", "Stream"]
