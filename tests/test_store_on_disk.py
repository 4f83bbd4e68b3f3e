"""Stores on disk: what is appended is there again, however the broker ended; what is damaged is told."""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from stores import after, compacted, filled, plain, record, sqlite

from multihost_broker.journal import spool, sqlitestore
from multihost_broker.journal.errors import StoreError, StoreInUseError
from multihost_broker.journal.opening import open_store
from multihost_broker.journal.records import Change, Erase, Forget, Record, Spooled
from multihost_broker.journal.sqlitestore import SqliteStore
from multihost_common.errors import EX_CANTCREAT, EX_IOERR, ConfigError

#: Bytes of SQLite's log: its header, and a frame of one page with its own header.
LOG_HEADER, FRAME = 32, 24 + 4096


# -- on disk -------------------------------------------------------------------------------------------


def test_a_second_broker_is_refused_until_the_first_one_has_ended(tmp_path: Path) -> None:
    with closing(sqlite(tmp_path / "journal")):
        with pytest.raises(
            StoreInUseError, match=r"another broker has the journal in .*; stop that one"
        ) as caught:
            sqlite(tmp_path / "journal")
        assert caught.value.exit_code == EX_CANTCREAT
    sqlite(tmp_path / "journal").close()


def test_another_program_in_the_database_is_told(tmp_path: Path) -> None:
    sqlite(tmp_path / "journal").close()
    with closing(sqlite3.connect(tmp_path / "journal" / "journal.db")) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreInUseError, match=r"another program has .*journal\.db open"):
            sqlite(tmp_path / "journal")


def test_nobody_else_may_read_it(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with closing(SqliteStore(tmp_path / "journal", ballast=1 << 20)) as store:
            assert store.regain_reserve()
            store.append_batch([(1, Record(1, b"", b"", store.put_blob((b"x",))))])
            modes = {path: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "journal").rglob("*")}
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "journal").stat().st_mode) == 0o700
    assert {path.name for path in modes} >= {"journal.db", "journal.db-wal", "lock", "ballast", "spool"}
    assert all(mode == (0o700 if path.is_dir() else 0o600) for path, mode in modes.items())


def test_a_directory_that_is_open_to_others_is_refused(tmp_path: Path) -> None:
    sqlite(tmp_path / "journal").close()
    (tmp_path / "journal").chmod(0o755)
    with pytest.raises(ConfigError, match="chmod 700"):
        sqlite(tmp_path / "journal")


def test_epochs_rise_with_the_clock_and_without_it(tmp_path: Path) -> None:
    epochs = []
    for oldest in (1000, 2000, 500, 3000):
        with closing(open_store(tmp_path / "journal", oldest_epoch=oldest)) as store:
            epochs.append(store.epoch)
    assert epochs == [1000, 2000, 2001, 3000]


def test_no_durability_leaves_the_directory_alone(tmp_path: Path) -> None:
    open_store(tmp_path / "journal", "none").close()
    assert not (tmp_path / "journal").exists()


def test_a_group_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    with closing(sqlite(tmp_path / "journal")) as store:
        wanted = filled(store, range(1, 4))
        with pytest.raises(StoreError):
            store.append_batch([(4, record(4)), (5, Erase((1,))), (3, record(3))])
        assert plain(store) == wanted
        assert store.last == 3
        wanted |= filled(store, range(4, 6))
    with closing(sqlite(tmp_path / "journal")) as store:
        assert plain(store) == wanted


def test_the_log_does_not_grow_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlitestore, "LOG_BYTES", 1 << 20)
    with closing(sqlite(tmp_path / "journal", relaxed=True)) as store:
        for start in range(1, 800, 8):
            filled(store, range(start, start + 8), size=10_000)
            store.append_batch([(start + 8, Erase(tuple(range(start, start + 8))))])
            store.compact()
        assert (tmp_path / "journal" / "journal.db-wal").stat().st_size < 4 << 20


def test_room_of_what_is_gone_goes_back_to_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlitestore, "FREE_BYTES", 1 << 20)
    monkeypatch.setattr(sqlitestore, "LOG_BYTES", 1 << 18)
    database = tmp_path / "journal" / "journal.db"
    with closing(sqlite(tmp_path / "journal", relaxed=True)) as store:
        filled(store, range(1, 1001), size=10_000)
        compacted(store)
        assert database.stat().st_size > 9 << 20
        store.append_batch([(1001, Forget(b"job"))])
        compacted(store)
    assert database.stat().st_size < 2 << 20


def test_a_large_payload_is_on_disk_under_its_name_before_a_record_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def noted(name: str, call: Callable[..., object]) -> Callable[..., object]:
        def noting(*args: object) -> object:
            calls.append(name)
            return call(*args)

        return noting

    monkeypatch.setattr(spool, "sync_data", noted("sync", spool.sync_data))
    monkeypatch.setattr(spool, "sync_directory", noted("sync names", spool.sync_directory))
    monkeypatch.setattr(Path, "rename", noted("rename", Path.rename))
    with closing(sqlite(tmp_path / "journal", relaxed=True)) as store:
        calls.clear()
        store._db._connection.set_trace_callback(lambda sql: calls.append(sql.split()[0]))
        blob = store.put_blob((b"x" * 10,))
        store.append_batch([(1, Record(1, b"", b"", blob))])
        store._db._connection.set_trace_callback(None)
    calls = [call for call in calls if call != "PRAGMA"]
    assert calls == ["sync", "rename", "sync names", "INSERT"]


def test_a_commit_is_synced_as_was_asked_for(tmp_path: Path) -> None:
    def synchronous(store: SqliteStore, change: Change) -> int:
        store.append_batch([(store.last + 1, change)])
        (level,) = store._db.execute("PRAGMA synchronous").fetchone()
        return int(level)

    with closing(sqlite(tmp_path / "journal")) as store:
        assert synchronous(store, record(1)) == 2
    with closing(sqlite(tmp_path / "journal", relaxed=True)) as store:
        assert synchronous(store, record(2)) == 1
        store.append_batch([(3, Record(1, b"", b"", store.put_blob((b"x",))))])
        # Or a loss of power could bring the record back without its file.
        assert synchronous(store, Erase((3,))) == 2
        assert synchronous(store, record(5)) == 1


# -- damage --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["flipped", "cut", "longer", "gone"])
def test_a_damaged_payload_is_told_and_not_returned(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    with closing(sqlite(tmp_path / "journal")) as store:
        blob = store.put_blob((b"x" * 200_000, b"y" * 200_000))
        store.append_batch([(1, Record(1, b"", b"", blob)), (2, record(2))])
    with closing(sqlite(tmp_path / "journal")) as store:
        (_, found), _ = store.load()
        assert isinstance(found.payload, Spooled)
        path = tmp_path / "journal" / "spool" / found.payload.name
        content = bytearray(path.read_bytes())
        content[250_000] ^= 1
        changed = {"flipped": content, "cut": content[:-1], "longer": content + b"z"}
        path.unlink() if damage == "gone" else path.write_bytes(changed[damage])
        with pytest.raises(StoreError, match=path.name) as caught:
            store.get_blob(found.payload)
        assert caught.value.exit_code == EX_IOERR
        assert store.get((1, 2)).keys() == {2}
        assert f"record 1 of the journal cannot be used: {caught.value}" in caplog.messages


def test_a_record_that_has_been_cut_is_told_and_the_others_are_got(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with closing(sqlite(tmp_path / "journal")) as store:
        filled(store, range(1, 4))
        store._db.execute("UPDATE record SET payload = substr(payload, 2) WHERE number = 2")
        assert store.get((1, 2, 3)).keys() == {1, 3}
        assert "record 2 has been cut" in caplog.text
        with pytest.raises(StoreError, match="record 2 has been cut"):
            list(store.load())


def test_files_that_no_record_names_are_swept(tmp_path: Path) -> None:
    spool = tmp_path / "journal" / "spool"
    with closing(sqlite(tmp_path / "journal")) as store:
        named = store.put_blob((b"named",))
        store.put_blob((b"not named",))
        store.append_batch([(1, Record(1, b"", b"", named))])
    (spool / "7-1.part").write_bytes(b"half of it")
    with closing(sqlite(tmp_path / "journal")) as store:
        assert [path.name for path in spool.iterdir()] == [named.name]
        # A name is never given twice, or a file could be taken for another.
        assert store.put_blob((b"new",)).name != named.name


def page_of_ones(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(-2 * 4096, os.SEEK_END)
        file.write(b"\xff" * 4096)


def text(path: Path) -> None:
    path.write_text("This is no database at all.\n" * 500)


def half(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize("damage", [page_of_ones, text, half])
def test_a_damaged_database_is_told_at_the_start(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    with closing(sqlite(tmp_path / "journal")) as store:
        filled(store, range(1, 2000))
    damage(tmp_path / "journal" / "journal.db")
    with pytest.raises(StoreError, match=r"journal\.db is damaged .*put a copy back") as caught:
        sqlite(tmp_path / "journal")
    assert "\n" not in str(caught.value)


def test_a_database_of_another_program_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "journal").mkdir(mode=0o700)
    with closing(sqlite3.connect(tmp_path / "journal" / "journal.db")) as other:
        other.execute("CREATE TABLE theirs (content)")
    before = (tmp_path / "journal" / "journal.db").read_bytes()
    with pytest.raises(ConfigError, match="belongs to another program"):
        sqlite(tmp_path / "journal")
    assert (tmp_path / "journal" / "journal.db").read_bytes() == before


def test_a_format_to_come_is_refused_and_one_from_before_is_upgraded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(sqlite(tmp_path / "journal")) as store:
        wanted = filled(store, range(1, 10))
    with monkeypatch.context() as patch:
        patch.setattr(sqlitestore, "FORMAT", sqlitestore.FORMAT + 1)
        patch.setitem(sqlitestore.UPGRADES, sqlitestore.FORMAT - 1, "CREATE TABLE more (content)")
        for _ in range(2):
            with closing(sqlite(tmp_path / "journal")) as store:
                assert plain(store) == wanted
    with pytest.raises(ConfigError, match="install the newer one"):
        sqlite(tmp_path / "journal")


# -- after a crash -------------------------------------------------------------------------------------


def test_whatever_is_left_of_the_log_has_all_groups_that_were_complete(tmp_path: Path) -> None:
    directory = tmp_path / "journal"
    log = directory / "journal.db-wal"
    with closing(sqlite(directory)) as store:
        states: list[tuple[int, dict[int, Record]]] = [(0, {})]
        for start in range(1, 100, 9):
            job = b"%d" % (start // 27)
            batch: list[tuple[int, Change]] = [
                (n, record(n, job, 50 * start)) for n in range(start, start + 8)
            ]
            batch.append((start + 8, Erase((start - 3, start + 4)) if start % 4 else Forget(job)))
            store.append_batch(batch)
            states.append((log.stat().st_size, after(states[-1][1], batch)))
        database, content = (directory / "journal.db").read_bytes(), log.read_bytes()
    assert (len(content) - LOG_HEADER) % FRAME == 0
    cuts = [at + more for at in range(LOG_HEADER, len(content), FRAME) for more in (0, 10, 2000)]
    assert len(cuts) > 100
    for torn, cut in enumerate([*cuts, len(content)]):
        complete = max((state for state in states if state[0] <= cut), key=lambda state: state[0])
        again = tmp_path / "again"
        again.mkdir(mode=0o700)
        (again / "journal.db").write_bytes(database)
        # A file may have grown before what belongs there was written.
        (again / "journal.db-wal").write_bytes(content[:cut] + bytes(5000 * (torn % 2)))
        with closing(sqlite(again)) as store:
            assert plain(store) == complete[1], f"cut at {cut} of {len(content)} bytes"
        shutil.rmtree(again)


def test_a_hundred_thousand_records_are_ready_in_three_seconds(tmp_path: Path) -> None:
    with closing(sqlite(tmp_path / "journal", relaxed=True)) as store:
        for start in range(1, 100_001, 1000):
            store.append_batch([(n, record(n, b"%016d" % (n // 500))) for n in range(start, start + 1000)])
    begun = time.monotonic()
    with closing(sqlite(tmp_path / "journal")) as store:
        assert sum(1 for _ in store.load()) == 100_000
        assert time.monotonic() - begun < 3.0
