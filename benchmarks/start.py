"""From the start of an interpreter to the first result: milliseconds (W9)."""

from __future__ import annotations

import statistics

from details import header, line

from multihost.bench.measure import COLD, cold_start

ROUNDS = 9


def main() -> None:
    """Print the table."""
    times: dict[str, list[float]] = {name: [] for name in COLD}
    for _ in range(ROUNDS):
        for name, each in times.items():
            each.append(cold_start(name) * 1e3)
    header("", *times)
    line("median", *map(statistics.median, times.values()))
    line("fastest", *map(min, times.values()))
    line("slowest", *map(max, times.values()))


if __name__ == "__main__":
    main()
