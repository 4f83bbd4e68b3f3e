"""Who this process is to multiprocessing: its name, and the key that its managers ask for.

To import multiprocessing for that would take as long as all else of a child's start, so both wait until it is.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_MODULE = "multiprocessing.process"
_KEY_BYTES = 32


class _Namer:
    """Names the process, and gives it a key, when multiprocessing is imported."""

    def __init__(self, name: str, authkey: bytes, number: int) -> None:
        self.name = name
        self.number = number
        self.authkey = authkey

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:
        """As an importer on ``sys.meta_path`` has it."""
        if fullname != _MODULE:
            return None
        sys.meta_path.remove(self)
        specs = (finder.find_spec(fullname, path, target) for finder in sys.meta_path)
        spec = next((spec for spec in specs if spec is not None), None)
        loader: Any = spec.loader if spec is not None else None
        if loader is None:
            return spec
        execute = loader.exec_module

        def exec_module(module: Any) -> None:
            execute(module)
            _identify(module.current_process(), self.name, self.authkey, self.number)

        loader.exec_module = exec_module
        return spec


def name_process(name: str, authkey: bytes, number: int = 0) -> None:
    """This process has this name (empty: the one it has) and this key (empty likewise). ``number``: among those of
    this name, which then is part of it."""
    known = sys.modules.get(_MODULE)
    if known is not None:
        _identify(known.current_process(), name, authkey, number)
    else:
        sys.meta_path.insert(0, _Namer(name, authkey, number))


def _identify(process: Any, name: str, authkey: bytes, number: int) -> None:
    if name:
        process.name = f"{name}-{number}" if number else name
    if number:
        process._identity = (number,)
    if authkey:
        process.authkey = authkey


def authkey() -> bytes:
    """The key that this process's managers ask for, and that those who work for it are given."""
    process = sys.modules.get(_MODULE)
    if process is not None:
        return bytes(process.current_process().authkey)
    for each in sys.meta_path:
        if isinstance(each, _Namer) and each.authkey:
            return each.authkey
    key = os.urandom(_KEY_BYTES)
    name_process("", key)
    return key


__all__ = ["authkey", "name_process"]
