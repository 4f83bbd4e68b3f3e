"""How the C library keeps memory, in the processes that pass large messages on.

By default glibc gives a large block back to the kernel as soon as it is freed, so each large message is
received into fresh pages, and clearing those takes as long as all else that is done with it.
"""

from __future__ import annotations

import sys

#: Freed bytes that are kept, and the least size of a block that is always given back.
KEEP, LARGE = 128 << 20, 32 << 20

# Of <malloc.h>.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8


def keep_freed_memory() -> None:
    """Reuse what was freed, up to ``KEEP`` bytes. Elsewhere than on glibc, nothing is changed."""
    if not sys.platform.startswith("linux"):
        return
    import ctypes

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, LARGE)
        mallopt(_M_TRIM_THRESHOLD, KEEP)
        # One arena, so that what one thread has freed another one can use.
        mallopt(_M_ARENA_MAX, 1)
