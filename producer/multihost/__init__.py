"""Python's multiprocessing, spanning hosts: ``import multihost as mp``.

Everything here is imported on first use, so that ``import multihost`` costs next to nothing. Names of
multiprocessing that multihost has no need to serve itself (errors, logging, shared memory) are the standard library's own.
"""

from __future__ import annotations

from multihost.registering import register as _register
from multihost_common import __version__ as __version__

TYPE_CHECKING = False
if TYPE_CHECKING:
    from multiprocessing import AuthenticationError as AuthenticationError
    from multiprocessing import BufferTooShort as BufferTooShort
    from multiprocessing import ProcessError as ProcessError
    from multiprocessing import TimeoutError as TimeoutError
    from multiprocessing import allow_connection_pickling as allow_connection_pickling
    from multiprocessing import freeze_support as freeze_support
    from multiprocessing import get_logger as get_logger
    from multiprocessing import log_to_stderr as log_to_stderr
    from multiprocessing import set_executable as set_executable
    from multiprocessing import set_forkserver_preload as set_forkserver_preload
    from typing import Any

    from multihost.connection import Pipe as Pipe
    from multihost.context import cpu_count as cpu_count
    from multihost.context import get_all_start_methods as get_all_start_methods
    from multihost.context import get_context as get_context
    from multihost.context import get_start_method as get_start_method
    from multihost.context import set_start_method as set_start_method
    from multihost.detached.result import DetachedResult as DetachedResult
    from multihost.detached.result import detached_result as detached_result
    from multihost.executor import Executor as Executor
    from multihost.managers import Manager as Manager
    from multihost.pool import Pool as Pool
    from multihost.process import Process as Process
    from multihost.process import active_children as active_children
    from multihost.process import current_process as current_process
    from multihost.process import parent_process as parent_process
    from multihost.queues import JoinableQueue as JoinableQueue
    from multihost.queues import Queue as Queue
    from multihost.queues import ShutDown as ShutDown
    from multihost.queues import SimpleQueue as SimpleQueue
    from multihost.queues.named import NamedQueue as NamedQueue
    from multihost.sharedctypes import Array as Array
    from multihost.sharedctypes import RawArray as RawArray
    from multihost.sharedctypes import RawValue as RawValue
    from multihost.sharedctypes import Value as Value
    from multihost.synchronize import Barrier as Barrier
    from multihost.synchronize import BoundedSemaphore as BoundedSemaphore
    from multihost.synchronize import Condition as Condition
    from multihost.synchronize import Event as Event
    from multihost.synchronize import Lock as Lock
    from multihost.synchronize import RLock as RLock
    from multihost.synchronize import Semaphore as Semaphore
    from multihost.threadpool import ThreadPool as ThreadPool
    from multihost_common.errors import AuthError as AuthError
    from multihost_common.errors import BrokerLostError as BrokerLostError
    from multihost_common.errors import ConfigError as ConfigError
    from multihost_common.errors import HandshakeError as HandshakeError
    from multihost_common.errors import JobError as JobError
    from multihost_common.errors import MultihostError as MultihostError
    from multihost_common.errors import NoWorkersError as NoWorkersError
    from multihost_common.errors import ProtocolError as ProtocolError
    from multihost_common.errors import RemoteError as RemoteError
    from multihost_common.errors import WorkerLostError as WorkerLostError

_ERRORS = (
    "AuthError",
    "BrokerLostError",
    "ConfigError",
    "HandshakeError",
    "JobError",
    "MultihostError",
    "NoWorkersError",
    "ProtocolError",
    "RemoteError",
    "WorkerLostError",
)

_LOCKS = ("Barrier", "BoundedSemaphore", "Condition", "Event", "Lock", "RLock", "Semaphore")

_CONTEXT = ("cpu_count", "get_all_start_methods", "get_context", "get_start_method", "set_start_method")

#: Where the names live that are multihost's own.
_HOMES = {
    "DetachedResult": "multihost.detached.result",
    "Executor": "multihost.executor",
    "Manager": "multihost.managers",
    "NamedQueue": "multihost.queues.named",
    "Pipe": "multihost.connection",
    "Pool": "multihost.pool",
    "ThreadPool": "multihost.threadpool",
    "Process": "multihost.process",
    "active_children": "multihost.process",
    "current_process": "multihost.process",
    "parent_process": "multihost.process",
    "detached_result": "multihost.detached.result",
    **dict.fromkeys(_CONTEXT, "multihost.context"),
    **dict.fromkeys(_LOCKS, "multihost.synchronize"),
    **dict.fromkeys(("Array", "RawArray", "RawValue", "Value"), "multihost.sharedctypes"),
    **dict.fromkeys(("JoinableQueue", "Queue", "ShutDown", "SimpleQueue"), "multihost.queues"),
    **dict.fromkeys(_ERRORS, "multihost_common.errors"),
}

#: Modules of multiprocessing by the name that scripts reach them by.
_MODULES = {
    "heap",
    "reduction",
    "resource_sharer",
    "resource_tracker",
    "spawn",
    "util",
}

#: Modules of ours that have multiprocessing's names, and the one that has another's.
_OWN_MODULES = {
    "connection",
    "context",
    "dummy",
    "executor",
    "managers",
    "pool",
    "process",
    "queues",
    "shared_memory",
    "sharedctypes",
    "synchronize",
}


def __getattr__(name: str) -> Any:
    import importlib

    home = _HOMES.get(name)
    if home is not None:
        value = globals()[name] = getattr(importlib.import_module(home), name)
        return value
    if name in _OWN_MODULES:
        return importlib.import_module(f"multihost.{name}")
    if name in _MODULES:
        return importlib.import_module(f"multiprocessing.{name}")
    if name == "__all__":
        return _names()
    # Not kept: what multiprocessing's names mean depends on set_start_method.
    import multiprocessing

    if name in multiprocessing.__all__:
        return getattr(multiprocessing, name)
    raise AttributeError(f"module 'multihost' has no attribute {name!r}")


def __dir__() -> list[str]:
    return _names()


def _names() -> list[str]:
    import multiprocessing

    return sorted({"__version__", *_HOMES, *multiprocessing.__all__})


_register()
