"""What a child becomes before it works: the producer's directory, environment, path and names."""

from __future__ import annotations

import os
import sys

from multihost_common.naming import name_process
from multihost_common.pickling import loads
from multihost_common.whereabouts import here
from multihost_worker import memories

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


def apply_setup(setup: dict[str, Any], number: int) -> None:
    """Become what the producer's processes look like, then run the pool's initializer. ``number``: among the children
    of the pool; 0: this is no pool's."""
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
    memories.prepare(setup.get("tracker"))
    if setup.get("prepare"):
        # What multiprocessing means here, which has to be known before anybody imports it.
        prepare, arguments = loads(setup["prepare"])
        prepare(*arguments)
    if setup.get("parent") and setup["parent"][0] != here():
        # Whoever started it is on another host.
        reach, arguments = loads(setup["parent"][1])
        reach(*arguments)
    if setup.get("name"):
        name_process(setup["name"], setup.get("authkey", b""), number)
    if setup.get("initializer"):
        initializer = loads(setup["initializer"])
        initializer(*(loads(setup["initargs"]) if setup.get("initargs") else ()))
