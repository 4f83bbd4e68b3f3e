"""The broker process: CPU per item of no-op maps, and memory per queued item."""

from __future__ import annotations

from details import header, line, sides

from multihost.bench.cluster import cpu_seconds
from multihost.bench.measure import queue_memory


def main() -> None:
    """Print the table."""
    with sides() as (started, cluster):
        header("CPU, us per item", "broker", "producer")
        for items, chunksize in ((100_000, 1), (100_000, 1), (100_000, 10), (1_000_000, None)):
            used = cpu_seconds(cluster.broker.pid)
            answer = started[-1].ask("many", items=items, chunksize=chunksize)
            used = cpu_seconds(cluster.broker.pid) - used
            line(f"{items:,}, {chunksize or 'default'}", used / items * 1e6, answer["cpu"] * 1e6)
    header("queued items", "bytes each")
    for items in (100_000, 1_000_000):
        line(f"{items:,}", queue_memory(items))


if __name__ == "__main__":
    main()
