"""What the broker core is told (events), and what it answers (actions)."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import TypeAlias

from multihost_common.messages import Message

#: Where to send: chosen by the shell, never parsed, never an identity.
Peer: TypeAlias = Hashable


@dataclass(slots=True)
class Received:
    """A message from a peer whose token has ``role``."""

    peer: Peer
    role: str
    message: Message


@dataclass(slots=True)
class Gone:
    """The connection of this peer has ended. A hint: the peer may dial again."""

    peer: Peer


@dataclass(slots=True)
class Tick:
    """The deadline has come."""


Event: TypeAlias = Received | Gone | Tick


@dataclass(slots=True)
class Send:
    """A message to a peer."""

    peer: Peer
    message: Message


@dataclass(slots=True)
class Drop:
    """Forget the peer: its session is over."""

    peer: Peer
    reason: str


@dataclass(slots=True)
class Note:
    """A line for the log; ``level`` as in :mod:`logging`."""

    level: int
    text: str


Action: TypeAlias = Send | Drop | Note
