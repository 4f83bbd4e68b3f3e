"""From figures to rows: the medians of both sides, their ratio, and the target of it."""

from __future__ import annotations

import operator
import statistics
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from multihost.bench.measure import Figures
from multihost.bench.side import LOCAL, MP, TCP


@dataclass(frozen=True, slots=True)
class Goal:
    """A figure and, by side, what its ratio to multiprocessing's has to be; or the figure itself (``absolute``)."""

    name: str
    what: str
    unit: str
    more: bool
    targets: dict[str, float]
    absolute: bool = False


GOALS = (
    Goal("W1", "no-op map, 100k items, chunksize=1", "items/s", True, {LOCAL: 15.0, TCP: 6.0}),
    Goal("W2", "no-op map, 1M items, default chunks", "items/s", True, {LOCAL: 1.0, TCP: 1.0}),
    Goal("W3 p50", "apply, round trip", "us", False, {LOCAL: 0.8, TCP: 3.0}),
    Goal("W3 p99", "apply, round trip", "us", False, {LOCAL: 0.3, TCP: 0.3}),
    Goal("W4", "10k apply_async, then get", "calls/s", True, {LOCAL: 4.0, TCP: 2.0}),
    Goal("W5 in", "50 arrays of 16 MiB to a process", "MB/s", True, {LOCAL: 2.0, TCP: 0.7}),
    Goal("W5 out", "50 arrays of 16 MiB from a process", "MB/s", True, {LOCAL: 2.0, TCP: 0.7}),
    Goal("W6", "400 x fib(22)", "items/s", True, {LOCAL: 0.97, TCP: 0.97}),
    Goal("W7 ints", "a queue, one put and get at a time", "items/s", True, {LOCAL: 1.0, TCP: 0.5}),
    Goal("W7 1 KiB", "a queue, one put and get at a time", "items/s", True, {LOCAL: 1.0, TCP: 0.5}),
    Goal("W7 manager", "ints, mp: a queue of a Manager", "items/s", True, {TCP: 5.0}),
    Goal("W8 random", "2,000 uneven sleeps, best chunksize of mp", "s", False, {LOCAL: 1.03, TCP: 1.03}),
    Goal("W8 rising", "2,000 rising sleeps, best chunksize of mp", "s", False, {LOCAL: 1.03, TCP: 1.03}),
    Goal("W9", "cold start to the first result, mp: forkserver", "ms", False, {LOCAL: 1.0}),
    Goal("PIPE", "there and back, script and process", "us", False, {LOCAL: 3.0}),
    Goal("PIPE between", "there and back, two processes", "us", False, {LOCAL: 3.0}),
    Goal("LOCK", "acquire and release, in round trips", "trips", False, {TCP: 2.0}, absolute=True),
    Goal("PROCESS", "200 started and joined, mp: spawn", "s", False, {LOCAL: 1.5, TCP: 1.5}),
    Goal("broker CPU", "per item of W1", "us", False, {TCP: 1.5}, absolute=True),
    Goal("broker memory", "per queued item, beyond its pickle", "bytes", False, {TCP: 100.0}, absolute=True),
)


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table. ``ratio`` is the median of the rounds' ratios, ``low`` and ``high`` their range;
    of an absolute goal they are the figure itself. ``theirs`` is multiprocessing's median."""

    name: str
    what: str
    side: str
    unit: str
    theirs: float | None
    ours: float
    ratio: float
    low: float
    high: float
    target: float
    more: bool
    met: bool


def rows(figures: Figures, goals: Iterable[Goal] = GOALS) -> Iterator[Row]:
    """A row for each goal and side of which there are figures."""
    for goal in goals:
        for side, target in goal.targets.items():
            ours = figures.get((goal.name, side), [])
            theirs = [1.0] * len(ours) if goal.absolute else figures.get((goal.name, MP), [])
            if not ours or not theirs:
                continue
            ratios = [ours_once / theirs_once for ours_once, theirs_once in zip(ours, theirs, strict=True)]
            ratio = statistics.median(ratios)
            yield Row(
                goal.name,
                goal.what,
                side,
                goal.unit,
                None if goal.absolute else statistics.median(theirs),
                statistics.median(ours),
                ratio,
                min(ratios),
                max(ratios),
                target,
                goal.more,
                (operator.ge if goal.more else operator.le)(ratio, target),
            )


def table(lines: Iterable[Row]) -> Iterator[str]:
    """The rows as lines of text."""
    shape = "{:<14} {:<4} {:>11} {:>11}  {:<8} {:>8} {:>15}  {:>9}  {}"
    yield shape.format("", "side", "mp", "multihost", "", "ratio", "(range)", "target", "")
    for row in lines:
        theirs = "" if row.theirs is None else _number(row.theirs)
        span = f"({_number(row.low)}-{_number(row.high)})"
        target = f"{'>=' if row.more else '<='} {row.target:g}"
        verdict = "ok" if row.met else "MISSED"
        ours, ratio = _number(row.ours), _number(row.ratio)
        yield shape.format(row.name, row.side, theirs, ours, row.unit, ratio, span, target, verdict).rstrip()


def as_json(lines: Iterable[Row]) -> list[dict[str, Any]]:
    """The rows as plain values."""
    return [asdict(row) for row in lines]


def _number(value: float) -> str:
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 100 else f"{value:.3g}"
