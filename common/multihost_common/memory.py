"""How much memory there is for this process: the host's, and no more than its control groups allow."""

from __future__ import annotations

import os

from multihost_common.cgroups import OWN, ROOT, group_folders, read_text

#: Where a group's limit is, by version.
_FILES = {1: "memory.limit_in_bytes", 2: "memory.max"}


def available_memory(root: str = ROOT, own: str = OWN) -> int:
    """Bytes of memory that this process may use, its host's or its container's; 0: unknown."""
    limit = memory_limit(root, own)
    whole = _of_the_host()
    return min(whole, limit) if limit and whole else limit or whole


def memory_limit(root: str = ROOT, own: str = OWN) -> int:
    """The least limit of this process's control groups, bytes; 0: there is none."""
    folders = group_folders("memory", root, own)
    texts = [(read_text(f"{folder}/{_FILES[version]}") or "").strip() for version, folder in folders]
    return min((int(text) for text in texts if text.isdigit() and int(text)), default=0)


def _of_the_host() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return 0
