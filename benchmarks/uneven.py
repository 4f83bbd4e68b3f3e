"""Sleeps of very different length and plain computing: seconds, and how far from ideal (W6, W8)."""

from __future__ import annotations

from details import header, line, sides

from multihost.bench.loads import durations
from multihost.bench.measure import CHUNKSIZES, PROCESSES
from multihost.bench.side import MP

ITEMS = 2_000


def main() -> None:
    """Print the table."""
    with sides() as (started, _):
        header("over the ideal makespan", *(side.name for side in started))
        for rising in (False, True):
            ideal = sum(durations(ITEMS, rising)) / PROCESSES
            for chunksize in (None, *CHUNKSIZES):
                took = [
                    side.ask("uneven", items=ITEMS, rising=rising, chunksize=chunksize)["seconds"]
                    for side in started
                    if chunksize is None or side.name == MP
                ]
                title = f"{'rising' if rising else 'random'}, {chunksize or 'default'}"
                line(title, *(each / ideal for each in took))
        header("400 x fib(22), seconds", *(side.name for side in started))
        for number in range(5):
            line(f"round {number + 1}", *(side.ask("compute", items=400)["seconds"] for side in started))


if __name__ == "__main__":
    main()
