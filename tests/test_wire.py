"""The dialling end: what it says of whatever answers, what it passes, what it leaves behind."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import msgpack
import pytest
from shells import Broker, Peer, broker, hello, peer, settle, until
from strangers import closes, nobody, plain_zmq, silent, talker, web

from multihost_common import messages as m
from multihost_common import probe as p
from multihost_common.blobs import digest_of
from multihost_common.errors import (
    AuthError,
    BrokerLostError,
    ConfigError,
    HandshakeError,
    MultihostError,
    ProtocolError,
)
from multihost_common.keys import Token, find_token, make_keys, make_token
from multihost_common.parts import MAX_FRAME, PART
from multihost_common.waiter import Waiter, milliseconds
from multihost_common.wire import DISCONNECTED, Dealer, check_address

Stranger = Callable[[], AbstractContextManager[str]]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    with broker(tmp_path_factory.mktemp("wire") / "keys") as b:
        yield b
    settle()


@pytest.fixture
def token(running: Broker) -> Token:
    return find_token("producer", keys=running.keys)


def shake_hands(
    address: str, token: Token, said: m.Hello | None = None, patience: float = 5.0
) -> MultihostError:
    """The error a handshake ends with, which took no more than its time: five seconds, if not told."""
    dealer = Dealer(address, token)
    began = time.monotonic()
    try:
        with pytest.raises(MultihostError) as caught:
            dealer.handshake(said or hello("producer"), patience)
        assert time.monotonic() - began < patience + 0.5
        text = str(caught.value)
        assert address in text or "token" in text or said
        assert "\n" not in text
        return caught.value
    finally:
        dealer.close(0)


@pytest.mark.parametrize(
    ("stranger", "kind", "says"),
    [
        (nobody, BrokerLostError, "no broker answers at .* start one"),
        (silent, BrokerLostError, "did not answer within 2 s"),
        (closes, BrokerLostError, "closes them at once"),
        (web, ConfigError, "is a web server, not a multihost broker"),
        (talker, ConfigError, "is another service, not a multihost broker"),
        (plain_zmq, ConfigError, "is another ZeroMQ program, not a multihost broker"),
    ],
)
def test_what_is_no_broker_is_told(
    token: Token, stranger: Stranger, kind: type[MultihostError], says: str
) -> None:
    with stranger() as address:
        error = shake_hands(address, token, patience=2.0)
    assert type(error) is kind
    with pytest.raises(kind, match=says):
        raise error


def test_what_is_no_broker_is_told_soon(token: Token) -> None:
    for stranger in (web, talker, plain_zmq):
        began = time.monotonic()
        with stranger() as address:
            shake_hands(address, token)
        assert time.monotonic() - began < 3.5


def test_an_unknown_token_is_refused(running: Broker, token: Token, tmp_path: Path) -> None:
    other = make_keys(tmp_path / "keys")
    stranger = next(each for each in other.tokens if each.role == "producer")
    error = shake_hands(running.address, stranger._replace(server=token.server))
    assert isinstance(error, AuthError)
    assert "does not accept this token" in str(error)
    running.wait_for(r"a connection from 127\.0\.0\.1 was refused: its key is unknown")


def test_a_token_of_another_broker(running: Broker, tmp_path: Path) -> None:
    other = make_keys(tmp_path / "keys")
    stranger = next(each for each in other.tokens if each.role == "producer")
    error = shake_hands(running.address, stranger)
    assert isinstance(error, AuthError)
    assert "server key mismatch" in str(error)
    running.wait_for("a connection was refused: it expects another broker's key")


def test_a_broker_that_has_just_come_back_behind_a_forwarder_is_no_other_broker(tmp_path: Path) -> None:
    keys = make_keys(tmp_path / "keys").directory
    with closes() as address:
        dealer = Dealer(address, find_token("producer", keys=keys))
        until(lambda: dealer.signals() is None or dealer.doubtful, "handshakes broken off")
    try:
        with broker(keys, bind=address):
            dealer.diagnose(patient=True)
            assert dealer.suspicious
            assert dealer.handshake(hello("producer")).session
            assert not dealer.suspicious
    finally:
        dealer.close()


def test_an_expired_token_is_refused_by_the_broker_too(tmp_path: Path) -> None:
    directory = make_keys(tmp_path / "keys").directory
    old = make_token(directory, "producer", "old", expires=1)
    with broker(directory) as b:
        line = old.read_text().split()
        token = Token(line[1], line[2], line[3], line[4], line[5])
        assert isinstance(shake_hands(b.address, token), AuthError)
        b.wait_for("the token old has expired")


@pytest.mark.parametrize(
    ("role", "changes", "says"),
    [
        ("worker", {}, "a worker token does not make a producer"),
        ("metrics", {}, "a metrics token may not send Hello"),
        ("producer", {"kind": "worker"}, "a producer token does not make a worker"),
        (
            "producer",
            {"protocol": 999},
            f"speaks protocol 999, the broker {m.PROTOCOL_VERSION}: install the same",
        ),
        ("producer", {"python": "2.7"}, r"runs Python 2\.7, this cluster runs 3\.\d+: .* use the same"),
    ],
)
def test_who_may_not_open_a_session_is_told_why(
    running: Broker, role: str, changes: dict[str, object], says: str
) -> None:
    with peer(running, "producer"):
        error = shake_hands(
            running.address, find_token(role, keys=running.keys), hello("producer", **changes)
        )
    assert isinstance(error, HandshakeError)
    with pytest.raises(HandshakeError, match=says):
        raise error


def test_a_frozen_broker_is_told_within_five_seconds(tmp_path: Path) -> None:
    import signal

    with broker(tmp_path / "keys") as b, peer(b, "admin") as admin:
        b.signal(signal.SIGSTOP)
        error = shake_hands(b.address, find_token("producer", keys=b.keys))
        assert isinstance(error, BrokerLostError)
        assert "did not answer" in str(error)
        b.signal(signal.SIGCONT)
        assert admin.ask("health")["ok"]


@pytest.mark.parametrize(
    "text", ["", "here", "tcp://here", "here:port", ":5", "udp://a:5", "a:70000", "a:-1"]
)
def test_addresses_that_cannot_be_used(text: str) -> None:
    with pytest.raises(ConfigError, match="write it like tcp://host:5555"):
        check_address(text)


def test_the_scheme_of_an_address_may_be_left_out() -> None:
    assert check_address("here:5555") == check_address("tcp://here:5555") == "tcp://here:5555"


def test_a_name_that_does_not_resolve(token: Token) -> None:
    assert isinstance(shake_hands("tcp://no-such-host.invalid:5555", token, patience=1.0), BrokerLostError)


def test_frames_of_all_sizes_pass_unchanged(running: Broker) -> None:
    with peer(running, "producer") as producer:
        for size in (0, 1, 65_535, 65_536, PART - 1, PART, PART + 1, 3 * PART):
            content = os.urandom(size)
            producer.send(m.Blob(digest_of(content), (content,)))
            assert producer.ask("health")["ok"]
        producer.send(m.Blob(digest_of(b"one thing"), (b"another",)))
        assert producer.refused() == "E_FIELD"


def test_a_broker_takes_no_memory_for_what_is_announced_too_large(running: Broker) -> None:
    with peer(running, "producer") as rude, peer(running, "producer") as other:
        rude.dealer.socket.send_multipart([b"", bytes(2 * PART)])
        until(lambda: DISCONNECTED in rude.dealer.signals(), "the broker hangs up")
        assert other.ask("health")["ok"]


def test_a_torn_frame_is_refused_and_what_comes_next_is_heard(running: Broker) -> None:
    with peer(running, "producer") as rude:
        rude.dealer.socket.send_multipart([m.encode(m.Blob(b"d" * 32, (b"",)))[0], bytes(PART)])
        assert rude.refused() == "E_FRAMES"
        assert rude.ask("health")["ok"]


@pytest.mark.parametrize(
    ("frames", "inline"),
    [
        ((b"", b""), True),
        ((b"x" * 24, b"y" * 1000), True),
        ((b"x" * 24, b"y" * 1001), False),
        ((b"a", memoryview(b"b"), bytearray(b"c"), b"d"), True),
        ((b"a", b"b", b"c", b"d", b"e"), False),
    ],
)
def test_small_payload_travels_inside_the_header(frames: tuple[bytes, ...], inline: bool) -> None:
    sent = m.encode(m.Feed(7, 0, 1, 1, frames))
    assert len(sent) == (1 if inline else 1 + len(frames))
    got = m.decode(sent)
    assert isinstance(got, m.Feed)
    assert [bytes(each) for each in got.frames] == [bytes(each) for each in frames]
    assert got.job == 7


@pytest.mark.parametrize(
    ("payload", "frames", "code"),
    [
        ([b"a", b"b"], [b"c", b"d"], "E_DECODE"),
        ([b"a"], [], "E_FRAMES"),
        ([b"a"] * 59, [], "E_FRAMES"),
        (["a", "b"], [], "E_DECODE"),
        ([b"a", 7], [], "E_DECODE"),
        ([], [b"a"], "E_FRAMES"),
    ],
)
def test_payload_inside_the_header_is_checked(payload: list[object], frames: list[bytes], code: str) -> None:
    header = [m.Feed.opcode, 7, 0, 1, 1, *payload]
    if len(payload) == 59:
        header = [m.Cancel.opcode, 7, 0, 1, True, *payload]
    with pytest.raises(ProtocolError, match=code):
        m.decode([msgpack.packb(header), *frames])


def test_a_frame_the_broker_would_not_take_is_not_sent(running: Broker) -> None:
    with peer(running, "producer") as producer:
        assert producer.dealer.max_frame == MAX_FRAME
        producer.dealer.max_frame = 1000
        with pytest.raises(ProtocolError, match=r"E_SIZE: \d+ bytes in one piece; the broker takes 1000"):
            producer.send(m.Blob(b"d" * 32, (bytes(2000),)))
        assert producer.ask("health")["ok"]


def test_nothing_is_sent_without_a_connection(token: Token) -> None:
    with nobody() as address:
        dealer = Dealer(address, token)
        try:
            with pytest.raises(BrokerLostError, match="no connection"):
                dealer.send(m.Beat())
        finally:
            dealer.close()


def test_news_wakes_who_waits_for_the_descriptors(running: Broker) -> None:
    waiter = Waiter()
    with peer(running, "admin", connect=False) as admin:
        dealer = admin.dealer
        for fd in dealer.fds:
            waiter.watch(fd)
        deadline = time.monotonic() + 10
        while "connected" not in dealer.signals():
            assert time.monotonic() < deadline
            waiter.wait(0 if dealer.pending() else 10)
        for number in range(200):
            admin.send(hello("admin") if not number else m.Ask("health"))
            heard: list[m.Message] = []
            while not heard:
                assert time.monotonic() < deadline
                if not dealer.pending():
                    # A beat a second would hide a wake-up that was missed.
                    before = time.monotonic()
                    assert waiter.wait(5)
                    assert time.monotonic() - before < 0.9
                heard = [each for each in dealer.receive() if type(each) is not m.Beat]


def test_a_forked_process_leaves_the_connection_alone(running: Broker) -> None:
    with peer(running, "admin") as admin:
        pid = os.fork()
        if not pid:
            admin.close()
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        assert admin.ask("health")["ok"]


def test_dialling_leaves_no_descriptor(running: Broker, token: Token) -> None:
    def dial() -> None:
        made = Peer(running, "producer")
        made.connect()
        made.close()

    dial()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        dial()
    for _ in range(5):
        with nobody() as address:
            Dealer(address, token).close(0)
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_end_of_a_connection_is_told(tmp_path: Path) -> None:
    with broker(tmp_path / "keys") as b, peer(b, "producer") as producer:
        b.process.kill()
        assert producer.dealer.monitor.poll(10_000)
        assert producer.dealer.signals() == [DISCONNECTED]


def test_milliseconds_are_never_too_few() -> None:
    assert milliseconds(0.0101) == 11
    assert milliseconds(-5) == 0


@pytest.mark.parametrize(
    ("stranger", "found"),
    [
        (nobody, p.NOBODY),
        (silent, p.SILENT),
        (closes, p.CLOSES),
        (web, p.WEB),
        (talker, p.OTHER),
        (plain_zmq, p.OTHER_ZMQ),
    ],
)
def test_a_probe_tells_what_is_there(stranger: Stranger, found: int) -> None:
    with stranger() as address:
        assert p.probe(address) == found


def test_a_probe_knows_a_broker_and_does_it_no_harm(running: Broker) -> None:
    assert p.probe(running.address) == p.BROKER
    with peer(running, "admin") as admin:
        assert admin.ask("health")["ok"]


def test_a_probe_ends_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=1) as server:
        address = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        began = time.monotonic()
        assert p.probe(address, 0.2) == p.SILENT
        assert time.monotonic() - began < 2
