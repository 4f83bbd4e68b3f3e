"""Memory of processes, and whether the kernel has killed one for want of it."""

from __future__ import annotations

import os
import sys


def resident(pid: int) -> int:
    """Resident memory of a process, bytes; 0 if it is gone."""
    if sys.platform == "linux":
        try:
            with open(f"/proc/{pid}/statm", "rb") as file:
                return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        except (OSError, IndexError):
            return 0
    import psutil

    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0


def oom_kills() -> int:
    """How many processes the kernel has killed for want of memory, here or (unknown) on the host."""
    for path in (*_cgroup_files(), "/proc/vmstat"):
        try:
            with open(path) as file:
                for line in file:
                    if line.startswith("oom_kill "):
                        return int(line.split()[1])
        except (OSError, ValueError):
            continue
    return 0


def _cgroup_files() -> list[str]:
    found = []
    try:
        with open("/proc/self/cgroup") as file:
            lines = file.read().splitlines()
    except OSError:
        return []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        path = path.rstrip("/")
        if not controllers:
            found.append(f"/sys/fs/cgroup{path}/memory.events")
            found.append("/sys/fs/cgroup/memory.events")
        elif "memory" in controllers.split(","):
            found.append(f"/sys/fs/cgroup/memory{path}/memory.oom_control")
            found.append("/sys/fs/cgroup/memory/memory.oom_control")
    return found
