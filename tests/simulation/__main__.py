"""``python -m tests.simulation --seeds 0:2000``: run schedules, print what did not hold, exit 1 if anything did not."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from time import perf_counter

from .detached import DetachedSchedule
from .house import PLANTED_IN_THE_HOUSE
from .known import KNOWN, known
from .planted import PLANTED, planted
from .planted_shared import PLANTED_IN_WHAT_IS_SHARED
from .schedule import Schedule, Verdict
from .shared import SharedSchedule
from .strikes import GENTLE, JOURNALED, SHARED, VIOLENT

#: Lines of a trace that are shown of a violation without ``--trace``.
TAIL = 40


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", default="0:1000", help="FIRST:END, or one seed (default: %(default)s)")
    parser.add_argument(
        "--planted",
        default="",
        choices=sorted({**PLANTED, **PLANTED_IN_THE_HOUSE, **PLANTED_IN_WHAT_IS_SHARED}),
        help="put this fault into the cores",
    )
    parser.add_argument("--detached", action="store_true", help="schedules of detached jobs")
    parser.add_argument("--shared", action="store_true", help="schedules of shared objects and processes")
    parser.add_argument("--only", default="", help="comma-separated names: nothing else goes wrong")
    parser.add_argument("--careless", action="store_true", help="users cancel without a kill what never ends")
    parser.add_argument("--trace", action="store_true", help="show all that happened")
    parser.add_argument("--known", action="store_true", help="known faults of the cores are violations, too")
    parser.add_argument("--most", type=int, default=10, help="stop after so many violations")
    parsed = parser.parse_args(argv)
    strange = set(filter(None, parsed.only.split(","))) - {*VIOLENT, *GENTLE, *JOURNALED, *SHARED}
    if strange:
        there = ", ".join((*VIOLENT, *GENTLE, *JOURNALED, *SHARED))
        parser.error(f"there is no {', '.join(strange)}; there are: {there}")
    return parsed


def seeds(text: str) -> range:
    """The range that ``FIRST:END`` or a single seed stands for."""
    first, _, end = text.partition(":")
    return range(int(first or 0), int(end)) if end else range(int(first), int(first) + 1)


class Runs:
    """All schedules of one command."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.counts: Counter[str] = Counter()
        self.met: Counter[str] = Counter()
        self.schedules = self.steps = self.violations = 0

    def schedule(self, seed: int, traced: bool = False) -> Verdict:
        """Run one."""
        only = [each for each in self.options.only.split(",") if each]
        kind = (
            DetachedSchedule if self.options.detached else SharedSchedule if self.options.shared else Schedule
        )
        return kind(seed, traced, only or None, self.options.careless).run()

    def run(self) -> None:
        """Run all, and tell of each violation."""
        for seed in seeds(self.options.seeds):
            verdict = self.schedule(seed)
            self.schedules += 1
            self.steps += verdict.steps
            self.counts.update(verdict.counts)
            name = "" if self.options.known else known(verdict.violation, self.options.careless)
            if name:
                self.met[name] += 1
            elif verdict.violation:
                self.violations += 1
            if self.options.trace or (verdict.violation and not name):
                self.tell(seed, verdict)
            if self.violations >= self.options.most:
                break

    def tell(self, seed: int, verdict: Verdict) -> None:
        """What happened in this schedule, by running it again."""
        trace = self.schedule(seed, traced=True).trace
        shown = trace if self.options.trace else trace[-TAIL:]
        print(f"\n== seed {seed}: {verdict.violation or 'nothing to complain of'}")
        if len(shown) < len(trace):
            print(f"({len(trace) - len(shown)} lines before these: --seeds {seed} --trace)")
        print("\n".join(shown))

    def report(self, seconds: float) -> None:
        """The sums."""
        print(f"\n{self.schedules} schedules, {self.steps} steps, {self.schedules / seconds:.0f} schedules/s")
        for name, count in sorted(self.counts.items()):
            print(f"{count:9d}  {name}")
        for name, count in sorted(self.met.items()):
            print(f"known: {count} schedules met {name!r}: {KNOWN[name].text}")
        print(f"{self.violations} violations")


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 1 if anything did not hold."""
    runs = Runs(arguments(argv))
    begun = perf_counter()
    with planted(runs.options.planted):
        runs.run()
    runs.report(perf_counter() - begun)
    return 1 if runs.violations else 0


if __name__ == "__main__":
    sys.exit(main())
