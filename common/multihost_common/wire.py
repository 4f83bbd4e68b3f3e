"""Messages over ZeroMQ: frames in and out, and :class:`Dealer`, the end that dials.

Frames go one ``send`` and one ``recv`` each: the ``*_multipart`` helpers cost several times as much.
"""

from __future__ import annotations

import math
import os
import struct
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, TypeAlias

import zmq

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
from multihost_common.messages import Bye, Hello, Message, Refused, Welcome, decode, encode

Socket: TypeAlias = "zmq.Socket[bytes]"

#: Frames of this size and more are neither copied into ZeroMQ nor out of it; below, a copy is cheaper.
NO_COPY_BYTES = 65_536

#: Milliseconds between two attempts to connect: the first, and the longest.
RECONNECT_MS, RECONNECT_MAX_MS = 100, 2000

#: Seconds a closing socket may take to hand over what was sent last.
LINGER = 1.0

CONNECTED, DISCONNECTED = "connected", "disconnected"

_MONITORED = (
    zmq.EVENT_CONNECTED
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)


def send_frames(socket: Socket, frames: Sequence[Frame], flags: int = 0) -> None:
    """Send ``frames`` as one message."""
    last = len(frames) - 1
    for number, frame in enumerate(frames):
        more = zmq.SNDMORE if number < last else 0
        socket.send(frame, flags | more, copy=len(frame) < NO_COPY_BYTES)


def more_frames(socket: Socket, first: zmq.Frame) -> list[Frame]:
    """The frames of the message that begins with ``first``; large ones as views of ZeroMQ's memory."""
    frames = [_content(first)]
    part = first
    while part.more:
        # The frames of a message arrive together: this does not block.
        part = socket.recv(zmq.NOBLOCK, copy=False)
        frames.append(_content(part))
    return frames


def _content(frame: zmq.Frame) -> Frame:
    return frame.bytes if len(frame) < NO_COPY_BYTES else frame.buffer


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
            head = monitor.recv(zmq.NOBLOCK)
            monitor.recv(zmq.NOBLOCK)
            event, value = struct.unpack("=hi", head)
            told.append((event & 0xFFFF, value))
    return told


def milliseconds(seconds: float) -> int:
    """For ``poll``: rounded up, so that what is due then is due indeed."""
    return max(0, math.ceil(seconds * 1000))


class Dealer:
    """The dialling end of a connection to a broker, for one thread at a time.

    Register ``socket`` and ``monitor`` with a ``zmq.Poller``; when either is readable, call
    :meth:`receive` and :meth:`signals`. ZeroMQ dials again by itself for ever, but the broker knows a
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
            self.monitor: Socket = socket.get_monitor_socket(_MONITORED)
            socket.connect(self.address)
        except zmq.ZMQError as error:
            raise ConfigError(f"the address {self.address!r} cannot be used: {error.strerror}") from None

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
                send_frames(self.socket, frames, zmq.NOBLOCK)
            except zmq.Again:
                # Asking for the events makes ZeroMQ see a connection that has only just been made.
                self.socket.get(zmq.EVENTS)
                send_frames(self.socket, frames, zmq.NOBLOCK)
        except zmq.Again:
            raise BrokerLostError(f"there is no connection to the broker at {self.address}") from None

    def receive(self, limit: int = 0) -> list[Message]:
        """Everything that has come (``limit``: at most so many messages), without waiting."""
        messages: list[Message] = []
        receive = self.socket.recv
        with suppress(zmq.Again):
            while not limit or len(messages) < limit:
                first = receive(zmq.NOBLOCK, copy=False)
                messages.append(decode(more_frames(self.socket, first)))
        return messages

    def signals(self) -> list[str]:
        """``CONNECTED`` and ``DISCONNECTED``, in order, since the last call.

        Raises AuthError once the broker, or what answers in its place, has refused the token.
        """
        signals = []
        for event, _ in read_monitor(self.monitor):
            self._failure = self._watch.told(event) or self._failure
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                signals.append(CONNECTED)
            elif event == zmq.EVENT_DISCONNECTED:
                signals.append(DISCONNECTED)
        if self._failure is not None:
            raise self._failure
        return signals

    def handshake(self, hello: Hello, timeout: float = 5.0) -> Welcome:
        """Connect, say ``hello``, and wait for the broker's answer.

        Raises AuthError (token, server key), HandshakeError (refused) or BrokerLostError (no answer).
        """
        deadline = time.monotonic() + timeout
        poller = zmq.Poller()
        self.register(poller)
        while True:
            poller.poll(milliseconds(deadline - time.monotonic()))
            if CONNECTED in self.signals():
                self.send(hello)
            welcome = self._answer()
            if welcome is not None:
                return welcome
            if time.monotonic() >= deadline:
                raise self._no_answer(timeout)

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

    def _no_answer(self, timeout: float) -> BrokerLostError:
        if self._watch.reached:
            return BrokerLostError(
                f"{self.address} took the connection but did not answer within {timeout:g} s;"
                " see whether the broker is busy or stopped"
            )
        return BrokerLostError(
            f"no broker answers at {self.address}; start one with 'multihost broker', or correct the address"
        )

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
