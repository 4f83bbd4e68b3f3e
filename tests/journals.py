"""Journals with a loop around them, and stores that are slow or full when a test wants it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from multihost_broker.journal.errors import StoreError, StoreFullError
from multihost_broker.journal.records import Change, Record
from multihost_broker.journal.store import MemoryStore, Store
from multihost_broker.journal.thread import Journal

#: Seconds that anything here may take on a busy machine.
PATIENCE = 20.0


class Loop:
    """The broker's loop, as far as the journal is concerned."""

    def __init__(
        self, store: Store, *, queue_bytes: int = 1 << 30, spool_bytes: int = 1 << 18, retry: float = 0.02
    ) -> None:
        self.woken = threading.Semaphore(0)
        self.wakes = 0
        self.journal = Journal(
            store, self._wake, queue_bytes=queue_bytes, spool_bytes=spool_bytes, retry=retry
        )
        self.append = self.journal.append
        self.synced = store.last
        self.refused: list[int] = []
        self.records: dict[int, dict[int, Record]] = {}

    def _wake(self) -> None:
        self.wakes += 1
        self.woken.release()

    def take(self) -> None:
        """Take the news."""
        news = self.journal.take_synced()
        assert news.synced >= self.synced
        assert not [each for each in news.refused if each <= self.synced], "told too late"
        self.synced = news.synced
        self.refused += news.refused
        assert not self.records.keys() & news.records.keys(), "answered twice"
        self.records |= news.records

    def until(self, met: Callable[[], object], what: str = "") -> None:
        """Go on until ``met()``."""
        deadline = time.monotonic() + PATIENCE
        while not met():
            assert time.monotonic() < deadline, f"{what} did not come: {self.synced} {self.refused}"
            # Some of what is waited for comes without news.
            self.woken.acquire(timeout=0.02)
            self.take()

    def until_synced(self, ticket: int) -> None:
        self.until(lambda: self.synced >= ticket, f"ticket {ticket}")

    def until_read(self, token: int) -> dict[int, Record]:
        self.until(lambda: token in self.records, f"the answer to {token}")
        return self.records[token]


MakeLoop = Callable[..., Loop]


@contextmanager
def loops() -> Iterator[MakeLoop]:
    """Makes loops whose journals are closed at the end."""
    with ExitStack() as stack:

        def make(store: Store, **options: Any) -> Loop:
            loop = Loop(store, **options)
            stack.callback(_close, loop.journal)
            return loop

        yield make


def _close(journal: Journal) -> None:
    try:
        journal.close(PATIENCE)
    except StoreError:
        # The test knows.
        assert not journal._thread.is_alive()


def record(text: str = "", size: int = 10, job: bytes = b"job") -> Record:
    return Record(1, job, text.encode(), (b"x" * size,))


class Gated(MemoryStore):
    """A store that commits when it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.groups: list[list[int]] = []
        self.gate = threading.Event()
        self.busy = threading.Event()

    def append_batch(self, changes: Sequence[tuple[int, Change]]) -> None:
        self.busy.set()
        assert self.gate.wait(PATIENCE)
        self.groups.append([number for number, _ in changes])
        super().append_batch(changes)


class Small(Gated):
    """A disk with room for so many records, of which deletions need none, and a reserve."""

    def __init__(self, room: int, reserve: int, gated: bool = False) -> None:
        super().__init__()
        if not gated:
            self.gate.set()
        self.room = room
        self.reserve = self.held = reserve
        self.tight = threading.Lock()

    def append_batch(self, changes: Sequence[tuple[int, Change]]) -> None:
        self.busy.set()
        assert self.gate.wait(PATIENCE)
        cost = sum(isinstance(change, Record) for _, change in changes)
        with self.tight:
            if cost > self.room:
                raise StoreFullError("the disk is full")
            self.room -= cost
        MemoryStore.append_batch(self, changes)

    def release_reserve(self) -> None:
        with self.tight:
            self.room, self.held = self.room + self.held, 0

    def regain_reserve(self) -> bool:
        with self.tight:
            missing = self.reserve - self.held
            if self.room <= missing:
                return False
            self.room, self.held = self.room - missing, self.reserve
            return True

    def make_room(self, records: int) -> None:
        with self.tight:
            self.room += records
