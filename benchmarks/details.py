"""What the benchmarks of this folder have in common: the sides of ``multihost bench``, and columns of text.

python benchmarks/throughput.py        # and so on; each file says what it shows
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from multihost.bench.cluster import Cluster
from multihost.bench.measure import PROCESSES, Side
from multihost.bench.side import LOCAL, MP, TCP


@contextmanager
def sides() -> Iterator[tuple[list[Side], Cluster]]:
    """multiprocessing, the local default, and a cluster over TCP: warm, two processes each."""
    local = {name: value for name, value in os.environ.items() if not name.startswith("MULTIHOST_")}
    with ExitStack() as stack:
        cluster = stack.enter_context(Cluster(PROCESSES))
        started = [stack.enter_context(Side(name, local)) for name in (MP, LOCAL)]
        started.append(stack.enter_context(Side(TCP, cluster.environment)))
        for side in started:
            side.ask("many", items=2_000, chunksize=1)
        yield started, cluster


def header(title: str, *columns: str) -> None:
    """The first line of a table."""
    print(f"{title:<26}" + "".join(f"{column:>14}" for column in columns))


def line(title: str, *values: float) -> None:
    """A line of a table."""
    print(f"{title:<26}" + "".join(f"{value:>14,.5g}" for value in values), flush=True)
