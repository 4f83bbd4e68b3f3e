"""Small disks, to be filled up."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_disk(path: Path, size: int) -> Iterator[Path]:
    """A file system of so many bytes on ``path`` (below a test's ``tmp_path``); needs root, or the test is skipped."""
    path.mkdir()
    reason = "needs root to mount a file system" if os.geteuid() != 0 or not shutil.which("mount") else ""
    if not reason:
        options = f"size={size},mode=0700"
        command = ["mount", "-t", "tmpfs", "-o", options, "multihost-test", str(path)]
        made = subprocess.run(command, check=False, capture_output=True, text=True, timeout=20)
        reason = made.stderr.strip()
    if reason and "mounts" in os.environ.get("MULTIHOST_REQUIRE", "").split(","):
        pytest.fail(reason)
    if reason:
        pytest.skip(reason)
    try:
        yield path
    finally:
        # Lazily: also if somebody has a file open there still.
        subprocess.run(["umount", "-l", str(path)], check=True, timeout=20)


def fill(path: Path, leave: int = 0) -> Path:
    """Fill the disk that ``path`` is on, but for some bytes; the file that takes the room."""
    filler = path / "filler"
    info = os.statvfs(path)
    with filler.open("wb") as file:
        left = info.f_bavail * info.f_frsize - leave
        while left > 0:
            left -= file.write(bytes(min(left, 1 << 20)))
    return filler
