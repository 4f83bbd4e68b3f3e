"""What is received again and again is not received into fresh pages each time."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import ctypes, resource
from multihost_common.allocator import keep_freed_memory
keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
SIZE = 31 << 20

def use():
    block = libc.malloc(ctypes.c_size_t(SIZE))
    guard = libc.malloc(ctypes.c_size_t(SIZE))
    for each in (block, guard):
        libc.memset(each, 1, SIZE)
    for each in (block, guard):
        libc.free(each)

use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only glibc has these settings")
def test_freed_memory_is_used_again() -> None:
    pages = 10 * (31 << 20) // 4096
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], check=True, capture_output=True, text=True, timeout=60
    )
    assert int(done.stdout) < pages / 10
