"""Users' callbacks, and who makes them."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import multihost

if TYPE_CHECKING:
    from conftest import MakePool


def wait_for_a_callback_made_elsewhere() -> bool:
    begun, go = threading.Event(), threading.Event()

    def block(value: object) -> None:
        begun.set()
        go.wait(20)

    with multihost.Pool(1) as pool:
        first = pool.map_async(abs, [1], callback=block)
        one = threading.Thread(target=first.wait, daemon=True)
        one.start()
        assert begun.wait(20)
        second = pool.map_async(abs, [2], callback=lambda value: None)
        other = threading.Thread(target=second.wait, daemon=True)
        other.start()
        job: Any = second._job
        engine: Any = pool._engine
        deadline = time.monotonic() + 20
        while not job.over or engine._background_leads or not engine._polling:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        go.set()
        for each in (one, other):
            each.join(10)
        return not one.is_alive() and not other.is_alive()


def test_a_callback_that_another_thread_makes_ends_the_wait(make_pool: MakePool) -> None:
    # In a task, where nothing else wakes the one who waits.
    assert make_pool(1).apply(wait_for_a_callback_made_elsewhere)
