"""How many CPUs this process may use, and what to tell the thread pools of numerical libraries."""

from __future__ import annotations

import os

from multihost_common.cgroups import OWN, ROOT, group_folders, read_text

#: Variables by which OpenMP and the BLAS libraries learn how many threads to start.
_THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "BLIS_NUM_THREADS",
)


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


def cpu_quota(root: str = ROOT, own: str = OWN) -> float | None:
    """The least quota of this process's control groups, in CPUs; None where there is none."""
    quotas = [
        _quota_v2(folder) if version == 2 else _quota_v1(folder)
        for version, folder in group_folders("cpu", root, own)
    ]
    return min((quota for quota in quotas if quota is not None), default=None)


def _quota_v2(folder: str) -> float | None:
    quota, _, period = (read_text(f"{folder}/cpu.max") or "max").partition(" ")
    return None if quota == "max" else _ratio(quota, period)


def _quota_v1(folder: str) -> float | None:
    quota = read_text(f"{folder}/cpu.cfs_quota_us") or "-1"
    return None if quota.startswith("-") else _ratio(quota, read_text(f"{folder}/cpu.cfs_period_us"))


def _ratio(quota: str, period: str | None) -> float | None:
    try:
        return int(quota) / int(period or 0)
    except (ValueError, ZeroDivisionError):
        return None


def thread_limits(threads: int) -> dict[str, str]:
    """Variables that keep numerical libraries to ``threads`` threads; those the user has set stay."""
    return {name: str(threads) for name in _THREAD_VARIABLES if name not in os.environ}
