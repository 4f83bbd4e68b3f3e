"""The examples run as the README says, here, and find what a plain loop finds."""

from __future__ import annotations

import os
import select
import signal
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from sites import Site

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"
SEARCH = os.pathsep.join(str(ROOT / folder) for folder in ("producer", "worker", "broker", "common"))

PLAIN = (sys.executable,)
#: The command line without an installed script: the same entry point.
RUN = (sys.executable, "-c", "import sys; from multihost.cli import main; sys.exit(main())", "run")


def run(*command: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MULTIHOST_")}
    environment["PYTHONPATH"] = SEARCH
    return subprocess.run(
        [str(word) for word in command],
        check=False,
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize("launcher", [PLAIN, RUN], ids=["python", "multihost run"])
def test_census_equals_a_plain_loop(launcher: tuple[str, ...]) -> None:
    done = run(*launcher, EXAMPLES / "census.py", "--check", "--processes", "2", "json", "email", "lib2to3")
    assert done.returncode == 0, done.stderr
    assert "check: equal to a plain loop" in done.stdout
    for package in ("package", "json", "email", "all"):
        assert package in done.stdout


def test_census_shows_progress_while_it_runs() -> None:
    done = run(*PLAIN, EXAMPLES / "census.py", "json", "email", "--processes", "2")
    lines = [line for line in done.stderr.splitlines() if " files, " in line]
    assert len(lines) > 5, done.stderr
    total = lines[0].split()[2]
    assert lines[-1].startswith(f"{total} of {total} files")


def test_census_of_nothing_says_so() -> None:
    done = run(*PLAIN, EXAMPLES / "census.py", "no_such_package")
    assert done.returncode == 64
    assert done.stderr.startswith("no such package in ")


def test_census_check_notices_a_wrong_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import census

    files = census.library(["json"])
    reports = [census.survey(source) for source in census.sources(files)]
    assert census.differences(reports, files) == []
    assert census.differences(reports[1:], files) == [reports[0][0][1]]
    assert census.differences([*reports, reports[0]], files) == [reports[0][0][1]]
    changed = (*reports[0][0][:4], reports[0][0][4] + 1, *reports[0][0][5:])
    assert census.differences([(changed, 0.0, "x 1"), *reports[1:]], files) == [changed[1]]


def test_census_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import census

    source = b"""
def plain(): "Documented."
class Thing:
    def branchy(self, a, b):
        if a and b or not a:
            return [x for x in a if x]
        def inner(): return 1 if a else 2
"""
    _, _, parsed, _, functions, classes, documented, complexities = census.count("p", "p.py", source)
    assert (parsed, functions, classes, documented) == (True, 3, 1, 1)
    assert sorted(complexities) == [1, 2, 6]
    assert census.count("p", "bad.py", b"def (:")[2] is False


def test_mandelbrot_makes_a_picture(tmp_path: Path) -> None:
    out = tmp_path / "picture.png"
    size = ("--width", "64", "--height", "48", "--limit", "50")
    done = run(*PLAIN, EXAMPLES / "mandelbrot.py", "--check", "--processes", "2", "--out", out, *size)
    assert done.returncode == 0, done.stderr
    assert "check: equal to a plain loop" in done.stdout
    content = out.read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    assert struct.unpack(">II", content[16:24]) == (64, 48)
    at = content.index(b"IDAT")
    (length,) = struct.unpack(">I", content[at - 4 : at])
    assert len(zlib.decompress(content[at + 4 : at + 4 + length])) == 48 * (1 + 3 * 64)


def test_hello_prints_ten_lines() -> None:
    done = run(*PLAIN, EXAMPLES / "hello.py")
    assert done.returncode == 0, done.stderr
    assert [int(line.split()[0]) for line in done.stdout.splitlines()] == [x * x for x in range(10)]


@pytest.mark.parametrize("launcher", [PLAIN, RUN], ids=["python", "multihost run"])
def test_ctrl_c_ends_the_census_at_once(launcher: tuple[str, ...]) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MULTIHOST_")}
    process = subprocess.Popen(
        [*launcher, str(EXAMPLES / "census.py"), "--processes", "2"],
        env={**environment, "PYTHONPATH": SEARCH},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    try:
        ready, _, _ = select.select([process.stderr], [], [], 60)
        assert ready, "no progress is shown"
        assert " files, " in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=10)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode in (130, -signal.SIGINT)
    assert out == ""
    assert err.rstrip().endswith("KeyboardInterrupt")


def test_the_pipeline_finds_what_multiprocessing_finds() -> None:
    ours, theirs = (
        run(*PLAIN, EXAMPLES / name, "json", "tomllib") for name in ("pipeline.py", "pipeline_plain.py")
    )
    assert ours.returncode == 0, ours.stderr
    assert len(ours.stdout.splitlines()) == 20
    assert ours.stdout == theirs.stdout


def test_the_plain_pipeline_differs_in_one_import() -> None:
    ours, theirs = (
        (EXAMPLES / name).read_text().split('"""')[2].splitlines()
        for name in ("pipeline.py", "pipeline_plain.py")
    )
    assert set(ours) ^ set(theirs) == {"import multihost as mp", "import multiprocessing as mp"}


def test_the_crawler_finds_what_multiprocessing_finds() -> None:
    ours, theirs = (run(*PLAIN, EXAMPLES / name, "json") for name in ("crawl.py", "crawl_plain.py"))
    assert ours.returncode == 0, ours.stderr
    assert "in 5 modules" in ours.stdout
    assert ours.stdout == theirs.stdout


def test_crawlers_that_join_and_are_killed_change_nothing(site: Site) -> None:
    site.worker(2)
    site.worker(2)
    environment = {**os.environ, "PYTHONPATH": SEARCH}
    crawl = [sys.executable, str(EXAMPLES / "crawl.py"), "--frontier", "library", "--processes", "2"]
    with subprocess.Popen([*crawl, "email"], env=environment, stdout=subprocess.PIPE, text=True) as crawler:
        with subprocess.Popen(
            [*crawl, "--help-out"], env=environment, stdout=subprocess.PIPE, text=True
        ) as helper:
            assert helper.stdout is not None
            assert helper.stdout.readline().startswith("helping")
            # What its processes visit goes to others.
            helper.kill()
        found, _ = crawler.communicate(timeout=60)
    assert crawler.returncode == 0
    assert found == run(*PLAIN, EXAMPLES / "crawl_plain.py", "email").stdout
