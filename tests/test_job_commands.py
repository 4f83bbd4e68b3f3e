"""The commands of detached jobs: submit, jobs, result, cancel, dead, drain."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import scripts
import shells
from sites import PATIENCE, Site
from tasks import die_while_there, nap

from multihost.commands.asking import ask
from multihost.pool import Pool

KEY = "00112233445566778899aabbccddeeff"


@pytest.fixture
def pool(site: Site) -> Iterator[Pool]:
    site.worker()
    with Pool() as made:
        yield made


def multihost(site: Site, *args: object, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    env = {**site.broker.settings(), "PYTHONPATH": os.pathsep.join(sys.path)}
    return scripts.run(*scripts.MULTIHOST, *map(str, args), env=env, stdin=stdin)


def well(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0 and not done.stderr, done
    return done.stdout


def failed(done: subprocess.CompletedProcess[str], status: int, says: str) -> None:
    assert done.returncode == status and not done.stdout, done
    assert says in done.stderr and done.stderr.startswith("multihost: ") and done.stderr.count("\n") == 1, (
        done
    )


def test_submit_and_result(site: Site) -> None:
    lines = "".join(f"{number}\n" for number in range(100))
    key = well(multihost(site, "submit", "math:sqrt", "--detach", "--name", "roots", stdin=lines)).strip()
    (job,) = json.loads(well(multihost(site, "jobs", "--json")))["jobs"]
    assert (job["key"], job["name"], job["state"], job["count"]) == (key, "roots", "running", 100)
    listed = well(multihost(site, "jobs"))
    assert (
        listed.startswith(f"{key} running roots: 0 of 100 items done, submitted 20")
        and listed.count("\n") == 1
    )
    failed(multihost(site, "result", key, "--no-wait"), 75, "is running: 0 of 100 items are done")
    site.worker()
    found = multihost(site, "result", key[:6], "--keep")
    # sqrt is given text.
    assert found.returncode == 1 and found.stderr.count("must be real number") == 100
    assert (
        f"100 of 100 items failed; the job is kept, until 'multihost cancel --forget {key}'" in found.stderr
    )
    assert well(multihost(site, "cancel", "--forget", key[:4])) == f"job {key} is forgotten\n"
    failed(multihost(site, "result", key), 65, f"there is no job that begins with {key}")
    assert well(multihost(site, "jobs")) == "no jobs\n"


def test_submit_without_detach_is_like_map(site: Site) -> None:
    site.worker()
    done = multihost(site, "submit", "builtins:int", "--json", stdin="3\nx\n5\n")
    assert done.stdout == "3\n5\n" and done.returncode == 1
    assert "multihost submit: line 2: ValueError: invalid literal" in done.stderr
    assert well(multihost(site, "submit", "builtins:int", "--chunksize", 2, stdin="1\n2\n3\n")) == "1\n2\n3\n"
    # That one has been fetched.
    assert len(site.jobs()) == 1


def test_a_command_that_is_interrupted_leaves_the_job(site: Site) -> None:
    env = {**site.broker.settings(), "PYTHONPATH": os.pathsep.join(sys.path)}
    submit = subprocess.Popen(
        [*scripts.MULTIHOST, "submit", "builtins:int"],
        env=scripts.environment(env),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert submit.stdin is not None
    submit.stdin.write("7\n")
    submit.stdin.close()
    submit.stdin = None
    shells.until(lambda: [job for job in site.jobs() if job["state"] == "running"], "it is submitted")
    time.sleep(0.3)
    submit.send_signal(signal.SIGINT)
    out, err = submit.communicate(timeout=PATIENCE)
    (job,) = site.jobs()
    assert submit.returncode == 130 and not out
    assert f"the job goes on; see 'multihost result {job['key']}'" in err
    site.worker()
    assert well(multihost(site, "result", job["key"], "--wait")) == "7\n"


def test_submit_with_a_key_is_done_once(site: Site) -> None:
    for _ in range(2):
        done = multihost(site, "submit", "builtins:int", "--detach", "--key", KEY, stdin="1\n2\n")
        assert well(done) == f"{KEY}\n"
    site.worker()
    assert well(multihost(site, "result", KEY)) == "1\n2\n"
    wrong = multihost(site, "submit", "builtins:int", "--detach", "--key", "12", stdin="")
    assert wrong.returncode == 2 and "32 hexadecimal digits" in wrong.stderr


def test_cancel(site: Site) -> None:
    key = well(multihost(site, "submit", "builtins:int", "--detach", stdin="1\n2\n")).strip()
    answer = json.loads(well(multihost(site, "cancel", key, "--json")))
    assert (answer["key"], answer["count"]) == (key, 2)
    done = multihost(site, "result", key, "--no-wait")
    assert done.returncode == 1 and "line 1: CancelledError" in done.stderr
    assert "2 of 2 items failed" in done.stderr
    failed(multihost(site, "cancel", "0000"), 65, "there is no detached job 0000")


def test_dead_letters(site: Site, pool: Pool, tmp_path: Path) -> None:
    deadly = tmp_path / "deadly"
    deadly.touch()
    result = pool.map_async(die_while_there, [(str(deadly), 0), ("/nowhere/x", 1)], 1, detach=True)
    result.wait(PATIENCE)
    assert f"{result.key}:0 die_while_there: died, 3 processes, the last one pid " in well(
        multihost(site, "dead", "ls")
    )
    (letter,) = json.loads(well(multihost(site, "dead", "ls", "--json")))["dead"]
    assert letter["signal"] == 9
    shown = well(multihost(site, "dead", "show", f"{result.key[:8]}:0"))
    assert f"key {result.key}\nitem 0\n" in shown and "deaths 3" in shown
    assert json.loads(well(multihost(site, "dead", "show", "--json", result.key)))["dead"] == [letter]
    failed(multihost(site, "dead", "show", f"{result.key}:1"), 65, "there is no dead letter")
    failed(multihost(site, "dead", "retry", f"{result.key}:1"), 65, "is no dead letter")
    failed(multihost(site, "dead", "drop", "what?"), 65, "'what?' is no key of a job")
    deadly.unlink()
    assert (
        well(multihost(site, "dead", "retry", result.key))
        == f"1 items of job {result.key} will be run again\n"
    )
    assert well(multihost(site, "result", result.key)) == "0\n1\n"


def test_drain(site: Site) -> None:
    workers = [site.worker(1, "--name", "anvil"), site.worker(1, "--name", "forge")]
    with Pool() as pool:
        result = pool.map_async(nap, [0.05] * 40, 1)
        done = json.loads(well(multihost(site, "drain", "anvil", "--json")))
        assert [each["name"] for each in done["workers"]] == ["anvil"]
        assert workers[0].wait() == 0
        assert result.get(PATIENCE) == [0.05] * 40
    failed(multihost(site, "drain", "nobody"), 65, "there is no worker on a host or of the name 'nobody'")
    with Pool() as pool:
        slow = pool.apply_async(nap, (4.0,))
        shells.until(lambda: ask(site.address, "status")["held"], "it runs")
        failed(multihost(site, "drain", "forge", "--timeout", 0.5), 75, "after 0.5 s not gone yet: worker")
        assert slow.get(PATIENCE) == 4.0
    assert workers[1].wait() == 0


@pytest.mark.parametrize(
    "args",
    [["jobs"], ["result", KEY], ["cancel", KEY], ["dead", "ls"], ["drain", "x"]],
    ids=lambda args: args[0],
)
def test_commands_without_a_broker(site: Site, args: list[str]) -> None:
    site.end()
    failed(multihost(site, *args), 69, "start one with 'multihost broker'")


@pytest.mark.parametrize("args", [["cancel", "12"], ["result", "12"], ["result", f"{KEY}:1"]])
def test_keys_that_are_none(site: Site, args: list[str]) -> None:
    done = multihost(site, *args)
    assert done.returncode in (65, 2) and done.stderr.startswith("multihost: "), done
