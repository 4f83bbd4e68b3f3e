"""How many CPUs this process may use, and what to tell the thread pools of numerical libraries."""

from __future__ import annotations

import os
from collections.abc import Callable

#: Variables by which OpenMP and the BLAS libraries learn how many threads to start.
_THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "BLIS_NUM_THREADS",
)

_CGROUPS = "/sys/fs/cgroup"


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


def cpu_quota(root: str = _CGROUPS, own: str = "/proc/self/cgroup") -> float | None:
    """The least quota of this process's control groups, in CPUs; None where there is none."""
    found = []
    for line in (_read(own) or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            found += _quotas(root, path, _quota_v2)
        elif "cpu" in controllers.split(","):
            found += _quotas(f"{root}/cpu", path, _quota_v1)
    return min(found, default=None)


def _quotas(root: str, path: str, read: Callable[[str], float | None]) -> list[float]:
    """Quotas from the group up to the root: the tightest one holds. Inside of a container the path
    of the host may not be there, but the root is then the container's own."""
    names = [name for name in path.split("/") if name]
    folders = ["/".join([root, *names[:depth]]) for depth in range(len(names) + 1)]
    return [quota for folder in folders if (quota := read(folder)) is not None]


def _quota_v2(folder: str) -> float | None:
    quota, _, period = (_read(f"{folder}/cpu.max") or "max").partition(" ")
    return None if quota == "max" else _ratio(quota, period)


def _quota_v1(folder: str) -> float | None:
    quota = _read(f"{folder}/cpu.cfs_quota_us") or "-1"
    return None if quota.startswith("-") else _ratio(quota, _read(f"{folder}/cpu.cfs_period_us"))


def _ratio(quota: str, period: str | None) -> float | None:
    try:
        return int(quota) / int(period or 0)
    except (ValueError, ZeroDivisionError):
        return None


def _read(path: str) -> str | None:
    # Not by pathlib, whose import would be felt at the start of every script.
    try:
        with open(path) as file:
            return file.read()
    except (OSError, ValueError):
        return None


def thread_limits(threads: int) -> dict[str, str]:
    """Variables that keep numerical libraries to ``threads`` threads; those the user has set stay."""
    return {name: str(threads) for name in _THREAD_VARIABLES if name not in os.environ}
