"""Blocks are cut between chunks, and what is cut out is what was put in."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multihost_common.blocks import FEW, Block, Span, pack_lengths, unpack_lengths


def block(count: int, chunksize: int, start: int = 0) -> Block:
    """Each chunk's payload tells its number, in a length of its own."""
    chunks = -(-count // chunksize)
    pickles = [bytes([chunk % 256]) * (chunk % 5 + 1) for chunk in range(chunks)]
    return Block(start, count, chunksize, (pack_lengths(list(map(len, pickles))), b"".join(pickles)))


def chunks_of(span: Span) -> tuple[int, list[bytes]]:
    skip, frames = span.cut()
    pickles, at = [], 0
    for length in unpack_lengths(frames[0]):
        pickles.append(bytes(frames[1][at : at + length]))
        at += length
    assert at == len(frames[1])
    return skip, pickles


@given(st.lists(st.integers(0, 0xFFFF_FFFF)))
def test_lengths_survive(lengths: list[int]) -> None:
    packed = pack_lengths(lengths)
    assert len(packed) == 4 * len(lengths)
    assert list(unpack_lengths(packed)) == lengths


@given(st.data())
def test_a_part_holds_the_chunks_it_touches(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 7))
    count = data.draw(st.integers(1, 60))
    whole = block(count, size, start=data.draw(st.integers(0, 1000)))
    assert whole.check() is None
    low = data.draw(st.integers(0, count - 1))
    high = data.draw(st.integers(low + 1, count))
    skip, pickles = chunks_of(whole.span().sub(whole.start + low, whole.start + high))
    assert skip == low % size
    first, last = low // size, -(-high // size)
    assert pickles == [bytes([chunk % 256]) * (chunk % 5 + 1) for chunk in range(first, last)]


@given(st.integers(1, 7), st.integers(1, 60), st.integers(0, 80))
def test_pieces_end_between_chunks_and_cover_everything_once(size: int, count: int, items: int) -> None:
    whole = block(count, size, start=100)
    span = whole.span()
    covered: list[int] = []
    while len(span):
        end = span.chunk_end(items)
        assert span.start < end <= span.stop
        assert end == span.stop or (end - whole.start) % size == 0
        covered += range(span.start, end)
        span = span.sub(end, span.stop)
    assert covered == list(range(100, 100 + count))


@given(st.integers(1, 7), st.integers(1, 60), st.integers(0, 80))
def test_rounding_leaves_no_crumbs_and_adds_no_more_than_half(size: int, count: int, items: int) -> None:
    span = block(count, size, start=100).span()
    rounded = span.rounded(items)
    assert items <= rounded <= max(items, items * 3 // 2)
    if items >= FEW * size:
        left = count - rounded
        assert left <= 0 or left >= items // 2
    else:
        assert rounded == items


@pytest.mark.parametrize(
    "bad",
    [
        Block(0, 2, 1, (pack_lengths([1, 1]),)),
        Block(0, 2, 1, (pack_lengths([1]), b"a")),
        Block(0, 2, 1, (pack_lengths([1, 1, 1]), b"abc")),
        Block(0, 2, 1, (pack_lengths([1, 2]), b"ab")),
        Block(0, 2, 1, (b"\0\0\0", b"ab")),
        Block(0, 2, 1, (pack_lengths([1, 1]), b"ab", b"out of band")),
        Block(0, 0xFFFF_FFFF, 1, (pack_lengths([1]), b"a")),
    ],
)
def test_a_block_that_does_not_add_up_is_told_apart(bad: Block) -> None:
    assert bad.check()


def test_a_block_with_large_buffers_travels_whole() -> None:
    big = Block(10, 4, 4, (pack_lengths([3]), b"abc", b"x" * 100, b"y" * 100))
    assert big.check() is None
    skip, frames = big.span().sub(12, 13).cut()
    assert skip == 2 and len(frames) == 4
