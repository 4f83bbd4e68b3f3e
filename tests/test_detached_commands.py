"""What the commands about detached jobs say and how they end, where that needs no broker."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from click.testing import CliRunner

from multihost.commands.group import cli
from multihost.commands.jobs import _lines
from multihost.commands.printing import OutputError, Printer


def test_the_name_of_a_job_forges_no_line() -> None:
    job = {
        "key": "ab" * 16, "name": "x\nbeef done y: 1 of 1 items done\x1b[2J", "state": "running", "count": 5, "fed": 5,
        "answered": 0, "failed": 0, "dead": 0, "submitted": 0.0, "ended": None, "kept_until": None,
    }  # fmt: skip
    (line,) = _lines([job])
    assert line.isprintable()
    assert r"x\nbeef" in line


@pytest.mark.parametrize("option", ["--timeout=1e99", "--timeout=nan", "--retries=99999999999"])
def test_a_number_that_the_broker_would_not_take_is_wrong_usage(
    option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What the command puts there is gone after the test.
    monkeypatch.setenv("MULTIHOST_KEYS", "")
    arguments = ["submit", option, "--keys", str(tmp_path), "math:sqrt"]
    result = CliRunner().invoke(cli, arguments, prog_name="multihost")
    assert result.exit_code == 2, result.output
    assert "must be" in result.output


def test_ctrl_c_is_told_by_the_exit_status_wherever_it_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr("multihost.commands.result.find_job", interrupted)
    result = CliRunner().invoke(cli, ["result", "abcd"], prog_name="multihost")
    assert (result.exit_code, result.output) == (130, "")


def test_output_that_cannot_be_written_is_told_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    descriptor = os.open("/dev/full", os.O_WRONLY)
    with os.fdopen(descriptor, "w") as full:
        monkeypatch.setattr("sys.stdout", full)
        with Printer("result", as_json=False) as printer, pytest.raises(OutputError, match="No space left"):
            printer.value(1)
