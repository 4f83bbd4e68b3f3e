"""Many shared objects, and items faster than anybody takes them: the broker's memory stays bounded, nobody dies of it."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import psutil
import pytest
from sites import Site

import multihost as mp
from multihost.queues import Queue
from multihost_broker.objects.queue import ROOM

MIB = 1 << 20


def put_large(queue: Queue, count: int) -> None:
    for number in range(count):
        queue.put(number.to_bytes(4, "little") + os.urandom(1024) * 1023)


def get_slowly(queue: Queue, count: int, answers: Queue) -> None:
    seen = []
    for number in range(count):
        seen.append(int.from_bytes(queue.get()[:4], "little"))
        if number < 20:
            time.sleep(0.05)
    answers.put(seen == list(range(count)))


@pytest.mark.long
def test_a_flood_of_large_items_waits_for_a_slow_consumer(site: Site) -> None:
    site.worker(2)
    queue, answers = mp.Queue(), mp.Queue()
    count = 2000
    processes = [
        mp.Process(target=put_large, args=(queue, count)),
        mp.Process(target=get_slowly, args=(queue, count, answers)),
    ]
    for process in processes:
        process.start()
    broker = psutil.Process(site.broker.process.pid)
    most = 0
    while processes[1].is_alive():
        most = max(most, broker.memory_info().rss)
        processes[1].join(0.1)
    assert answers.get(timeout=30)
    for process in processes:
        process.join(30)
        assert process.exitcode == 0
    # Twice: what is being sent to the consumer counts as well.
    assert most < 2 * ROOM + 100 * MIB


def test_ten_thousand_queues(address: str) -> None:
    queues = [mp.SimpleQueue() for _ in range(10_000)]
    for number in range(0, 10_000, 97):
        queues[number].put(number)
    assert [queues[number].get() for number in range(0, 10_000, 97)] == list(range(0, 10_000, 97))


def put_for_ever(queue: Queue, path: str) -> None:
    number = 0
    while True:
        queue.put((number, b"x" * 5000))
        number += 1
        if number == 50:
            Path(path).touch()


def test_a_producer_killed_while_it_puts_leaves_whole_items_and_blocks_nobody(
    address: str, tmp_path: Path
) -> None:
    queue = mp.Queue(maxsize=200)
    producer = mp.Process(target=put_for_ever, args=(queue, str(tmp_path / "begun")))
    producer.start()
    while not (tmp_path / "begun").exists():
        producer.join(0.01)
        assert producer.is_alive()
    got = [queue.get(timeout=30)[0] for _ in range(20)]
    producer.kill()
    producer.join(30)
    assert producer.exitcode == -signal.SIGKILL
    while not queue.empty():
        number, filling = queue.get(timeout=30)
        assert filling == b"x" * 5000
        got.append(number)
    assert got == list(range(len(got)))
    queue.put("next")
    assert queue.get(timeout=30) == "next"


def hold_and_wait(queue: Queue, path: str) -> None:
    queue.get()
    Path(path).touch()
    signal.pause()


def test_a_full_queue_of_a_dead_consumer_goes_on_with_the_next_one(address: str, tmp_path: Path) -> None:
    queue = mp.Queue(maxsize=3)
    for number in range(3):
        queue.put(number)
    consumer = mp.Process(target=hold_and_wait, args=(queue, str(tmp_path / "has one")))
    consumer.start()
    while not (tmp_path / "has one").exists():
        consumer.join(0.01)
        assert consumer.is_alive()
    queue.put(3, timeout=30)
    consumer.kill()
    consumer.join(30)
    rest = [queue.get(timeout=30) for _ in range(3)]
    # The first one was the dead process's, unless it had not said so.
    assert rest == [1, 2, 3] or rest == [0, 1, 2]
