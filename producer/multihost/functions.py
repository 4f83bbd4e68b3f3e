"""What children import on behalf of a producer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

T = TypeVar("T")


def call(function: Callable[..., T], /, *args: Any, **kwds: Any) -> T:
    """The function of a stream whose callables travel with each call."""
    return function(*args, **kwds)


def refuse() -> NoReturn:
    """What the place-holder of an item that could not be pickled does when it is unpickled."""
    raise ValueError("this item could not be pickled by its producer")


class Refused:
    """Place-holder of an item that could not be pickled: it keeps the numbering of the items."""

    def __reduce__(self) -> tuple[Callable[[], NoReturn], tuple[()]]:
        return refuse, ()
