"""Frames of every size between two ends of a link, in one process."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Iterator
from functools import partial
from socket import socketpair

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nursery import nothing_left

from multihost_common.rope import Rope
from multihost_worker import segments
from multihost_worker.link import LARGE, RUN, Link, LinkError
from multihost_worker.segments import LIMIT, Mappings, Segments, allotment

MIB = 1 << 20


def forget(end: Link, number: int) -> None:
    """A segment was dropped: what agent and child each do."""
    end.known.discard(number)
    end.dropping.append(number)


class Ends:
    """A link's two ends; the left one queues, as the agent's does, the right one too."""

    def __init__(self, keep: int = 256 * MIB, views: int = LIMIT // 2) -> None:
        left, right = socketpair()
        for each in (left, right):
            each.setblocking(False)
        self.left = Link(left, Segments(keep), views)
        self.right = Link(right, Segments(keep), views)
        self.left.segments.dropped = partial(forget, self.left)
        self.right.segments.dropped = partial(forget, self.right)

    def send(self, *frames: object, back: bool = False) -> list[memoryview]:
        """Send to the right, or back; answers the frames as they arrive."""
        source, target = (self.right, self.left) if back else (self.left, self.right)
        source.send(RUN, (1, "two"), frames)  # type: ignore[arg-type]
        while (message := target.next()) is None:
            source.flush()
            target.fill()
            assert not target.eof
        kind, args, got = message
        assert (kind, args) == (RUN, (1, "two"))
        return got  # type: ignore[return-value]

    def close(self) -> None:
        for end in (self.left, self.right):
            end.close()
            end.segments.close()


@pytest.fixture
def ends() -> Iterator[Ends]:
    with nothing_left():
        made = Ends()
        yield made
        made.close()
        gc.collect()


@pytest.mark.parametrize(
    "size", [0, 1, LARGE - 1, LARGE, LARGE + 1, 128 * 1024 - 1, 3 * MIB + 5, 16 * MIB, 40 * MIB]
)
def test_a_frame_arrives_as_it_was(ends: Ends, size: int) -> None:
    frame = os.urandom(min(size, 1000)) * (size // 1000 + 1)
    frame = frame[:size]
    for back in (False, True, False):
        got = ends.send(frame, b"x", frame, back=back)
        assert [bytes(each) for each in got] == [frame, b"x", frame]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(0, 200_000), max_size=8), max_size=6), st.randoms())
def test_any_mix_of_frames_arrives_in_order(sizes: list[list[int]], random: object) -> None:
    ends = Ends(keep=MIB)
    sent = [[bytes([len(group) + at & 255]) * size for at, size in enumerate(group)] for group in sizes]
    for group in sent:
        ends.left.send(RUN, (len(group),), group)
    arrived: list[list[bytes]] = []
    while len(arrived) < len(sent):
        message = ends.right.next()
        if message is None:
            ends.left.flush()
            ends.right.fill()
        else:
            arrived.append([bytes(frame) for frame in message[2]])
    ends.close()
    assert arrived == sent


def test_a_large_frame_is_not_copied_by_the_receiver(ends: Ends) -> None:
    (view,) = ends.send(b"a" * LARGE)
    assert ends.right.mappings.lent == 1
    segment = next(iter(ends.left.segments.used.values()))
    segment.view[0] = ord("b")
    assert view[0] == ord("b")


def test_a_segment_is_used_again_once_nothing_refers_to_it(ends: Ends) -> None:
    (view,) = ends.send(b"a" * LARGE)
    part = view[10:20]
    del view
    ends.send(b"", back=True)
    assert len(ends.left.segments.used) == 1, "a slice still refers to it"
    assert bytes(part) == b"a" * 10
    del part
    ends.send(b"", back=True)
    assert not ends.left.segments.used
    numbers = set(ends.left.segments.free)
    (view,) = ends.send(b"c" * LARGE)
    assert set(ends.left.segments.used) == numbers
    assert bytes(view) == b"c" * LARGE


def test_an_array_keeps_its_segment(ends: Ends) -> None:
    numpy = pytest.importorskip("numpy")
    array = numpy.arange(100_000)
    (view,) = ends.send(memoryview(array).cast("B"))
    made = numpy.frombuffer(view, dtype=array.dtype)[::2]
    del view
    ends.send(b"", back=True)
    ends.send(b"z" * array.nbytes)
    assert (made == array[::2]).all(), "its memory was written to while it lived"


def test_recycling_bounds_memory(ends: Ends) -> None:
    for _ in range(300):
        ends.send(b"a" * (2 * MIB))
        ends.send(b"", back=True)
    assert ends.left.segments._last <= 3


def test_what_is_kept_is_bounded_and_the_receiver_unmaps_the_rest() -> None:
    ends = Ends(keep=4 * MIB)
    for size in (1, 2, 4, 8, 1, 2, 4, 8):
        ends.send(b"a" * (size * MIB))
        ends.send(b"", back=True)
    ends.send(b"")
    assert sum(each.size for each in ends.left.segments.free.values()) <= 4 * MIB
    assert set(ends.right.mappings._maps) <= set(ends.left.segments.free)
    ends.close()


def test_more_views_than_may_be_out_are_copies(ends: Ends) -> None:
    held = [ends.send(bytes([at & 255]) * LARGE)[0] for at in range(3 * LIMIT)]
    assert ends.right.mappings.lent == LIMIT // 2
    ends.send(b"", back=True)
    assert len(ends.left.segments.used) == LIMIT // 2
    for at, view in enumerate(held):
        assert bytes(view) == bytes([at & 255]) * LARGE


def test_more_in_flight_than_there_are_segments(ends: Ends) -> None:
    count = 2 * LIMIT + 5
    for at in range(count):
        ends.left.send(RUN, (at,), [bytes([at & 255]) * LARGE])
    assert len(ends.left.segments.used) == LIMIT
    for at in range(count):
        while (message := ends.right.next()) is None:
            ends.left.flush()
            ends.right.fill()
        assert message[1] == (at,)
        assert bytes(message[2][0]) == bytes([at & 255]) * LARGE


def test_many_frames_in_one_message(ends: Ends) -> None:
    frames = [bytes([at]) * LARGE for at in range(64)]
    assert [bytes(each) for each in ends.send(*frames)] == frames


def test_views_let_go_of_in_other_threads_are_counted(ends: Ends) -> None:
    for _ in range(50):
        views = [ends.send(b"a" * LARGE)[0] for _ in range(8)]
        threads = [threading.Thread(target=views.pop) for _ in range(8)]
        for thread in threads:
            thread.start()
        ends.send(b"", back=True)
        for thread in threads:
            thread.join()
    ends.send(b"", back=True)
    assert not ends.left.segments.used


def test_a_view_outlives_its_link() -> None:
    ends = Ends()
    (view,) = ends.send(b"a" * LARGE)
    ends.close()
    assert bytes(view) == b"a" * LARGE


def test_the_end_is_seen_after_what_came_before(ends: Ends) -> None:
    ends.left.send(RUN, (), [b"a" * LARGE])
    ends.left.send(RUN, (), [b"last"])
    ends.left.close()
    got = []
    while (message := ends.right.receive()) is not None:
        got.append(bytes(message[2][0][:4]))
    assert got == [b"aaaa", b"last"]


def test_a_segment_without_its_descriptor_is_an_error(ends: Ends) -> None:
    data, fds = ends.left._pack(RUN, (), [b"a" * LARGE])
    for fd in fds:
        os.close(fd)
    ends.left.sock.send(data)
    ends.right.fill()
    with pytest.raises(LinkError, match="ulimit -n"):
        ends.right.next()


def test_a_frame_in_parts_arrives_as_one(ends: Ends) -> None:
    content = os.urandom(1000) * 3000
    rope = Rope([content[:MIB], content[MIB : 2 * MIB], content[2 * MIB :]])
    # Written to a new segment, then to the same one again.
    for _ in range(2):
        (view,) = ends.send(rope)
        assert bytes(view) == content
        del view
        ends.send(b"", back=True)
    assert len(ends.left.segments.free) == 1


def test_without_memory_for_segments_frames_travel_in_the_message(
    ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(size: int) -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(segments, "anonymous_file", refuse)
    assert bytes(ends.send(b"a" * (4 * MIB))[0]) == b"a" * (4 * MIB)
    assert bytes(ends.send(Rope([b"a" * MIB, b"b"]))[0]) == b"a" * MIB + b"b"
    assert not ends.left.segments.used


def test_a_segment_that_cannot_be_passed_is_not_held(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(fd: int) -> int:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patched:
        patched.setattr(os, "dup", refuse)
        assert bytes(ends.send(b"a" * LARGE)[0]) == b"a" * LARGE
    assert not ends.left.segments.used
    assert bytes(ends.send(b"b" * LARGE)[0]) == b"b" * LARGE


def test_files_without_memfd(monkeypatch: pytest.MonkeyPatch, ends: Ends) -> None:
    monkeypatch.delattr(os, "memfd_create", raising=False)
    assert bytes(ends.send(b"a" * MIB)[0]) == b"a" * MIB


def test_descriptors_are_shared_among_children(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sysconf", lambda name: 1024)
    assert allotment(1) == LIMIT
    assert sum(allotment(count) for count in range(1, 65)) < 1024
    assert allotment(1000) == 0
    monkeypatch.setattr(os, "sysconf", lambda name: -1)
    assert allotment(1000) == LIMIT


def test_without_any_segments_everything_is_copied() -> None:
    own = Segments(limit=0)
    assert own.acquire(LARGE) is None
    assert Mappings(0).lent == 0
