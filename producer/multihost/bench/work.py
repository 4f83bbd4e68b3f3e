"""What the processes of the measured pools run. Importable by name, so that it pickles the same way everywhere."""

from __future__ import annotations

import time
import zlib
from typing import Any

#: Bytes of one array.
ARRAY_BYTES = 16 << 20


def no_op(x: int) -> int:
    """Nothing."""
    return x


def fib(n: int) -> int:
    """Fibonacci's number, the slow way."""
    return n if n < 2 else fib(n - 1) + fib(n - 2)


def nap(seconds: float) -> float:
    """Sleep; answers its argument."""
    time.sleep(seconds)
    return seconds


def make_array(number: int, size: int = ARRAY_BYTES) -> Any:
    """Bytes that tell their number: a numpy array, or a bytearray where there is no numpy."""
    try:
        import numpy
    except ImportError:
        return bytearray([number & 255]) * size
    return numpy.full(size, number & 255, dtype=numpy.uint8)


def probe(array: Any) -> float:
    """A number that tells which array it was, from both of its ends."""
    return float(array[0]) + float(array[-1]) / 1000 + len(array)


def checksum(array: Any) -> int:
    """Of every byte."""
    return zlib.crc32(array)
