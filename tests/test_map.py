"""``multihost map module:function < lines``."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
from pathlib import Path
from typing import Self

import pytest
from scripts import MULTIHOST, PATIENCE, environment, run, write

MAP = (*MULTIHOST, "map")

MODULE = """
    import os, time

    def upper(line):
        return line.upper()

    def number(line):
        return int(line)

    def first_is_slow(line):
        if line == "1":
            time.sleep(0.3)
        return line

    def facts(line):
        return {"length": len(line), "line": line}

    def die(line):
        if line == "bad":
            os.kill(os.getpid(), 9)
        return line

    class Tools:
        @staticmethod
        def reverse(line):
            return line[::-1]

    constant = 5
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path, {"lines.py": MODULE})
    return tmp_path


def mapped(folder: Path, *words: str, stdin: str) -> subprocess.CompletedProcess[str]:
    return run(*MAP, *words, cwd=folder, stdin=stdin)


def test_results_are_in_the_order_of_the_lines(folder: Path) -> None:
    done = mapped(folder, "lines:first_is_slow", "--processes", "2", stdin="1\n2\n3\n")
    assert (done.stdout, done.stderr, done.returncode) == ("1\n2\n3\n", "", 0)


def test_unordered_results_come_as_they_are_ready(folder: Path) -> None:
    done = mapped(folder, "lines:first_is_slow", "--unordered", "--processes", "2", stdin="1\n2\n")
    assert (done.stdout, done.returncode) == ("2\n1\n", 0), done.stderr


@pytest.mark.parametrize("chunksize", ["1", "7"])
def test_many_lines(folder: Path, chunksize: str) -> None:
    lines = [f"line {number}" for number in range(5000)]
    done = mapped(folder, "lines:upper", "--chunksize", chunksize, stdin="\n".join(lines))
    assert done.stdout.splitlines() == [line.upper() for line in lines], done.stderr


def test_nothing_in_nothing_out(folder: Path) -> None:
    done = mapped(folder, "lines:upper", stdin="")
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)


def test_ends_of_lines_and_bytes_that_are_no_text(folder: Path) -> None:
    done = mapped(folder, "lines:upper", stdin="a\r\n\n\udcff\u00e9\nlast")
    assert done.stdout == "A\n\n\udcff\u00c9\nLAST\n", done.stderr


def test_functions_of_python_and_of_classes(folder: Path) -> None:
    assert mapped(folder, "math:sqrt", stdin="").returncode == 0
    assert mapped(folder, "builtins:len", stdin="abc\n").stdout == "3\n"
    assert mapped(folder, "lines:Tools.reverse", stdin="abc\n").stdout == "cba\n"


def test_json(folder: Path) -> None:
    done = mapped(folder, "lines:facts", "--json", stdin="ab\nc\n")
    assert [json.loads(line) for line in done.stdout.splitlines()] == [
        {"length": 2, "line": "ab"},
        {"length": 1, "line": "c"},
    ]


def test_a_line_that_fails_is_told_and_the_others_go_on(folder: Path) -> None:
    done = mapped(folder, "lines:number", stdin="1\nx\n3\n")
    assert (done.stdout, done.returncode) == ("1\n3\n", 1)
    (told,) = done.stderr.splitlines()
    assert told.startswith("multihost map: line 2: ValueError: invalid literal")


def test_a_line_that_kills_its_process_is_told(folder: Path) -> None:
    done = mapped(folder, "lines:die", stdin="a\nbad\nb\n")
    assert (done.stdout, done.returncode) == ("a\nb\n", 1)
    assert "line 2: WorkerLostError: " in done.stderr and "SIGKILL" in done.stderr


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("lines", "write MODULE:FUNCTION, such as math:sqrt, not 'lines'"),
        ("no_such:f", "no_such:f cannot be loaded"),
        ("lines:nothing", "lines:nothing cannot be loaded"),
        ("lines:constant", "lines:constant is not a function"),
    ],
)
def test_a_wrong_function_is_refused(folder: Path, name: str, text: str) -> None:
    done = mapped(folder, name, stdin="a\n")
    assert (done.stdout, done.returncode) == ("", 64)
    assert done.stderr.startswith(f"multihost map: {text}") and done.stderr.count("\n") == 1


class Running:
    """``multihost map`` with both of its ends in our hands."""

    def __init__(self, folder: Path, *words: str) -> None:
        self.process = subprocess.Popen(
            [*MAP, *words],
            cwd=folder,
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert self.process.stdin and self.process.stdout and self.process.stderr
        self.stdin, self.stdout, self.stderr = self.process.stdin, self.process.stdout, self.process.stderr

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.stdin, self.stdout, self.stderr):
            try:
                stream.close()
            except BrokenPipeError:
                continue

    def read_line(self) -> bytes:
        ready, _, _ = select.select([self.stdout], [], [], PATIENCE)
        assert ready, "no result has come"
        return self.stdout.readline()


def test_results_stream_while_lines_still_come(folder: Path) -> None:
    with Running(folder, "lines:upper") as running:
        for word in (b"one", b"two", b"three"):
            running.stdin.write(word + b"\n")
            running.stdin.flush()
            assert running.read_line() == word.upper() + b"\n"
        running.stdin.close()
        assert running.process.wait(PATIENCE) == 0


def test_endless_input_is_not_read_ahead_of_its_results(folder: Path) -> None:
    """Nobody takes results: then it stops reading, and ends without a word when they hang up."""
    with Running(folder, "lines:upper", "--processes", "1") as running:
        line = b"y" * 1023 + b"\n"
        os.set_blocking(running.stdin.fileno(), False)
        written = 0
        while select.select([], [running.stdin], [], 2.0)[1]:
            written += os.write(running.stdin.fileno(), line * 16)
            assert written < 512 << 20, "it reads without end"
        assert running.read_line() == line.upper()
        running.stdout.close()
        assert running.process.wait(PATIENCE) == 141
        assert running.stderr.read() == b""


def test_head_hangs_up(folder: Path) -> None:
    done = run("sh", "-c", f"yes | {' '.join(MAP)} lines:upper | head -n 3", cwd=folder)
    assert (done.stdout, done.stderr) == ("Y\nY\nY\n", "")


def test_ctrl_c_ends_it(folder: Path) -> None:
    with Running(folder, "lines:upper") as running:
        running.stdin.write(b"a\n")
        running.stdin.flush()
        assert running.read_line() == b"A\n"
        running.process.send_signal(signal.SIGINT)
        assert running.process.wait(PATIENCE) == 130
        assert running.stderr.read() == b""
