"""Which host a process is on: two of one host have numbers and addresses in common, two of different ones do not."""

from __future__ import annotations

import os


def here() -> str:
    """Of this host as its processes see it. A container is one of its own: it counts processes anew."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            boot = file.read().strip()
        spaces = [str(os.stat(f"/proc/self/ns/{each}").st_ino) for each in ("pid", "net")]
    except OSError:
        # No Linux: there are no such spaces, and a name tells hosts apart.
        return os.uname().nodename
    return "-".join((boot, *spaces))


__all__ = ["here"]
