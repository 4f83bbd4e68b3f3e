"""What the broker core is told (events), and what it answers (actions)."""

from __future__ import annotations

from collections.abc import Hashable
from typing import TypeAlias

from multihost_broker.journal.records import Change, Record
from multihost_common.messages import Message
from multihost_common.structs import Struct, struct

#: Levels of a :class:`Note`, as in :mod:`logging`.
INFO, WARNING = 20, 30

#: Where to send: chosen by the shell, never parsed, never an identity.
Peer: TypeAlias = Hashable


@struct
class Received(Struct):
    """A message from a peer whose token has ``role``."""

    peer: Peer
    role: str
    message: Message


@struct
class Gone(Struct):
    """The connection of this peer has ended. A hint: the peer may dial again."""

    peer: Peer


@struct
class Tick(Struct):
    """The deadline has come."""


@struct
class Synced(Struct):
    """Every change up to ``ticket`` is in the journal, but for those in ``refused``, for which there was no room.
    Refused ones are told before a higher ticket is. ``full``: new work will be refused."""

    ticket: int
    refused: tuple[int, ...] = ()
    full: bool = False


@struct
class Records(Struct):
    """What a :class:`Read` asked for, with its payload: those that are there and can be read."""

    token: int
    records: dict[int, Record]


Event: TypeAlias = Received | Gone | Tick | Synced | Records


@struct
class Send(Struct):
    """A message to a peer."""

    peer: Peer
    message: Message


@struct
class Drop(Struct):
    """Forget the peer: its session is over."""

    peer: Peer
    reason: str


@struct
class Note(Struct):
    """A line for the log."""

    level: int
    text: str


@struct
class Write(Struct):
    """A change for the journal; tickets rise by one from :class:`Write` to :class:`Write`. Answered by
    :class:`Synced`. ``essential``: not to be refused because the disk is nearly full."""

    ticket: int
    change: Change
    essential: bool = False


@struct
class Read(Struct):
    """Records of the journal, by number; answered by :class:`Records`. What was written before can be read."""

    token: int
    numbers: tuple[int, ...]


Action: TypeAlias = Send | Drop | Note | Write | Read
