"""Keys and tokens: made private, found in order, and refused with the fix when they are not private."""

from __future__ import annotations

import logging
import os
import stat
from pathlib import Path

import pytest

from multihost_common import keys
from multihost_common.errors import EX_CONFIG, ConfigError


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("MULTIHOST_TOKEN_FILE", raising=False)
    monkeypatch.setattr(keys, "SECRETS", tmp_path / "no-secrets")
    return keys.make_keys(tmp_path / "state" / "keys").directory


def test_first_start_makes_private_files(directory: Path) -> None:
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    names = {path.name: stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()}
    made = ("broker.key", "producer.token", "worker.token", "admin.token", "metrics.token")
    assert names == dict.fromkeys(made, 0o600)


def test_second_start_keeps_the_keys(directory: Path) -> None:
    first = keys.load_keys(directory)
    (directory / "worker.token").unlink()
    second = keys.make_keys(directory)
    assert second.broker == first.broker
    by_role = {token.role: token for token in second.tokens}
    assert by_role["producer"] in first.tokens
    assert by_role["worker"] not in first.tokens


def test_default_directory_follows_xdg(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MULTIHOST_KEYS", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    assert keys.default_directory() == Path("/state/multihost/keys")
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", "/home/me")
    assert keys.default_directory() == Path("/home/me/.local/state/multihost/keys")
    monkeypatch.setenv("MULTIHOST_KEYS", "/keys")
    assert keys.default_directory() == Path("/keys")


def test_secrets_do_not_show_in_repr(directory: Path) -> None:
    found = keys.load_keys(directory)
    assert found.broker.secret not in repr(found)
    assert all(token.secret not in repr(found) for token in found.tokens)


def test_an_empty_volume_of_ours_is_made_private(tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    volume.mkdir(mode=0o755)
    assert stat.S_IMODE(keys.make_keys(volume).directory.stat().st_mode) == 0o700


def test_open_directory_is_refused_with_the_fix(directory: Path) -> None:
    directory.chmod(0o755)
    with pytest.raises(ConfigError, match=f"chmod 700 {directory}"):
        keys.make_keys(directory)


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604])
def test_open_file_is_refused_with_the_fix(directory: Path, mode: int) -> None:
    path = directory / "worker.token"
    path.chmod(mode)
    with pytest.raises(ConfigError, match=f"chmod 600 {path}") as caught:
        keys.read_token(path)
    assert caught.value.exit_code == EX_CONFIG


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (b"\n \r\n", "is empty"),
        (b"\0\1\2", "not a text file"),
        (b"\xff\xfe", "not a text file"),
        (b"x" * 5000, "not a text file"),
        (b"hello\n", "not a multihost key file"),
        (b"one\ntwo\n", "has 2 lines"),
        (b"multihost-token-9 a b\n", "multihost-token-1 is needed"),
    ],
)
def test_a_file_that_is_no_token(directory: Path, content: bytes, says: str) -> None:
    path = directory / "worker.token"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=says):
        keys.read_token(path)


def test_a_damaged_token_is_noticed(directory: Path) -> None:
    path = directory / "worker.token"
    line = path.read_text()
    for damaged in (line[:-9], line.replace("worker", "producer"), line.swapcase()):
        path.write_text(damaged)
        with pytest.raises(ConfigError, match=r"damaged|not a multihost key"):
            keys.read_token(path)


def test_crlf_and_a_missing_newline_are_accepted(directory: Path) -> None:
    path = directory / "worker.token"
    line = path.read_text().strip()
    token = keys.read_token(path)
    for content in (line, line + "\r\n", line + "\n\n"):
        path.write_text(content)
        assert keys.read_token(path) == token


def test_symlinks_only_within_the_directory(directory: Path, tmp_path: Path) -> None:
    inner = directory / "inner.token"
    inner.symlink_to("worker.token")
    assert keys.read_token(inner).role == "worker"
    outer = tmp_path / "other" / "outer.token"
    outer.parent.mkdir()
    outer.symlink_to(directory / "worker.token")
    with pytest.raises(ConfigError, match="symlink"):
        keys.read_token(outer)


def test_a_fifo_or_directory_is_no_token_and_does_not_block(directory: Path) -> None:
    fifo = directory / "fifo"
    os.mkfifo(fifo, 0o600)
    for path in (fifo, directory):
        with pytest.raises(ConfigError, match="not a regular file"):
            keys.read_token(path)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give a file away")
def test_somebody_elses_file(directory: Path) -> None:
    path = directory / "worker.token"
    os.chown(path, 12345, -1)
    with pytest.raises(ConfigError, match="chown 0 "):
        keys.read_token(path)


def test_container_secrets_may_be_readable(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    monkeypatch.setattr(keys, "SECRETS", secrets)
    path = secrets / "multihost_worker_token"
    path.write_text((directory / "worker.token").read_text())
    path.chmod(0o444)
    with caplog.at_level(logging.WARNING):
        assert keys.find_token("worker", keys=tmp_path / "nowhere").role == "worker"
    assert "readable by every user" in caplog.text
    path.chmod(0o666)
    with pytest.raises(ConfigError, match="chmod go-w"):
        keys.find_token("worker", keys=tmp_path / "nowhere")


def test_tokens_are_looked_for_in_order(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = {
        name: keys.make_token(directory, "worker", name) for name in ("by-option", "by-variable", "by-secret")
    }
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    monkeypatch.setattr(keys, "SECRETS", secrets)
    assert keys.find_token("worker", keys=directory).name == "worker"
    (secrets / "multihost_worker_token").write_text(made["by-secret"].read_text())
    (secrets / "multihost_worker_token").chmod(0o400)
    assert keys.find_token("worker", keys=directory).name == "by-secret"
    monkeypatch.setenv("MULTIHOST_TOKEN_FILE", str(made["by-variable"]))
    assert keys.find_token("worker", keys=directory).name == "by-variable"
    found = keys.find_token("worker", token_file=made["by-option"], keys=directory)
    assert found.name == "by-option"


def test_the_wrong_role_and_no_token_say_what_to_do(directory: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="role worker, but producer is needed"):
        keys.find_token("producer", token_file=directory / "worker.token")
    with pytest.raises(ConfigError, match=r"copy producer\.token"):
        keys.find_token("producer", keys=tmp_path / "nowhere")


def test_expired_tokens(directory: Path) -> None:
    path = keys.make_token(directory, "worker", "old", expires=1)
    with pytest.raises(ConfigError, match="has expired"):
        keys.find_token("worker", token_file=path)
    token = keys.read_token(path)._replace(expires=100)
    assert not token.expired(99.9)
    assert token.expired(100)
    assert not token._replace(expires=0).expired(1e12)


def test_names_of_tokens_make_no_paths(directory: Path) -> None:
    for name in ("../x", "", "a b", "a\nb", "é"):
        with pytest.raises(ConfigError, match="letters, digits"):
            keys.make_token(directory, "worker", name)
    with pytest.raises(ConfigError, match="choose one of"):
        keys.make_token(directory, "root", "x")
    keys.make_token(directory, "worker", "x")
    with pytest.raises(ConfigError, match="exists"):
        keys.make_token(directory, "worker", "x")
