"""Errors a user meets, one tree, and the exit codes of the command line (sysexits.h)."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from multihost_common.lost import RemoteError, WorkerLostError

__all__ = [
    "EX_CANTCREAT",
    "EX_CONFIG",
    "EX_DATAERR",
    "EX_IOERR",
    "EX_NOPERM",
    "EX_OK",
    "EX_SOFTWARE",
    "EX_TEMPFAIL",
    "EX_UNAVAILABLE",
    "EX_USAGE",
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
]

EX_OK = 0
EX_USAGE = 64
EX_DATAERR = 65
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


class JobError(MultihostError):
    """There is no such detached job (any more), or what was asked of it is not done; the text says why."""

    exit_code = EX_DATAERR


class NoWorkersError(MultihostError):
    """No worker came within ``start_timeout`` seconds."""

    exit_code = EX_UNAVAILABLE


def __getattr__(name: str) -> type[MultihostError]:
    # Their base costs the import of concurrent.futures and logging: more than a health check may.
    if name in ("RemoteError", "WorkerLostError"):
        from multihost_common import lost

        found: type[MultihostError] = getattr(lost, name)
        return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
