"""The Mandelbrot set as a picture, one row an item.

    python examples/mandelbrot.py --out mandelbrot.png --width 1280 --height 960

Rows differ much in cost (the inside takes every step), so they are handed out one by one.
"""

from __future__ import annotations

import argparse
import struct
import sys
import zlib
from pathlib import Path

import multihost as mp
from progress import watch

#: The part of the plane that is shown: left, right, lower, upper.
LEFT, RIGHT, LOWER, UPPER = -2.25, 0.75, -1.125, 1.125


def steps(c: complex, limit: int) -> int:
    """How many steps ``z*z + c`` takes to leave the circle of radius 2; ``limit`` for never."""
    z = 0j
    for step in range(limit):
        z = z * z + c
        if z.real * z.real + z.imag * z.imag > 4.0:
            return step
    return limit


def row(job: tuple[int, int, int, int]) -> tuple[int, bytes]:
    """Row ``y`` of the picture, three bytes a pixel."""
    y, width, height, limit = job
    imaginary = UPPER - (UPPER - LOWER) * y / height
    pixels = bytearray()
    for x in range(width):
        taken = steps(complex(LEFT + (RIGHT - LEFT) * x / width, imaginary), limit)
        pixels += colour(taken, limit)
    return y, bytes(pixels)


def colour(taken: int, limit: int) -> bytes:
    """Black inside, from blue to white outside."""
    if taken == limit:
        return b"\0\0\0"
    share = (taken / limit) ** 0.5
    return bytes((int(255 * share), int(255 * share**0.7), int(80 + 175 * share**0.4)))


def png(rows: list[bytes], width: int) -> bytes:
    """The rows as a PNG file: 8 bits a channel, no filter."""
    header = struct.pack(">IIBBBBB", width, len(rows), 8, 2, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + line for line in rows), 9)
    return b"\x89PNG\r\n\x1a\n" + piece(b"IHDR", header) + piece(b"IDAT", data) + piece(b"IEND", b"")


def piece(kind: bytes, data: bytes) -> bytes:
    """One chunk of a PNG file."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="The Mandelbrot set as a PNG picture.")
    parser.add_argument("--out", type=Path, default=Path("mandelbrot.png"), metavar="FILE")
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--limit", type=int, default=200, help="steps to try for each pixel")
    parser.add_argument("--processes", type=int, help="at most so many processes (default: all there are)")
    parser.add_argument("--check", action="store_true", help="compare with a plain loop, exit 1 if not equal")
    return parser.parse_args()


def main() -> int:
    """Draw it."""
    options = arguments()
    jobs = [(y, options.width, options.height, options.limit) for y in range(options.height)]
    with mp.Pool(options.processes) as pool:
        done = dict(watch(pool.imap_unordered(row, jobs), len(jobs), "rows"))
    picture = [done[y] for y in range(options.height)]
    options.out.write_bytes(png(picture, options.width))
    print(f"{options.out}: {options.width} x {options.height}, {options.out.stat().st_size} bytes")
    if options.check:
        equal = picture == [row(job)[1] for job in jobs]
        print("check: equal to a plain loop" if equal else "check: differs from a plain loop")
        return 0 if equal else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
