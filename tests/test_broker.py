"""A real broker on loopback: it lives on whatever it is sent, lets in whom it knows, and ends in order."""

from __future__ import annotations

import ast
import os
import pickle
import signal
import socket
import time
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import msgpack
import pytest
import zmq
from shells import PATIENCE, Broker, Peer, Shell, broker, command, hello, multihost_argv, peer, settle, until

import multihost_broker
import multihost_common
from multihost_broker import server
from multihost_broker.zap import Zap
from multihost_common import messages as m
from multihost_common.auth import secure_client
from multihost_common.blobs import digest_of
from multihost_common.blocks import pack_lengths
from multihost_common.errors import EX_CANTCREAT, EX_CONFIG, AuthError, MultihostError
from multihost_common.keys import find_token, make_token

#: Malformed messages within ten seconds after which a peer is not listened to.
STRIKES = 20

MIB = 1 << 20


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    with broker(tmp_path_factory.mktemp("broker") / "keys") as b:
        yield b
        assert b.process.poll() is None
        assert "Traceback" not in b.stderr
    settle()


@pytest.fixture
def admin(running: Broker) -> Iterator[Peer]:
    with peer(running, "admin") as made:
        yield made


def tcp(of: Broker) -> socket.socket:
    host, _, port = of.address.removeprefix("tcp://").rpartition(":")
    return socket.create_connection((host, int(port)), timeout=PATIENCE)


def closed_within(sock: socket.socket, seconds: float) -> bool:
    """Whether the other end hangs up in time."""
    sock.settimeout(seconds)
    try:
        while sock.recv(65_536):
            pass
    except ConnectionError:
        return True
    except TimeoutError:
        return False
    return True


# -- strangers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"\0" * 64,
        b"\xff" * 64,
    ],
    ids=["http", "tls", "zeros", "ones"],
)
def test_other_protocols_are_hung_up_on(running: Broker, admin: Peer, data: bytes) -> None:
    with tcp(running) as sock:
        sock.sendall(data)
        assert closed_within(sock, 7)
    assert admin.ask("health")["ok"]


def test_random_bytes_do_no_harm(running: Broker, admin: Peer) -> None:
    for size in (1, 10, 11, 63, 64, 65, 1000, 100_000):
        with tcp(running) as sock:
            try:
                sock.sendall(os.urandom(size))
            except ConnectionError:
                continue
    greeting = b"\xff" + bytes(7) + b"\x01\x7f\x03\x00" + b"CURVE".ljust(20, b"\0") + bytes(32)
    for size in (0, 1, 200, 100_000):
        with tcp(running) as sock:
            try:
                sock.sendall(greeting + b"\x04\xc8\x05HELLO" + os.urandom(size))
            except ConnectionError:
                continue
    assert admin.ask("health")["ok"]


def test_a_frame_that_claims_to_be_huge_takes_no_memory(running: Broker, admin: Peer) -> None:
    before = running.rss()
    greeting = b"\xff" + bytes(7) + b"\x01\x7f\x03\x00" + b"CURVE".ljust(20, b"\0") + bytes(32)
    socks = [tcp(running) for _ in range(20)]
    for sock in socks:
        sock.sendall(greeting + b"\x06" + (1 << 62).to_bytes(8, "big") + bytes(1000))
    assert all(closed_within(sock, 7) for sock in socks)
    for sock in socks:
        sock.close()
    assert admin.ask("health")["ok"]
    assert running.rss() - before < 20 * MIB


def test_half_open_connections_are_closed_and_harm_nobody(running: Broker, admin: Peer) -> None:
    before = running.descriptors()
    socks = [tcp(running) for _ in range(200)]
    worst = 0.0
    for _ in range(20):
        began = time.monotonic()
        assert admin.ask("health")["ok"]
        worst = max(worst, time.monotonic() - began)
    assert worst < 1
    assert all(closed_within(sock, 10) for sock in socks)
    for sock in socks:
        sock.close()
    until(lambda: running.descriptors() <= before, "the broker closes its ends")


def test_a_peer_without_encryption_gets_nowhere(running: Broker, admin: Peer) -> None:
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.linger = 0
        dealer.connect(running.address)
        running.wait_for("a connection was refused: it does not encrypt")
        dealer.send_multipart(m.encode(hello("producer")))
        assert not dealer.poll(200)
    assert admin.ask("health")["ok"]
    assert not admin.ask()["producers"]


def test_only_one_of_two_peers_may_have_a_routing_id(running: Broker, admin: Peer) -> None:
    with zmq.Context() as context:
        first, second = (context.socket(zmq.DEALER) for _ in range(2))
        for sock, kind in ((first, "producer"), (second, "worker")):
            sock.linger = 0
            sock.setsockopt(zmq.ROUTING_ID, b"victim")
            secure_client(sock, find_token(kind, keys=running.keys))
            sock.connect(running.address)
            sock.send_multipart(m.encode(hello(kind)))
            if sock is first:
                assert sock.poll(int(PATIENCE * 1000))
                assert type(m.decode(first.recv_multipart())) is m.Welcome
        assert not second.poll(300)
        status = admin.ask()
        assert [each["name"] for each in status["producers"]] == ["test producer"]
        assert not status["workers"]
        first.close()
        second.close()


# -- peers with a key that send nonsense -------------------------------------------------------------


GARBAGE = {
    "not msgpack": b"\xc1",
    "cut short": b"\x95\x01",
    "trailing bytes": msgpack.packb([5, "x"]) + b"\0",
    "not an array": msgpack.packb(5),
    "no code": msgpack.packb([]),
    "an unknown code": msgpack.packb([200]),
    "a code that is no number": msgpack.packb(["x"]),
    "a map": msgpack.packb({1: 2}),
    "nested": b"\x91" * 60 + b"\x90",
    "deep": b"\x91" * 60_000 + b"\x90",
    "an array of four billion": b"\xdd\xff\xff\xff\xff",
    "a string of four billion": b"\xdb\xff\xff\xff\xff",
    "an extension": msgpack.packb([5, msgpack.ExtType(1, b"x")]),
    "not UTF-8": b"\x92\x05\xa2\xff\xfe",
    "too many fields": msgpack.packb([5, "x", "y"]),
    "another type": msgpack.packb([5, 7]),
    "a header of 70,000 bytes": msgpack.packb([5, "x" * 70_000]),
    "empty": b"",
}


@pytest.mark.parametrize("header", GARBAGE.values(), ids=GARBAGE.keys())
def test_a_malformed_message_is_refused(running: Broker, admin: Peer, header: bytes) -> None:
    with peer(running, "producer") as producer:
        producer.raw(header)
        assert producer.refused() in ("E_DECODE", "E_FIELD", "E_OP", "E_HEADER")
        assert producer.ask("health")["ok"]
    assert admin.ask("health")["ok"]


def test_messages_with_the_wrong_number_of_frames(running: Broker) -> None:
    with peer(running, "producer") as producer:
        header = bytes(m.encode(m.Beat())[0])
        producer.raw(header, b"", b"")
        assert producer.refused() == "E_FRAMES"
        producer.raw(header, *[b""] * 100)
        assert producer.refused() == "E_FRAMES"


def test_what_a_refused_message_says_does_not_forge_log_lines(running: Broker) -> None:
    with peer(running, "producer", name="evil\n2026-01-01 INFO all is well\x1b[2J"):
        line = running.wait_for(r"^.*is here: evil.*$")[0]
    assert r"evil\n2026-01-01 INFO all is well\x1b[2J" in line


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("producer", m.Result(1, 0, 1, 1, 0, 0, (b"", b""))),
        ("producer", m.Drain()),
        ("worker", m.OpenPool(1)),
        ("worker", m.Feed(1, 0, 1, 1, (b"", b""))),
        ("worker", m.Ask("status")),
        ("admin", m.OpenPool(1)),
    ],
)
def test_a_role_may_not_send_what_is_another_ones(running: Broker, kind: str, message: m.Message) -> None:
    with peer(running, kind) as made:
        made.send(message)
        assert made.refused() == "E_ROLE"


def test_an_administrator_with_a_producers_token_is_no_producer(running: Broker) -> None:
    with peer(running, "admin", role="producer") as made:
        made.send(m.OpenPool(1))
        assert made.refused() == "E_ROLE"


def test_nothing_is_answered_before_hello(running: Broker) -> None:
    with peer(running, "producer", connect=False) as producer:
        producer.open()
        producer.send(m.OpenPool(1))
        assert producer.refused() == "E_HELLO"
        producer.send(m.Ask("health"))
        assert producer.refused() == "E_HELLO"
        producer.send(hello("producer"))
        producer.expect(m.Welcome)


def test_who_sends_too_much_nonsense_is_not_listened_to_until_it_connects_anew(running: Broker) -> None:
    with peer(running, "producer") as bad, peer(running, "producer") as good:
        for _ in range(STRIKES):
            bad.raw(b"\xc1")
        for _ in range(STRIKES):
            assert bad.refused() == "E_DECODE"
        bad.send(m.Ask("health"))
        good.send(m.Ask("health"))
        good.expect(m.Answer)
        with pytest.raises(AssertionError, match="no Answer"):
            bad.expect(m.Answer, timeout=0.3)
    with peer(running, "producer") as again:
        assert again.ask("health")["ok"]


def test_a_flood_of_nonsense_takes_no_memory(running: Broker, admin: Peer) -> None:
    with peer(running, "producer") as bad:
        before = running.rss()
        for _ in range(20_000):
            bad.raw(b"\xc1", b"x" * 100)
        bad.dealer.close()
    assert admin.ask("health")["ok"]
    assert running.rss() - before < 50 * MIB


def test_a_long_message_of_empty_frames_is_refused(running: Broker, admin: Peer) -> None:
    with peer(running, "producer") as bad:
        bad.raw(*[b""] * 20_000)
        assert bad.refused() == "E_FRAMES"
    assert admin.ask("health")["ok"]


# -- pickles -----------------------------------------------------------------------------------------


class Poison:
    """Unpickling this leaves a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_the_broker_unpickles_nothing(running: Broker, admin: Peer, tmp_path: Path) -> None:
    poison = pickle.dumps(Poison(tmp_path / "touched"))
    block = (pack_lengths([len(poison)]), poison)
    digest = digest_of(poison)
    with peer(running, "worker") as worker, peer(running, "producer") as producer:
        producer.send(
            m.Blob(digest, (poison,)),
            m.OpenPool(1, 1, digest),
            m.OpenJob(1, 1, digest, digest),
            m.Feed(1, 0, 1, 1, block),
        )
        lease = worker.expect(m.Lease)
        assert bytes(lease.frames[1]) == poison
        worker.send(m.Output(1, "host", 1, 1, (poison,)), m.Beat((poison,)))
        worker.send(m.Result(lease.job, 0, 1, lease.attempt, 10, 1, block))
        assert bytes(producer.expect(m.Result).frames[1]) == poison
        for made in (worker, producer):
            # Where no pickle belongs.
            made.raw(poison)
            made.raw(poison, poison)
            made.raw(bytes(m.encode(m.Beat())[0]), poison)
        for cls in m.TABLE.values():
            low, high = cls.carries
            if high:
                frames = [poison] * max(low, 1)
                header = [cls.opcode, *(f.default for f in _fields(cls))]
                producer.raw(msgpack.packb(header), *frames)
                worker.raw(msgpack.packb(header), *frames)
        assert admin.ask("health")["ok"]
    assert not (tmp_path / "touched").exists()
    pickle.loads(poison)
    assert (tmp_path / "touched").exists()


def _fields(cls: type[m.Message]) -> list[Any]:
    return [each for each in fields(cls) if each.metadata["kind"] is not None]  # type: ignore[arg-type]


def test_broker_and_wire_do_not_import_pickle() -> None:
    wire = [
        Path(multihost_common.__path__[0]) / f"{name}.py" for name in ("wire", "messages", "blocks", "keys")
    ]
    for path in [*Path(multihost_broker.__path__[0]).glob("*.py"), *wire]:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [each.name for each in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or "", *(each.name for each in node.names)]
            for name in names:
                top = name.rpartition(".")[2]
                assert top not in ("pickle", "cloudpickle", "dill", "marshal", "shelve", "pickling"), path


# -- the life of a broker ----------------------------------------------------------------------------


def test_connections_leave_nothing(running: Broker, admin: Peer) -> None:
    with peer(running, "producer"):
        pass
    before, memory = running.descriptors(), running.rss()
    for number in range(200):
        made = Peer(running, "producer")
        made.connect()
        if number % 2:
            made.raw(b"\xc1")
            assert made.refused() == "E_DECODE"
        made.close()
    until(lambda: running.descriptors() <= before, "descriptors of 200 connections are closed")
    assert running.rss() - memory < 20 * MIB
    # Each of them said no Bye: they are gone three seconds after their connections.
    until(lambda: not admin.ask()["producers"], "the producers are gone", 10)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_broker_and_its_peers_hear_it(tmp_path: Path, number: int) -> None:
    with broker(tmp_path / "keys") as b, peer(b, "producer") as producer, peer(b, "worker") as worker:
        b.signal(number)
        for made in (producer, worker):
            assert "stopped" in made.expect(m.Bye).reason
        assert b.wait(5) == 0
        assert b.stdout.count("\n") == 1


def test_a_port_that_is_taken(running: Broker, tmp_path: Path) -> None:
    shell = command("broker", "--bind", running.address, "--keys", tmp_path / "keys")
    assert shell.process.returncode == EX_CANTCREAT
    assert "is in use" in shell.stderr and "--bind" in shell.stderr
    assert shell.stderr.count("\n") == 1 and not shell.stdout


@pytest.mark.parametrize(
    "bind", ["nonsense", "tcp://127.0.0.1:99999", "tcp://192.0.2.1:0", "udp://127.0.0.1:1"]
)
def test_an_address_that_cannot_be_listened_on(tmp_path: Path, bind: str) -> None:
    shell = command("broker", "--bind", bind, "--keys", tmp_path / "keys")
    assert shell.process.returncode == EX_CONFIG
    assert shell.stderr.count("\n") == 1 and not shell.stdout


def test_keys_that_others_can_read_stop_the_broker(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    with broker(keys):
        pass
    (keys / "broker.key").chmod(0o644)
    shell = command("broker", "--bind", "tcp://127.0.0.1:0", "--keys", keys)
    assert shell.process.returncode == EX_CONFIG
    assert f"run: chmod 600 {keys / 'broker.key'}" in shell.stderr


def test_tokens_are_read_at_the_next_start(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    with broker(keys) as b:
        make_token(keys, "worker", "second")
        token = keys / "worker-second.token"
        with Shell(multihost_argv("worker", b.address, "--token-file", token)) as refused:
            assert refused.wait() == AuthError.exit_code
    with broker(keys) as b, Shell(multihost_argv("worker", b.address, "--token-file", token)) as w:
        w.wait_for("registered")


def test_the_broker_does_not_start_if_it_lets_strangers_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Zap, "_answer", lambda self, request: [b"1.0", request[1], b"200", b"OK", b"x", b""])
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(MultihostError, match="does not refuse an unknown key"):
        server.Server(server.Config(bind="tcp://127.0.0.1:0", keys=tmp_path / "keys"))
    assert len(os.listdir("/proc/self/fd")) == before
