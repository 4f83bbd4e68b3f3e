"""The broker's journal: durable records a second by size of group, through its thread, and recovery.

    python benchmarks/journal.py [--directory DIR] [--seconds 2]

DIR is where the journal would be: what is measured is that disk. A record is of 200 bytes, each group is one commit.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from details import header, line

from multihost_broker.journal.opening import open_store
from multihost_broker.journal.records import Record
from multihost_broker.journal.store import Durability, Store
from multihost_broker.journal.thread import Journal

KINDS: tuple[Durability, ...] = ("full", "relaxed", "none")
GROUPS = (1, 16, 256)
#: Bytes of a record's payload; with its key and header it has 200.
PAYLOAD = 140
RECOVERED = 100_000


def record(number: int) -> Record:
    """One of 200 bytes; a thousand make a job."""
    return Record(1, b"%024d" % (number // 1000), b"h" * 36, (b"p" * PAYLOAD,))


def groups(store: Store, size: int, seconds: float) -> tuple[float, float]:
    """(records a second, median milliseconds of a commit)."""
    took, number, begun = [], store.last, time.perf_counter()
    while time.perf_counter() - begun < seconds:
        batch = [(each, record(each)) for each in range(number + 1, number + size + 1)]
        number += size
        before = time.perf_counter()
        store.append_batch(batch)
        store.compact()
        took.append(time.perf_counter() - before)
    return size * len(took) / sum(took), median(took) * 1e3


def through_the_thread(store: Store, ahead: int, seconds: float, busy: bool) -> float:
    """Records confirmed a second when the loop has so many without an answer; ``busy``: it never sleeps, so
    that the thread has to wait for Python's lock."""
    news = threading.Event()
    journal = Journal(store, news.set)
    first = ticket = synced = store.last
    begun = time.perf_counter()
    while (now := time.perf_counter()) - begun < seconds:
        while ticket - synced < ahead:
            ticket = journal.append(record(ticket))
        if not busy:
            news.wait()
        news.clear()
        synced = journal.take_synced().synced
    journal.close()
    return (synced - first) / (now - begun)


def recovery(directory: Path) -> tuple[float, float]:
    """(seconds to open a journal of 100,000 records after a crash, seconds to read them)."""
    store = open_store(directory)
    for start in range(1, RECOVERED, 1000):
        store.append_batch([(number, record(number)) for number in range(start, start + 1000)])
    # As a crash leaves it: the last megabytes are in the log.
    copy = shutil.copytree(directory, directory.with_name("copy"))
    store.close()
    begun = time.perf_counter()
    store = open_store(copy)
    opened = time.perf_counter()
    assert sum(1 for _ in store.load()) == RECOVERED
    loaded = time.perf_counter()
    store.close()
    return opened - begun, loaded - opened


def main(argv: Sequence[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--directory", type=Path, default=Path())
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument(
        "--switch", type=float, default=sys.getswitchinterval(), help="see sys.setswitchinterval"
    )
    chosen = parser.parse_args(argv)
    sys.setswitchinterval(chosen.switch)
    with tempfile.TemporaryDirectory(dir=chosen.directory, prefix="journal-") as folder:
        header("one commit a group", "records/s", "commit, ms")
        for kind in KINDS:
            for size in GROUPS:
                store = open_store(Path(folder, f"{kind}-{size}"), kind)
                line(f"{kind}, {size}", *groups(store, size, chosen.seconds))
                store.close()
        header("through the thread", "records/s", "busy loop")
        for kind in KINDS:
            for ahead in (1, 100, 10_000):
                rates = []
                for busy in (False, True):
                    store = open_store(Path(folder, f"{kind}-{ahead}-{busy}"), kind)
                    rates.append(through_the_thread(store, ahead, chosen.seconds, busy))
                line(f"{kind}, {ahead:,} ahead", *rates)
        header("100,000 records", "open, s", "read, s")
        line("after a crash", *recovery(Path(folder, "recovery")))


if __name__ == "__main__":
    main()
