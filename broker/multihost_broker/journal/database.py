"""One SQLite file, for this process alone: opened, checked, of the right format, its errors told as a store's."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from multihost_broker.journal.errors import StoreError, StoreFullError, StoreInUseError
from multihost_broker.journal.spool import failed, sync_directory
from multihost_common.errors import ConfigError

PAGE_BYTES = 4096


class Database:
    """A database in WAL mode. Every method raises StoreError for what SQLite cannot do."""

    def __init__(self, path: Path, *, application: int, log_bytes: int) -> None:
        """Open or create ``path``; SQLite itself works the log into it only where it outgrows ``log_bytes``.

        ``application`` tells our databases from those of other programs. Raises ConfigError if it is another's.
        """
        self.path = path
        #: Commits are handed to the operating system only: a loss of power may take the last ones.
        self.relaxed = False
        self._syncing = True
        try:
            # SQLite itself would make it readable for others; its log gets the mode of this one.
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            fresh = not path.stat().st_size
            self._inode = path.stat().st_ino
            sync_directory(path.parent)
        except OSError as error:
            raise failed(path, error) from None
        self._connection = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)
        self.execute = self._connection.execute
        try:
            with self.told():
                self._set_up(application, log_bytes, fresh)
                self._check()
        except BaseException:
            self.close()
            raise
        #: The most variables in a statement.
        self.variables = self._connection.getlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER)

    def _set_up(self, application: int, log_bytes: int, fresh: bool) -> None:
        # Without other processes the index of the log is kept in memory: there is no third file, which a
        # full disk would turn into an I/O error. For the same reason nothing temporary is kept in files.
        pragmas = [
            "locking_mode = EXCLUSIVE",
            "temp_store = MEMORY",
            "synchronous = FULL",
            f"wal_autocheckpoint = {log_bytes // PAGE_BYTES}",
            f"journal_size_limit = {log_bytes}",
        ]
        if fresh:
            marks = [
                f"page_size = {PAGE_BYTES}",
                "auto_vacuum = INCREMENTAL",
                f"application_id = {application}",
            ]
            pragmas += marks
        for pragma in pragmas:
            self.execute(f"PRAGMA {pragma}")
        # Before anything in it is changed.
        (owner,) = self.execute("PRAGMA application_id").fetchone()
        if owner != application:
            raise ConfigError(
                f"{self.path} belongs to another program; choose another directory with --journal"
            )
        (mode,) = self.execute("PRAGMA journal_mode = WAL").fetchone()
        if mode != "wal":
            raise StoreError(
                f"SQLite cannot keep a log in {self.path.parent}; choose another directory with --journal"
            )

    def _check(self) -> None:
        (damage,) = self.execute("PRAGMA quick_check(1)").fetchone()
        if damage != "ok":
            raise self.damaged(damage)

    def blank(self) -> bool:
        """Has it never been brought to any format?"""
        with self.told():
            return not self.execute("PRAGMA user_version").fetchone()[0]

    def bring_to(self, version: int, schema: str, upgrades: Mapping[int, str]) -> None:
        """Create what is in it by ``schema``, or upgrade it by the SQL for each format before ``version``.

        Raises ConfigError if it is of a format to come.
        """
        with self.told():
            (found,) = self.execute("PRAGMA user_version").fetchone()
            if found > version:
                raise ConfigError(
                    f"{self.path} has format {found}, and this multihost knows up to {version}; "
                    "install the newer one again or choose another directory with --journal"
                )
            steps = (
                [(upgrades[each], each + 1) for each in range(found, version)]
                if found
                else [(schema, version)]
            )
            for sql, to in steps:
                self._connection.executescript(f"BEGIN; {sql}; PRAGMA user_version = {to}; COMMIT")

    def check_there(self) -> None:
        """SQLite would go on for ever with a file that somebody has removed or replaced."""
        try:
            there = self.path.stat().st_ino == self._inode
        except OSError:
            there = False
        if not there:
            raise StoreError(
                f"{self.path} was removed or replaced while it was in use; put back a copy of it"
            )

    # -- use -----------------------------------------------------------------------------------------

    @contextmanager
    def transaction(self, *, sync: bool = False, alone: bool = False) -> Iterator[None]:
        """All of what is executed within, or nothing. ``sync``: on disk afterwards even if ``relaxed``.

        ``alone``: it is one statement, a transaction in itself.
        """
        with self.told():
            if self._syncing != (wanted := sync or not self.relaxed):
                self.execute(f"PRAGMA synchronous = {'FULL' if wanted else 'NORMAL'}")
                self._syncing = wanted
            if alone:
                yield
                return
            self.execute("BEGIN IMMEDIATE")
            try:
                yield
                self.execute("COMMIT")
            except BaseException:
                # After most errors SQLite has done so by itself.
                if self._connection.in_transaction:
                    with suppress(sqlite3.Error):
                        self.execute("ROLLBACK")
                raise

    def logged(self) -> int:
        """Bytes of the log's file, whether they are still needed or not."""
        try:
            return Path(f"{self.path}-wal").stat().st_size
        except OSError:
            return 0

    def checkpoint(self) -> None:
        """Work the log into the database."""
        # In a commit SQLite would keep quiet about an error of this.
        with self.told():
            self.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()

    def shrink(self, more_than: int, pages: int) -> bool:
        """Give back so many pages if more bytes than this are free; False: they are not."""
        with self.told():
            (free,) = self.execute("PRAGMA freelist_count").fetchone()
            if free * PAGE_BYTES <= more_than:
                return False
            # As a script: it answers with a row for each page, and each would let go of Python's lock.
            self._connection.executescript(f"PRAGMA incremental_vacuum({pages})")
            return True

    def close(self) -> None:
        """Work the log into the database, and close it."""
        with self.told():
            self._connection.close()

    def abandon(self) -> None:
        """Instead of ``close``, after an error: leave the files alone for as long as this process lives.

        SQLite works the log into the database when a connection is closed, also when Python ends: it would read
        back what may never have reached the disk, and then remove the log. So this connection stays open.
        """
        import ctypes

        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._connection))

    # -- errors --------------------------------------------------------------------------------------

    @contextmanager
    def told(self) -> Iterator[None]:
        """Raise SQLite's errors as a store does."""
        try:
            yield
        except sqlite3.Error as error:
            raise self._as_told(error) from error

    def _as_told(self, error: sqlite3.Error) -> StoreError:
        # The lower byte is the kind of error, the others say where.
        kind = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if kind == sqlite3.SQLITE_FULL:
            return StoreFullError(f"there is no room for {self.path}")
        if kind in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return StoreInUseError(f"another program has {self.path} open; close it there")
        if kind in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            return self.damaged(str(error))
        name = getattr(error, "sqlite_errorname", type(error).__name__)
        return StoreError(f"{self.path} cannot be used: {error} ({name})")

    def damaged(self, what: str) -> StoreError:
        """The error for content that cannot be right."""
        line = what.replace("\n", " ")
        return StoreError(
            f"{self.path} is damaged ({line}); put a copy back, or move it away to begin with an empty one"
        )
