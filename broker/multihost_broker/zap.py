"""Who gets in: the ZAP handler (RFC 27), asked by libzmq about every connection.

It lives in the broker's own loop: no thread, so nothing to end.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import zmq
from zmq.utils import z85

from multihost_common.auth import secure_client
from multihost_common.errors import MultihostError
from multihost_common.keys import BrokerKey, Token
from multihost_common.waiter import milliseconds
from multihost_common.wire import read_monitor

log = logging.getLogger("multihost.broker")

ENDPOINT = "inproc://zeromq.zap.01"


class Zap:
    """Answers for the keys of the issued tokens, and for no other."""

    def __init__(self, context: zmq.Context[Any], tokens: Iterable[Token]) -> None:
        self._issued = {token.public.encode(): token for token in tokens}
        #: Role of each user id that is attached to messages.
        self.roles = {token.user: token.role for token in self._issued.values()}
        #: Whether to log refusals: not the one that the broker provokes itself when it starts.
        self.watchful = False
        self.socket: zmq.Socket[bytes] = context.socket(zmq.REP)
        self.socket.linger = 0
        self.socket.bind(ENDPOINT)

    def process(self) -> None:
        """Answer all requests that wait."""
        with suppress(zmq.Again):
            while True:
                request = self.socket.recv_multipart(zmq.NOBLOCK)
                self.socket.send_multipart(self._answer(request))

    def _answer(self, request: list[bytes]) -> list[bytes]:
        version, number = request[0], request[1]
        token = None
        if version == b"1.0" and len(request) == 7 and request[5] == b"CURVE":
            token = self._issued.get(z85.encode(request[6]))
        if token is None or token.expired(time.time()):
            if self.watchful:
                what = f"the token {token.name} has expired" if token else "its key is unknown"
                log.warning("a connection from %s was refused: %s", request[3].decode(errors="replace"), what)
            return [b"1.0", number, b"400", b"unknown or expired key", b"", b""]
        return [b"1.0", number, b"200", b"OK", token.user.encode(), b""]

    def close(self) -> None:
        """Let nobody in any more."""
        self.socket.close(0)


def prove_closed(
    context: zmq.Context[Any], zap: Zap, address: str, key: BrokerKey, timeout: float = 5.0
) -> None:
    """See that a key that was never issued is refused at ``address``.

    CURVE without a working ZAP handler lets everyone in, and nothing else would show it.
    """
    public, secret = zmq.curve_keypair()
    stranger = Token("stranger", "stranger", key.public, public.decode(), secret.decode())
    with context.socket(zmq.DEALER) as socket:
        socket.linger = 0
        secure_client(socket, stranger)
        monitor = socket.get_monitor_socket(
            zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_CONNECTED
        )
        try:
            socket.connect(address)
            refused = _refused(zap, monitor, timeout)
        finally:
            socket.disable_monitor()
            monitor.close(0)
    zap.watchful = True
    if not refused:
        raise MultihostError("this broker does not refuse an unknown key, so it does not start; report a bug")


def _refused(zap: Zap, monitor: zmq.Socket[bytes], timeout: float) -> bool:
    deadline = time.monotonic() + timeout
    poller = zmq.Poller()
    poller.register(monitor, zmq.POLLIN)
    poller.register(zap.socket, zmq.POLLIN)
    while (left := deadline - time.monotonic()) > 0:
        poller.poll(milliseconds(left))
        zap.process()
        for event, _ in read_monitor(monitor):
            if event in (zmq.EVENT_HANDSHAKE_FAILED_AUTH, zmq.EVENT_HANDSHAKE_SUCCEEDED):
                return event == zmq.EVENT_HANDSHAKE_FAILED_AUTH
    return False
