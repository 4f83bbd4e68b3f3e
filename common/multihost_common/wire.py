"""Messages over ZeroMQ: frames in and out, and :class:`Dealer`, the end that dials.

Frames go one ``send`` and one ``recv`` each: the ``*_multipart`` helpers cost several times as much.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, TypeAlias, cast

import zmq
from zmq.backend import Socket as BackendSocket

from multihost_common.auth import HandshakeWatch, secure_client, unlimited
from multihost_common.blocks import Frame
from multihost_common.errors import (
    BrokerLostError,
    ConfigError,
    HandshakeError,
    MultihostError,
    ProtocolError,
)
from multihost_common.keys import Token
from multihost_common.messages import Bye, Hello, Lease, Message, Refused, Welcome, decode, encode
from multihost_common.parts import cut, join
from multihost_common.probe import PROBE_TIMEOUT, probe
from multihost_common.rope import whole
from multihost_common.waiter import milliseconds

Socket: TypeAlias = "zmq.Socket[bytes]"

#: Frames of this size and more are not copied out of ZeroMQ; below, a copy is cheaper.
NO_COPY_BYTES = 65_536

#: And such are not copied into it: a thread of pyzmq's is told of each that has gone.
SEND_NO_COPY_BYTES = 524_288

#: Number of the first frame of a message with work that is a buffer: behind the header, the lengths of the pickles, and
#: these.
BUFFERS = 3

#: What an agent passes on to its children without looking into buffers; nobody else is told such.
UNREAD: frozenset[type[Message]] = frozenset({Lease})

#: Milliseconds between two attempts to connect: the first, and the longest.
RECONNECT_MS, RECONNECT_MAX_MS = 100, 2000

#: Seconds a closing socket may take to hand over what was sent last.
LINGER = 1.0

CONNECTED, DISCONNECTED = "connected", "disconnected"

#: Without what :class:`zmq.Socket` adds for drafts of libzmq: that costs half as much as to send.
send_frame: Callable[[Socket, Frame, int, bool], object] = cast("Any", BackendSocket.send)

# Plain numbers: arithmetic on pyzmq's enums costs more than sending.
SNDMORE, NOBLOCK = int(zmq.SNDMORE), int(zmq.NOBLOCK)
EVENTS, READABLE = int(zmq.EVENTS), int(zmq.POLLIN)

#: Milliseconds to connect, and for the handshake, before the next attempt: a host that was cut off is
#: found again soon.
CONNECT_MS, HANDSHAKE_MS = 5000, 10_000

#: Seconds into a handshake, and between two looks at who answers there.
DOUBT = 1.0

#: And once a broker has been found: enough for some more handshakes.
SUSPICION = 0.5

_MONITORED = (
    zmq.EVENT_CONNECTED
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)


def send_frames(socket: Socket, frames: Sequence[Frame], flags: int = NOBLOCK) -> None:
    """Send ``frames`` as one message."""
    frames = cut(frames)
    last = len(frames) - 1
    for frame in frames[:last]:
        send_frame(socket, frame, flags | SNDMORE, len(frame) < SEND_NO_COPY_BYTES)
    frame = frames[last]
    send_frame(socket, frame, flags, len(frame) < SEND_NO_COPY_BYTES)


def more_frames(socket: Socket, first: zmq.Frame) -> list[Frame]:
    """What has come with ``first``, for :func:`message_of`; large ones as views of ZeroMQ's memory."""
    frames: list[Frame] = [first.bytes if len(first) < NO_COPY_BYTES else first.buffer]
    part = first
    while part.more:
        # The frames of a message arrive together: this does not block.
        part = socket.recv(NOBLOCK, copy=False)
        frames.append(part.bytes if len(part) < NO_COPY_BYTES else part.buffer)
    return frames


def message_of(travelled: Sequence[Frame], unread: frozenset[type[Message]]) -> Message:
    """The message that has come as these frames. In those of the classes ``unread`` large buffers stay ropes, see
    :func:`~multihost_common.parts.join`. Raises ProtocolError."""
    frames = join(travelled, BUFFERS)
    message = decode(frames)
    if frames is not travelled and type(message) not in unread:
        # It has payload, else it would have been refused.
        message.frames = [whole(frame) for frame in message.frames]  # type: ignore[attr-defined]
    return message


def readable(socket: Socket) -> bool:
    """Whether a message has come. To be asked before each wait for the descriptor: it tells of what
    comes to an empty socket, once, and to send takes in what it would tell."""
    events: int = socket.get(EVENTS)  # type: ignore[assignment]
    return bool(events & READABLE)


def nbytes(frames: Sequence[Frame]) -> int:
    """The size of the largest frame."""
    return max(map(len, frames))


def check_address(address: str) -> str:
    """``address`` as ``tcp://host:port``; the scheme may be left out."""
    full = address if "://" in address else f"tcp://{address}"
    scheme, _, rest = full.partition("://")
    host, _, port = rest.rpartition(":")
    if scheme != "tcp" or not host or not port.isdigit() or int(port) > 65_535:
        raise ConfigError(f"the address {address!r} cannot be used; write it like tcp://host:5555")
    return full


def read_monitor(monitor: Socket) -> list[tuple[int, int]]:
    """(event, value) of everything a monitor socket has to tell."""
    told = []
    with suppress(zmq.Again):
        while True:
            head = monitor.recv(NOBLOCK)
            monitor.recv(NOBLOCK)
            event, value = struct.unpack("=hi", head)
            told.append((event & 0xFFFF, value))
    return told


class Dealer:
    """The dialling end of a connection to a broker, for one thread at a time.

    Register ``socket`` and ``monitor`` with a ``zmq.Poller``, or watch ``fds``; when either is readable,
    call :meth:`receive` and :meth:`signals`. ZeroMQ dials again by itself for ever, but the broker knows a
    new connection only by a new HELLO: the owner sends one for every ``CONNECTED`` signal.
    """

    def __init__(self, address: str, token: Token, *, context: zmq.Context[Any] | None = None) -> None:
        self.address = check_address(address)
        #: Bytes of one frame that the broker takes; known from its Welcome.
        self.max_frame = 0
        self._pid = os.getpid()
        self._own = context is None
        self._context: zmq.Context[Any] = zmq.Context() if context is None else context
        self._watch = HandshakeWatch(self.address)
        self._failure: MultihostError | None = None
        self.socket: Socket = self._context.socket(zmq.DEALER)
        try:
            self._dial(token)
        except BaseException:
            self.close()
            raise

    def _dial(self, token: Token) -> None:
        socket = self.socket
        try:
            unlimited(socket)
            secure_client(socket, token)
            socket.reconnect_ivl, socket.reconnect_ivl_max = RECONNECT_MS, RECONNECT_MAX_MS
            # With it, libzmq would try only the IPv6 address of a name that has both.
            socket.ipv6 = "[" in self.address
            socket.tcp_keepalive = 1
            # What waits while nobody is connected would reach the next broker before our HELLO.
            socket.immediate = True
            socket.connect_timeout, socket.handshake_ivl = CONNECT_MS, HANDSHAKE_MS
            self.monitor: Socket = socket.get_monitor_socket(_MONITORED)
            socket.connect(self.address)
        except zmq.ZMQError as error:
            raise ConfigError(f"the address {self.address!r} cannot be used: {error.strerror}") from None
        #: Descriptors of messages and of signals, for a :class:`Waiter`.
        self.fds = (int(socket.fd), int(self.monitor.fd))

    def register(self, poller: zmq.Poller) -> None:
        """Watch both sockets with ``poller``."""
        poller.register(self.socket, zmq.POLLIN)
        poller.register(self.monitor, zmq.POLLIN)

    def unregister(self, poller: zmq.Poller) -> None:
        """Undo :meth:`register`."""
        poller.unregister(self.socket)
        poller.unregister(self.monitor)

    def send(self, message: Message) -> None:
        """Send without waiting. Raises BrokerLostError while there is no connection, and ProtocolError
        for a frame the broker would not take."""
        frames = encode(message)
        if self.max_frame and nbytes(frames) > self.max_frame:
            raise ProtocolError(
                "E_SIZE", f"{nbytes(frames)} bytes in one piece; the broker takes {self.max_frame}"
            )
        try:
            try:
                send_frames(self.socket, frames)
            except zmq.Again:
                # Asking for the events makes ZeroMQ see a connection that has only just been made.
                self.socket.get(EVENTS)
                send_frames(self.socket, frames)
        except zmq.Again:
            raise BrokerLostError(f"there is no connection to the broker at {self.address}") from None

    def receive(self, limit: int = 0) -> list[Message]:
        """Everything that has come (``limit``: at most so many messages), without waiting.

        What :meth:`pending` has told of has waited, and may not be alone; what ends a wait for ``fds``
        most often is, and the next :meth:`pending` tells of more. So ask for one then.
        """
        messages: list[Message] = []
        receive, socket = self.socket.recv, self.socket
        try:
            while True:
                messages.append(message_of(more_frames(socket, receive(NOBLOCK, copy=False)), UNREAD))
                # Asking costs half of what an exception does.
                if len(messages) == limit or (len(messages) == 1 and not readable(socket)):
                    return messages
        except zmq.Again:
            return messages

    def pending(self) -> bool:
        """Whether a message has come; to be asked before each wait for ``fds``."""
        return readable(self.socket)

    def signals(self) -> list[str]:
        """``CONNECTED`` and ``DISCONNECTED``, in order, since the last call.

        Raises AuthError once the broker has refused the token, ConfigError if it is no broker.
        """
        signals = []
        for event, _ in read_monitor(self.monitor):
            self._failure = self._watch.told(event, time.monotonic()) or self._failure
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                signals.append(CONNECTED)
            elif event == zmq.EVENT_DISCONNECTED:
                signals.append(DISCONNECTED)
        if self._failure is not None:
            raise self._failure
        return signals

    @property
    def given_up(self) -> bool:
        """Whether ZeroMQ does not dial any more: what answered does not speak its protocol."""
        return self._watch.given_up

    @property
    def doubtful(self) -> bool:
        """Whether it is time to :meth:`diagnose`."""
        return self._watch.doubtful

    @property
    def suspicious(self) -> bool:
        """Whether another :meth:`diagnose` is worth while soon: it may be another broker."""
        return self._watch.suspicious

    def diagnose(self, timeout: float = PROBE_TIMEOUT, patient: bool = False) -> None:
        """Look at what answers at the address, for ``timeout`` seconds at most; ``patient``: the broker may
        have come back just now.

        Raises AuthError or ConfigError if that is not, and will not become, the broker of the token.
        """
        failure = self._watch.judge(probe(self.address, timeout), patient)
        if failure is not None:
            raise failure

    def handshake(self, hello: Hello, timeout: float = 5.0) -> Welcome:
        """Connect, say ``hello``, and wait for the broker's answer.

        Raises AuthError (token, server key), HandshakeError (refused), ConfigError (not a broker) or
        BrokerLostError (no answer).
        """
        began = time.monotonic()
        deadline, doubt = began + timeout, began + min(DOUBT, timeout / 2)
        poller = zmq.Poller()
        self.register(poller)
        connected = looked = False
        while True:
            poller.poll(milliseconds(min(deadline, doubt) - time.monotonic()))
            if CONNECTED in self.signals():
                connected = True
                # If it has ended already, the next one follows.
                with suppress(BrokerLostError):
                    self.send(hello)
            welcome = self._answer()
            if welcome is not None:
                return welcome
            now = time.monotonic()
            if now >= deadline:
                raise self._watch.no_answer(timeout)
            if now >= doubt or (self.doubtful and not looked):
                doubt = now + 2 * DOUBT
                looked = self._watch.reached and not connected
                if looked:
                    self.diagnose(min(PROBE_TIMEOUT, deadline - now), patient=True)
                    if self.suspicious:
                        doubt = now + SUSPICION

    def _answer(self) -> Welcome | None:
        """The Welcome, if it has come; nothing behind it is taken."""
        for message in self.receive(limit=1):
            if isinstance(message, Welcome):
                self.welcomed(message)
                return message
            if isinstance(message, Refused):
                raise HandshakeError(message.text)
            if isinstance(message, Bye):
                raise BrokerLostError(f"the broker at {self.address} is going down: {message.reason}")
        return None

    def welcomed(self, welcome: Welcome) -> None:
        """Heed the limits in the broker's Welcome."""
        self.max_frame = welcome.max_frame

    def close(self, linger: float = LINGER) -> None:
        """Let go of the connection; what was sent last gets ``linger`` seconds to leave.

        In a forked child this does nothing: the sockets are the parent's.
        """
        if os.getpid() != self._pid:
            return
        if not self.socket.closed:
            self.socket.disable_monitor()
            self.socket.close(int(linger * 1000))
            if hasattr(self, "monitor"):
                self.monitor.close(0)
        if self._own and not self._context.closed:
            self._context.term()
