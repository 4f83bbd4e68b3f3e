"""The journal's part of the broker's shell: where it is, what the core has it do, what the core is told of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

from multihost_broker.config import Config
from multihost_broker.events import Read, Records, Synced, Write
from multihost_broker.journal.opening import open_store
from multihost_broker.journal.records import Record
from multihost_broker.journal.thread import Journal
from multihost_common.keys import private_directory, state_directory


def journal_directory(config: Config, port: int) -> Path | None:
    """Where the journal of the broker on ``port`` is; None if it keeps none on disk.

    Unless it was chosen it has the port in its name: so brokers that can run at the same time never share one, and
    a broker that comes back at its address finds its own.
    """
    if config.durability == "none":
        return None
    if config.journal is not None:
        return config.journal
    return state_directory(config.keys) / "journal" / str(port)


class Keeper:
    """The journal of one broker: opened at once, used from :meth:`start` on. Every method may raise StoreError."""

    def __init__(self, config: Config, port: int) -> None:
        """Open the store. Raises StoreInUseError if another broker has it, ConfigError if it cannot be used."""
        self.directory = journal_directory(config, port)
        if self.directory is not None and config.journal is None:
            private_directory(self.directory.parent, "choose another directory with --journal")
        # Epochs rise from start to start, also on a host that has lost its disk.
        oldest = time.time_ns() // 1_000_000
        self._store = open_store(self.directory, config.durability, oldest_epoch=oldest)
        #: Higher than that of any earlier start.
        self.epoch = self._store.epoch
        #: The last ticket that earlier starts gave.
        self.last = self._store.last
        self._journal: Journal | None = None
        self._told: tuple[int, bool] = (self.last, False)

    def load(self) -> Iterator[tuple[int, Record]]:
        """What earlier starts left, by rising number. To be read before :meth:`start`."""
        return self._store.load()

    def start(self, wake: Callable[[], None]) -> None:
        """Begin; ``wake`` is called in another thread when there are :meth:`events`, and must not block."""
        self._journal = Journal(self._store, wake)

    def do(self, action: Write | Read) -> None:
        """Carry this out; :meth:`events` tells what became of it."""
        journal = self._journal
        assert journal is not None
        if type(action) is Write:
            ticket = journal.append(action.change, action.essential)
            assert ticket == action.ticket, f"the core counts {action.ticket}, the journal {ticket}"
        elif type(action) is Read:
            journal.read(action.token, action.numbers)

    def events(self) -> Iterator[Synced | Records]:
        """What has happened since the last time."""
        journal = self._journal
        assert journal is not None
        news = journal.take_synced()
        told = (news.synced, journal.full)
        if news.refused or told != self._told:
            self._told = told
            yield Synced(news.synced, tuple(news.refused), journal.full)
        for token, records in news.records.items():
            yield Records(token, records)

    def close(self) -> None:
        """Make durable what is queued, and let go of everything."""
        if self._journal is None:
            self._store.close()
        else:
            self._journal.close()
