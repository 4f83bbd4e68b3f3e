"""A broker under all kinds of load for long: its memory and its descriptors stay what they were."""

from __future__ import annotations

import random
import signal
import statistics
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import shells

#: What a producer does, as a script of its own: it comes, works, and goes, in good order or not.
SCRIPT = """
import os, sys
from multihost.pool import Pool
from tasks import double, filled, nap, same
what = sys.argv[1]
with Pool() as pool:
    if what == "map":
        assert pool.map(same, range(20000), 1) == list(range(20000))
    elif what == "arrays":
        assert sum(len(each) for each in pool.imap(filled, range(8))) > 0
    elif what == "detach":
        result = pool.map_async(double, range(2000), 20, detach=True)
        assert result.get(60) == [2 * each for each in range(2000)]
    elif what == "killed":
        pool.map_async(nap, [0.5] * 50)
        pool.apply(same, (1,))
        os.kill(os.getpid(), 9)
    elif what == "calls":
        for each in range(300):
            assert pool.apply(same, (each,)) == each
"""
KINDS = ("map", "arrays", "detach", "killed", "calls")


def steady(folder: Path, minutes: float, warm_up: float, seed: int) -> bool:
    """Whether the broker's memory grew by less than a twentieth from the minutes after the warm-up to the last ones."""
    source = random.Random(seed)
    keys, script = folder / "keys", folder / "load.py"
    script.write_text(SCRIPT)
    samples: list[tuple[float, int, int]] = []
    done = dict.fromkeys(KINDS, 0)
    with ExitStack() as stack:
        broker = stack.enter_context(shells.broker(keys))
        for _ in range(2):
            stack.enter_context(shells.worker(broker, "-c", 1))
        began = time.monotonic()
        while (now := time.monotonic() - began) < minutes * 60:
            samples.append((now, broker.rss(), broker.descriptors()))
            if len(samples) % 50 == 0:
                print(f"{now / 60:.1f} min: {samples[-1][1] / 1e6:.1f} MB", file=sys.stderr)
            kind = source.choice(KINDS)
            with shells.Shell([sys.executable, str(script), kind], env=broker.settings()) as load:
                status = load.wait(120)
            assert status == (-signal.SIGKILL if kind == "killed" else 0), load
            done[kind] += 1
        # What the last ones had is given back.
        time.sleep(15)
        samples.append((time.monotonic() - began, broker.rss(), broker.descriptors()))
    after = [each for each in samples if each[0] >= warm_up * 60]
    part = max(1, len(after) // 5)
    first = statistics.median(rss for _, rss, _ in after[:part])
    last = statistics.median(rss for _, rss, _ in after[-part:])
    growth = last / first - 1
    most = max(descriptors for _, _, descriptors in after)
    print(
        f"{minutes:g} min, {sum(done.values())} producers ({', '.join(f'{n} {k}' for k, n in done.items())}): the broker "
        f"had {first / 1e6:.1f} MB after {warm_up:g} min and {last / 1e6:.1f} MB in the end, {growth:+.1%}, at most "
        f"{max(rss for _, rss, _ in samples) / 1e6:.1f} MB; {after[0][2]} descriptors, then {after[-1][2]}, at most {most}"
    )
    return growth < 0.05 and after[-1][2] <= after[0][2] + 5
