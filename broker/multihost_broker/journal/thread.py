"""The journal: a thread that owns a store and commits what the broker's loop hands it, in groups.

    loop thread                               journal thread
      append(change) -> ticket  --queue-->      collect, commit, collect, commit, ...
      take_synced() -> News     <--news---      wake(): there is news

Groups make themselves: while one is being committed the next one gathers. So a single record on an idle broker
is committed at once, and under load a commit serves up to ``BATCH`` of them.

:meth:`Journal.read` has the same thread read records: between two commits, so it waits for one sync at most if what
it asks for is durable already, however much is queued.

*A full disk.* What is new is refused, until there is room again. What is *essential* (results, and deletions) goes
on into the reserve that the store has held back, and should that be used up, too, it waits until somebody makes
room. Deletions are tried all the same, since they make room. A large payload that does not fit is refused alone,
also that of a result, or everything behind it would wait.

*Anything else that fails* is final: nothing is tried again, for after a failed sync the kernel may have dropped
what was to be written, and a second one would succeed. :meth:`Journal.append` and :meth:`Journal.take_synced`
raise it from then on, and the broker has to end.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from queue import Empty, SimpleQueue
from typing import cast

from multihost_broker.journal.errors import StoreError, StoreFullError
from multihost_broker.journal.records import Change, Record, Spooled, size_of
from multihost_broker.journal.store import Store
from multihost_common.blocks import Frame

log = logging.getLogger("multihost.broker")

#: Changes in one commit: beyond this many, larger groups are hardly cheaper.
BATCH = 256
#: Bytes in one commit, but for the last change: others wait for it meanwhile.
BATCH_BYTES = 8 << 20
#: Seconds that a group gathers while more keeps coming.
WINDOW = 0.002
#: Bytes of payload from which on it goes into a file of its own.
SPOOL_BYTES = 256 << 10
#: Bytes that may wait to be committed before new work is refused.
QUEUE_BYTES = 256 << 20
#: Seconds between two looks whether a full disk has room again.
RETRY = 1.0
#: Seconds that :meth:`Journal.close` gives the disk for one group.
CLOSE_SECONDS = 30.0


@dataclass(slots=True)
class News:
    """What has become of tickets since the news before."""

    #: Every ticket up to this one is durable, but for those that were refused.
    synced: int = 0
    #: Tickets whose change was not made: there was no room. Told before a higher one is told as synced.
    refused: list[int] = field(default_factory=list)
    #: What was read, by token: records by number, with the frames of their payloads.
    records: dict[int, dict[int, Record]] = field(default_factory=dict)


@dataclass(slots=True)
class _Entry:
    ticket: int
    change: Change
    essential: bool
    size: int
    #: Where its payload is, once that is in a file.
    blob: Spooled | None = None


@dataclass(slots=True, eq=False)
class _Question:
    token: int
    numbers: tuple[int, ...]
    #: Whether all that was appended before it has been dealt with.
    due: bool = False


class Journal:
    """See above. One thread, the loop's, calls everything here; ``wake`` is called in any thread and must not block.

    The store is the journal's from now on; what was in it has been read before.
    """

    def __init__(
        self,
        store: Store,
        wake: Callable[[], None],
        *,
        queue_bytes: int = QUEUE_BYTES,
        spool_bytes: int = SPOOL_BYTES,
        retry: float = RETRY,
    ) -> None:
        self._store = store
        self._wake = wake
        self._queue_bytes = queue_bytes
        self._spool_bytes = spool_bytes
        self._retry = retry
        self._ticket = store.last
        self._queue: SimpleQueue[_Entry | _Question | None] = SimpleQueue()
        #: Questions that have no answer; each is in the queue, too, and marks there what came before it.
        self._asked: deque[_Question] = deque()
        # What has gone in is counted by the loop alone, what has come out by the thread alone.
        self._put = self._done = 0
        self._lock = threading.Lock()
        self._news = News(store.last)
        self._woken = False
        self._error: StoreError | None = None
        self._closing = False
        #: Whether the disk is full: then new work is refused at once. That this has changed is news, too.
        self.full = False
        #: Essential changes that did not even fit into the reserve, in order.
        self._waiting: list[_Entry] = []
        #: Everything up to this ticket was committed or refused.
        self._settled = store.last
        #: The last ticket of a deletion that was made before its turn.
        self._deleted = 0
        self._compacting = True
        self._look_at = 0.0
        self._thread = threading.Thread(target=self._run, name="multihost-journal", daemon=True)
        self._thread.start()

    # -- the loop's side -----------------------------------------------------------------------------

    def append(self, change: Change, essential: bool = False) -> int:
        """Have ``change`` made; never waits. The ticket that news will tell of, one higher than the last one.

        New work may be refused for want of room. What is ``essential`` is not, unless it has a large payload for
        which there is none, nor are deletions; the loop bounds them by taking in no more while :attr:`room` is
        used up. Raises StoreError if the journal failed.
        """
        if self._error is not None:
            raise self._error
        if self._closing:
            raise RuntimeError("the journal is closed")
        self._ticket += 1
        essential = essential or type(change) is not Record
        size = size_of(change)
        # One that is larger than the whole queue has to get its turn, too.
        if not essential and (self.full or (self.room < size and self._put != self._done)):
            self._tell(refused=[self._ticket])
        else:
            self._put += size
            self._queue.put(_Entry(self._ticket, change, essential, size))
        return self._ticket

    def read(self, token: int, numbers: Sequence[int]) -> None:
        """Have these records read, with large payloads; never waits. News tells them under ``token``.

        What was appended before can be read; what was deleted a moment before may be there still. Records that
        are not there or are damaged are left out. Raises StoreError if the journal failed.
        """
        if self._error is not None:
            raise self._error
        if self._closing:
            raise RuntimeError("the journal is closed")
        question = _Question(token, tuple(numbers))
        self._asked.append(question)
        self._queue.put(question)

    def take_synced(self) -> News:
        """The news. Raises StoreError if the journal failed."""
        with self._lock:
            news, self._news = self._news, News(self._news.synced)
            self._woken = False
        if self._error is not None:
            raise self._error
        return news

    @property
    def room(self) -> int:
        """Bytes that may still be queued; negative if what is essential took more."""
        return self._queue_bytes - (self._put - self._done)

    def close(self, timeout: float = CLOSE_SECONDS) -> None:
        """Commit what is queued, close the store, end the thread. Raises StoreError if any of it failed.

        What waits for room on a full disk is told as refused: it was never confirmed. ``timeout``: seconds for
        each group.
        """
        if not self._closing:
            self._closing = True
            self._queue.put(None)
        before = -1
        while self._thread.is_alive() and before != self._done:
            before = self._done
            self._thread.join(timeout)
        if self._thread.is_alive():
            raise StoreError(f"the journal's disk has not answered for {timeout:g} s; see the system's log")
        if self._error is not None:
            raise self._error

    # -- news ----------------------------------------------------------------------------------------

    def _tell(
        self,
        synced: int = 0,
        refused: list[int] | None = None,
        records: dict[int, dict[int, Record]] | None = None,
    ) -> None:
        with self._lock:
            news = self._news
            news.synced = synced or news.synced
            news.refused += refused or ()
            news.records |= records or {}
            first, self._woken = not self._woken, True
        if first:
            self._wake()

    def _refuse(self, entries: list[_Entry]) -> list[_Entry]:
        """Refuse what may be refused; what is left."""
        refused = [entry for entry in entries if not entry.essential]
        if refused:
            for entry in refused:
                self._done += entry.size
                if entry.blob is not None:
                    self._store.drop_blob(entry.blob)
            self._tell(refused=[entry.ticket for entry in refused])
        return [entry for entry in entries if entry.essential]

    # -- the thread ----------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            # A journal that nobody uses takes up no room.
            if self._store.last:
                self._look_for_room()
            ended = False
            while not ended:
                entries, ended = self._collect()
                self._answer(in_turn=not entries)
                if entries:
                    self._write(entries)
                if self.full:
                    self._look_for_room()
                self._answer(in_turn=True)
                self._compact()
            self._write_waiting()
            for entry in self._waiting:
                entry.essential = False
            self._refuse(self._waiting)
            self._store.close()
        except BaseException as error:  # noqa: BLE001 - whatever it is, the loop must not wait for ever
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        try:
            self._store.abandon()
        finally:
            if not isinstance(error, StoreError):
                log.error("the journal's thread failed", exc_info=error)
                error = StoreError(f"the journal failed: {error!r}")
            self._error = error
            self._wake()

    def _collect(self) -> tuple[list[_Entry], bool]:
        """The next group, and whether the journal is to end after it."""
        entries: list[_Entry] = []
        size, until = 0, None
        while len(entries) < BATCH and size < BATCH_BYTES:
            try:
                entry = self._queue.get_nowait() if entries else self._queue.get(timeout=self._patience())
            except Empty:
                break
            if entry is None:
                return entries, True
            if isinstance(entry, _Question):
                entry.due = True
                if entries:
                    continue
                break
            entries.append(entry)
            size += entry.size
            now = time.monotonic()
            until = until or now + WINDOW
            if now >= until:
                break
        return entries, False

    def _patience(self) -> float | None:
        """Seconds for which the thread may sleep if nothing comes."""
        if self._compacting:
            return 0.0
        return max(0.0, self._look_at - time.monotonic()) if self.full else None

    def _write(self, entries: list[_Entry]) -> None:
        if not self._look_at:
            self._look_for_room()
        if self.full:
            entries = self._refuse(entries)
        entries = self._spool_first(entries)
        if self._waiting:
            # In their turn.
            self._waiting += entries
            return
        try:
            self._commit(entries)
        except StoreFullError as error:
            self._now_full(error)
            self._waiting = self._refuse(entries)
            self._write_waiting()

    def _spool_first(self, entries: list[_Entry]) -> list[_Entry]:
        """Put large payloads into files. One that does not fit is refused alone: what is small still may."""
        fitting = []
        for entry in entries:
            if self._fits(entry):
                fitting.append(entry)
            else:
                entry.essential = False
                self._refuse([entry])
        return fitting

    def _fits(self, entry: _Entry) -> bool:
        """Put its payload into a file if it is large, with the help of the reserve if need be and it is essential."""
        change = entry.change
        if type(change) is not Record or type(change.payload) is Spooled or entry.size < self._spool_bytes:
            return True
        while True:
            try:
                entry.blob = self._store.put_blob(cast("tuple[Frame, ...]", change.payload))
            except StoreFullError as error:
                if self.full or not entry.essential:
                    return False
                self._now_full(error)
            else:
                entry.change = replace(change, payload=entry.blob)
                return True

    def _commit(self, entries: list[_Entry]) -> None:
        """Make all of these durable and tell so, or none of them and raise."""
        if not entries:
            return
        self._store.append_batch([(entry.ticket, entry.change) for entry in entries])
        self._done += sum(entry.size for entry in entries)
        self._settled = entries[-1].ticket
        self._compacting = True
        self._tell(synced=entries[-1].ticket)

    def _answer(self, in_turn: bool) -> None:
        """Answer questions for what is settled; ``in_turn``: and those that all they came after has been written for,
        but for what waits for room."""
        if not self._asked:
            return
        waiting = {entry.ticket for entry in self._waiting}
        # Others may be asked meanwhile.
        for _ in range(len(self._asked)):
            question = self._asked.popleft()
            numbers = question.numbers
            if max(numbers, default=0) <= self._settled or (
                in_turn and question.due and waiting.isdisjoint(numbers)
            ):
                self._tell(records={question.token: self._store.get(numbers)})
            else:
                self._asked.append(question)

    def _compact(self) -> None:
        """One step between two groups, or one after the other while nothing comes."""
        if not self._compacting:
            return
        try:
            self._compacting = self._store.compact()
        except StoreFullError as error:
            self._compacting = False
            self._now_full(error)

    # -- a full disk ---------------------------------------------------------------------------------

    def _now_full(self, error: StoreFullError) -> None:
        if not self.full:
            log.error("%s: new work is refused until there is room; running work goes on", error)
            self.full = True
            self._look_at = time.monotonic() + self._retry
            self._tell()
        self._store.release_reserve()

    def _look_for_room(self) -> None:
        """Before the first group, and now and then while the disk is full."""
        now = time.monotonic()
        if self.full and now < self._look_at:
            return
        started, self._look_at = bool(self._look_at), now + self._retry
        self._write_waiting()
        if self._waiting:
            return
        room = self._store.regain_reserve()
        if self.full and room:
            log.warning("the disk of the journal has room again: new work is taken")
        elif not started and not room:
            log.error("the disk of the journal has little room: new work is refused until it has more")
        if self.full == room:
            self.full = not room
            self._tell()

    def _write_waiting(self) -> None:
        while self._waiting:
            head = self._waiting[:BATCH]
            try:
                self._commit(head)
            except StoreFullError:
                self._delete_waiting()
                return
            del self._waiting[: len(head)]

    def _delete_waiting(self) -> None:
        """Deletions make room. Each is made once more in its turn, since it may be of something that waits."""
        deletions = [
            (entry.ticket, entry.change)
            for entry in self._waiting
            if entry.ticket > self._deleted and not isinstance(entry.change, Record)
        ]
        if not deletions:
            return
        try:
            self._store.append_batch(deletions)
        except StoreFullError:
            return
        self._deleted = deletions[-1][0]
        self._compacting = True
