"""Long runs against real processes.

    python -m tests.soaks kills --kills 100 --items 100000
    python -m tests.soaks churn --minutes 5 --per-minute 24
    python -m tests.soaks steady --minutes 30
    python -m tests.soaks detached --jobs 100 --chunks 1000 --kills 100
    python -m tests.soaks queues --items 100000 --kills 100

Each prints what came of it in one line, and ends with 1 if a guarantee did not hold. They take minutes, so they are
no part of the tests; all of them by ``make soak``.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from soaks.churn import churn
from soaks.detached import detached
from soaks.kills import kill_brokers
from soaks.queues import queues
from soaks.steady import steady

#: By the name of each its function, which has a folder and these options: a number each, and what it is usually.
SOAKS: dict[str, tuple[Callable[..., bool], dict[str, int | float]]] = {
    "kills": (kill_brokers, {"kills": 100, "items": 100_000, "seed": 1}),
    "churn": (churn, {"minutes": 5.0, "per_minute": 24.0, "steady": 60.0}),
    "steady": (steady, {"minutes": 30.0, "warm_up": 5.0, "seed": 1}),
    "detached": (detached, {"kills": 100, "jobs": 100, "chunks": 1000, "seed": 1}),
    "queues": (queues, {"kills": 100, "items": 100_000, "seed": 1}),
}


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.soaks", description=__doc__)
    kinds = parser.add_subparsers(dest="kind", required=True)
    for kind, (_, options) in SOAKS.items():
        words = kinds.add_parser(kind)
        for option, usual in options.items():
            words.add_argument(f"--{option.replace('_', '-')}", type=type(usual), default=usual)
    told = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        soak, options = SOAKS[told.kind]
        held = soak(Path(name), *(getattr(told, option) for option in options))
    return not held


if __name__ == "__main__":
    sys.exit(main())
