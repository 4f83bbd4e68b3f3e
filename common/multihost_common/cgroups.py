"""The control groups that this process is in: where the kernel keeps what they allow."""

from __future__ import annotations

ROOT = "/sys/fs/cgroup"
OWN = "/proc/self/cgroup"


def group_folders(controller: str, root: str = ROOT, own: str = OWN) -> list[tuple[int, str]]:
    """Version (1 or 2) and folder of each group that limits what ``controller`` controls, up to the root: the tightest
    limit holds. Inside of a container the host's path may not be there, but the root is then the container's own."""
    found = []
    for line in (read_text(own) or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            found += [(2, folder) for folder in _upwards(root, path)]
        elif controller in controllers.split(","):
            found += [(1, folder) for folder in _upwards(f"{root}/{controller}", path)]
    return found


def _upwards(root: str, path: str) -> list[str]:
    names = [name for name in path.split("/") if name]
    return ["/".join([root, *names[:depth]]) for depth in range(len(names) + 1)]


def read_text(path: str) -> str | None:
    """What the file has; None if it cannot be read."""
    # Not by pathlib, whose import would be felt at the start of every script.
    try:
        with open(path) as file:
            return file.read()
    except (OSError, ValueError):
        return None
