"""Which engine of this process applies: that of an address, of the broker of the worker whose child this is, or the local one."""

from __future__ import annotations

import os
import sys
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from multihost.engines.base import Engine
    from multihost.engines.sharing import Sharing

#: Name of the environment variable that holds the broker's address.
BROKER_VARIABLE = "MULTIHOST_BROKER"

#: The address that applies in a child of a worker: the broker that the worker works for.
THROUGH_AGENT = "agent"

_engines: dict[str, Engine] = {}


def _serving() -> Any:
    """The child of a worker that this process is, or None."""
    module = sys.modules.get("multihost_worker.child")
    child = None if module is None else module.serving
    return child if child is not None and child.pid == os.getpid() else None


def resolve_address(address: str | None) -> str:
    """The broker's address that applies: the argument, else MULTIHOST_BROKER; "" means local."""
    if address is None:
        address = THROUGH_AGENT if _serving() is not None else os.environ.get(BROKER_VARIABLE, "")
    return "" if address == "local" else address


def all_here(address: str | None = None) -> bool:
    """Do all processes that work for this one, at this address, run on this machine?"""
    address = resolve_address(address)
    return address == "" or (address == THROUGH_AGENT and get_engine().local)


def get_engine(address: str | None = None) -> Engine:
    """The engine of this process for an address, made on first use."""
    address = resolve_address(address)
    engine = _engines.get(address)
    if engine is None or not engine.usable:
        with _making:
            engine = _engines.get(address)
            if engine is None or not engine.usable:
                if engine is not None:
                    engine.close()
                engine = _engines[address] = _make(address)
    return engine


def get_sharing(address: str | None = None) -> Sharing:
    """The way to the shared objects of the broker at this address; default: the one that applies to this process."""
    sharing: Sharing | None = getattr(get_engine(address), "sharing", None)
    if sharing is None:
        from multihost_common.errors import MultihostError

        raise MultihostError("this engine has no shared objects")
    return sharing


def _make(address: str) -> Engine:
    made: Engine
    if address == THROUGH_AGENT:
        from multihost.engines.nested import ChildEngine

        made = ChildEngine(_serving())
    elif address:
        from multihost.engines.remote import RemoteEngine

        made = RemoteEngine(address)
    else:
        from multihost_worker.server import Server

        server = Server()
        # It starts while this process imports the cores.
        server.start()
        try:
            from multihost.engines.local import LocalEngine

            made = LocalEngine(server)
            if _inherited:
                from multihost.engines.sharing import FORKED

                made.sharing.unknown = FORKED
        except BaseException:
            server.close()
            raise
    return made


def close_engines() -> None:
    """End all engines of this process, and with them their pools; the next pool makes a new one."""
    with _making:
        engines = list(_engines.values())
        _engines.clear()
    for engine in engines:
        engine.close()


def forget_engines() -> None:
    """Drop all engines without touching them: they belong to the parent of this forked process."""
    global _making
    # Kept alive on purpose: their finalizers would act on the parent's sockets and children.
    _inherited.extend(_engines.values())
    for engine in _engines.values():
        engine.disown()
    _engines.clear()
    _making = threading.Lock()


_inherited: list[Engine] = []
_making = threading.Lock()

os.register_at_fork(after_in_child=forget_engines)

__all__ = [
    "BROKER_VARIABLE",
    "THROUGH_AGENT",
    "all_here",
    "close_engines",
    "forget_engines",
    "get_engine",
    "get_sharing",
    "resolve_address",
]
