"""What the operator chooses about a broker."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from multihost_broker.journal.store import Durability
from multihost_common.errors import EX_CANTCREAT, MultihostError

DEFAULT_BIND = "tcp://127.0.0.1:5555"


class AddressInUseError(MultihostError):
    """Another process, perhaps another broker, has the port."""

    exit_code = EX_CANTCREAT


@dataclass(slots=True)
class Config:
    """Settings of one broker."""

    #: Where it listens; port 0 picks a free one.
    bind: str = DEFAULT_BIND
    #: Where its keys are, or are made; None: the default directory.
    keys: Path | None = None
    #: Where its journal is; None: a directory for its port, beside the default keys or in ``keys``.
    journal: Path | None = None
    #: What it takes for the journal to confirm something.
    durability: Durability = "full"
    #: Seconds that what was sent last may take to leave when the broker ends.
    linger: float = 1.0
    #: Malformed messages that one peer may send within ``strike_window`` seconds before it is muted.
    strikes: int = 20
    strike_window: float = 10.0
    #: Python minor version that peers must have, such as "3.12"; empty: that of the first peer.
    python: str = field(default="")
    #: Bytes of input that producers may have here at once; None: half of the memory there is, 0: not bounded.
    max_memory: int | None = None
