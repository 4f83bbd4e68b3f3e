"""A counter line on standard error: rewritten in place on a terminal, a few plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from time import monotonic
from typing import TypeVar

T = TypeVar("T")

#: A terminal is redrawn at most this often, in seconds.
REDRAW = 0.1


def watch(results: Iterable[T], total: int, noun: str) -> Iterator[T]:
    """Pass ``results`` on as they come, and show how many of ``total`` have come so far."""
    terminal = sys.stderr.isatty()
    started = drawn = monotonic()
    tenth = max(1, total // 10)
    for count, result in enumerate(results, 1):
        yield result
        now = monotonic()
        last = count == total
        if terminal and (last or now - drawn >= REDRAW):
            drawn = now
            _show(f"\r{count:6} of {total} {noun}  {now - started:5.1f} s", "\n" if last else "")
        elif not terminal and (last or count % tenth == 0):
            _show(f"{count} of {total} {noun}, {now - started:.1f} s", "\n")


def _show(line: str, end: str) -> None:
    print(line, end=end, file=sys.stderr, flush=True)
