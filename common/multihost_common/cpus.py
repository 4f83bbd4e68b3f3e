"""How many CPUs this process may use, and what to tell the thread pools of numerical libraries."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

#: Variables by which OpenMP and the BLAS libraries learn how many threads to start.
_THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "BLIS_NUM_THREADS",
)

_CGROUPS = Path("/sys/fs/cgroup")


def available_cpus() -> int:
    """CPUs by affinity, and no more than the container's quota (rounded up) allows; at least 1."""
    try:
        cpus = len(os.sched_getaffinity(0))
    except AttributeError:
        cpus = os.cpu_count() or 1
    quota = cpu_quota()
    if quota is not None:
        cpus = min(cpus, -int(-quota // 1))
    return max(1, cpus)


def cpu_quota(root: Path = _CGROUPS, own: Path = Path("/proc/self/cgroup")) -> float | None:
    """The least quota of this process's control groups, in CPUs; None where there is none."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return None
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            found += _quotas(root, path, _quota_v2)
        elif "cpu" in controllers.split(","):
            found += _quotas(root / "cpu", path, _quota_v1)
    return min(found, default=None)


def _quotas(root: Path, path: str, read: Callable[[Path], float | None]) -> list[float]:
    """Quotas from the group up to the root: the tightest one holds. Inside of a container the path
    of the host may not be there, but the root is then the container's own."""
    folder = root / path.lstrip("/")
    folders = [folder, *folder.parents]
    folders = [each for each in folders if each == root or root in each.parents]
    return [quota for each in folders if (quota := read(each)) is not None]


def _quota_v2(folder: Path) -> float | None:
    try:
        quota, period = (folder / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _quota_v1(folder: Path) -> float | None:
    try:
        quota = int((folder / "cpu.cfs_quota_us").read_text())
        period = int((folder / "cpu.cfs_period_us").read_text())
        return None if quota < 0 else quota / period
    except (OSError, ValueError, ZeroDivisionError):
        return None


def thread_limits(threads: int) -> dict[str, str]:
    """Variables that keep numerical libraries to ``threads`` threads; those the user has set stay."""
    return {name: str(threads) for name in _THREAD_VARIABLES if name not in os.environ}
