"""A real broker and its journal: where it is, who may have it, what becomes of the broker if it fails."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Any

import disks
import noting
import pytest
from journals import PATIENCE, Small, record
from shells import Broker, Launch, Peer, Shell, broker, command, here, multihost_argv, nobody_at, peer, until

from multihost_broker.config import Config
from multihost_broker.events import Read, Records, Synced, Write
from multihost_broker.journal.keeper import Keeper, journal_directory
from multihost_common import messages as m
from multihost_common.blocks import pack_lengths
from multihost_common.errors import EX_CANTCREAT, EX_CONFIG, EX_IOERR


def notes(limit: int = 0) -> Launch:
    """Starts the broker of :mod:`noting` instead of an ordinary one."""

    def launch(argv: list[str], env: Mapping[str, str], **options: Any) -> subprocess.Popen[bytes]:
        assert argv[1:4] == ["-m", "multihost", "broker"]
        return here([argv[0], str(noting.__file__), str(limit), *argv[4:]], env, **options)

    return launch


@contextmanager
def noting_broker(
    keys: Path, *options: object, bind: str = "tcp://127.0.0.1:0"
) -> Iterator[tuple[Broker, Peer]]:
    with broker(keys, *options, bind=bind, launch=notes()) as b, peer(b, "admin") as admin:
        yield b, admin


def ask(admin: Peer, what: str, number: int) -> dict[str, Any]:
    admin.send(m.Ask(what, str(number)))
    answer: dict[str, Any] = json.loads(bytes(admin.expect(m.Answer).frames[0]))
    return answer


def note(admin: Peer, size: int = 100) -> dict[str, Any]:
    return ask(admin, "note", size)


def port(of: Broker) -> str:
    return of.address.rpartition(":")[2]


def epoch(of: Broker) -> int:
    made = Peer(of, "admin")
    try:
        return made.connect().epoch
    finally:
        made.close()


def one_sentence(shell: Shell) -> str:
    """What it says on standard error, and nowhere else."""
    assert not shell.stdout
    assert shell.stderr.startswith("multihost: ") and shell.stderr.count("\n") == 1, shell.stderr
    return shell.stderr


# -- what the core has it do ---------------------------------------------------------------------------


def test_what_the_core_writes_is_confirmed_and_can_be_read(tmp_path: Path) -> None:
    with noting_broker(tmp_path / "keys") as (_, admin):
        assert note(admin) == {"number": 1, "room": True, "full": False}
        # In a file of its own.
        assert note(admin, 1 << 20) == {"number": 2, "room": True, "full": False}
        assert ask(admin, "read", 1) == {"size": 100, "found": 0}
        assert ask(admin, "read", 2) == {"size": 1 << 20, "found": 0}
        assert ask(admin, "read", 3) == {"size": -1, "found": 0}


def test_news_become_events_in_order_and_without_news_there_are_none() -> None:
    woken = threading.Event()
    keeper = Keeper(Config(durability="none"), 5555)
    keeper.start(woken.set)
    events: list[Synced | Records] = []
    try:
        keeper.do(Write(1, record("one")))
        keeper.do(Read(7, (1,)))
        while not any(isinstance(each, Records) for each in events):
            assert woken.wait(PATIENCE)
            woken.clear()
            events += keeper.events()
        assert events == [Synced(1), Records(7, {1: record("one")})]
        assert list(keeper.events()) == []
        with pytest.raises(AssertionError, match="the core counts 9, the journal 2"):
            keeper.do(Write(9, record()))
    finally:
        keeper.close()


def test_that_the_disk_is_full_is_told_though_nothing_was_written() -> None:
    woken = threading.Event()
    keeper = Keeper(Config(durability="none"), 5555)
    keeper._store = store = Small(room=1, reserve=0)
    keeper.start(woken.set)
    events: list[Synced | Records] = []

    def until_told(event: Synced) -> None:
        while event not in events:
            assert woken.wait(PATIENCE), events
            woken.clear()
            events.extend(keeper.events())

    try:
        keeper.do(Write(1, record()))
        until_told(Synced(1))
        keeper.do(Write(2, record(), essential=True))
        until_told(Synced(1, (), True))
        store.make_room(10)
        until_told(Synced(2, (), False))
    finally:
        keeper.close()


# -- a broker that is killed ---------------------------------------------------------------------------


@pytest.mark.parametrize("durability", ["full", "relaxed", "none"])
def test_a_broker_that_is_killed_comes_back_with_its_journal_and_a_higher_epoch(
    tmp_path: Path, durability: str
) -> None:
    options = ("--durability", durability)
    with noting_broker(tmp_path / "keys", *options) as (b, admin):
        first, address = epoch(b), b.address
        numbers = [note(admin)["number"] for _ in range(20)]
        note(admin, 1 << 20)
        b.signal(signal.SIGKILL)
        b.wait()
    with noting_broker(tmp_path / "keys", *options, bind=address) as (b, admin):
        assert epoch(b) > first
        kept = durability != "none"
        assert ask(admin, "read", numbers[-1]) == {"size": 100 if kept else -1, "found": 21 * kept}
        assert ask(admin, "read", 21)["size"] == (1 << 20 if kept else -1)
        assert note(admin)["number"] == (22 if kept else 1)


KEY, FUNCTION = b"k" * 16, b"function"


def block(size: int, text: bytes) -> tuple[bytes, bytes]:
    return pack_lengths([size]), text * size


def fetch(admin: Peer) -> tuple[dict[int, m.Result], m.Fetched]:
    """The results of the detached job, by item."""
    admin.send(m.Fetch(KEY))
    results = {}
    while not isinstance(message := _next(admin), m.Fetched):
        assert isinstance(message, m.Part)
        result = m.decode(message.frames)
        assert isinstance(result, m.Result)
        results[result.start] = result
    return results, message


def _next(admin: Peer) -> m.Message:
    while not admin.heard:
        assert admin.dealer.socket.poll(int(PATIENCE * 1000))
        admin.heard += [each for each in admin.dealer.receive() if type(each) is not m.Beat]
    return admin.heard.pop(0)


@pytest.mark.parametrize("size", [100, 1 << 20], ids=["in the database", "in files of their own"])
def test_a_detached_job_outlives_a_broker_that_is_killed(tmp_path: Path, size: int) -> None:
    digest = blake2b(FUNCTION, digest_size=m.DIGEST).digest()
    with broker(tmp_path / "keys") as b, peer(b, "producer") as producer, peer(b, "worker") as worker:
        address = b.address
        producer.send(m.Submit(KEY, function=digest, retention=3600.0, frames=(FUNCTION,)))
        producer.expect(m.Stored)
        producer.send(m.Put(KEY, 0, 1, 1, block(size, b"0")), m.Put(KEY, 1, 1, 1, block(size, b"1")))
        producer.send(m.Seal(KEY, 2))
        while not producer.expect(m.Stored).sealed:
            pass
        producer.close()
        lease = worker.expect(m.Lease)
        assert (lease.start, bytes(lease.frames[1])) == (0, b"0" * size)
        worker.send(m.Result(lease.job, 0, 1, lease.attempt, 10, 0, block(size, b"a")))
        with peer(b, "admin") as admin:
            until(lambda: len(fetch(admin)[0]) == 1, "the first result is durable")
        b.signal(signal.SIGKILL)
        b.wait()
    with broker(tmp_path / "keys", bind=address) as b, peer(b, "admin") as admin:
        assert fetch(admin)[0].keys() == {0}
        with peer(b, "worker") as worker:
            lease = worker.expect(m.Lease)
            assert (lease.start, bytes(lease.frames[1])) == (1, b"1" * size)
            worker.send(m.Result(lease.job, 1, 1, lease.attempt, 10, 0, block(size, b"b")))
            until(lambda: fetch(admin)[1].over, "the job is over")
        results, fetched = fetch(admin)
        assert (fetched.state, fetched.answered) == (m.DONE, 2)
        assert [bytes(results[item].frames[1]) for item in (0, 1)] == [b"a" * size, b"b" * size]


def test_a_broker_that_is_stopped_leaves_nothing_in_the_log_and_can_be_copied(tmp_path: Path) -> None:
    with noting_broker(tmp_path / "keys", "--journal", tmp_path / "journal") as (b, admin):
        for _ in range(10):
            admin.send(m.Ask("note", "100"))
            admin.expect(m.Answer)
        note(admin, 1 << 20)
        assert (tmp_path / "journal" / "journal.db-wal").exists()
        b.signal(signal.SIGTERM)
        assert b.wait() == 0
    assert not (tmp_path / "journal" / "journal.db-wal").exists()
    unneeded = shutil.ignore_patterns("lock", "ballast")
    shutil.copytree(tmp_path / "journal", tmp_path / "copy", ignore=unneeded)
    with noting_broker(tmp_path / "keys", "--journal", tmp_path / "copy") as (_, admin):
        assert ask(admin, "read", 11) == {"size": 1 << 20, "found": 11}


# -- where it is ---------------------------------------------------------------------------------------


def test_brokers_with_the_same_keys_have_a_journal_each(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    with broker(keys) as one, broker(keys) as other:
        assert {path.name for path in (keys / "journal").iterdir()} == {port(one), port(other)}
        assert stat.S_IMODE((keys / "journal").stat().st_mode) == 0o700
        for path in (keys / "journal" / port(one)).iterdir():
            assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600)
        # It is only for who needs it that room is held back.
        assert not (keys / "journal" / port(one) / "ballast").exists()


def test_the_default_is_beside_the_default_keys(tmp_path: Path) -> None:
    argv = multihost_argv("broker", "--bind", nobody_at())
    with Broker(argv, env={"XDG_STATE_HOME": str(tmp_path)}) as b:
        b.address = b.wait_for(r"^multihost broker listening on (\S+) ")[1]
        assert (tmp_path / "multihost" / "journal" / port(b) / "journal.db").exists()
        assert (tmp_path / "multihost" / "keys" / "broker.key").exists()


def test_the_directory_goes_by_what_was_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MULTIHOST_KEYS", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    assert journal_directory(Config(), 5555) == Path("/state/multihost/journal/5555")
    assert journal_directory(Config(keys=Path("/mine")), 5555) == Path("/mine/journal/5555")
    assert journal_directory(Config(keys=Path("/mine"), journal=Path("/j")), 5555) == Path("/j")
    assert journal_directory(Config(journal=Path("/j"), durability="none"), 5555) is None
    monkeypatch.setenv("MULTIHOST_KEYS", "/theirs")
    assert journal_directory(Config(), 1) == Path("/theirs/journal/1")
    monkeypatch.delenv("MULTIHOST_KEYS")
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", "/home/me")
    assert journal_directory(Config(), 1) == Path("/home/me/.local/state/multihost/journal/1")


def test_settings_come_from_the_environment_and_without_durability_nothing_is_written(tmp_path: Path) -> None:
    with broker(tmp_path / "keys", env={"MULTIHOST_JOURNAL": str(tmp_path / "journal")}) as b:
        assert f", journal in {tmp_path / 'journal'})" in b.stdout
        assert (tmp_path / "journal" / "journal.db").exists()
    with broker(tmp_path / "other keys", env={"MULTIHOST_DURABILITY": "none"}) as b:
        assert ", no journal)" in b.stdout
        assert not (tmp_path / "other keys" / "journal").exists()


# -- what it cannot use --------------------------------------------------------------------------------


def test_a_journal_that_another_broker_has(tmp_path: Path) -> None:
    with broker(tmp_path / "keys", "--journal", tmp_path / "journal") as b:
        argv = ("broker", "--bind", "tcp://127.0.0.1:0", "--keys", tmp_path / "others")
        shell = command(*argv, "--journal", tmp_path / "journal")
        assert shell.process.returncode == EX_CANTCREAT
        assert "another broker has the journal in" in one_sentence(shell)
        with peer(b, "admin") as admin:
            assert admin.ask("health")["ok"]


@pytest.mark.parametrize(
    ("wrong", "code", "says"),
    [
        ("a file", EX_CONFIG, "choose another directory with --journal"),
        ("below a file", EX_CONFIG, "choose another directory with --journal"),
        ("open to others", EX_CONFIG, "run: chmod 700"),
        ("damaged", EX_IOERR, "is damaged"),
        ("another's", EX_CONFIG, "belongs to another program"),
    ],
)
def test_a_directory_that_cannot_be_used(tmp_path: Path, wrong: str, code: int, says: str) -> None:
    journal = tmp_path / "journal"
    if "file" in wrong:
        journal.write_text("")
    else:
        journal.mkdir(mode=0o700)
    if wrong == "below a file":
        journal /= "below"
    elif wrong == "open to others":
        (journal / "something").write_text("")
        journal.chmod(0o755)
    elif wrong == "damaged":
        (journal / "journal.db").write_bytes(os.urandom(20_000))
    elif wrong == "another's":
        with closing(sqlite3.connect(journal / "journal.db")) as other:
            other.execute("CREATE TABLE theirs (content)")
    for bind in ("tcp://127.0.0.1:0", nobody_at()):
        shell = command("broker", "--bind", bind, "--keys", tmp_path / "keys", "--journal", journal)
        assert shell.process.returncode == code
        assert says in one_sentence(shell)


@pytest.mark.parametrize("size", [100_000, 1 << 20], ids=["in the log", "in a file of its own"])
def test_a_disk_that_fails_ends_the_broker(tmp_path: Path, size: int) -> None:
    """With 74, at once, though peers are there: what was confirmed is there when it is started again."""
    journal = ("--journal", tmp_path / "journal")
    with (
        broker(tmp_path / "keys", *journal, launch=notes(limit=900_000)) as b,
        peer(b, "admin") as admin,
        peer(b, "worker"),
    ):
        note(admin)
        for _ in range(20):
            admin.send(m.Ask("note", str(size)))
        begun = time.monotonic()
        assert b.wait() == EX_IOERR
        assert time.monotonic() - begun < 10
        assert b.stderr.count("multihost: ") == 1 and "Traceback" not in b.stderr
        confirmed = 1
        while admin.dealer.socket.poll(0):
            confirmed += sum(type(each) is m.Answer for each in admin.dealer.receive())
    with noting_broker(tmp_path / "keys", *journal) as (_, admin):
        assert ask(admin, "read", 1)["found"] >= confirmed


@pytest.mark.mounts
def test_on_a_full_disk_the_core_is_told_and_when_there_is_room_again(tmp_path: Path) -> None:
    with (
        disks.small_disk(tmp_path / "disk", 160 << 20) as disk,
        noting_broker(tmp_path / "keys", "--journal", disk / "journal") as (_, admin),
    ):
        assert note(admin)["room"]
        filler = disks.fill(disk)
        answer = note(admin, 200_000)
        assert (answer["room"], answer["full"]) == (False, True)
        filler.unlink()
        deadline = time.monotonic() + PATIENCE
        while not (answer := note(admin, 200_000))["room"]:
            assert time.monotonic() < deadline
        assert not answer["full"]
