"""What a child becomes before it works: the producer's directory, environment, path and names."""

from __future__ import annotations

import os
import sys

from multihost_common.pickling import loads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from multihost_common.blocks import Frame


def add_bundle(private_dir: str, code: Frame) -> None:
    """Have the modules of this bundle found, ahead of what is installed."""
    from multihost_worker.bundles import unpack

    path = unpack(private_dir, code)
    if path not in sys.path:
        sys.path.insert(1, path)


class _Namer:
    """Names the process, and gives it the producer's key of managers, when multiprocessing is imported. To import it for that would take as long
    as all else of a child's start."""

    def __init__(self, name: str, authkey: bytes) -> None:
        self.name = name
        self.authkey = authkey

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:
        """As an importer on ``sys.meta_path`` has it."""
        if fullname != "multiprocessing.process":
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
            _identify(module.current_process(), self.name, self.authkey)

        loader.exec_module = exec_module
        return spec


def _name_process(name: str, authkey: bytes) -> None:
    known = sys.modules.get("multiprocessing.process")
    if known is not None:
        _identify(known.current_process(), name, authkey)
    else:
        sys.meta_path.insert(0, _Namer(name, authkey))


def _identify(process: Any, name: str, authkey: bytes) -> None:
    process.name = name
    if authkey:
        process.authkey = authkey


def apply_setup(setup: dict[str, Any]) -> None:
    """Become what the producer's processes look like, then run the pool's initializer."""
    if setup.get("environ") is not None:
        os.environ.clear()
        os.environ.update(setup["environ"])
    if setup.get("cwd") is not None:
        os.chdir(setup["cwd"])
    if setup.get("sys_path") is not None:
        sys.path[:] = setup["sys_path"]
    if setup.get("argv") is not None:
        sys.argv[:] = setup["argv"]
    if setup.get("loggers"):
        from multihost_common.inherit import adopt

        adopt(setup["loggers"])
    if setup.get("prepare"):
        # What multiprocessing means here, which has to be known before anybody imports it.
        prepare, arguments = loads(setup["prepare"])
        prepare(*arguments)
    if setup.get("name"):
        _name_process(setup["name"], setup.get("authkey", b""))
    if setup.get("initializer"):
        initializer = loads(setup["initializer"])
        initializer(*(loads(setup["initargs"]) if setup.get("initargs") else ()))
