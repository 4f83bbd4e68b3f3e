"""How much memory there is for this process: the host's and the limits of control groups."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from multihost_common import memory

GIB = 1 << 30


@pytest.mark.parametrize(
    ("files", "group", "limit"),
    [
        ({}, "0::/\n", 0),
        ({"memory.max": "max"}, "0::/\n", 0),
        ({"memory.max": str(GIB)}, "0::/\n", GIB),
        ({"a/b/memory.max": "max", "a/memory.max": str(2 * GIB)}, "0::/a/b\n", 2 * GIB),
        ({"a/b/memory.max": str(GIB), "a/memory.max": str(2 * GIB)}, "0::/a/b\n", GIB),
        ({"memory.max": str(GIB)}, "0::/of/the/host\n", GIB),
        ({"memory.max": "rubbish"}, "0::/\n", 0),
        ({"memory/x/memory.limit_in_bytes": str(GIB)}, "4:memory,hugetlb:/x\n", GIB),
        ({"memory.max": str(GIB)}, "4:cpu:/x\n", 0),
    ],
)
def test_limit(tmp_path: Path, files: dict[str, str], group: str, limit: int) -> None:
    own = tmp_path / "cgroup"
    own.write_text(group)
    for name, text in files.items():
        path = tmp_path / "fs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    assert memory.memory_limit(str(tmp_path / "fs"), str(own)) == limit


def test_without_a_limit_it_is_the_hosts(tmp_path: Path) -> None:
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert memory.available_memory(str(tmp_path), str(tmp_path / "missing")) == whole


def test_a_limit_above_what_there_is_is_none(tmp_path: Path) -> None:
    own = tmp_path / "cgroup"
    own.write_text("0::/\n")
    (tmp_path / "memory.max").write_text(str(1 << 62))
    assert memory.available_memory(str(tmp_path), str(own)) < 1 << 60
