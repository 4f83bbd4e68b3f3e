"""Errors a user meets, one tree, and the exit codes of the command line (sysexits.h)."""

from __future__ import annotations

from concurrent.futures._base import BrokenExecutor

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

EX_OK = 0
EX_USAGE = 64
EX_UNAVAILABLE = 69
EX_SOFTWARE = 70
EX_CANTCREAT = 73
EX_IOERR = 74
EX_TEMPFAIL = 75
EX_NOPERM = 77
EX_CONFIG = 78


class MultihostError(Exception):
    """Base of all errors that are multihost's own."""

    exit_code = EX_SOFTWARE


class ProtocolError(MultihostError):
    """A peer sent what the protocol does not allow. ``code`` is one of the E_ codes of PROTOCOL.md."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(code, text)
        self.code = code
        self.text = text

    def __str__(self) -> str:
        return f"{self.code}: {self.text}"


class ConfigError(MultihostError):
    """A setting, a key file or an address cannot be used as it is; the text says what to do."""

    exit_code = EX_CONFIG


class AuthError(MultihostError):
    """The broker does not accept this token, or is not the broker the token is for."""

    exit_code = EX_NOPERM


class HandshakeError(MultihostError):
    """The broker refused the session: another protocol version, another Python."""

    exit_code = EX_CONFIG


class BrokerLostError(MultihostError, ConnectionError):
    """No broker answers at the address, or it went away and did not come back in time."""

    exit_code = EX_UNAVAILABLE


class NoWorkersError(MultihostError):
    """No worker came within ``start_timeout`` seconds."""

    exit_code = EX_UNAVAILABLE


class RemoteError(MultihostError, BrokenExecutor):
    """Something that cannot be pickled or unpickled; the text holds the remote traceback."""


class WorkerLostError(MultihostError, BrokenExecutor):
    """The process that ran an item ended too often (or once, with ``at_most_once``).

    ``item``: index in its job. ``deaths``: how many processes it took along. ``host``, ``pid``,
    ``signal`` (0: it exited), ``exitcode``, ``rss`` (peak, bytes) and ``oom`` tell of the last one.
    """

    def __init__(
        self,
        text: str,
        *,
        item: int = -1,
        deaths: int = 0,
        host: str = "",
        pid: int = 0,
        signal: int = 0,
        exitcode: int = 0,
        rss: int = 0,
        oom: bool = False,
    ) -> None:
        super().__init__(text)
        self.item, self.deaths = item, deaths
        self.host, self.pid = host, pid
        self.signal, self.exitcode = signal, exitcode
        self.rss, self.oom = rss, oom

    def __reduce__(self) -> tuple[object, ...]:
        facts = {name: self.__dict__[name] for name in _FACTS}
        return _lost_again, (str(self), facts)


_FACTS = ("item", "deaths", "host", "pid", "signal", "exitcode", "rss", "oom")


def _lost_again(text: str, facts: dict[str, Any]) -> WorkerLostError:
    return WorkerLostError(text, **facts)
