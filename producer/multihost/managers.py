"""``multiprocessing.managers``, with the server of a manager on any host, and its proxies working from every host.

All of it is the standard library's, but for two things: the server is a :class:`multihost.Process`, and proxies reach
it through the broker (:mod:`multihost.rendezvous`). With an address of its own, of a socket, the server is on
this host and is reached by that, as ever. The managers of shared memory are the standard library's: they are of one
host.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from multiprocessing import managers as _standard
from multiprocessing import util
from multiprocessing.context import AuthenticationError, ProcessError
from traceback import format_exc
from typing import TYPE_CHECKING, Any, ClassVar, cast

from multihost.connection import Connection, Pipe, answer_challenge, deliver_challenge
from multihost.janitor import later, within_loop
from multihost.pool import Pool
from multihost.process import Process
from multihost.rendezvous import (
    BrokeredListener,
    Client,
    Listener,
    LocalListener,
    forget,
    hang_up,
    is_address,
)
from multihost_common.errors import MultihostError

if TYPE_CHECKING:
    from multiprocessing.managers import BaseProxy, SharedMemoryManager, Token

#: Seconds after which one who waits for a server looks whether its process is still there.
PATIENCE = 1.0

#: Seconds after which one tries again who could not accept a connection.
RETRY = 0.1


def __getattr__(name: str) -> Any:
    return getattr(_standard, name)


class _Serializer(str):
    """How proxies call the way they reach their manager. It travels with them, and brings this module along."""

    __slots__ = ()

    def __reduce__(self) -> tuple[Any, ...]:
        return _serializer, ()


def _serializer() -> _Serializer:
    return SERIALIZER


SERIALIZER = _Serializer("multihost")
_standard.listener_client[SERIALIZER] = (Listener, Client)  # type: ignore[attr-defined]


_LISTENERS = BrokeredListener, LocalListener


# -- the server ------------------------------------------------------------------------------------------


class Server(_standard.Server):
    """What runs in the process of a manager. A connection by an address that was not chosen is good for many
    requests."""

    if TYPE_CHECKING:
        authkey: bytes
        listener: Any
        public: list[str]
        stop_event: threading.Event

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._open: set[Connection] = set()

    def serve_forever(self) -> None:
        """Serve until somebody shuts the manager down; ends by SystemExit."""
        try:
            super().serve_forever()
        finally:
            if isinstance(self.listener, _LISTENERS):
                self.listener.close()
                for connection in list(self._open):
                    hang_up(connection)

    def accepter(self) -> None:
        """Accept connections, until there is nowhere that they could come from."""
        if not isinstance(self.listener, _LISTENERS):
            super().accepter()
        while not self.stop_event.is_set():
            try:
                connection = self.listener.accept()
            except (EOFError, MultihostError):
                self.stop_event.set()
                return
            except OSError:
                # There are too many open files, say.
                self.stop_event.wait(RETRY)
                continue
            threading.Thread(target=self.handle_request, args=(connection,), daemon=True).start()

    def handle_request(self, conn: Any) -> None:
        """Serve one connection until it ends."""
        if not isinstance(self.listener, _LISTENERS):
            super().handle_request(conn)
            return
        self._open.add(conn)
        try:
            deliver_challenge(conn, self.authkey)
            answer_challenge(conn, self.authkey)
            while not self.stop_event.is_set():
                self._answer(conn)
        except (EOFError, OSError, MultihostError, AuthenticationError, SystemExit):
            # SystemExit: what serves the calls of a proxy's thread ends so.
            pass
        finally:
            self._open.discard(conn)
            conn.close()

    def _answer(self, conn: Connection) -> None:
        answer: tuple[str, Any]
        try:
            _, name, args, kwds = conn.recv()
            if name not in self.public:
                raise AssertionError(f"{name!r} unrecognized")
            answer = "#RETURN", getattr(self, name)(conn, *args, **kwds)
        except (EOFError, OSError):
            raise
        except Exception:  # noqa: BLE001
            answer = "#TRACEBACK", format_exc()
        try:
            conn.send(answer)
        except (EOFError, OSError):
            raise
        except Exception:  # noqa: BLE001
            conn.send(("#TRACEBACK", format_exc()))


# -- managers ----------------------------------------------------------------------------------------------


class _Processes:
    """Where the server of a manager runs: in a process of this broker's, or of this host."""

    def __init__(self, address: str | None) -> None:
        self.address = address

    def Process(self, **options: Any) -> Process:  # noqa: N802 - its name in a context
        """A process there."""
        return Process(address=self.address, **options)


class BaseManager(_standard.BaseManager):
    """As the standard library's. ``address``: None, and proxies find the server through the broker; or that of a
    socket of this host."""

    _Server = Server

    if TYPE_CHECKING:
        _address: Any
        _authkey: bytes
        _ctx: Any
        _process: Process
        _registry: ClassVar[dict[str, Any]]
        _serializer: str
        _shutdown_timeout: float
        _state: Any
        _Client: Any
        _run_server: Callable[..., None]

    def __init__(
        self,
        address: Any = None,
        authkey: bytes | None = None,
        serializer: str = "pickle",
        ctx: Any = None,
        *,
        shutdown_timeout: float = 1.0,
    ) -> None:
        ours = _is_ours(ctx)
        named = serializer == "pickle" and (is_address(address) or (ours and address is None))
        super().__init__(
            address,
            authkey,
            SERIALIZER if named else serializer,
            cast("Any", _Processes(None if named else "") if ours else ctx),
            shutdown_timeout=shutdown_timeout,
        )

    def _check_initial(self) -> None:
        state = self._state.value
        if state == _standard.State.STARTED:  # type: ignore[attr-defined]
            raise ProcessError("Already started server")
        if state == _standard.State.SHUTDOWN:  # type: ignore[attr-defined]
            raise ProcessError("Manager has shut down")

    def get_server(self) -> Any:
        """What serves the objects in this process: call its ``serve_forever()``; others reach it at its
        ``address``."""
        self._check_initial()
        return self._Server(self._registry, self._address, self._authkey, self._serializer)

    def start(self, initializer: Callable[..., object] | None = None, initargs: Iterable[Any] = ()) -> None:
        """Start the process of the server, on whichever host has most room. ``initializer`` is called in it first."""
        if not isinstance(self._ctx, _Processes):
            super().start(initializer, initargs)
            return
        self._check_initial()
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        reader, writer = Pipe(False, address=self._ctx.address)
        self._process = self._ctx.Process(
            target=type(self)._run_server,
            args=(
                self._registry,
                self._address,
                self._authkey,
                self._serializer,
                writer,
                initializer,
                initargs,
            ),
        )
        ident = ":".join(str(part) for part in self._process._identity)
        self._process.name = f"{type(self).__name__}-{ident}"
        self._process.start()
        writer.close()
        with reader:
            self._address = _report(reader, self._process)
        self._state.value = _standard.State.STARTED  # type: ignore[attr-defined]
        self.shutdown = util.Finalize(
            self,
            type(self)._finalize_manager,
            args=(
                self._process,
                self._address,
                self._authkey,
                self._state,
                self._Client,
                self._shutdown_timeout,
            ),
            exitpriority=0,
        )

    @staticmethod
    def _finalize_manager(process: Any, address: Any, *args: Any) -> None:
        def finalize() -> None:
            _standard.BaseManager._finalize_manager(process, address, *args)  # type: ignore[attr-defined]
            forget(address)

        if within_loop():
            # The garbage collector has found the manager just there.
            later(finalize)
        else:
            finalize()


def _is_ours(ctx: Any) -> bool:
    """Whether processes of this context are ours; None is."""
    if ctx is None or isinstance(ctx, _Processes):
        return True
    kind = getattr(ctx, "Process", None)
    return isinstance(kind, type) and issubclass(kind, Process)


def _report(reader: Connection, process: Process) -> Any:
    """The address of the server that was started. Raises EOFError if its process has ended."""
    while not reader.poll(PATIENCE):
        if not process.is_alive():
            break
    if reader.poll():
        with suppress(EOFError):
            return reader.recv()
    process.join()
    raise EOFError(f"the manager's process has ended with exit code {process.exitcode} before it served")


class SyncManager(BaseManager, _standard.SyncManager):
    """A manager of lists, dicts, namespaces, queues, pools, and of what threads synchronize by.

    Its pools are :class:`multihost.Pool`.
    """

    # Its own: what is registered with BaseManager is not for the managers below it that have names of their own.
    _registry: ClassVar[dict[str, Any]] = dict(_standard.SyncManager._registry)  # type: ignore[attr-defined]


SyncManager.register("Pool", Pool, _standard.PoolProxy)  # type: ignore[attr-defined]


def Manager() -> SyncManager:  # noqa: N802
    """A manager whose process has been started; its methods make shared objects and answer proxies for them."""
    manager = SyncManager()
    manager.start()
    return manager


__all__ = ["BaseManager", "BaseProxy", "Manager", "SharedMemoryManager", "SyncManager", "Token"]
