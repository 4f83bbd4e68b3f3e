"""Kill the broker again and again during one long map, and judge what came of it."""

from __future__ import annotations

import os
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import shells
from tasks import note_and_nap

from multihost.pool import Pool
from soaks.killing import Doomed


def kill_brokers(folder: Path, kills: int, items: int, seed: int) -> bool:
    """Whether each item has exactly one result, after so many broker starts."""
    log, keys = folder / "log", folder / "keys"
    os.environ["MULTIHOST_KEYS"] = str(keys)
    with ExitStack() as stack:
        doomed = Doomed(stack, keys, seed)
        for _ in range(2):
            stack.enter_context(shells.worker(doomed.broker, "-c", 1))
        pool = stack.enter_context(Pool(address=doomed.address))
        began = time.monotonic()
        results = Counter[int]()
        stream = pool.imap_unordered(note_and_nap, ((str(log), item, 0.0) for item in range(items)), 10)
        for number, value in enumerate(stream, 1):
            results[value] += 1
            if doomed.killed < kills and number >= (doomed.killed + 1) * items // (kills + 1):
                doomed.strike(0.0, 0.3)
    took = time.monotonic() - began
    ran = Counter(map(int, log.read_text().split()))
    lost = items - len(results)
    doubled = sum(1 for count in results.values() if count > 1)
    again = sum(count - 1 for count in ran.values())
    print(
        f"{items} items, {doomed.killed} brokers killed, seed {seed}, {took:.0f} s: "
        f"{lost} lost, {doubled} results twice, {again} runs more than items"
    )
    return not lost and not doubled and doomed.killed == kills
