"""What travels of a process that is to begin on whichever host."""

from __future__ import annotations

from multiprocessing.process import BaseProcess, current_process
from typing import Any


class Beginning:
    """What a process runs: itself."""

    def __init__(self, process_obj: BaseProcess) -> None:
        self.process = process_obj

    def __reduce__(self) -> tuple[Any, ...]:
        return _begin, (), self.process

    def __setstate__(self, process_obj: BaseProcess) -> None:
        self.process = process_obj
        del current_process()._inheriting  # type: ignore[attr-defined]

    def __call__(self, lifeline: int) -> int:
        code: int = self.process._bootstrap(parent_sentinel=lifeline)  # type: ignore[attr-defined]
        return code


def _begin() -> Beginning:
    """Called first of all when a process is unpickled: proxies of managers are counted later, when it begins to run."""
    current_process()._inheriting = True  # type: ignore[attr-defined]
    return Beginning.__new__(Beginning)


__all__ = ["Beginning"]
