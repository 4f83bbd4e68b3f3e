"""CURVE options of the two ends of a connection, and what its failures mean in words.

CURVE alone accepts any client key: it is the broker's ZAP handler that knows the issued ones.
"""

from __future__ import annotations

import zmq

from multihost_common.errors import AuthError, ConfigError, MultihostError
from multihost_common.keys import BrokerKey, Token

#: Ties the broker's socket to its ZAP handler; without a domain libzmq may skip the handler.
ZAP_DOMAIN = b"multihost"

#: Milliseconds a peer has for its handshake: a connection that says nothing is closed then.
HANDSHAKE_MS = 5000

#: Bytes of one frame. The lengths inside a block are 32-bit numbers.
MAX_FRAME = 0xFFFF_FFFF

#: A wrong server key shows only as a handshake that ends without a word and is tried again. One such
#: end can be a broker that is going down, so it has to happen more than once.
SILENT_FAILURES = 3


def secure_client(socket: zmq.Socket[bytes], token: Token) -> None:
    """Make ``socket`` show ``token`` and insist on the broker the token is for."""
    try:
        socket.curve_serverkey = token.server.encode()
        socket.curve_publickey = token.public.encode()
        socket.curve_secretkey = token.secret.encode()
    except (zmq.ZMQError, ValueError):
        raise ConfigError("the keys in the token file are damaged; copy it again from the broker") from None


def secure_server(socket: zmq.Socket[bytes], key: BrokerKey) -> None:
    """Make ``socket`` a CURVE server whose clients the ZAP handler decides upon."""
    socket.curve_server = True
    socket.curve_publickey = key.public.encode()
    socket.curve_secretkey = key.secret.encode()
    socket.zap_domain = ZAP_DOMAIN
    socket.handshake_ivl = HANDSHAKE_MS


def unlimited(socket: zmq.Socket[bytes]) -> None:
    """No high-water marks: the windows of the protocol bound what is on its way, and a full queue
    in ZeroMQ would silently drop (ROUTER) or block (DEALER)."""
    socket.sndhwm = socket.rcvhwm = 0
    socket.maxmsgsize = MAX_FRAME
    socket.linger = 0


class HandshakeWatch:
    """Turns the monitor's events of one connecting socket into an error, or none."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._silent = 0
        #: Whether a TCP connection was ever made.
        self.reached = False

    def told(self, event: int) -> MultihostError | None:
        """Note an event; the error it amounts to, if any."""
        where = self._address
        if event == zmq.EVENT_CONNECTED:
            self.reached = True
        elif event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self._silent = 0
        elif event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            return AuthError(
                f"the broker at {where} does not accept this token; copy a current token from its keys"
            )
        elif event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
            return AuthError(f"what answers at {where} is not a multihost broker; check host and port")
        elif event == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL:
            self._silent += 1
            if self._silent >= SILENT_FAILURES:
                return AuthError(
                    f"what answers at {where} is not the broker this token is for (server key mismatch);"
                    " copy a token from that broker's keys"
                )
        return None
