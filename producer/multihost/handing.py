"""Descriptors for other processes of this machine.

Who pickles a descriptor offers a duplicate of it, and who unpickles it takes that, through a socket of this machine that
answers as long as there is something on offer. A ticket, drawn at random, is good for one descriptor once; what many
processes may unpickle, the set-up of a pool say, is on offer until it is withdrawn (see :mod:`multihost_common.shipments`).
"""

from __future__ import annotations

import os
import socket
import sys
import threading
from contextlib import suppress

from multihost_common import shipments

TICKET_BYTES = 16

#: Seconds without anything on offer after which the socket is closed.
LINGER = 0.5

#: Seconds that one who takes something, and one who gives it, wait for each other.
TIMEOUT = 20.0


class _Desk:
    """What this process offers."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        #: By ticket: a descriptor, and whether it stays on offer.
        self._offers: dict[bytes, tuple[int, bool]] = {}
        self._listener: socket.socket | None = None
        self._address = ""

    def offer(self, fd: int) -> tuple[str, bytes]:
        """The address and the ticket for a duplicate of it."""
        ticket = os.urandom(TICKET_BYTES)
        lasts = shipments.note(lambda: self.withdraw(ticket))
        with self._lock:
            self._offers[ticket] = os.dup(fd), lasts
            if self._listener is None:
                self._open()
            return self._address, ticket

    def _open(self) -> None:
        self._address = _address()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self._address)
        self._listener.listen(128)
        self._listener.settimeout(LINGER)
        threading.Thread(
            target=self._serve, args=(self._listener, self._address), name="multihost-handing", daemon=True
        ).start()

    def withdraw(self, ticket: bytes) -> None:
        """It will not be taken (any more)."""
        with self._lock:
            offered = self._offers.pop(ticket, None)
        if offered is not None:
            os.close(offered[0])

    def _serve(self, listener: socket.socket, address: str) -> None:
        while True:
            try:
                peer, _ = listener.accept()
            except TimeoutError:
                with self._lock:
                    if self._offers:
                        continue
                    self._listener = None
                listener.close()
                if not address.startswith("\0"):
                    os.unlink(address)
                return
            except OSError:
                return
            # A thread each: on a busy machine one may be slow to say what it wants, and others wait.
            threading.Thread(
                target=self._attend, args=(peer,), name="multihost-handing-out", daemon=True
            ).start()

    def _attend(self, peer: socket.socket) -> None:
        with peer, suppress(OSError):
            peer.settimeout(TIMEOUT)
            self._hand_out(peer)

    def _hand_out(self, peer: socket.socket) -> None:
        ticket = peer.recv(TICKET_BYTES)
        with self._lock:
            offered = self._offers.get(ticket)
            if offered is None:
                return
            fd, lasts = offered
            socket.send_fds(peer, [b"f"], [fd])
        if not lasts:
            self.withdraw(ticket)

    def disown(self) -> None:
        """This is a forked process: what is on offer is its parent's."""
        for fd, _ in self._offers.values():
            os.close(fd)
        if self._listener is not None:
            self._listener.close()
        self._lock = threading.RLock()
        self._offers = {}
        self._listener = None


def _address() -> str:
    if sys.platform == "linux":
        return f"\0multihost-{os.urandom(8).hex()}"
    from multiprocessing import util

    return os.path.join(util.get_temp_dir(), f"handing-{os.urandom(8).hex()}")


_desk = _Desk()
offer = _desk.offer


def take(address: str, ticket: bytes) -> int:
    """The descriptor. Raises OSError if it is not to be had."""
    with socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(TIMEOUT)
        try:
            peer.connect(address)
            peer.sendall(ticket)
            _, fds, _, _ = socket.recv_fds(peer, 1, 1)
            # Until its duplicate is closed: whoever asks whether this end is open knows of no other one.
            with suppress(OSError):
                peer.recv(1)
        except OSError:
            fds = []
    if not fds:
        raise OSError(
            "a connection or descriptor of another process cannot be used here: that process runs on another host, has "
            "ended, or has given it to another one; between hosts, pass an end of a multihost.Pipe() made with a broker"
        )
    os.set_inheritable(fds[0], False)
    return fds[0]


os.register_at_fork(after_in_child=_desk.disown)

__all__ = ["offer", "take"]
