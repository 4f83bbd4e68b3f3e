"""Keys and tokens: who may talk to a broker, and which broker it is.

The first ``multihost broker`` makes a directory of its own (0700) with the broker's key and one token
for each role (0600). A token is one line and all a peer needs: it names the broker's public key, so the
peer knows the broker, and holds a key pair of its own, so the broker knows the peer and its role.
"""

from __future__ import annotations

import fcntl
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from multihost_common.blake2 import blake2b
from multihost_common.errors import ConfigError
from multihost_common.messages import ADMIN, PRODUCER, WORKER

METRICS = "metrics"
ROLES = (PRODUCER, WORKER, ADMIN, METRICS)

TOKEN_VERSION = "multihost-token-1"
KEY_VERSION = "multihost-broker-1"
BROKER_KEY = "broker.key"

#: Where container engines put secrets; the mode and owner of such a file are not ours to choose.
SECRETS = Path("/run/secrets")

#: A token has some 200 characters; what is larger is another file.
MAX_BYTES = 4096


class BrokerKey(NamedTuple):
    """The broker's own key pair, in Z85."""

    public: str
    secret: str

    def __repr__(self) -> str:
        return f"BrokerKey(public={self.public!r})"

    def line(self) -> str:
        """The content of ``broker.key``."""
        return _sealed(KEY_VERSION, self.public, self.secret)


class Token(NamedTuple):
    """What a peer shows (its key pair and role) and expects (the broker's public key)."""

    role: str
    name: str
    server: str
    public: str
    secret: str
    #: Seconds since the epoch after which the broker refuses it; 0: never.
    expires: int = 0

    def __repr__(self) -> str:
        return f"Token({self.role!r}, {self.name!r})"

    def line(self) -> str:
        """The content of a token file."""
        return _sealed(
            TOKEN_VERSION, self.role, self.name, self.server, self.public, self.secret, str(self.expires)
        )

    @property
    def user(self) -> str:
        """The user id a broker attaches to every message of this token's connections."""
        return f"{self.role}:{self.name}"

    def expired(self, now: float) -> bool:
        """Whether the broker refuses it at the wall-clock time ``now``."""
        return bool(self.expires) and now >= self.expires


def default_directory() -> Path:
    """``$MULTIHOST_KEYS``, else ``multihost/keys`` under ``$XDG_STATE_HOME`` or ``~/.local/state``."""
    given = os.environ.get("MULTIHOST_KEYS")
    return Path(given) if given else _own_directory() / "keys"


def state_directory(keys: Path | None = None) -> Path:
    """Where a broker keeps what it has to know again: in its ``keys`` if they were chosen, else beside them."""
    given = keys or os.environ.get("MULTIHOST_KEYS")
    return Path(given) if given else _own_directory()


def _own_directory() -> Path:
    state = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(state) / "multihost"


# -- lines -------------------------------------------------------------------------------------------


def _sealed(*words: str) -> str:
    body = " ".join(words)
    return f"{body} {_checksum(body)}\n"


def _checksum(body: str) -> str:
    return blake2b(body.encode(), digest_size=8).hexdigest()


def _words(path: Path, line: str, version: str, count: int) -> list[str]:
    words = line.split()
    if not words or not words[0].startswith("multihost-"):
        raise ConfigError(f"{path} is not a multihost key file; take a fresh copy from the broker's keys")
    if words[0] != version:
        raise ConfigError(f"{path} begins with {words[0]}, but {version} is needed; use the right file")
    if len(words) != count + 2 or words[-1] != _checksum(" ".join(words[:-1])):
        raise ConfigError(f"{path} is damaged or cut short; copy it again from the broker's keys")
    return words[1:-1]


def parse_token(line: str, path: Path) -> Token:
    """The token in ``line``, which came from ``path``."""
    role, name, server, public, secret, expires = _words(path, line, TOKEN_VERSION, 6)
    if role not in ROLES or not expires.isdigit():
        raise ConfigError(f"{path} is a token for an unknown role; make it again: multihost keys make")
    return Token(role, name, server, public, secret, int(expires))


# -- reading -----------------------------------------------------------------------------------------


def read_private(path: Path) -> str:
    """The one line of a private file, after checks that it is private."""
    secret = _inside(path, SECRETS)
    try:
        if path.is_symlink() and not secret and not _inside(path.resolve(), path.parent.resolve()):
            raise ConfigError(f"{path} is a symlink out of its directory; put the file itself there")
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist; copy the token file from the broker's keys") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}; check its owner and mode") from None
    try:
        _check_private(path, os.fstat(fd), secret)
        return _one_line(path, os.read(fd, MAX_BYTES + 1))
    finally:
        os.close(fd)


def _inside(path: Path, directory: Path) -> bool:
    return directory in path.absolute().parents


def _check_private(path: Path, info: os.stat_result, secret: bool) -> None:
    if not stat.S_ISREG(info.st_mode):
        raise ConfigError(f"{path} is not a regular file; give the token file itself")
    if secret:
        if info.st_mode & 0o022:
            raise ConfigError(f"{path} can be written by others; run: chmod go-w {path}")
        if info.st_mode & 0o044:
            import logging

            logging.getLogger("multihost").warning("%s is readable by every user of this container", path)
        return
    if info.st_uid != os.geteuid():
        raise ConfigError(f"{path} belongs to uid {info.st_uid}; run: chown {os.geteuid()} {path}")
    if info.st_mode & 0o077:
        raise ConfigError(f"{path} is open to other users of this host; run: chmod 600 {path}")


def _one_line(path: Path, data: bytes) -> str:
    if not data.strip():
        raise ConfigError(f"{path} is empty; copy it again from the broker's keys")
    if len(data) > MAX_BYTES or b"\0" in data or not data.isascii():
        raise ConfigError(f"{path} is not a text file of one line; give the token file itself")
    lines = data.decode("ascii").strip().splitlines()
    if len(lines) != 1:
        raise ConfigError(f"{path} has {len(lines)} lines; a key file has one")
    return lines[0]


def read_token(path: str | os.PathLike[str]) -> Token:
    """The token in the file ``path``. Raises ConfigError that says how to mend it."""
    path = Path(path)
    return parse_token(read_private(path), path)


def find_token(
    *roles: str, token_file: str | os.PathLike[str] | None = None, keys: str | os.PathLike[str] | None = None
) -> Token:
    """The token for the first of ``roles`` that there is one for.

    Looked for in this order: ``token_file``, ``$MULTIHOST_TOKEN_FILE``, the container's secret
    ``/run/secrets/multihost_<role>_token``, the keys directory.
    """
    given = token_file or os.environ.get("MULTIHOST_TOKEN_FILE")
    if given:
        return _usable(read_token(given), Path(given), roles)
    directory = Path(keys) if keys else default_directory()
    for role in roles:
        for path in (SECRETS / f"multihost_{role}_token", directory / f"{role}.token"):
            if path.exists() or path.is_symlink():
                return _usable(read_token(path), path, roles)
    raise ConfigError(
        f"no token found; copy {roles[0]}.token from the broker's keys to {directory}"
        " (mode 0600), or name the file with MULTIHOST_TOKEN_FILE"
    )


def _usable(token: Token, path: Path, roles: tuple[str, ...]) -> Token:
    if token.role not in roles:
        wanted = " or ".join(roles)
        raise ConfigError(f"{path} is a token for the role {token.role}, but {wanted} is needed")
    if token.expired(time.time()):
        raise ConfigError(f"{path} has expired; make a new token: multihost keys make {token.role}")
    return token


# -- making ------------------------------------------------------------------------------------------


class Keys(NamedTuple):
    """What a broker needs: its key pair and the tokens it accepts."""

    directory: Path
    broker: BrokerKey
    tokens: tuple[Token, ...]


def make_keys(directory: str | os.PathLike[str] | None = None) -> Keys:
    """The keys in ``directory``; what is missing is made first."""
    path = Path(directory) if directory else default_directory()
    private_directory(path, "choose another directory with --keys")
    with _locked(path):
        if not (path / BROKER_KEY).exists():
            _write(path / BROKER_KEY, BrokerKey(*_keypair()).line())
        broker = _broker_key(path)
        for role in ROLES:
            if not (path / f"{role}.token").exists():
                _write(path / f"{role}.token", _new_token(broker, role, role, 0).line())
        return load_keys(path)


def load_keys(directory: Path) -> Keys:
    """The keys that are in ``directory``. Tokens of another broker are left aside."""
    broker = _broker_key(directory)
    tokens = [read_token(path) for path in sorted(directory.glob("*.token"))]
    return Keys(directory, broker, tuple(token for token in tokens if token.server == broker.public))


def make_token(directory: Path, role: str, name: str, expires: int = 0) -> Path:
    """Make one more token; answers its path. The broker reads it at its next start."""
    if role not in ROLES:
        raise ConfigError(f"there is no role {role}; choose one of {', '.join(ROLES)}")
    if not name.isascii() or not name.replace("-", "").replace("_", "").isalnum():
        raise ConfigError("a token's name has letters, digits, '-' and '_' only")
    path = directory / (f"{role}.token" if name == role else f"{role}-{name}.token")
    with _locked(directory):
        if path.exists():
            raise ConfigError(f"{path} exists; choose another name or remove it first")
        _write(path, _new_token(_broker_key(directory), role, name, expires).line())
    return path


def _broker_key(directory: Path) -> BrokerKey:
    path = directory / BROKER_KEY
    return BrokerKey(*_words(path, read_private(path), KEY_VERSION, 2))


def _keypair() -> tuple[str, str]:
    import zmq

    public, secret = zmq.curve_keypair()
    return public.decode(), secret.decode()


def _new_token(broker: BrokerKey, role: str, name: str, expires: int) -> Token:
    return Token(role, name, broker.public, *_keypair(), expires)


def private_directory(path: Path, advice: str) -> None:
    """Make ``path`` unless it is there, for this user alone. ConfigError, with ``advice``, if that cannot be."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        info = path.stat()
        # A volume is mounted empty with a mode nobody chose; once it holds keys, its mode is the user's.
        if info.st_mode & 0o077 and info.st_uid == os.geteuid() and not any(path.iterdir()):
            path.chmod(0o700)
            info = path.stat()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; {advice}") from None
    if info.st_uid != os.geteuid():
        raise ConfigError(f"{path} belongs to uid {info.st_uid}; run: chown {os.geteuid()} {path}")
    if info.st_mode & 0o077:
        raise ConfigError(f"{path} is open to other users of this host; run: chmod 700 {path}")


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigError(f"{directory}: {error.strerror}; start a broker first, it makes the keys") from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _write(path: Path, line: str) -> None:
    """All of the file or nothing, on disk before it has its name."""
    part = path.with_name(f".{path.name}.part")
    try:
        with suppress(FileNotFoundError):
            part.unlink()
        fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "w") as file:
            file.write(line)
            file.flush()
            os.fsync(fd)
        part.rename(path)
        _sync(path.parent)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from None


def _sync(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
