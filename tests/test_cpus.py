"""How many CPUs there are for this process: affinity and the quotas of control groups."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from multihost_common import cpus


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize(
    ("files", "group", "quota"),
    [
        ({}, "0::/\n", None),
        ({"cpu.max": "max 100000"}, "0::/\n", None),
        ({"cpu.max": "150000 100000"}, "0::/\n", 1.5),
        ({"a/b/cpu.max": "max 100000", "a/cpu.max": "300000 100000"}, "0::/a/b\n", 3.0),
        ({"a/b/cpu.max": "50000 100000", "a/cpu.max": "300000 100000"}, "0::/a/b\n", 0.5),
        ({"cpu.max": "200000 100000"}, "0::/of/the/host\n", 2.0),
        ({"cpu.max": "rubbish"}, "0::/\n", None),
        ({"cpu.max": "1 0"}, "0::/\n", None),
        (
            {"cpu/x/cpu.cfs_quota_us": "250000", "cpu/x/cpu.cfs_period_us": "100000"},
            "4:cpu,cpuacct:/x\n",
            2.5,
        ),
        ({"cpu/x/cpu.cfs_quota_us": "-1", "cpu/x/cpu.cfs_period_us": "100000"}, "4:cpu,cpuacct:/x\n", None),
        ({"cpu.max": "100000 100000"}, "4:memory:/x\n", None),
    ],
)
def test_quota(tmp_path: Path, files: dict[str, str], group: str, quota: float | None) -> None:
    own = tmp_path / "cgroup"
    own.write_text(group)
    for name, text in files.items():
        write(tmp_path / "fs" / name, text)
    assert cpus.cpu_quota(str(tmp_path / "fs"), str(own)) == quota


def test_without_control_groups(tmp_path: Path) -> None:
    assert cpus.cpu_quota(str(tmp_path), str(tmp_path / "missing")) is None


@pytest.mark.parametrize(
    ("quota", "count"), [(None, 8), (2.0, 2), (1.5, 2), (0.1, 1), (64.0, 8), (8.0, 8), (7.01, 8)]
)
def test_affinity_and_quota(monkeypatch: pytest.MonkeyPatch, quota: float | None, count: int) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.setattr(cpus, "cpu_quota", lambda: quota)
    assert cpus.available_cpus() == count


def test_where_there_is_no_affinity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    monkeypatch.setattr(cpus, "cpu_quota", lambda: None)
    assert cpus.available_cpus() == 6


def test_what_the_user_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    limits = cpus.thread_limits(2)
    assert "OMP_NUM_THREADS" not in limits
    assert limits["MKL_NUM_THREADS"] == "2"
