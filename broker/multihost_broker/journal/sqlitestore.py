"""The store of a broker on one host: SQLite, and large payloads in files beside it.

    journal.db, journal.db-wal   records; the second file is SQLite's write-ahead log
    spool/                       large payloads, a file each
    ballast                      room held back for when the disk is full
    lock                         locked by the broker that uses this directory

Changing the format: raise ``FORMAT``, change ``SCHEMA``, and add the SQL that leads from the format before to the
new one to ``UPGRADES``.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from multihost_broker.journal.database import PAGE_BYTES, Database
from multihost_broker.journal.errors import StoreError, StoreFullError
from multihost_broker.journal.records import Change, Erase, Forget, Record, Spooled, size_of
from multihost_broker.journal.spool import Ballast, Spool, cut, lock, sync_directory
from multihost_broker.journal.store import with_frames
from multihost_common.blocks import Frame, pack_lengths, unpack_lengths
from multihost_common.keys import private_directory

log = logging.getLogger("multihost.broker")

#: "mhos".
APPLICATION = 0x6D686F73
FORMAT = 1
#: What is large comes last: SQLite reads a row only as far as it is asked to. ``last``: the highest number that is
#: no record's any more.
SCHEMA = """
CREATE TABLE meta (epoch INTEGER NOT NULL, last INTEGER NOT NULL);
INSERT INTO meta VALUES (0, 0);
CREATE TABLE record (
    number INTEGER PRIMARY KEY, job BLOB NOT NULL, kind INTEGER NOT NULL, header BLOB NOT NULL,
    lengths BLOB NOT NULL, name TEXT, digest BLOB, payload BLOB);
CREATE INDEX record_job ON record (job);
CREATE TABLE forgotten (job BLOB PRIMARY KEY, upto INTEGER NOT NULL)
"""
UPGRADES: dict[int, str] = {}
COLUMNS = "number, job, kind, header, lengths, name, digest, payload"
WIDTH = COLUMNS.count(",") + 1

#: Rows that one statement inserts or deletes, where SQLite allows that many variables.
WIDEST = 256
#: Bytes held back for results and deletions on a full disk.
BALLAST_BYTES = 64 << 20
#: Bytes of log after which it is worked into the database.
LOG_BYTES = 16 << 20
#: Rows of a forgotten job that are deleted in one go: some milliseconds.
SLICE = 1024
#: Bytes of the database that may be free; more of them are given back to the file system.
FREE_BYTES = 64 << 20


class SqliteStore:
    """See :class:`multihost_broker.journal.store.Store`."""

    epoch: int
    last: int

    def __init__(
        self,
        directory: Path,
        *,
        relaxed: bool = False,
        ballast: int = BALLAST_BYTES,
        oldest_epoch: int = 1,
    ) -> None:
        private_directory(directory, "choose another directory with --journal")
        self._spool = Spool(directory / "spool")
        self._ballast = Ballast(directory / "ballast", ballast)
        #: Spool files of records, by number: few, since they are large.
        self._names: dict[int, str] = {}
        #: Jobs whose records are to be deleted, up to a number.
        self._forgotten: dict[bytes, int] = {}
        #: Bytes, about, that the log has grown by since it was last worked into the database.
        self._logged = 0
        #: Whether rows were deleted since there was a look at what is free.
        self._deleted = True
        self._lock = lock(directory)
        if not (directory / "journal.db").exists():
            # It may have been made just now, and what is above it.
            for above in directory.absolute().parents:
                with suppress(OSError):
                    sync_directory(above)
        try:
            try:
                self._open(directory / "journal.db", oldest_epoch)
            except StoreFullError:
                # A broker that ends on a full disk leaves its ballast to the next one.
                self._ballast.release()
                self._open(directory / "journal.db", oldest_epoch)
        except BaseException:
            os.close(self._lock)
            raise
        self._db.relaxed = relaxed

    def _open(self, path: Path, oldest_epoch: int) -> None:
        # To begin with an empty one would delete the rest of what was there.
        log_path = Path(f"{path}-wal")
        if not _size(path) and (self._spool.names() or _size(log_path)):
            raise StoreError(
                f"{path} is missing, but not what goes with it; put a copy of {path.parent} back, or move what is there "
                "away to begin with an empty one"
            )
        self._db = Database(path, application=APPLICATION, log_bytes=4 * LOG_BYTES)
        try:
            if self._db.blank() and self._spool.names():
                raise self._db.damaged("there are payloads, but no records")
            self._db.bring_to(FORMAT, SCHEMA, UPGRADES)
            self._begin(oldest_epoch)
            self._spool.open(self.epoch, self._names.values())
        except BaseException:
            self._db.close()
            raise
        self._logged = self._db.logged()
        self._widest = min(WIDEST, 1 << ((self._db.variables // WIDTH).bit_length() - 1))

    def _begin(self, oldest_epoch: int) -> None:
        """Commit that there is a new epoch, and look up what is kept in memory."""
        with self._db.told():
            (before,) = self._db.execute("SELECT epoch FROM meta").fetchone()
            self.epoch = max(before + 1, oldest_epoch)
            self._db.execute("UPDATE meta SET epoch = ?", (self.epoch,))
            self._forgotten = dict(self._db.execute("SELECT job, upto FROM forgotten"))
            self._names = dict(self._db.execute("SELECT number, name FROM record WHERE name IS NOT NULL"))
            last = self._db.execute("SELECT max((SELECT last FROM meta), ifnull(max(number), 0)) FROM record")
            (self.last,) = last.fetchone()

    def load(self) -> Iterator[tuple[int, Record]]:
        """See :class:`multihost_broker.journal.store.Store`."""
        with self._db.told():
            forgotten = self._forgotten
            rows = self._db.execute(f"SELECT {COLUMNS} FROM record ORDER BY number")
            for number, job, kind, header, *payload in rows:
                if forgotten and number <= forgotten.get(job, 0):
                    continue
                yield number, Record(kind, job, header, self._payload(number, *payload))

    def _payload(
        self, number: int, packed: bytes, name: str | None, digest: bytes, content: bytes | None
    ) -> tuple[Frame, ...] | Spooled:
        if not packed:
            return ()
        lengths = unpack_lengths(packed)
        if name is not None:
            return Spooled(name, tuple(lengths), digest)
        if sum(lengths) != len(content or b""):
            raise self._db.damaged(f"record {number} has been cut")
        return cut(content or b"", lengths)

    def get(self, numbers: Sequence[int]) -> dict[int, Record]:
        """See :class:`multihost_broker.journal.store.Store`."""
        rows: list[Any] = []
        with self._db.told():
            for at in range(0, len(numbers), WIDEST):
                values = _filled(numbers[at : at + WIDEST])
                marks = ",".join("?" * len(values))
                rows += self._db.execute(f"SELECT {COLUMNS} FROM record WHERE number IN ({marks})", values)
        return with_frames(self, self._kept(rows))

    def _kept(self, rows: Iterable[Any]) -> Iterator[tuple[int, Record]]:
        """Records of these rows that are neither forgotten nor damaged."""
        for number, job, kind, header, *payload in rows:
            if number <= self._forgotten.get(job, 0):
                continue
            try:
                yield number, Record(kind, job, header, self._payload(number, *payload))
            except StoreError as error:
                log.error("%s", error)

    # -- changes -------------------------------------------------------------------------------------

    def append_batch(self, changes: Sequence[tuple[int, Change]]) -> None:
        """See :class:`multihost_broker.journal.store.Store`."""
        if not changes:
            return
        self._db.check_there()
        rows: list[Any] = []
        names: dict[int, str] = {}
        erased: list[int] = []
        forgotten: dict[bytes, int] = {}
        for number, change in changes:
            if type(change) is Record:
                rows += _row(number, change)
                if type(change.payload) is Spooled:
                    names[number] = change.payload.name
            elif type(change) is Erase:
                erased += change.numbers
            elif type(change) is Forget:
                forgotten[change.job] = number
        self._spool.sync()
        # Each statement lets go of Python's lock and waits for it again, behind a broker that is busy: up to 5 ms.
        # So there are as few as can be, never one a row, and one that is alone needs no transaction around it.
        alone = len(rows) <= self._widest * WIDTH and not (erased or forgotten)
        # What is erased or forgotten has a lower number, so the order of these makes no difference.
        with self._db.transaction(sync=self._have_files(erased), alone=alone):
            self._insert(rows)
            self._delete(erased)
            for each in forgotten.items():
                self._db.execute("INSERT OR REPLACE INTO forgotten VALUES (?, ?)", each)
            if erased or forgotten:
                self._db.execute("UPDATE meta SET last = ?", (changes[-1][0],))
        self.last = max(self.last, changes[-1][0])
        self._logged += sum(size_of(change) for _, change in changes) + _pages(len(erased))
        self._names |= names
        self._forgotten |= forgotten
        self._deleted = self._deleted or bool(erased)
        self._drop_files(erased)

    def _insert(self, rows: list[Any]) -> None:
        for at in range(0, len(rows), self._widest * WIDTH):
            values = rows[at : at + self._widest * WIDTH]
            count = _rounded_up(len(values) // WIDTH)
            values += [None] * (count * WIDTH - len(values))
            places = ",".join([f"({','.join('?' * WIDTH)})"] * count)
            self._db.execute(
                f"INSERT INTO record SELECT * FROM (VALUES {places}) WHERE column1 IS NOT NULL", values
            )

    def _delete(self, numbers: Sequence[int]) -> None:
        for at in range(0, len(numbers), self._widest):
            values = _filled(numbers[at : at + self._widest])
            marks = ",".join("?" * len(values))
            self._db.execute(f"DELETE FROM record WHERE number IN ({marks})", values)

    def _have_files(self, numbers: Iterable[int]) -> bool:
        """If so, that they are deleted has to be on disk before their files are gone, however relaxed we are."""
        return bool(self._names) and not self._names.keys().isdisjoint(numbers)

    def _drop_files(self, numbers: Iterable[int]) -> None:
        """Of records that are deleted, once that is committed."""
        if self._names:
            self._spool.drop([self._names.pop(number) for number in numbers if number in self._names])

    # -- what can wait -------------------------------------------------------------------------------

    def compact(self) -> bool:
        """See :class:`multihost_broker.journal.store.Store`."""
        if self._logged > LOG_BYTES:
            self._db.checkpoint()
            self._logged = 0
        elif self._forgotten:
            self._delete_forgotten()
        elif self._deleted and self._db.shrink(FREE_BYTES, SLICE):
            self._logged += PAGE_BYTES * SLICE
        else:
            self._deleted = False
            return False
        return True

    def _delete_forgotten(self) -> None:
        job, upto = next(iter(self._forgotten.items()))
        with self._db.told():
            # One row, since Python's lock is released and taken for each.
            found = self._db.execute(
                "SELECT group_concat(number) FROM"
                " (SELECT number FROM record WHERE job = ? AND number <= ? ORDER BY number LIMIT ?)",
                (job, upto, SLICE),
            )
            numbers = [int(number) for number in (found.fetchone()[0] or "").split(",") if number]
        with self._db.transaction(sync=self._have_files(numbers)):
            self._delete(numbers)
            if len(numbers) < SLICE:
                self._db.execute("DELETE FROM forgotten WHERE job = ?", (job,))
        self._logged += _pages(len(numbers))
        self._drop_files(numbers)
        if len(numbers) < SLICE:
            del self._forgotten[job]
            self._deleted = True

    # -- large payloads, room ------------------------------------------------------------------------

    def put_blob(self, frames: Sequence[Frame]) -> Spooled:
        """See :class:`multihost_broker.journal.store.Store`."""
        return self._spool.put(frames)

    def get_blob(self, blob: Spooled) -> tuple[Frame, ...]:
        """See :class:`multihost_broker.journal.store.Store`."""
        return self._spool.get(blob)

    def drop_blob(self, blob: Spooled) -> None:
        """See :class:`multihost_broker.journal.store.Store`."""
        self._spool.drop([blob.name])

    def release_reserve(self) -> None:
        """See :class:`multihost_broker.journal.store.Store`."""
        self._ballast.release()

    def regain_reserve(self) -> bool:
        """See :class:`multihost_broker.journal.store.Store`."""
        return self._ballast.make()

    # -- ending --------------------------------------------------------------------------------------

    def close(self) -> None:
        """See :class:`multihost_broker.journal.store.Store`."""
        self._db.close()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def abandon(self) -> None:
        """See :class:`multihost_broker.journal.store.Store`."""
        self._db.abandon()


def _size(path: Path) -> int:
    """Bytes; 0 if it is not there."""
    with suppress(OSError):
        return path.stat().st_size
    return 0


def _row(number: int, record: Record) -> tuple[Any, ...]:
    payload = record.payload
    kept: tuple[Any, ...] = (b"", None, None, None)
    if isinstance(payload, Spooled):
        kept = (pack_lengths(payload.lengths), payload.name, payload.digest, None)
    elif payload:
        content = payload[0] if len(payload) == 1 else b"".join(payload)
        kept = (pack_lengths([len(frame) for frame in payload]), None, None, content)
    return (number, record.job, record.kind, record.header, *kept)


def _filled(numbers: Sequence[int]) -> list[int | None]:
    """As many values as a statement takes that SQLite has compiled before."""
    return [*numbers, *[None] * (_rounded_up(len(numbers)) - len(numbers))]


def _rounded_up(count: int) -> int:
    """To a power of two, so that there are a few statements, which SQLite has compiled before."""
    return 1 << (count - 1).bit_length()


def _pages(deleted: int) -> int:
    """Bytes of log, about, that one commit takes beyond what it carries; rows that go lie close to each other."""
    return PAGE_BYTES * (2 + deleted // 4)
