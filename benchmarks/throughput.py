"""No-op maps of several lengths and chunk sizes, and apply_async: items a second (W1, W2, W4)."""

from __future__ import annotations

from details import header, line, sides

CASES: tuple[tuple[int, int | None], ...] = (
    (1_000, 1),
    (10_000, 1),
    (100_000, 1),
    (100_000, 10),
    (100_000, None),
    (1_000_000, None),
)


def main() -> None:
    """Print the table."""
    with sides() as (started, _):
        header("items, chunksize", *(side.name for side in started))
        for items, chunksize in CASES:
            rates = [side.ask("many", items=items, chunksize=chunksize)["rate"] for side in started]
            line(f"{items:,}, {chunksize or 'default'}", *rates)
        for number in (100, 1_000, 10_000):
            line(f"{number:,} apply_async", *(side.ask("futures", number=number)["rate"] for side in started))


if __name__ == "__main__":
    main()
