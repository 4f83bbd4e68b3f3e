"""Tables of numbers as they travel in beats and in what is said after a lost connection."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multihost_common.tables import MAX_ROWS, pack_rows, unpack_rows

NUMBER = st.integers(0, (1 << 64) - 1)


@given(st.lists(st.tuples(NUMBER, NUMBER, NUMBER)))
def test_rows_arrive_as_they_were(rows: list[tuple[int, ...]]) -> None:
    assert unpack_rows(pack_rows(rows), 3) == rows


def test_numbers_are_little_endian_and_64_bits_wide() -> None:
    assert pack_rows([(1, 258)]) == bytes([1, *[0] * 7, 2, 1, *[0] * 6])


@pytest.mark.parametrize("frame", [b"1", bytes(8), bytes(23), bytes(16 * MAX_ROWS + 16)])
def test_what_is_no_table_is_told(frame: bytes) -> None:
    assert unpack_rows(frame, 2) is None
