"""Something to be done when a module is imported, by whoever does that; at once if it has been.

This is how ``import multihost`` can teach multiprocessing something without importing it.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType
    from typing import Any

#: What is to be done, by the name of a module that is not there yet.
_waiting: dict[str, list[Callable[[ModuleType], object]]] = {}


def after_import(name: str, action: Callable[[ModuleType], object]) -> None:
    """Call ``action(module)`` when the module of this name has been executed.

    It may put another module into its place in ``sys.modules``."""
    module = sys.modules.get(name)
    if module is not None and not _is_being_imported(module):
        action(module)
        return
    _waiting.setdefault(name, []).append(action)
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)


def _is_being_imported(module: ModuleType) -> bool:
    return bool(getattr(getattr(module, "__spec__", None), "_initializing", False))


class _Finder:
    """Finds what the others find, with our actions added."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:
        """As an importer on ``sys.meta_path`` has it."""
        if fullname not in _waiting:
            return None
        others = (finder for finder in list(sys.meta_path) if finder is not self)
        specs = (finder.find_spec(fullname, path, target) for finder in others)
        spec: Any = next((spec for spec in specs if spec is not None), None)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            for action in _waiting.pop(fullname, ()):
                action(module)

        spec.loader.exec_module = exec_module
        return spec


_finder = _Finder()

__all__ = ["after_import"]
