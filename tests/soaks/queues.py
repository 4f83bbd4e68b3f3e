"""Kill the broker again and again during confirmed puts to a named queue; judge what its consumers have got."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import shells

from multihost.commands.asking import ask
from soaks.killing import Doomed, progress

#: Who puts: several threads, so that a sync of the disk serves more than one of them. What was confirmed is noted.
PRODUCER = """
import sys, threading
import multihost

def put(queue, history, items):
    with open(history, "a", buffering=1) as file:
        for item in items:
            queue.put(item, confirm=True)
            print(item, file=file)

if __name__ == "__main__":
    history, first, last, threads = sys.argv[1], *map(int, sys.argv[2:])
    queue = multihost.Queue(name="soak")
    running = [
        threading.Thread(target=put, args=(queue, f"{history}.{at}", range(first + at, last, threads)))
        for at in range(threads)
    ]
    for each in running:
        each.start()
    for each in running:
        each.join()
"""

#: Who gets, until the sentinel: what it gets it notes before it accepts it.
CONSUMER = """
import sys
import multihost

history, ack = sys.argv[1:]
queue = multihost.Queue(name="soak", ack=ack)
with open(history, "a", buffering=1) as file:
    while True:
        item = queue.get()
        if item is None:
            break
        print(item, file=file)
        if ack == "manual":
            queue.ack(item)
if ack == "manual":
    queue.task_done()
"""


def queues(folder: Path, kills: int, items: int, seed: int, producers: int = 2, threads: int = 4) -> bool:
    """Whether each item that was confirmed came to one of two consumers, once, after so many broker starts."""
    keys = folder / "keys"
    programs = {"producer": PRODUCER, "consumer": CONSUMER}
    for name, text in programs.items():
        (folder / f"{name}.py").write_text(text)
    began = time.monotonic()
    with ExitStack() as stack:
        doomed = Doomed(stack, keys, seed)
        settings = doomed.broker.settings()

        def start(name: str, *words: object) -> shells.Shell:
            argv = [sys.executable, str(folder / f"{name}.py"), *map(str, words)]
            return stack.enter_context(shells.Shell(argv, env=settings))

        consumers = [
            start("consumer", folder / f"got{number}", ack) for number, ack in enumerate(("auto", "manual"))
        ]
        bounds = [items * number // producers for number in range(producers + 1)]
        putting = [
            start("producer", folder / f"put{number}", bounds[number], bounds[number + 1], threads)
            for number in range(producers)
        ]
        for done in progress(folder, "put*", putting, items):
            if doomed.killed < kills and done >= 0.95 * doomed.killed / kills:
                doomed.strike()
        ended = [each.wait() for each in putting]
        _end(settings, len(consumers))
        ended += [each.wait(120) for each in consumers]
        for each, status in zip([*putting, *consumers], ended, strict=True):
            if status:
                print(each, file=sys.stderr)
        left = ask(doomed.address, "queues", keys=str(keys))["queues"][0]["items"]
    confirmed = _numbers(folder.glob("put*"))
    got = _numbers(folder.glob("got*"))
    lost = sorted(set(confirmed) - set(got))
    doubled = sorted(item for item, count in got.items() if count > 1)
    for what, which in (("lost", lost), ("twice", doubled)):
        if which:
            print(what, which[:20], file=sys.stderr)
    took = time.monotonic() - began
    shares = [len(_numbers([folder / f"got{number}"])) for number in range(len(consumers))]
    print(
        f"{len(confirmed)} confirmed puts, {doomed.killed} brokers killed (back after {doomed.longest:.1f} s at most), seed {seed}, "
        f"{took:.0f} s: {len(lost)} lost, {len(doubled)} twice, {left} left behind; the consumers got {shares}"
    )
    complete = len(confirmed) == items == len(got) and doomed.killed == kills
    return complete and not (lost or doubled or left or any(ended))


def _end(settings: dict[str, str], consumers: int) -> None:
    """A sentinel for each consumer."""
    words = f"import multihost; q = multihost.Queue(name='soak'); [q.put(None, confirm=True) for _ in range({consumers})]"
    with shells.Shell([sys.executable, "-c", words], env=settings) as shell:
        assert not shell.wait(60), shell


def _numbers(files: Iterator[Path] | list[Path]) -> Counter[int]:
    return Counter(int(line) for file in files for line in file.read_text().split())
