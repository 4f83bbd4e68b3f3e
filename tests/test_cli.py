"""The command line: what goes to which stream, what it exits with, what it costs."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import click
import pytest
from shells import Broker, Shell, broker, command, multihost_argv, peer, worker
from strangers import closes, nobody, plain_zmq, silent, web

from multihost.commands.group import COMMANDS, cli
from multihost.commands.shared import size
from multihost_common import __version__
from multihost_common import messages as m
from multihost_common.blobs import digest_of
from multihost_common.errors import (
    EX_CONFIG,
    EX_NOPERM,
    EX_OK,
    EX_UNAVAILABLE,
    ConfigError,
)
from multihost_common.keys import make_keys
from multihost_common.shared import EVENT

#: Exit status of click for wrong usage.
USAGE = 2


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    with broker(tmp_path_factory.mktemp("cli") / "keys") as b:
        yield b


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    return make_keys(tmp_path / "keys").directory


def well(shell: Shell) -> str:
    """The output of a command that went well and complained of nothing."""
    assert shell.process.returncode == EX_OK, shell
    assert not shell.stderr
    return shell.stdout


def failed(shell: Shell, status: int, says: str) -> None:
    """The command failed with this status and said why in one line on standard error."""
    assert shell.process.returncode == status, shell
    assert not shell.stdout
    assert shell.stderr.startswith("multihost: ") and shell.stderr.count("\n") == 1
    assert says in shell.stderr


# -- help ----------------------------------------------------------------------------------------------


def test_help_lists_every_command() -> None:
    text = well(command("--help"))
    for name, line in COMMANDS.items():
        assert name in text and line in text


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str) -> None:
    text = well(command(name, "--help"))
    assert text.startswith(f"Usage: multihost {name}")
    assert "--help" in text
    assert well(command(name, "-h")) == text


@pytest.mark.parametrize(
    "name", ["broker", "worker", "status", "health", "submit", "jobs", "result", "cancel", "drain"]
)
def test_every_option_that_is_set_once_has_a_variable(name: str) -> None:
    found = cli.get_command(click.Context(cli), name)
    assert found is not None
    text = " ".join(well(command(name, "--help")).split())
    for option in found.params:
        if isinstance(option, click.Option) and not option.is_flag:
            assert str(option.envvar).startswith("MULTIHOST_"), option.name
            assert f"[env var: {option.envvar};" in text or f"[env var: {option.envvar}]" in text


@pytest.mark.parametrize(
    "args", [["nonsense"], ["worker", "-c", "0"], ["status", "--nonsense"], ["health", "a", "b"]]
)
def test_wrong_usage(args: list[str]) -> None:
    shell = command(*args)
    assert shell.process.returncode == USAGE
    assert "Usage:" in shell.stderr and not shell.stdout


def test_version() -> None:
    text = well(command("version"))
    assert text.splitlines()[0] == f"multihost {__version__}"
    found = json.loads(well(command("version", "--json")))
    assert found["multihost"] == __version__
    assert found["protocol"] == m.PROTOCOL_VERSION
    assert found["python"].startswith(f"{sys.version_info.major}.{sys.version_info.minor}.")
    assert found["pyzmq"][0].isdigit() and found["libzmq"].startswith("4.")


# -- status --------------------------------------------------------------------------------------------

STATUS: dict[str, Any] = {
    "epoch": int,
    "python": str,
    "slots": int,
    "granted": int,
    "ready": int,
    "held": int,
    "blobs": int,
    "workers": [
        {
            "session": int,
            "name": str,
            "host": str,
            "pid": int,
            "slots": int,
            "granted": int,
            "held": int,
            "draining": bool,
            "connected": bool,
            "suspect": bool,
            "silent": float,
        }
    ],
    "producers": [
        {
            "session": int,
            "name": str,
            "host": str,
            "pid": int,
            "nested": bool,
            "pools": int,
            "connected": bool,
            "silent": float,
        }
    ],
    "processes": [{"process": int, "producer": int, "name": str, "host": str, "pid": int}],
    "objects": int,
    "object_bytes": int,
    "pools": [
        {
            "pool": int,
            "producer": int,
            "name": str,
            "limit": int,
            "slots": int,
            "workers": int,
            "held": int,
            "closing": bool,
            "broken": bool,
            "open_jobs": int,
            "jobs": [
                {
                    "job": int,
                    "name": str,
                    "items": int,
                    "fed": int,
                    "answered": int,
                    "ready": int,
                    "suspects": int,
                    "leased": int,
                    "seconds_per_item": float,
                }
            ],
        }
    ],
}


def conforms(value: Any, schema: Any) -> None:
    """``value`` has the fields of ``schema``, with values of those types, and no others."""
    if isinstance(schema, dict):
        assert value.keys() == schema.keys()
        for name, kind in schema.items():
            conforms(value[name], kind)
    elif isinstance(schema, list):
        assert value, "nothing to compare"
        for each in value:
            conforms(each, schema[0])
    else:
        assert type(value) is schema, (value, schema)


def test_status(running: Broker) -> None:
    with (
        peer(running, "worker", name="anvil", host="forge", slots=3),
        peer(running, "producer", name="script.py") as producer,
    ):
        producer.send(
            m.Blob(digest_of(b"x"), (b"x",)),
            m.OpenPool(1, 2, digest_of(b"x"), name="my pool"),
            m.OpenJob(1, 1, digest_of(b"x"), name="work"),
            m.Feed(1, 0, 1, 1, (b"\1\0\0\0", b"x")),
            m.EndJob(1, 1),
            m.Launch(2, name="my process", frames=(b"x",)),
            m.Act(1, b"o" * m.OBJECT, m.MAKE, EVENT, frames=(bytes(8),)),
        )
        producer.ask("health")
        state = json.loads(well(command("status", "--json", env=running.settings())))
        conforms(state, STATUS)
        assert state["slots"] == 3
        assert state["workers"][0]["name"] == "anvil"
        assert state["pools"][0]["jobs"][0]["items"] == 1
        text = well(command("status", env=running.settings()))
        for word in (
            running.address,
            "anvil",
            "forge",
            "3 slots",
            "script.py",
            "my pool",
            "work",
            "process my process",
            "1 shared objects",
        ):
            assert word in text


def test_status_takes_the_address_as_an_argument_too(running: Broker) -> None:
    assert f"{running.address}: " in well(command("status", running.address, "--keys", running.keys))


# -- errors --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["status", "health"])
@pytest.mark.parametrize(
    ("stranger", "status", "says"),
    [
        (nobody, EX_UNAVAILABLE, "start one with 'multihost broker'"),
        (silent, EX_UNAVAILABLE, "did not answer"),
        (closes, EX_UNAVAILABLE, "closes them at once"),
        (web, EX_CONFIG, "is a web server"),
        (plain_zmq, EX_CONFIG, "is another ZeroMQ program"),
    ],
)
def test_no_broker_there(
    keys: Path,
    name: str,
    stranger: Callable[[], AbstractContextManager[str]],
    status: int,
    says: str,
) -> None:
    with stranger() as address:
        # health takes the patience it is given; status waits as long as it does for users.
        patience, options = (2, ("--timeout", 1.5)) if name == "health" else (5, ())
        began = time.monotonic()
        failed(command(name, address, "--keys", keys, *options), status, says)
        assert time.monotonic() - began < patience + 2


def test_health_is_as_patient_as_it_is_told(keys: Path) -> None:
    with silent() as address:
        began = time.monotonic()
        failed(command("health", address, "--keys", keys, "--timeout", 0.5), EX_UNAVAILABLE, "within 0.5 s")
        assert time.monotonic() - began < 2


def test_tokens_that_do_not_fit(running: Broker, keys: Path, tmp_path: Path) -> None:
    failed(command("status", running.address, "--keys", keys), EX_NOPERM, "server key mismatch")
    for file in keys.glob("*.token"):
        line = file.read_text().split()
        assert line[3] != running.address
    failed(command("status", running.address, "--keys", tmp_path / "nowhere"), EX_CONFIG, "no token found")
    token = running.keys / "worker.token"
    failed(command("status", running.address, "--token-file", token), EX_CONFIG, "role worker, but admin or")
    failed(
        command("status", running.address, env={"MULTIHOST_TOKEN_FILE": str(tmp_path / "none")}),
        EX_CONFIG,
        "does not exist",
    )


def test_a_token_that_others_can_read(running: Broker, tmp_path: Path) -> None:
    copy = tmp_path / "copy.token"
    copy.write_text((running.keys / "admin.token").read_text())
    copy.chmod(0o640)
    failed(command("health", running.address, "--token-file", copy), EX_CONFIG, f"chmod 600 {copy}")
    copy.chmod(0o600)
    assert well(command("health", running.address, "--token-file", copy)) == "ok\n"
    assert well(command("health", env={**running.settings(), "MULTIHOST_TOKEN_FILE": str(copy)})) == "ok\n"


# -- health --------------------------------------------------------------------------------------------


def test_health_of_the_broker_with_any_token_that_a_container_has(running: Broker) -> None:
    for role in ("admin", "producer", "worker"):
        token = running.keys / f"{role}.token"
        assert well(command("health", running.address, "--token-file", token)) == "ok\n"


def test_health_of_a_frozen_broker(tmp_path: Path) -> None:
    with broker(tmp_path / "keys") as b:
        b.signal(signal.SIGSTOP)
        failed(
            command("health", "--timeout", 1, env=b.settings()), EX_UNAVAILABLE, "did not answer within 1 s"
        )


def test_health_of_the_worker(tmp_path: Path) -> None:
    temp = {"TMPDIR": str(tmp_path)}
    failed(
        command("health", "--worker", env=temp), EX_UNAVAILABLE, "no worker of this user runs on this host"
    )
    with broker(tmp_path / "keys") as b:
        with worker(b, env=temp) as w:
            assert well(command("health", "--worker", env=temp)) == "ok\n"
            b.process.kill()
            w.wait_for("connection to the broker is lost")
            failed(command("health", "--worker", env=temp), EX_UNAVAILABLE, "is not registered")
        failed(command("health", "--worker", env=temp), EX_UNAVAILABLE, "no worker of this user")


def cpu_seconds(argv: list[str], env: dict[str, str]) -> float:
    """CPU time of a command that succeeds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with Shell(argv, env=env) as shell:
        assert shell.wait() == EX_OK, shell
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_health_costs_little_more_than_the_libraries_it_needs(running: Broker, tmp_path: Path) -> None:
    """It may take 100 ms of CPU where an interpreter with these libraries takes 50: what a second of CPU is worth
    depends on what else the machine does, so both are taken turn by turn, and the best of each counts."""
    env = {**running.settings(), "TMPDIR": str(tmp_path)}
    bare = [sys.executable, "-c", "import zmq, click, msgpack"]

    def times_of_bare(*args: str) -> float:
        pairs = [
            (cpu_seconds(multihost_argv("health", *args), env), cpu_seconds(bare, env)) for _ in range(8)
        ]
        return min(ours for ours, _ in pairs) / min(theirs for _, theirs in pairs)

    assert times_of_bare() < 2
    with worker(running, env=env):
        assert times_of_bare("--worker") < 2


def test_health_imports_nothing_of_the_user_and_nothing_heavy(running: Broker, tmp_path: Path) -> None:
    for name in ("usercustom", "tasks", "helpers"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('imported')")
    code = (
        "import sys; from multihost.cli import main\n"
        "try: main(['health'])\n"
        "except SystemExit as e: assert not e.code\n"
        "print(*sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, **running.settings(), "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=20,
        check=True,
    )
    loaded = set(done.stdout.split())
    heavy = {
        "cloudpickle",
        "psutil",
        "multiprocessing",
        "multihost.pool",
        "multihost.engines.driver",
        "multihost.engines.loop",
        "asyncio",
        "numpy",
    }
    assert not loaded & heavy
    assert not {each for each in loaded if each.startswith(("multihost_broker", "multihost_worker"))}


# -- keys ----------------------------------------------------------------------------------------------


def test_keys_are_made_and_shown_but_never_printed(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    assert str(keys) in well(command("keys", "make", "--keys", keys))
    path = Path(
        well(command("keys", "make", "worker", "--name", "mill", "--days", 30, "--keys", keys)).strip()
    )
    assert path == keys / "worker-mill.token" and path.stat().st_mode & 0o777 == 0o600
    text = well(command("keys", "show", "--keys", keys))
    found = json.loads(well(command("keys", "show", "--json", "--keys", keys)))
    assert {(each["role"], each["name"]) for each in found["tokens"]} >= {
        ("worker", "mill"),
        ("admin", "admin"),
    }
    days = [(each["expires"] - time.time()) / 86_400 for each in found["tokens"] if each["name"] == "mill"]
    assert 29.9 < days[0] <= 30
    assert "mill, until 20" in text and "admin, for ever" in text
    secrets = [word for file in keys.iterdir() for word in file.read_text().split() if len(word) == 40]
    assert len(secrets) > 5
    assert not [each for each in secrets if each in text]


def test_keys_that_are_not_there(tmp_path: Path) -> None:
    failed(command("keys", "show", "--keys", tmp_path / "no"), EX_CONFIG, "does not exist")
    failed(command("keys", "make", "king", "--keys", tmp_path / "keys"), EX_CONFIG, "choose one of producer")


# -- sizes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "number"),
    [
        (None, 0),
        ("", 0),
        ("100000", 100_000),
        ("1k", 1024),
        ("512M", 512 << 20),
        ("2G", 2 << 30),
        ("2GiB", 2 << 30),
        ("1.5g", 3 << 29),
        ("3 GB", 3 << 30),
    ],
)
def test_sizes(text: str | None, number: int) -> None:
    assert size(text) == number


@pytest.mark.parametrize("text", ["much", "G", "-1G", "1X", "nan", "inf", "1e999"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ConfigError, match="write it like 512M"):
        size(text)


def test_a_wrong_size_is_an_error_of_the_worker(keys: Path) -> None:
    failed(
        command("worker", "tcp://127.0.0.1:1", "--keys", keys, "--max-memory-per-child", "lots"),
        EX_CONFIG,
        "'lots' is no amount of memory",
    )
