"""``multihost bench``: the same work on multihost and on multiprocessing, and the ratios."""

from __future__ import annotations

import json
import sys

import click

SIDES = ("L", "T")


@click.command()
@click.option("--only", envvar="MULTIHOST_BENCH_ONLY", show_envvar=True, metavar="W1,W3,...",
              help="Only these workloads.")  # fmt: skip
@click.option("--rounds", type=click.IntRange(1), envvar="MULTIHOST_BENCH_ROUNDS", show_envvar=True,
              help="Rounds in which the sides take turns. Default: 5, with --quick 2.")  # fmt: skip
@click.option("--sides", default="L,T", envvar="MULTIHOST_BENCH_SIDES", show_envvar=True, show_default=True,
              metavar="L,T", help="L: the local default; T: a broker and a worker over TCP.")  # fmt: skip
@click.option("--quick", is_flag=True, help="A tenth of the work: a first impression.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with the figures of every round.")
def command(only: str | None, rounds: int | None, sides: str, quick: bool, as_json: bool) -> None:
    """Run the same work on multihost and on multiprocessing.Pool, with 2 processes each, in turns.

    Prints medians, their ratios and the target of each; exits 1 if one is missed. A full run takes some
    minutes. Side T starts a broker and a worker of its own on the loopback interface.
    """
    from multihost.bench import measure, rows

    chosen = _choose(only, measure.ALL, "--only")
    asked = _choose(sides, SIDES, "--sides")
    sizes = measure.QUICK if quick else measure.Sizes()
    run = measure.measure(chosen, rounds or (2 if quick else 5), asked, sizes, _note)
    print(file=sys.stderr)
    found = list(rows.rows(run.figures))
    if as_json:
        figures = [
            {"name": name, "side": side, "figures": each} for (name, side), each in run.figures.items()
        ]
        print(json.dumps({"rows": rows.as_json(found), "rounds": figures, "noise": run.noise}, indent=1))
    else:
        print("\n".join(rows.table(found)))
    if max(run.noise) > measure.NOISE:
        print(
            f"multihost bench: something else used up to {max(run.noise):.0%} of the CPUs; "
            "run it again on a quiet machine",
            file=sys.stderr,
        )
    raise SystemExit(0 if all(row.met for row in found) else 1)


def _choose(text: str | None, known: tuple[str, ...], option: str) -> list[str]:
    if not text:
        return list(known)
    chosen = [word.strip().upper() for word in text.split(",") if word.strip()]
    wrong = [word for word in chosen if word not in known]
    if wrong or not chosen:
        raise click.BadParameter(f"choose from {', '.join(known)}", param_hint=option)
    return chosen


def _note(text: str) -> None:
    print(text, end="\n" if text.endswith(":") else " ", file=sys.stderr, flush=True)
