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
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from soaks.churn import churn
from soaks.detached import detached
from soaks.kills import kill_brokers
from soaks.queues import queues
from soaks.steady import steady


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.soaks", description=__doc__)
    kinds = parser.add_subparsers(dest="kind", required=True)
    kills = kinds.add_parser("kills")
    kills.add_argument("--kills", type=int, default=100)
    kills.add_argument("--items", type=int, default=100_000)
    kills.add_argument("--seed", type=int, default=1)
    turns = kinds.add_parser("churn")
    turns.add_argument("--minutes", type=float, default=5)
    turns.add_argument("--per-minute", type=float, default=24)
    turns.add_argument("--steady", type=float, default=60)
    load = kinds.add_parser("steady")
    load.add_argument("--minutes", type=float, default=30)
    load.add_argument("--warm-up", type=float, default=5)
    load.add_argument("--seed", type=int, default=1)
    jobs = kinds.add_parser("detached")
    jobs.add_argument("--kills", type=int, default=100)
    jobs.add_argument("--jobs", type=int, default=100)
    jobs.add_argument("--chunks", type=int, default=1000)
    jobs.add_argument("--seed", type=int, default=1)
    puts = kinds.add_parser("queues")
    puts.add_argument("--kills", type=int, default=100)
    puts.add_argument("--items", type=int, default=100_000)
    puts.add_argument("--seed", type=int, default=1)
    told = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if told.kind == "kills":
            held = kill_brokers(folder, told.kills, told.items, told.seed)
        elif told.kind == "churn":
            held = churn(folder, told.minutes, told.per_minute, told.steady)
        elif told.kind == "detached":
            held = detached(folder, told.kills, told.jobs, told.chunks, told.seed)
        elif told.kind == "queues":
            held = queues(folder, told.kills, told.items, told.seed)
        else:
            held = steady(folder, told.minutes, told.warm_up, told.seed)
    return not held


if __name__ == "__main__":
    sys.exit(main())
