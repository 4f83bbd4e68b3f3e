"""CURVE options of the two ends of a connection, and what its failures mean in words.

CURVE alone accepts any client key: it is the broker's ZAP handler that knows the issued ones.
"""

from __future__ import annotations

import zmq

from multihost_common.errors import AuthError, BrokerLostError, ConfigError, MultihostError
from multihost_common.keys import BrokerKey, Token
from multihost_common.parts import PART
from multihost_common.probe import BROKER, OTHER, OTHER_ZMQ, WEB

#: Ties the broker's socket to its ZAP handler; without a domain libzmq may skip the handler.
ZAP_DOMAIN = b"multihost"

#: Milliseconds a peer has for its handshake: a connection that says nothing is closed then.
HANDSHAKE_MS = 5000

#: What encryption adds to a part at most, bytes.
OVERHEAD = 1024

#: A wrong server key shows only as a connection that the broker closes at once, and it is tried again.
#: One such end can be a broker that is going down, so it has to happen more than once.
SILENT_FAILURES = 3

#: And so often again once a broker was found there, before a peer that can wait believes it: behind what
#: forwards a port each connection ends at once while the broker is away, and it may just have come back.
FAILURES_AGAIN = 2

#: Seconds from the connection to its end that count as "at once"; later it is a handshake that timed out.
AT_ONCE = 3.0


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
    in ZeroMQ would silently drop (ROUTER) or block (DEALER). A frame comes in parts of a known size, so who
    announces a larger one is cut off before memory is taken for it."""
    socket.sndhwm = socket.rcvhwm = 0
    socket.maxmsgsize = PART + OVERHEAD
    socket.linger = 0


class HandshakeWatch:
    """Turns the monitor's events of one connecting socket into an error, or none."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._connected = 0.0
        self._welcome = False
        #: Handshakes in a row that the other end broke off without a word.
        self.broken_off = 0
        #: As many as there were when a broker was first found there nevertheless.
        self._found_at: int | None = None
        #: Whether a TCP connection was ever made.
        self.reached = False
        #: Whether libzmq has given up: what answered does not speak its protocol.
        self.given_up = False

    def told(self, event: int, now: float) -> MultihostError | None:
        """Note an event; the error it amounts to, if any."""
        if event == zmq.EVENT_CONNECTED:
            self.reached, self.given_up = True, False
            self._connected, self._welcome = now, False
        elif event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self.broken_off, self._found_at = 0, None
            self._welcome = True
        elif event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            return AuthError(
                f"the broker at {self._address} does not accept this token;"
                " copy a current token from its keys"
            )
        elif event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
            return self._stranger("another ZeroMQ program")
        elif event == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL:
            self._welcome = True
            if now - self._connected < AT_ONCE:
                self.broken_off += 1
        elif event == zmq.EVENT_DISCONNECTED and not self._welcome:
            # The end of a connection whose handshake neither succeeded nor failed: it is not tried again.
            self.given_up = True
        return None

    @property
    def doubtful(self) -> bool:
        """Whether it is worth while to look at what answers there."""
        return self.given_up or self.broken_off >= SILENT_FAILURES

    @property
    def suspicious(self) -> bool:
        """Whether a broker answers there that may be another one; it is soon to be known."""
        return self._found_at is not None

    def judge(self, found: int, patient: bool = False) -> MultihostError | None:
        """The error that ``found``, what a probe has found at the address, amounts to, if any. ``patient``:
        the broker may have been away until now, so more handshakes have to fail."""
        if found != BROKER:
            self._found_at = None
        elif self.broken_off >= SILENT_FAILURES:
            if patient and self._found_at is None:
                self._found_at = self.broken_off
            if patient and self.broken_off < (self._found_at or 0) + FAILURES_AGAIN:
                return None
            return AuthError(
                f"what answers at {self._address} is not the broker this token is for (server key mismatch);"
                " copy a token from that broker's keys"
            )
        if found in (WEB, OTHER, OTHER_ZMQ):
            kinds = {WEB: "a web server", OTHER_ZMQ: "another ZeroMQ program", OTHER: "another service"}
            return self._stranger(kinds[found])
        return None

    def _stranger(self, what: str) -> MultihostError:
        return ConfigError(f"{self._address} is {what}, not a multihost broker; correct the host or the port")

    def no_answer(self, timeout: float) -> BrokerLostError:
        """The error for a handshake that came to nothing within ``timeout`` seconds."""
        where = self._address
        if not self.reached:
            return BrokerLostError(
                f"no broker answers at {where}; start one with 'multihost broker', or correct the address"
            )
        if self.broken_off:
            return BrokerLostError(
                f"{where} takes connections and closes them at once; see whether a broker runs behind it"
            )
        return BrokerLostError(
            f"{where} took the connection but did not answer within {timeout:g} s;"
            " see whether the broker is busy or stopped"
        )
