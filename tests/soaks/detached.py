"""Kill the broker again and again while clients hand in detached jobs and fetch their results; judge their histories."""

from __future__ import annotations

import sys
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import shells

from multihost.commands.asking import ask
from soaks.killing import Doomed, progress

#: Items of a chunk, and jobs that a client has under way at a time.
CHUNK, AT_ONCE = 5, 5

#: A client: it hands in its jobs, some at a time, and has another process fetch each. What it is told goes into its
#: history, a line each, before it does anything else.
CLIENT = """
import subprocess, sys
from multihost.detached.result import detached_result
from multihost.failures import Raised
from multihost.pool import Pool
from multihost_common.errors import BrokerLostError
from tasks import same_after_nap

def there(call):
    # A process that begins while the broker is away gives up after 5 s.
    while True:
        try:
            return call()
        except BrokerLostError as error:
            print(error, file=sys.stderr)

def items(job, count, nap):
    for item in range(count):
        yield (job, item), nap

def submit(note, jobs, count, nap):
    with there(Pool) as pool:
        for job in jobs:
            note("submit", job)
            result = pool.map_async(same_after_nap, items(job, count, nap), CHUNK, detach=True)
            note("stored", job, result.key)
            yield job, result.key

def fetch(note, job, key):
    result = detached_result(key)
    there(result.ready)
    note("fetch", job)
    for value in result.outcomes():
        if type(value) is Raised:
            note("raised", job, repr(value.error))
        else:
            note("answer", *value)
    result.collect()
    note("collected", job)

def main(history, first, last, count, nap, *single):
    with open(history, "a", buffering=1) as file:
        def note(*words):
            print(*words, file=file)
        if single:
            fetch(note, first, single[0])
            return
        for begin in range(first, last, AT_ONCE):
            batch = range(begin, min(last, begin + AT_ONCE))
            for job, key in list(submit(note, batch, count, nap)):
                again = [sys.executable, sys.argv[0], history, str(job), "0", "0", "0", key]
                subprocess.run(again, check=True)

if __name__ == "__main__":
    history, first, last, count, nap, *single = sys.argv[1:]
    main(history, int(first), int(last), int(count), float(nap), *single)
"""


@dataclass
class Verdict:
    """What the histories of all clients tell."""

    stored: int = 0
    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    @property
    def well(self) -> bool:
        """Nothing was lost, nothing came twice, nothing was invented."""
        return not (self.lost or self.doubled or self.wrong)


def judge(histories: list[str], jobs: int, items: int) -> Verdict:
    """Every job was confirmed once, fetched once, and each of its items has one answer, its own."""
    verdict = Verdict()
    seen: dict[int, Counter[int]] = {job: Counter() for job in range(jobs)}
    events = {what: Counter[int]() for what in ("submit", "stored", "fetch", "collected")}
    for line in (line for history in histories for line in history.splitlines()):
        what, name, *rest = line.split(" ", 2)
        number = int(name)
        if number not in seen or what == "raised":
            verdict.wrong.append(line)
        elif what == "answer":
            seen[number][int(rest[0])] += 1
        else:
            events[what][number] += 1
    verdict.stored = len(events["stored"])
    for event, counts in events.items():
        verdict.lost += [f"{event} of job {job}" for job in range(jobs) if not counts[job]]
        verdict.doubled += [f"{event} of job {job}" for job, count in counts.items() if count > 1]
    for number, answers in seen.items():
        verdict.lost += [f"item {item} of job {number}" for item in range(items) if not answers[item]]
        verdict.doubled += [f"item {item} of job {number}" for item, count in answers.items() if count > 1]
        verdict.wrong += [f"item {item} of job {number}" for item in answers if not 0 <= item < items]
    return verdict


def detached(
    folder: Path, kills: int, jobs: int, chunks: int, seed: int, clients: int = 4, nap: float = 0.0
) -> bool:
    """Whether all of ``jobs`` were confirmed and every item has exactly one answer, after so many broker starts."""
    keys, script = folder / "keys", folder / "client.py"
    script.write_text(CLIENT.replace("CHUNK", str(CHUNK)).replace("AT_ONCE", str(AT_ONCE)))
    items = chunks * CHUNK
    histories = [folder / f"history{number}" for number in range(clients)]
    began = time.monotonic()
    with ExitStack() as stack:
        doomed = Doomed(stack, keys, seed)
        broker = doomed.broker
        for _ in range(2):
            stack.enter_context(shells.worker(broker, "-c", 2))
        bounds = [jobs * number // clients for number in range(clients + 1)]
        running = []
        for number, history in enumerate(histories):
            words = map(str, (script, history, bounds[number], bounds[number + 1], items, nap))
            client = shells.Shell([sys.executable, *words], env=broker.settings())
            running.append(stack.enter_context(client))
        # Some lines are there before the first answer: then, too, it is killed. And the last time with a quarter of all
        # answers to come, for clients may take long for one job and no time for the next.
        for done in progress(folder, "history*", running, jobs * items):
            if doomed.killed < kills and done >= 0.75 * doomed.killed / kills:
                doomed.strike()
        ended = [each.wait() for each in running]
        for status, client in zip(ended, running, strict=True):
            if status:
                print(client, file=sys.stderr)
        left = len(ask(doomed.address, "jobs", keys=str(keys))["jobs"])
    verdict = judge([history.read_text() for history in histories], jobs, items)
    for each in (*verdict.lost[:10], *verdict.doubled[:10], *verdict.wrong[:10]):
        print(each, file=sys.stderr)
    print(
        f"{jobs} detached jobs of {chunks} chunks, {doomed.killed} brokers killed (back after {doomed.longest:.1f} s "
        f"at most), seed {seed}, "
        f"{time.monotonic() - began:.0f} s: {verdict.stored} confirmed, {len(verdict.lost)} lost, "
        f"{len(verdict.doubled)} results twice, {len(verdict.wrong)} wrong, {left} jobs left behind"
    )
    return verdict.well and not any(ended) and not left and doomed.killed == kills
