"""Arrays of several sizes to the processes and back: MB a second (W5)."""

from __future__ import annotations

from details import header, line, sides

SIZES = ((1 << 12, 2000), (1 << 16, 1000), (1 << 20, 200), (16 << 20, 20))


def main() -> None:
    """Print the table."""
    with sides() as (started, _):
        header("bytes", *(side.name for side in started))
        for size, number in SIZES:
            for load in ("arrays_in", "arrays_out"):
                rates = [side.ask(load, number=number, size=size)["rate"] for side in started]
                line(f"{size:>10,} {load[7:]}", *rates)


if __name__ == "__main__":
    main()
