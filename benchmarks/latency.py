"""Round trips of apply: percentiles in microseconds (W3)."""

from __future__ import annotations

from details import header, line, sides

BATCHES, CALLS = 10, 500


def main() -> None:
    """Print the table."""
    with sides() as (started, _):
        times: list[list[float]] = [[] for _ in started]
        for _ in range(BATCHES):
            for side, each in zip(started, times, strict=True):
                each += side.ask("calls", number=CALLS)["times"]
        header("percentile", *(side.name for side in started))
        for share in (0.01, 0.1, 0.5, 0.9, 0.99, 0.999):
            line(f"{share:.1%}", *(sorted(each)[int(len(each) * share)] * 1e6 for each in times))


if __name__ == "__main__":
    main()
