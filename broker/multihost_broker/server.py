"""The broker's shell: one ROUTER socket, the ZAP handler, the clock. What to do is the core's business."""

from __future__ import annotations

import errno
import logging
import resource
import signal
import socket as sockets
import sys
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import zmq

from multihost_broker.config import AddressInUseError, Config
from multihost_broker.core import Core, CoreConfig
from multihost_broker.events import Action, Event, Gone, Note, Read, Received, Send, Tick, Write
from multihost_broker.journal.keeper import Keeper
from multihost_broker.zap import Zap, prove_closed
from multihost_common.allocator import keep_freed_memory
from multihost_common.auth import secure_server, unlimited
from multihost_common.blobs import digest_of
from multihost_common.errors import ConfigError, ProtocolError
from multihost_common.keys import make_keys
from multihost_common.memory import available_memory
from multihost_common.messages import (
    ADMIN,
    PRODUCER,
    TEXT,
    WORKER,
    Blob,
    Bye,
    Feed,
    Hello,
    Refused,
    Result,
    encode,
)
from multihost_common.parts import MAX_FRAME
from multihost_common.waiter import Alarm, Waiter, milliseconds
from multihost_common.wire import (
    NOBLOCK,
    SNDMORE,
    check_address,
    message_of,
    more_frames,
    read_monitor,
    readable,
    send_frame,
    send_frames,
)

log = logging.getLogger("multihost.broker")

#: Messages taken before everything else gets its turn.
BATCH = 1000

#: Threads that encrypt and decrypt: what one peer sends, while another is sent to.
IO_THREADS = 2

#: What is passed on without a look into its buffers.
UNREAD = frozenset({Feed, Result})

#: Messages of one peer that have come and have not been heard.
UNHEARD = 1000

#: Versions before this one could be stopped by a peer that has no key.
OLDEST_LIBZMQ = (4, 3, 5)

#: What the monitor's number of a failed handshake means.
STRANGERS = {
    int(zmq.PROTOCOL_ERROR_ZMTP_CRYPTOGRAPHIC): "it expects another broker's key",
    int(zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH): "it does not encrypt",
}

#: File descriptors a broker may have: each connection takes one, and the usual limit is 1024.
DESCRIPTORS = 65_536

#: Seconds that a thread may keep Python's lock while another one wants it.
SWITCH = 0.0005

Peer = bytes


class Connections:
    """Which peer speaks over which TCP connection, so that its end is noticed.

    The monitor names a connection by its file descriptor, and the kernel gives the same number to the
    next connection. The monitor's events are in order, so reading them before a HELLO is booked keeps
    an old connection's end from being taken for the new one's.
    """

    def __init__(self, monitor: zmq.Socket[bytes]) -> None:
        self._monitor = monitor
        self._open: set[int] = set()
        self._peers: dict[int, Peer] = {}
        self._ended: list[Peer] = []

    def read(self) -> None:
        """Take in what the monitor has to tell."""
        for event, value in read_monitor(self._monitor):
            if event == zmq.EVENT_ACCEPTED:
                self._end(value)
                self._open.add(value)
            elif event in (zmq.EVENT_DISCONNECTED, zmq.EVENT_CLOSED):
                self._end(value)
            elif event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
                log.warning(
                    "a connection was refused: %s", STRANGERS.get(value, "what it sent is no handshake")
                )

    def _end(self, fd: int) -> None:
        self._open.discard(fd)
        peer = self._peers.pop(fd, None)
        if peer is not None:
            self._ended.append(peer)

    def book(self, peer: Peer, fd: int) -> None:
        """``peer`` speaks over ``fd``."""
        self.read()
        if fd in self._open:
            self._peers[fd] = peer
        else:
            self._ended.append(peer)

    def take_ended(self) -> list[Peer]:
        """Peers whose connection has ended since the last call."""
        if not self._ended:
            return self._ended
        ended, self._ended = self._ended, []
        return ended

    def peers(self) -> list[Peer]:
        """Everybody who is connected and has been booked."""
        return list(self._peers.values())


class Server:
    """A broker. ``run`` serves until :meth:`stop`, SIGTERM or SIGINT."""

    def __init__(self, config: Config | None = None) -> None:
        self.config = config or Config()
        self._check()
        self.keys = make_keys(self.config.keys)
        self._stopping = False
        self._strikes: dict[Peer, deque[float]] = {}
        self._muted: set[Peer] = set()
        self._wake_read, self._wake_write = sockets.socketpair()
        self._context: zmq.Context[Any] = zmq.Context(io_threads=IO_THREADS)
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def _check(self) -> None:
        if zmq.zmq_version_info() < OLDEST_LIBZMQ:
            raise ConfigError(f"libzmq {zmq.zmq_version()} is too old to be safe; install pyzmq 26 or newer")
        if not zmq.has("curve"):
            raise ConfigError("this libzmq was built without CURVE; install pyzmq from its wheel")

    def _open(self) -> None:
        port = _port(self.config.bind)
        if port:
            # Before it listens: a large journal takes its time, and who dials meanwhile is to try again.
            self.keeper = Keeper(self.config, port)
        self._wake_read.setblocking(False)
        self._wake_write.setblocking(False)
        self.zap = Zap(self._context, self.keys.tokens)
        self._socket: zmq.Socket[bytes] = self._context.socket(zmq.ROUTER)
        unlimited(self._socket)
        # What a peer sends faster than it is heard waits with the peer, not in this process's memory.
        self._socket.rcvhwm = UNHEARD
        secure_server(self._socket, self.keys.broker)
        self._socket.router_mandatory = True
        self._socket.router_handover = False
        self._socket.tcp_keepalive = 1
        self._socket.ipv6 = "[" in self.config.bind
        self._monitor = self._socket.get_monitor_socket(
            zmq.EVENT_ACCEPTED
            | zmq.EVENT_CLOSED
            | zmq.EVENT_DISCONNECTED
            | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
        )
        self._connections = Connections(self._monitor)
        #: Where it listens, with the port that was picked.
        self.address = self._bind(check_address(self.config.bind))
        prove_closed(self._context, self.zap, _reachable(self.address), self.keys.broker)
        read_monitor(self._monitor)
        if not port:
            self.keeper = Keeper(self.config, _port(self.address))
        self._begin()
        self._alarm = Alarm(self.core.deadline)

    def _begin(self) -> None:
        """Take up what the journal has."""
        most = self.config.max_memory
        self.core = Core(
            CoreConfig(
                epoch=self.keeper.epoch,
                max_frame=MAX_FRAME,
                max_memory=available_memory() // 2 if most is None else most,
                python=self.config.python,
                last_ticket=self.keeper.last,
                wall=time.time() - time.monotonic(),
            )
        )
        actions = self.core.restore(self.keeper.load(), time.monotonic())
        self.keeper.start(self._wake)
        self._carry_out(actions)

    def _bind(self, address: str) -> str:
        try:
            self._socket.bind(address)
        except zmq.ZMQError as error:
            if error.errno == errno.EADDRINUSE:
                raise AddressInUseError(
                    f"{address} is in use, perhaps by another broker; stop it or choose another --bind"
                ) from None
            raise ConfigError(f"cannot listen on {address}: {error.strerror}; correct --bind") from None
        bound: bytes = self._socket.getsockopt(zmq.LAST_ENDPOINT)  # type: ignore[assignment]
        return bound.decode().rstrip("\0")

    # -- the loop ------------------------------------------------------------------------------------

    def run(self, ready: Callable[[Server], None] | None = None) -> None:
        """Serve until told to stop; ``ready`` is called once peers can connect."""
        waiter = Waiter()
        handlers = {
            int(self.zap.socket.fd): self.zap.process,
            int(self._monitor.fd): self._connections.read,
            self._wake_read.fileno(): self._read_wake,
        }
        messages = int(self._socket.fd)
        for fd in (messages, *handlers):
            waiter.watch(fd)
        try:
            if ready is not None:
                ready(self)
            # Each is read to its end before its descriptor is waited for.
            for handle in handlers.values():
                handle()
            while not self._stopping:
                pending = readable(self._socket)
                if not pending and self._end_sessions():
                    # To send takes in the news of what has come meanwhile: ask again.
                    continue
                limit = BATCH if pending else 0
                for fd, _ in waiter.wait(0) if pending else waiter.wait_awake_first(self._patience):
                    if fd == messages:
                        # Most often one comes alone; of others the next question tells.
                        limit = limit or 1
                    else:
                        handlers[fd]()
                self._turn(limit)
            self._farewell()
        finally:
            self.close()

    def _wake(self) -> None:
        """Have the loop take its next turn. Safe from any thread and from a signal handler."""
        with suppress(OSError):
            self._wake_write.send(b"w")

    def _read_wake(self) -> None:
        with suppress(BlockingIOError):
            while self._wake_read.recv(4096):
                pass
        for event in self.keeper.events():
            self._tell(event)

    def _end_sessions(self) -> bool:
        """Of peers that have gone; were there any? Nothing waits: what a peer sent before it went has
        been heard."""
        ended = self._connections.take_ended()
        for peer in ended:
            self._strikes.pop(peer, None)
            self._muted.discard(peer)
            self._tell(Gone(peer))
        return bool(ended)

    def _turn(self, limit: int) -> None:
        """Take in up to ``limit`` messages, then the time."""
        if limit:
            self._receive(limit)
        if self._alarm.rings(time.monotonic()):
            self._tell(Tick())

    def _patience(self) -> float | None:
        """Seconds until the core wants a Tick."""
        return self._alarm.patience(time.monotonic())

    def _receive(self, limit: int) -> None:
        receive = self._socket.recv
        try:
            for _ in range(limit):
                peer = receive(NOBLOCK)
                self._take(peer, receive(NOBLOCK, copy=False))
        except zmq.Again:
            return

    def _take(self, peer: Peer, header: zmq.Frame) -> None:
        frames = more_frames(self._socket, header)
        if peer in self._muted:
            return
        role = self._role(header)
        if role is None:
            log.error("dropped a message without a user id from peer %s", peer.hex())
            return
        try:
            message = message_of(frames, UNREAD)
        except ProtocolError as error:
            self._strike(peer, role, error, header)
            return
        if type(message) is Hello:
            self._connections.book(peer, _descriptor(header))
        elif type(message) is Blob and digest_of(message.frames[0]) != message.digest:
            # Others will be given it by that name.
            self._strike(peer, role, ProtocolError("E_FIELD", "that content has another digest"), header)
            return
        self._tell(Received(peer, role, message))

    def _role(self, header: zmq.Frame) -> str | None:
        """The role of who sent this very message, as its token has it; None if nobody vouches for it."""
        try:
            return self.zap.roles.get(header.get("User-Id"))  # type: ignore[arg-type]
        except zmq.ZMQError:
            return None

    def _strike(self, peer: Peer, role: str, error: ProtocolError, header: zmq.Frame) -> None:
        now = time.monotonic()
        if peer not in self._strikes:
            # It need not have said Hello; its end has to be noticed all the same.
            self._connections.book(peer, _descriptor(header))
            self._strikes[peer] = deque(maxlen=self.config.strikes)
        recent = self._strikes[peer]
        recent.append(now)
        log.warning("refused a message of %s %s: %s", role, peer.hex(), error)
        self._send(peer, Refused(error.code, error.text[:TEXT]))
        if len(recent) == self.config.strikes and now - recent[0] <= self.config.strike_window:
            log.warning("%s %s is not listened to any more until it connects anew", role, peer.hex())
            self._muted.add(peer)
            self._tell(Gone(peer))

    # -- actions -------------------------------------------------------------------------------------

    def _tell(self, event: Event) -> None:
        self._carry_out(self.core.handle(event, time.monotonic()))

    def _carry_out(self, actions: list[Action]) -> None:
        for action in actions:
            if type(action) is Send:
                self._send(action.peer, action.message)  # type: ignore[arg-type]
            elif type(action) is Note:
                log.log(action.level, "%s", action.text)
            elif type(action) is Write or type(action) is Read:
                self.keeper.do(action)
            # There is nothing to do for Drop: the end of the connection is the peer's to make.

    def _send(self, peer: Peer, message: Any) -> None:
        frames = encode(message)
        try:
            send_frame(self._socket, peer, SNDMORE | NOBLOCK, True)
        except zmq.ZMQError as error:
            if error.errno not in (errno.EHOSTUNREACH, errno.EAGAIN):
                raise
            # Its Gone follows from the monitor; the core's own books bring back what was lost.
            return
        send_frames(self._socket, frames)

    def _farewell(self) -> None:
        """Workers first, so that what they have sent still gets to the producers."""
        for kinds in ((WORKER,), (PRODUCER, ADMIN, "")):
            self._part(kinds)

    def _part(self, kinds: tuple[str, ...]) -> None:
        """Say Bye to peers of these kinds, and let them be the ones to hang up, ``linger`` seconds long.

        A connection that ends takes along what its peer has not read yet: so libzmq does where
        ``ZMQ_IMMEDIATE`` is set, as it is at every :class:`Dealer`.
        """
        for peer in self._peers(kinds):
            self._send(peer, Bye("the broker was stopped"))
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._monitor, zmq.POLLIN)
        deadline = time.monotonic() + self.config.linger
        while self._peers(kinds) and (left := deadline - time.monotonic()) > 0:
            poller.poll(milliseconds(left))
            self._connections.read()
            self._receive(BATCH)

    def _peers(self, kinds: tuple[str, ...]) -> list[Peer]:
        sessions = self.core.sessions.by_peer
        return [
            peer
            for peer in self._connections.peers()
            if (sessions[peer].kind if peer in sessions else "") in kinds
        ]

    # -- ending --------------------------------------------------------------------------------------

    def stop(self) -> None:
        """End :meth:`run` soon. Safe from any thread and from a signal handler."""
        self._stopping = True
        self._wake()

    def close(self) -> None:
        """Let go of everything; what was sent last gets ``linger`` seconds to leave, what was written last is made
        durable. Raises StoreError if that cannot be done."""
        if self._context.closed:
            return
        try:
            self._hang_up()
        finally:
            if hasattr(self, "keeper"):
                self.keeper.close()
            self._wake_read.close()
            self._wake_write.close()

    def _hang_up(self) -> None:
        linger = int(self.config.linger * 1000)
        if hasattr(self, "_monitor"):
            self._socket.disable_monitor()
            self._monitor.close(0)
        if hasattr(self, "_socket"):
            self._socket.close(linger)
        self._context.set(zmq.BLOCKY, 0)
        if hasattr(self, "zap"):
            self.zap.close()
        self._context.term()


def _descriptor(header: zmq.Frame) -> int:
    """The connection that a message came over."""
    return int(header.get(zmq.SRCFD))


def _port(address: str) -> int:
    return int(check_address(address).rpartition(":")[2])


def _reachable(address: str) -> str:
    """An address to dial from this host for one that is listened on."""
    return address.replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:")


def serve(config: Config) -> None:
    """Run a broker in this process until SIGTERM or SIGINT."""
    _allow_connections()
    keep_freed_memory()
    # The journal's thread waits for Python's lock behind a busy loop.
    sys.setswitchinterval(SWITCH)
    server = Server(config)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    wakeup = signal.set_wakeup_fd(server._wake_write.fileno(), warn_on_full_buffer=False)
    for number in before:
        signal.signal(number, lambda *_: server.stop())
    try:
        server.run(_announce)
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)


def _allow_connections() -> None:
    """Raise the limit of file descriptors as far as this user may."""
    with suppress(OSError, ValueError):
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(DESCRIPTORS, hard)
        if soft != resource.RLIM_INFINITY and soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _announce(server: Server) -> None:
    journal = server.keeper.directory
    print(
        f"multihost broker listening on {server.address} (keys in {server.keys.directory}, "
        f"{f'journal in {journal}' if journal else 'no journal'})",
        flush=True,
    )


__all__ = ["Config", "Server", "serve"]
