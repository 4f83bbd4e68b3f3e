"""A journal of which a part is missing: a store never begins anew over the rest of it."""

from __future__ import annotations

import shutil
from contextlib import closing
from pathlib import Path

import pytest
from stores import sqlite

from multihost_broker.journal.errors import StoreError
from multihost_broker.journal.records import Record


@pytest.mark.parametrize("missing", [["journal.db"], ["journal.db-wal"], ["journal.db", "journal.db-wal"]])
def test_a_journal_without_its_records_is_refused_and_its_payloads_are_left_alone(
    tmp_path: Path, missing: list[str]
) -> None:
    whole, rest = tmp_path / "journal", tmp_path / "copy"
    with closing(sqlite(whole)) as store:
        store.append_batch([(1, Record(1, b"", b"", store.put_blob((b"kept",))))])
        # As it is when a broker is killed: the log is not worked in.
        shutil.copytree(whole, rest)
    for name in missing:
        (rest / name).unlink()
    before = {path.name for path in rest.rglob("*") if path.is_file()}
    with pytest.raises(StoreError, match=r"journal\.db is (missing|damaged).*to begin with an empty one"):
        sqlite(rest)
    after = {path.name for path in rest.rglob("*") if path.is_file()}
    assert after >= before
    assert {path.name for path in (rest / "spool").iterdir()} == {
        path.name for path in (whole / "spool").iterdir()
    }


def test_a_log_whose_database_is_missing_is_left_alone(tmp_path: Path) -> None:
    whole, rest = tmp_path / "journal", tmp_path / "copy"
    with closing(sqlite(whole)) as store:
        store.append_batch([(1, Record(1, b"", b"header"))])
        shutil.copytree(whole, rest)
    (rest / "journal.db").rename(rest / "elsewhere")
    with pytest.raises(StoreError, match=r"journal\.db is missing"):
        sqlite(rest)
    (rest / "elsewhere").rename(rest / "journal.db")
    with closing(sqlite(rest)) as store:
        assert dict(store.load()) == {1: Record(1, b"", b"header")}


def test_a_database_that_is_removed_or_replaced_while_it_is_in_use_confirms_nothing_more(
    tmp_path: Path,
) -> None:
    with closing(sqlite(tmp_path)) as store:
        store.append_batch([(1, Record(1, b"", b"header"))])
        database = tmp_path / "journal.db"
        database.rename(tmp_path / "aside")
        with pytest.raises(StoreError, match="was removed or replaced while it was in use"):
            store.append_batch([(2, Record(1, b"", b"header"))])
        shutil.copy(tmp_path / "aside", database)
        with pytest.raises(StoreError, match="was removed or replaced while it was in use"):
            store.append_batch([(2, Record(1, b"", b"header"))])
