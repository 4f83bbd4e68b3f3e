"""How a message is told: fields with their bounds, and the table of all messages by their code."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import field
from typing import Any, ClassVar, TypeVar, dataclass_transform

from multihost_common.structs import Struct, fields_of, struct

PRODUCER, WORKER, BROKER, ADMIN = "producer", "worker", "broker", "admin"

U8 = (0, 0xFF)
U32 = (0, 0xFFFF_FFFF)
U64 = (0, 0xFFFF_FFFF_FFFF_FFFF)
I32 = (-0x8000_0000, 0x7FFF_FFFF)
COUNT = (1, 0xFFFF_FFFF)
#: Seconds; a year is for ever.
SECONDS = (0.0, 31_557_600.0)
DIGEST = 32
NAME = 256
TEXT = 8192

M = TypeVar("M", bound="Message")
TABLE: dict[int, type[Message]] = {}


def integer(bounds: tuple[int, int] = U64, default: int = 0) -> Any:
    """An integer field within ``bounds`` (both ends included)."""
    return field(default=default, metadata={"kind": int, "bounds": bounds})


def seconds(default: float = 0.0) -> Any:
    """A finite duration of 0 s to a year."""
    return field(default=default, metadata={"kind": float, "bounds": SECONDS})


def text(limit: int = NAME, default: str = "") -> Any:
    """A string of at most ``limit`` characters."""
    return field(default=default, metadata={"kind": str, "bounds": (0, limit)})


def digest(size: int = DIGEST) -> Any:
    """A content digest of ``size`` bytes, or empty for none."""
    return field(default=b"", metadata={"kind": bytes, "bounds": (0, size)})


def flag(default: bool = False) -> Any:
    """A boolean field."""
    return field(default=default, metadata={"kind": bool, "bounds": None})


def payload() -> Any:
    """The opaque frames that follow the header."""
    return field(default=(), repr=False, metadata={"kind": None})


class Message(Struct):
    """Base of all messages."""

    __slots__ = ()

    opcode: ClassVar[int]
    senders: ClassVar[frozenset[str]]
    #: (fewest, most) payload frames.
    carries: ClassVar[tuple[int, int]]


@dataclass_transform(eq_default=False)
def message(code: int, *senders: str, carries: tuple[int, int] = (0, 0)) -> Callable[[type[M]], type[M]]:
    """Make a class a message: a dataclass with slots, in the table under ``code``, with the roles that may
    send it."""

    def enter(cls: type[M]) -> type[M]:
        made = struct(cls)
        made.opcode, made.senders, made.carries = code, frozenset(senders), carries
        TABLE[code] = made
        return made

    return enter


_schemas: dict[type[Message], list[tuple[str, type, tuple[Any, Any] | None]]] = {}


def schema(cls: type[Message]) -> list[tuple[str, type, tuple[Any, Any] | None]]:
    """(name, type, bounds) of each header field, in order."""
    known = _schemas.get(cls)
    if known is None:
        known = [
            (f.name, f.metadata["kind"], f.metadata["bounds"])
            for f in fields_of(cls)
            if f.metadata["kind"] is not None
        ]
        _schemas[cls] = known
    return known
