"""Real child processes without cores: a test does the actions itself and looks at the events."""

from __future__ import annotations

import gc
import os
import pickle
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from multihost_common.blocks import pack_lengths
from multihost_common.pickling import dumps_value, loads_pieces
from multihost_worker.children import Children
from multihost_worker.events import (
    ChildDied,
    ChildReady,
    ChildResult,
    Define,
    Event,
    Inspect,
    KillChild,
    Progress,
    Reclaim,
    Reclaimed,
    Run,
    StartChild,
    StopChild,
)

PATIENCE = 20.0
E = TypeVar("E")


class Nursery:
    """Children, the events they have caused, and the positions each was given."""

    def __init__(self, **options: Any) -> None:
        self.events: list[Event] = []
        self.children = Children(self.events.append, **options)
        self.positions: dict[int, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.children.close()
        # Results refer to shared memory, and that to descriptors.
        self.events.clear()

    # -- actions -----------------------------------------------------------------------------------

    def begin(self, child: int = 1, function: Callable[..., Any] | None = None, **setup: Any) -> None:
        """Start a child; with a function wait until it is ready, and define that as job 1."""
        self.children.do(StartChild(child, 7, pickle.dumps(setup) if setup else b"", b""))
        self.positions[child] = 0
        if function is not None:
            self.wait(ChildReady, child=child)
            self.define(function, child=child)

    def define(self, function: Any, child: int = 1, job: int = 1, **options: Any) -> None:
        """Tell the child the function of a job; ``function`` may be a pickle."""
        blob = function if isinstance(function, bytes) else pickle.dumps(function)
        known: dict[str, Any] = {"call": 0, "timeout": 0.0, "retries": 0, "at_most_once": False}
        self.children.do(Define(child, job, blob, b"", **{**known, **options}))

    def give(
        self,
        items: Sequence[Any],
        child: int = 1,
        job: int = 1,
        chunksize: int = 1,
        skip: int = 0,
        start: int = 0,
        pickles: list[bytes] | None = None,
    ) -> int:
        """Run these items, numbered from ``start``; the first ``skip`` are not. Answers the position."""
        frames: list[Any] = []
        if pickles is None:
            chunks = [items[at : at + chunksize] for at in range(0, len(items), chunksize)]
            made = [dumps_value(chunk[0] if chunksize == 1 else list(chunk)) for chunk in chunks]
            pickles = [data for data, _ in made]
            frames = [buffer for _, buffers in made for buffer in buffers]
        position = self.positions[child]
        count = len(items) - skip
        self.positions[child] = position + count
        payload = [pack_lengths([len(each) for each in pickles]), b"".join(pickles), *frames]
        self.children.do(Run(child, position, job, start + skip, count, chunksize, skip, payload))
        return position

    def stop(self, child: int = 1) -> None:
        self.children.do(StopChild(child))

    def kill(self, child: int = 1) -> None:
        self.children.do(KillChild(child))

    def reclaim(self, child: int = 1) -> int:
        """Take back what has not begun; from which position on that is."""
        self.children.do(Reclaim(child))
        return self.found(Reclaimed)[-1].position

    # -- events ------------------------------------------------------------------------------------

    def found(self, kind: type[E], child: int | None = None) -> list[E]:
        """The events of this kind (and child) so far."""
        return [
            event
            for event in self.events
            if isinstance(event, kind) and (child is None or getattr(event, "child", child) == child)
        ]

    def wait(self, kind: type[E], child: int | None = None, count: int = 1) -> E:
        """The last of ``count`` such events, waited for."""
        self.until(lambda: len(self.found(kind, child)) >= count)
        return self.found(kind, child)[count - 1]

    def until(self, condition: Callable[[], object], patience: float = PATIENCE) -> None:
        """Handle what the children send until the condition holds."""
        deadline = time.monotonic() + patience
        while not condition():
            left = deadline - time.monotonic()
            assert left > 0, f"it did not come to pass; events: {[brief(each) for each in self.events[-20:]]}"
            self.children.poll(min(left, 0.05))

    def outcomes(self, count: int, child: int | None = None, job: int = 1) -> dict[int, Any]:
        """The outcome of each item, once there are ``count``; values stand for themselves."""
        self.until(lambda: sum(each.count for each in self.results(child, job)) >= count)
        answers: dict[int, Any] = {}
        for result in self.results(child, job):
            answered = [each for piece in loads_pieces(result.frames) for each in opened(piece, result)]
            assert len(answered) == result.count
            for item, answer in enumerate(answered, result.start):
                assert item not in answers, f"item {item} was answered twice"
                answers[item] = answer
        return answers

    def running(self, child: int = 1, position: int = 0) -> Progress:
        """What the child runs, once it has come to ``position``."""

        def runs() -> bool:
            self.children.do(Inspect(child))
            return self.found(Progress, child)[-1].position >= position

        self.until(runs)
        return self.found(Progress, child)[-1]

    def results(self, child: int | None = None, job: int = 1) -> list[ChildResult]:
        return [each for each in self.found(ChildResult, child) if each.job == job]

    def death(self, child: int = 1) -> ChildDied:
        return self.wait(ChildDied, child)


def opened(piece: Any, result: ChildResult) -> list[Any]:
    """The answers of one piece."""
    if result.encoding == 0:
        return list(piece)
    return [piece[1] if piece[0] == 0 else piece]


def brief(event: Event) -> str:
    text = repr(event)
    return text if len(text) < 300 else text[:300] + "..."


def exists(pid: int) -> bool:
    """Whether the process lives; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def wait_gone(pids: Sequence[int], patience: float) -> float:
    """Wait until none of the processes lives; the seconds it took."""
    begun = time.monotonic()
    while any(exists(pid) for pid in pids):
        assert time.monotonic() - begun < patience, f"still there: {[pid for pid in pids if exists(pid)]}"
        time.sleep(0.005)
    return time.monotonic() - begun


def open_files() -> list[str]:
    """What the open descriptors of this process refer to."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{name}"))
        except OSError:
            continue
    return sorted(each.split(":")[0] for each in found)


def descendants() -> list[int]:
    """Process ids of everything below this process that lives."""
    parents: dict[int, int] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                parents[int(name)] = int(Path(f"/proc/{name}/stat").read_text().rsplit(")", 1)[1].split()[1])
            except OSError:
                continue
    found = [os.getpid()]
    for pid in found:
        found += [each for each, parent in parents.items() if parent == pid]
    return [pid for pid in found[1:] if exists(pid)]


@contextmanager
def nothing_left() -> Iterator[None]:
    """What is begun inside leaves neither a descriptor nor a process."""
    files, processes = open_files(), descendants()
    yield
    gc.collect()
    assert open_files() == files
    assert descendants() == processes
