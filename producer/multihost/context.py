"""``cpu_count`` and ``get_context``, as multiprocessing has them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from multihost.engine import get_engine, resolve_address

if TYPE_CHECKING:
    from multihost.pool import Pool


def cpu_count() -> int:
    """Slots there are: of all workers, or the CPUs of this machine that this process may use."""
    if resolve_address(None):
        return max(1, get_engine().capacity)
    from multihost_common.cpus import available_cpus

    return available_cpus()


def get_context(method: str | None = None) -> Context:
    """A context whose pools are multihost's; the start method matters only to what is not ours."""
    return Context(method)


class Context:
    """What ``multiprocessing.get_context`` answers, with multihost's Pool."""

    def __init__(self, method: str | None = None) -> None:
        import multiprocessing

        self._stdlib: Any = multiprocessing.get_context(method)

    def Pool(  # noqa: N802
        self,
        processes: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        maxtasksperchild: int | None = None,
        **options: Any,
    ) -> Pool:
        """A pool of processes; ``options``: see :class:`multihost.Pool`."""
        from multihost.pool import Pool

        return Pool(processes, initializer, initargs, maxtasksperchild, self, **options)

    def cpu_count(self) -> int:
        """Slots there are."""
        return cpu_count()

    def get_context(self, method: str | None = None) -> Context:
        """This context, or one of another start method."""
        return self if method is None else Context(method)

    def __getattr__(self, name: str) -> Any:
        if name == "_stdlib":
            raise AttributeError(name)
        return getattr(self._stdlib, name)
