"""Scripts of users: written to a folder of their own and run as people run them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SEARCH = os.pathsep.join(str(ROOT / folder) for folder in ("producer", "worker", "broker", "common"))

PYTHON = (sys.executable,)
MULTIHOST = (sys.executable, "-m", "multihost")
RUN = (*MULTIHOST, "run")

#: Seconds a script may take.
PATIENCE = 60.0


def environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's, without what configures multihost, and with its packages to be found."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MULTIHOST_")}
    return {**kept, "PYTHONPATH": SEARCH, "PYTHONWARNINGS": "error", **(more or {})}


def write(folder: Path, files: Mapping[str, str]) -> None:
    """Write modules: path within the folder to text, indented as one likes."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))


def run(
    *command: str | Path,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: str | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, for at most a minute."""
    words = [str(word) for word in command]
    process = subprocess.Popen(
        words,
        cwd=cwd,
        env=environment(env),
        stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="surrogateescape",
        start_new_session=True,
    )
    try:
        out, err = process.communicate(stdin, timeout=PATIENCE)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise
    return subprocess.CompletedProcess(words, process.returncode, out, err)


def script(
    folder: Path,
    text: str,
    *args: str,
    launcher: tuple[str, ...] = PYTHON,
    env: Mapping[str, str] | None = None,
) -> str:
    """Run ``text`` as ``script.py`` in the folder; what it printed, once it has ended well."""
    write(folder, {"script.py": text})
    done = run(*launcher, folder / "script.py", *args, cwd=folder, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout
