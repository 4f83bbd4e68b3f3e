"""Dataclasses that cost little to define: what a core is told and answers, and every message.

What ``dataclass`` would write for each class is written here, once, or when the first of its class is made: it takes
a third of a millisecond a class, at the start of every process, and there are a hundred of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, Field, dataclass, fields
from typing import TYPE_CHECKING, Any, TypeVar, dataclass_transform

S = TypeVar("S", bound="Struct")


class Struct:
    """Base of such classes: made from values and names, compared and shown by their fields."""

    __slots__ = ()

    if not TYPE_CHECKING:

        def __init__(self, *values: Any, **named: Any) -> None:
            # The first of its class: from now on there is one with the fields as parameters.
            type(self).__init__ = _initializer(type(self))
            self.__init__(*values, **named)

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return all(getattr(self, each.name) == getattr(other, each.name) for each in fields_of(self))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        shown = (f"{each.name}={getattr(self, each.name)!r}" for each in fields_of(self) if each.repr)
        return f"{type(self).__name__}({', '.join(shown)})"


@dataclass_transform(eq_default=False)
def struct(cls: type[S]) -> type[S]:
    """Make a class whose base is :class:`Struct` a dataclass with slots."""
    return dataclass(slots=True, init=False, eq=False, repr=False)(cls)


def fields_of(struct: Struct | type[Struct]) -> tuple[Field[Any], ...]:
    """The fields, in order."""
    return fields(struct)  # type: ignore[arg-type]


def _initializer(cls: type[Struct]) -> Callable[..., None]:
    defaults = {each.name: each.default for each in fields_of(cls)}
    signature = "".join(
        f", {name}" if default is MISSING else f", {name}=defaults[{name!r}]"
        for name, default in defaults.items()
    )
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
