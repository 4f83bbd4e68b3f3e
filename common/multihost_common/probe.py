"""What is it that answers at an address? Asked once a handshake has failed without a word.

libzmq tells of a connection that was closed, or of none at all; a person wants to know whether that is
a web server, a port forwarded to nowhere, or a broker with another key.
"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import socket

#: The beginning of a greeting of ZMTP 3.0 (RFC 23): signature and version. With the mechanism, which
#: comes next, the other end might hang up before it has told its own.
GREETING = b"\xff" + bytes(7) + b"\x01\x7f" + b"\x03\x00"

#: Bytes of a whole greeting; the mechanism is 20 of them.
WHOLE, MECHANISM = 64, slice(12, 32)

#: What there can be at an address.
NOBODY, CLOSES, SILENT, BROKER, OTHER_ZMQ, WEB, OTHER = range(7)

#: Seconds for all of it.
PROBE_TIMEOUT = 1.0


def probe(address: str, timeout: float = PROBE_TIMEOUT) -> int:
    """Which of the constants above is at ``tcp://host:port``; BROKER is anything that speaks CURVE."""
    # Here, because most processes never have to ask.
    import socket

    host, _, port = address.removeprefix("tcp://").rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout) as sock:
            return _look(sock, time.monotonic() + timeout)
    except OSError:
        return NOBODY


def _look(sock: socket.socket, deadline: float) -> int:
    # A broker greets first. Who does not may be a web server, which waits for a request.
    said = _read(sock, 1, time.monotonic() + (deadline - time.monotonic()) / 2)
    if said is None:
        with suppress(OSError):
            sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
        said = _read(sock, 5, deadline)
        return SILENT if said is None else WEB if said.startswith(b"HTTP/") else CLOSES if not said else OTHER
    if not said:
        return CLOSES
    if not said.startswith(b"\xff"):
        return OTHER
    with suppress(OSError):
        sock.sendall(GREETING)
    said += _read(sock, WHOLE - len(said), deadline) or b""
    if len(said) < WHOLE:
        # It may be slow, or have ended just now: nothing is certain.
        return SILENT
    return BROKER if said[MECHANISM].rstrip(b"\0") == b"CURVE" else OTHER_ZMQ


def _read(sock: socket.socket, size: int, deadline: float) -> bytes | None:
    """At least ``size`` bytes; fewer at the end of the connection; None if nothing came."""
    data = b""
    with suppress(TimeoutError):
        while len(data) < size:
            sock.settimeout(max(0.001, deadline - time.monotonic()))
            try:
                part = sock.recv(4096)
            except ConnectionError:
                return data
            if not part:
                return data
            data += part
    return data or None
