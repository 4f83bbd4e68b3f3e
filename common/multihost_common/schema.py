"""How a message is told: fields with their bounds, and the table of all messages by their code."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import Field, dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, dataclass_transform

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


class Message:
    """Base of all messages. What ``dataclass`` would write for each class is written here, once: it takes
    a third of a millisecond a class, at the start of every process."""

    __slots__ = ()

    opcode: ClassVar[int]
    senders: ClassVar[frozenset[str]]
    #: (fewest, most) payload frames.
    carries: ClassVar[tuple[int, int]]

    if not TYPE_CHECKING:

        def __init__(self, *values: Any, **named: Any) -> None:
            # The first of its class: from now on there is one with the fields as parameters.
            type(self).__init__ = _initializer(type(self))
            self.__init__(*values, **named)

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return all(getattr(self, each.name) == getattr(other, each.name) for each in _fields(self))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        shown = (f"{each.name}={getattr(self, each.name)!r}" for each in _fields(self) if each.repr)
        return f"{type(self).__name__}({', '.join(shown)})"


def _initializer(cls: type[Message]) -> Callable[..., None]:
    defaults = {f.name: f.default for f in _fields(cls)}
    signature = "".join(f", {name}=defaults[{name!r}]" for name in defaults)
    body = "; ".join(f"self.{name} = {name}" for name in defaults) or "pass"
    written: Callable[..., None] = run(f"def __init__(self{signature}): {body}", defaults=defaults)[
        "__init__"
    ]
    return written


def run(source: str, **scope: Any) -> dict[str, Any]:
    """What is defined once ``source`` has run in ``scope``.

    Compiled first: to run a text itself makes CPython forget that it ends by Ctrl-C, if it does just then.
    """
    exec(compile(source, "<multihost>", "exec"), scope)  # noqa: S102
    return scope


def _fields(message: Message | type[Message]) -> tuple[Field[Any], ...]:
    return fields(message)  # type: ignore[arg-type]


@dataclass_transform(eq_default=False)
def message(code: int, *senders: str, carries: tuple[int, int] = (0, 0)) -> Callable[[type[M]], type[M]]:
    """Make a class a message: a dataclass with slots, in the table under ``code``, with the roles that may
    send it."""

    def enter(cls: type[M]) -> type[M]:
        made = dataclass(slots=True, init=False, eq=False, repr=False)(cls)
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
            for f in _fields(cls)
            if f.metadata["kind"] is not None
        ]
        _schemas[cls] = known
    return known
