"""Stores: what is appended is there again, whatever the store."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stores import after, compacted, filled, got, plain, record, sqlite

from multihost_broker.journal import sqlitestore
from multihost_broker.journal.errors import StoreError
from multihost_broker.journal.records import Change, Erase, Forget, Record
from multihost_broker.journal.store import MemoryStore, Store


class Opener:
    """Opens a store, and the same one again, as a broker does that is started anew."""

    def __init__(self, directory: Path, kind: str) -> None:
        self.directory = directory
        self.kind = kind
        self.store: Store | None = None

    def open(self) -> Store:
        if self.store is not None and self.kind != "none":
            self.store.close()
        if self.store is None or self.kind != "none":
            self.store = (
                MemoryStore() if self.kind == "none" else sqlite(self.directory, self.kind == "relaxed")
            )
        return self.store


@pytest.fixture(params=["full", "relaxed", "none"])
def opener(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Opener]:
    made = Opener(tmp_path / "journal", request.param)
    yield made
    if made.store is not None:
        made.store.close()


# -- every store ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "payload", [(), (b"",), (b"one",), (b"", b"two", b""), tuple(b"%d" % n for n in range(64))]
)
def test_what_was_appended_is_there_again_as_it_was(opener: Opener, payload: tuple[bytes, ...]) -> None:
    wanted = Record(3, b"\x00key\xff", b"\x93\x01\x02\x03", payload)
    opener.open().append_batch([(1, wanted)])
    assert list(plain(opener.open()).items()) == [(1, wanted)]


def test_frames_of_every_kind_are_kept_as_bytes(opener: Opener) -> None:
    frames = (b"bytes", bytearray(b"array"), memoryview(b"a view of it")[2:6])
    opener.open().append_batch([(1, Record(1, b"", b"", frames))])
    assert plain(opener.open())[1].payload == (b"bytes", b"array", b"view")


@pytest.mark.parametrize("count", [1, 2, 3, 255, 256, 257, 1000])
def test_groups_of_every_size_come_back_in_order(opener: Opener, count: int) -> None:
    wanted = filled(opener.open(), range(1, count + 1))
    assert list(plain(opener.open()).items()) == list(wanted.items())


def test_what_is_erased_or_forgotten_stays_away(opener: Opener) -> None:
    store = opener.open()
    wanted = filled(store, range(1, 400), b"one") | filled(store, range(400, 800), b"two")
    store.append_batch([(800, Erase((401, 403, 999))), (801, Forget(b"one"))])
    wanted = {
        number: each for number, each in wanted.items() if each.job == b"two" and number not in (401, 403)
    }
    # Also before any of the work that can wait is done.
    assert plain(opener.open()) == wanted
    compacted(opener.open())
    assert plain(opener.open()) == wanted


def test_a_forgotten_job_may_come_again(opener: Opener) -> None:
    store = opener.open()
    filled(store, range(1, 10))
    store.append_batch([(10, Forget(b"job"))])
    wanted = filled(store, range(11, 15))
    assert plain(opener.open()) == wanted
    compacted(opener.open())
    assert plain(opener.open()) == wanted


def test_changes_of_one_group_follow_one_another(opener: Opener) -> None:
    store = opener.open()
    store.append_batch(
        [
            (1, record(1)),
            (2, record(2)),
            (3, Erase((1,))),
            (4, Forget(b"job")),
            (5, record(5)),
            (6, Erase((5,))),
        ]
    )
    store.append_batch([(7, record(7))])
    assert plain(opener.open()) == {7: record(7)}


def test_numbers_and_epochs_go_on(opener: Opener) -> None:
    store = opener.open()
    assert store.last == 0
    first = store.epoch
    filled(store, range(1, 6))
    store.append_batch([(6, Forget(b"job"))])
    assert store.last == 6
    compacted(store)
    store = opener.open()
    assert store.last == 6
    assert opener.kind == "none" or store.epoch == first + 1


def test_large_payloads_come_back_and_go_with_their_record(opener: Opener) -> None:
    store = opener.open()
    frames = (os.urandom(300_000), b"", os.urandom(5))
    blobs = [store.put_blob(frames) for _ in range(4)]
    named = [(n, Record(1, b"job" if n < 3 else b"other", b"", blob)) for n, blob in enumerate(blobs, 1)]
    store.append_batch([*named, (5, Erase((4,)))])
    store = opener.open()
    assert dict(store.load()) == dict(named[:3])
    assert [bytes(each) for each in store.get_blob(blobs[0])] == list(frames)
    store.append_batch([(6, Forget(b"job"))])
    compacted(store)
    for blob in (*blobs[:2], blobs[3]):
        with pytest.raises(StoreError):
            store.get_blob(blob)
    assert [bytes(each) for each in store.get_blob(blobs[2])] == list(frames)


def test_a_large_payload_that_is_dropped_is_gone(opener: Opener) -> None:
    store = opener.open()
    blob = store.put_blob((b"x" * 300_000,))
    store.drop_blob(blob)
    with pytest.raises(StoreError):
        store.get_blob(blob)


def test_records_are_got_by_number_with_their_frames(opener: Opener) -> None:
    store = opener.open()
    frames = (os.urandom(300_000), b"", os.urandom(5))
    store.append_batch([(1, Record(1, b"job", b"h", store.put_blob(frames))), (2, Record(2, b"job"))])
    wanted = filled(store, range(3, 1000)) | {1: Record(1, b"job", b"h", frames), 2: Record(2, b"job")}
    store.append_batch([(1000, Erase((5,)))])
    del wanted[5]
    for again in (False, True):
        if again:
            store = opener.open()
        assert got(store, range(1, 1001)) == wanted
        assert got(store, (1, 999, 999)) == {1: wanted[1], 999: wanted[999]}
        assert store.get(()) == store.get((5, 1000, 1 << 60)) == {}


def test_what_is_forgotten_is_not_got_any_more(opener: Opener) -> None:
    store = opener.open()
    filled(store, range(1, 10))
    store.append_batch([(10, Forget(b"job"))])
    wanted = filled(store, range(11, 15))
    for _ in range(2):
        # Before its rows are deleted, and after.
        assert got(store, range(1, 20)) == wanted
        compacted(store)


def test_to_load_large_payloads_their_files_are_not_read(tmp_path: Path) -> None:
    with closing(sqlite(tmp_path / "journal")) as store:
        blob = store.put_blob((b"x" * 300_000,))
        store.append_batch([(1, Record(1, b"", b"", blob))])
    (tmp_path / "journal" / "spool" / blob.name).unlink()
    with closing(sqlite(tmp_path / "journal")) as store:
        assert list(store.load()) == [(1, Record(1, b"", b"", blob))]


JOBS = st.sampled_from([b"", b"a", b"b"])
RECORDS = st.builds(Record, st.integers(0, 9), JOBS, st.binary(max_size=9), st.tuples(st.binary(max_size=9)))
CHANGES = st.one_of(RECORDS, st.builds(Erase, st.tuples(st.integers(1, 40))), st.builds(Forget, JOBS))
STEPS = st.lists(st.one_of(st.lists(CHANGES, max_size=8), st.sampled_from(["compact", "open"])), max_size=12)


@settings(max_examples=40, deadline=None)
@given(steps=STEPS, slice_rows=st.integers(1, 5))
def test_any_sequence_of_changes_leaves_what_a_dict_would_have(
    tmp_path_factory: pytest.TempPathFactory, steps: list[list[Change] | str], slice_rows: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sqlitestore, "SLICE", slice_rows)
        opener = Opener(tmp_path_factory.mktemp("steps") / "journal", "relaxed")
        store, expected, number = opener.open(), dict[int, Record](), 0
        for step in steps:
            if step == "compact":
                store.compact()
            elif step == "open":
                store = opener.open()
            else:
                # What is erased came before.
                batch = [
                    (n, Erase((min(change.numbers[0], n - 1),)) if isinstance(change, Erase) else change)
                    for n, change in enumerate(step, number + 1)
                    if not isinstance(change, str)
                ]
                store.append_batch(batch)
                number += len(batch)
                expected = after(expected, batch)
                assert got(store, range(1, number + 1)) == expected
        assert plain(opener.open()) == expected
        opener.open().close()
