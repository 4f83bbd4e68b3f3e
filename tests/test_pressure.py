"""A real broker with little room: who floods it keeps nobody from working, and its memory is bounded."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import shells
import tasks

from multihost.engines.choosing import close_engines
from multihost.pool import Pool
from multihost_common import messages as m
from multihost_common.blocks import pack_lengths

MIB = 1 << 20

#: Room for input, and what the broker may take beyond that and what it takes idle: copies on their way, the allocator.
ROOM = 64 * MIB
MARGIN = 64 * MIB


@pytest.fixture
def running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[shells.Broker]:
    monkeypatch.setenv("MULTIHOST_KEYS", str(tmp_path / "keys"))
    with ExitStack() as stack:
        made = stack.enter_context(shells.broker(tmp_path / "keys", "--max-memory", "64M"))
        stack.enter_context(shells.worker(made, "-c", 2))
        yield made
        close_engines()
        shells.settle()


def flood(peer: shells.Peer, jobs: int, size: int, count: int) -> None:
    """So many items, each of ``size`` bytes, whatever the broker says."""
    peer.send(m.OpenPool(1), *(m.OpenJob(job, 1, b"f" * 32) for job in range(1, jobs + 1)))
    frames = (pack_lengths([size]), bytes(size))
    for item in range(count):
        for job in range(1, jobs + 1):
            peer.send(m.Feed(job, item, 1, 1, frames))


def test_one_that_floods_keeps_nobody_from_working_and_fills_no_memory(running: shells.Broker) -> None:
    before = running.rss()
    with shells.peer(running, m.PRODUCER) as flooding:
        flood(flooding, jobs=50, size=MIB, count=8)
        assert flooding.expect(m.Hold).hold
        most = running.rss()
        with Pool(2, address=running.address) as pool:
            began = time.monotonic()
            assert pool.map(tasks.double, range(100)) == [2 * item for item in range(100)]
            assert time.monotonic() - began < 20
        most = max(most, running.rss())
        assert most - before < ROOM + MARGIN
        running.wait_for(r"producer \d+ waits: \d+ MiB of its input are here")


def test_more_work_than_there_is_room_for_is_done_all_the_same(
    running: shells.Broker, tmp_path: Path
) -> None:
    """Many jobs, each with a window of its own, that have more on their way than the broker takes."""
    before, most = running.rss(), 0
    go = tmp_path / "go"
    with Pool(2, address=running.address) as pool:
        results = [
            pool.map_async(
                tasks.size_once_there, [(str(go), bytes([job]) * MIB) for _ in range(40)], chunksize=1
            )
            for job in range(12)
        ]
        running.wait_for(r"producer \d+ waits: ")
        go.touch()
        while not all(each.ready() for each in results):
            most = max(most, running.rss())
            results[-1].wait(0.05)
        for each in results:
            assert each.get(60) == [MIB] * 40
    assert most - before < ROOM + MARGIN
