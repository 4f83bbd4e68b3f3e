"""The image and compose.yaml on a real Docker engine: scaled workers, one killed and one added."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent

pytestmark = [pytest.mark.docker, pytest.mark.timeout(400)]


class Project:
    """A compose project of its own, so that nobody else's containers are touched."""

    def __init__(self, name: str) -> None:
        self.name = name
        # Port 0: any free one.
        self.environment = {**os.environ, "MULTIHOST_IMAGE": name, "MULTIHOST_PUBLISH": "127.0.0.1:0"}

    def command(self, *words: str) -> list[str]:
        return [
            "docker",
            "compose",
            "--project-name",
            self.name,
            "--file",
            str(ROOT / "compose.yaml"),
            *words,
        ]

    def run(self, *words: str, timeout: float = 120) -> str:
        done = subprocess.run(
            self.command(*words),
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert done.returncode == 0, f"compose {words}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        return done.stdout

    def start(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command(*words),
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def containers(self) -> list[dict[str, Any]]:
        ids = self.run("ps", "--all", "--quiet").split()
        inspected: list[dict[str, Any]] = json.loads(docker("inspect", *ids))
        return inspected

    def workers(self) -> list[dict[str, Any]]:
        return [each for each in self.containers() if service(each) == "worker"]

    def status(self) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self.run("exec", "-T", "broker", "multihost", "status", "--json"))
        return answer


def docker(*words: str) -> str:
    done = subprocess.run(["docker", *words], capture_output=True, text=True, timeout=60, check=True)
    return done.stdout


def service(container: dict[str, Any]) -> str:
    return str(container["Config"]["Labels"]["com.docker.compose.service"])


def missing() -> str:
    """Why there is no engine to use, or nothing."""
    try:
        docker("compose", "version")
        docker("info")
    except (OSError, subprocess.SubprocessError) as error:
        return f"needs a running Docker engine with compose v2: {error}"
    return ""


@pytest.fixture(scope="module")
def project() -> Iterator[Project]:
    reason = missing()
    if reason and "docker" in os.environ.get("MULTIHOST_REQUIRE", "").split(","):
        pytest.fail(reason)
    if reason:
        pytest.skip(reason)
    project = Project(f"multihost-test-{os.getpid()}")
    try:
        project.run("build", "broker", timeout=240)
        project.run("up", "--detach", "--wait", "--wait-timeout", "60", "--scale", "worker=3")
        yield project
    finally:
        logs = project.run("logs", "--no-color", "--tail", "50")
        print(logs)
        project.run("--profile", "producer", "down", "--volumes", "--rmi", "all", "--timeout", "10")


def test_three_healthy_workers_and_one_published_port(project: Project) -> None:
    assert len(project.status()["workers"]) == 3
    for container in project.containers():
        assert container["State"]["Health"]["Status"] == "healthy"
        published = [ports for ports in container["NetworkSettings"]["Ports"].values() if ports]
        assert len(published) == (1 if service(container) == "broker" else 0)


@pytest.mark.parametrize(("directory", "least"), [("/keys", 4), ("/journal", 1)])
def test_keys_and_journal_are_private_and_nobody_is_root(
    project: Project, directory: str, least: int
) -> None:
    look = f"id -u; stat -c '%a %n' {directory} {directory}/*.*"
    uid, mode, *files = project.run("exec", "-T", "broker", "sh", "-c", look).splitlines()
    assert uid != "0"
    assert mode == f"700 {directory}"
    assert len(files) >= least and all(line.startswith("600 ") for line in files)


def census_while(project: Project, rounds: int, happens: Callable[[], None]) -> None:
    """Run the census in a container, and let something happen in the middle of it."""
    job = project.start(
        "run", "--rm", "-T", "producer", "examples/census.py", "--check", "--rounds", str(rounds)
    )
    try:
        assert job.stdout is not None
        seen = []
        for line in job.stdout:
            seen.append(line)
            if " files, " in line:
                break
        happens()
        assert job.poll() is None, "it was over too soon: give it more rounds"
        rest, _ = job.communicate(timeout=120)
    finally:
        job.kill()
        job.communicate()
    output = "".join(seen) + rest
    assert job.returncode == 0, output
    assert "check: equal to a plain loop" in output


def test_census_while_a_worker_is_killed_and_one_is_added(project: Project) -> None:
    def happens() -> None:
        docker("kill", project.workers()[0]["Id"])
        project.run("up", "--detach", "--no-recreate", "--scale", "worker=4", "broker", "worker")

    census_while(project, 2, happens)
    assert len(project.status()["workers"]) >= 3


def test_census_while_all_containers_are_replaced(project: Project) -> None:
    """As `up` does it when there is a new image."""
    before = {each["Id"] for each in project.containers()}

    def happens() -> None:
        replace = ["up", "--detach", "--force-recreate", "--no-deps"]
        project.run(*replace, "--scale", "worker=3", "worker")
        project.run(*replace, "broker")

    census_while(project, 3, happens)
    assert not before & {each["Id"] for each in project.containers() if each["State"]["Running"]}
    assert len(project.status()["workers"]) == 3


def test_the_profile_runs_the_census(project: Project) -> None:
    assert "check: equal to a plain loop" in project.run("run", "--rm", "-T", "producer")


def test_stop_is_orderly(project: Project) -> None:
    project.run("stop", "worker")
    ended = [each["State"] for each in project.workers()]
    # 137 is the one that was killed above and not started again.
    assert sorted({state["ExitCode"] for state in ended}) in ([0], [0, 137])
    assert project.status()["workers"] == []
