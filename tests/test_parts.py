"""Large frames, cut into parts and joined again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multihost_common import parts
from multihost_common.errors import ProtocolError
from multihost_common.parts import PART, cut, join
from multihost_common.rope import Rope, whole

#: Sizes on both sides of what is cut.
SIZES = st.sampled_from([0, 1, PART - 1, PART, PART + 1, 2 * PART, 2 * PART + 5])


def frames_of(sizes: list[int], content: bytes) -> list[bytes]:
    """A header, and frames of these sizes that repeat ``content``."""
    return [b"header", *((content * (size // len(content) + 1))[:size] for size in sizes)]


@given(st.lists(SIZES, min_size=1, max_size=4), st.binary(min_size=1, max_size=3))
def test_frames_arrive_as_they_were_sent(sizes: list[int], content: bytes) -> None:
    frames = frames_of(sizes, content)
    travelled = cut(frames)
    assert all(len(part) <= PART for part in travelled)
    assert join(travelled) == frames


def test_a_part_says_by_its_length_whether_another_follows() -> None:
    assert [len(part) for part in cut([b"h", bytes(2 * PART), bytes(PART + 1)])] == [
        1,
        PART,
        PART,
        0,
        PART,
        1,
    ]


def test_cutting_copies_nothing() -> None:
    frame = bytearray(2 * PART)
    first = cut([b"h", frame])[1]
    frame[0] = 7
    assert first[0] == 7


def test_what_is_small_is_left_as_it_is() -> None:
    frames = [b"header", bytes(PART - 1)]
    assert cut(frames) is frames
    assert join(frames) is frames


def test_a_torn_frame_is_told() -> None:
    with pytest.raises(ProtocolError, match="E_FRAMES: the last part of a frame is missing"):
        join([b"header", bytes(PART)])


def test_a_frame_above_the_limit_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "MAX_FRAME", 2 * PART)
    assert len(join([b"h", bytes(PART), bytes(PART), b""])[1]) == 2 * PART
    with pytest.raises(ProtocolError, match="E_SIZE: a frame of 2097153 bytes; 2097152 are taken"):
        join([b"h", bytes(PART), bytes(PART), b"x"])


@given(st.lists(SIZES, min_size=3, max_size=5), st.binary(min_size=1, max_size=3))
def test_what_is_not_looked_into_goes_on_as_it_came(sizes: list[int], content: bytes) -> None:
    frames = frames_of(sizes, content)
    travelled = cut(frames)
    relayed = join(travelled, 3)
    assert not any(isinstance(frame, Rope) for frame in relayed[:3])
    assert list(map(len, relayed)) == list(map(len, frames))
    assert cut(relayed) == travelled
    assert list(map(whole, relayed)) == frames


def test_a_rope_is_joined_into_memory_that_can_be_written_to() -> None:
    rope = join([b"h", bytes(PART), b"x"], 1)[1]
    joined = whole(rope)
    assert isinstance(joined, bytearray) and joined == bytes(PART) + b"x"
