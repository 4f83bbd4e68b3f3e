"""What applies to the processes that this one starts: which context, and what they have to do to be as it is.

Who knows enters himself here when he is imported: contexts, what registers ``multihost`` with multiprocessing, and what
``multihost run`` puts in multiprocessing's place. So nobody imports these to ask them.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeAlias

    from multihost.engines.base import Engine

    #: What a child has to call, with which arguments.
    Preparation: TypeAlias = "tuple[Callable[..., object], tuple[Any, ...]]"

#: Each answers the context that applies where none is named, or None; the last one is asked first.
contexts: list[Callable[[], Any]] = []

#: Each answers what children of this engine have to call first of all, or None.
preparations: list[Callable[[Engine], Preparation | None]] = []

#: Whether Python forks where nobody has chosen a start method.
USUALLY_FORKS = sys.platform != "darwin" and sys.version_info < (3, 14)


def current_context() -> Any:
    """The context that applies where none is named; None: nobody has chosen one."""
    return next((found for ask in reversed(contexts) if (found := ask()) is not None), None)


def preparation(engine: Engine) -> Preparation | None:
    """What a child process of this engine has to call to be as this process; None: nothing."""
    return next((made for ask in reversed(preparations) if (made := ask(engine)) is not None), None)


def process_name(context: Any = None) -> str:
    """What processes of this context (None: the one that applies) are named after."""
    name: str = getattr(getattr(context or current_context(), "Process", None), "__name__", "Process")
    return name


def forks(context: Any = None) -> bool:
    """Whether processes of this context (None: the one that applies) would be forked by multiprocessing."""
    method = getattr(context or current_context(), "_name", None)
    return method == "fork" or (method not in ("spawn", "forkserver") and USUALLY_FORKS)


__all__ = ["contexts", "current_context", "forks", "preparation", "preparations", "process_name"]
