"""Locks, semaphores, conditions, events and barriers, as scripts use them; on both engines."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import multihost as mp
from multihost.engines.choosing import get_engine, get_sharing
from multihost.process import Process
from multihost.synchronize import _known
from multihost_common.errors import BrokerLostError
from multihost_common.shared import Semaphores

#: No wait of these tests lasts that long unless something is wrong, seconds.
LONG = 20.0

#: What the initializer of a pool has been given.
given: tuple[Any, ...] = ()


@pytest.fixture(autouse=True)
def here(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Objects are made where the test runs."""
    monkeypatch.setenv("MULTIHOST_BROKER", address)


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as executor:
        yield executor


def eventually(holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + LONG
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def interrupted(
    call: Callable[[], object], wait_until: Callable[[], object], also: Callable[[], object]
) -> bool:
    """Ctrl-C while this thread is in ``call``, and ``also`` at the same moment: was it interrupted?"""
    main = threading.main_thread().ident
    assert main is not None

    def strike() -> None:
        eventually(wait_until)
        also()
        signal.pthread_kill(main, signal.SIGINT)

    thread = threading.Thread(target=strike)
    thread.start()
    try:
        call()
        # The signal is still to come.
        thread.join()
        time.sleep(LONG)
    except KeyboardInterrupt as error:
        return error.__traceback__ is not None and "call" in {
            frame.name for frame in _frames(error.__traceback__)
        }
    finally:
        thread.join()
    raise AssertionError("there was no signal")


def _frames(traceback: Any) -> list[Any]:
    import traceback as module

    return list(module.extract_tb(traceback))


# -- locks and semaphores ------------------------------------------------------------------------------


def test_a_lock_is_held_by_one_thread_at_a_time(threads: ThreadPoolExecutor) -> None:
    lock, inside, most = mp.Lock(), [0], [0]

    def work(_: int) -> None:
        for _ in range(20):
            with lock:
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                inside[0] -= 1

    list(threads.map(work, range(4)))
    assert most == [1]
    assert lock.acquire(timeout=LONG)


def test_locks_say_of_whom_they_are_as_those_of_multiprocessing(threads: ThreadPoolExecutor) -> None:
    lock, recursive = mp.Lock(), mp.RLock()
    assert repr(lock) == "<Lock(owner=None)>"
    assert repr(recursive) == "<RLock(None, 0)>"
    with lock, recursive, recursive:
        assert repr(lock) == "<Lock(owner=MainProcess)>"
        assert repr(recursive) == "<RLock(MainProcess, 2)>"
        assert threads.submit(repr, recursive).result() == "<RLock(SomeOtherThread, nonzero)>"
        assert not lock.owner_died


def test_a_lock_that_is_taken_is_not_acquired_without_waiting_or_in_time() -> None:
    lock = mp.Lock()
    assert lock.acquire()
    assert not lock.acquire(False)
    assert not lock.acquire(timeout=-1)
    began = time.monotonic()
    assert not lock.acquire(True, 0.1)
    assert time.monotonic() - began >= 0.09
    lock.release()
    assert lock.acquire(False)


def test_what_is_released_too_often_says_so_in_the_words_of_multiprocessing() -> None:
    for each in (mp.Lock(), mp.BoundedSemaphore(2)):
        with pytest.raises(ValueError, match="semaphore or lock released too many times"):
            each.release()
    with pytest.raises(AssertionError, match="attempt to release recursive lock not owned by thread"):
        mp.RLock().release()
    with pytest.raises(OSError, match="Invalid argument"):
        mp.Semaphore(-1)


def test_a_recursive_lock_belongs_to_its_thread(threads: ThreadPoolExecutor) -> None:
    lock = mp.RLock()
    assert lock.acquire()
    assert lock.acquire()
    assert threads.submit(lock.acquire, False).result() is False
    with pytest.raises(AssertionError):
        threads.submit(lock.release).result()
    lock.release()
    assert threads.submit(lock.acquire, False).result() is False
    lock.release()
    assert threads.submit(lock.acquire, True, LONG).result() is True


def test_a_semaphore_counts() -> None:
    semaphore = mp.Semaphore(2)
    assert semaphore.acquire()
    assert semaphore.get_value() == 1
    semaphore.release()
    semaphore.release()
    assert semaphore.get_value() == 3
    assert repr(semaphore) == "<Semaphore(value=3)>"
    assert repr(mp.BoundedSemaphore(4)) == "<BoundedSemaphore(value=4, maxvalue=4)>"


def test_a_lock_that_was_pickled_is_the_same_lock() -> None:
    lock = mp.RLock()
    for other in (pickle.loads(pickle.dumps(lock)), copy.copy(lock)):
        with lock:
            assert other.acquire(False)
            other.release()
        assert repr(other) == "<RLock(None, 0)>"


def test_a_lock_that_nobody_refers_to_leaves_nothing_behind(address: str) -> None:
    engine = get_engine(address)
    broker: Any = getattr(engine, "_broker", None)
    lock = mp.Lock()
    name = lock._semlock.shared.name
    if broker is not None:
        assert name in broker.objects.machines
    del lock
    gc.collect()
    assert name not in _known
    if broker is not None:
        eventually(lambda: name not in broker.objects.machines)


def test_ctrl_c_while_waiting_for_a_semaphore_loses_no_permit() -> None:
    semaphore, began = mp.Semaphore(0), threading.Event()

    def call() -> None:
        began.set()
        semaphore.acquire()

    for _ in range(5):
        began.clear()
        if not interrupted(call, began.is_set, semaphore.release):
            semaphore.release()
        assert semaphore.acquire(timeout=LONG)
        assert semaphore.get_value() == 0


# -- conditions ----------------------------------------------------------------------------------------


def test_a_condition_wakes_as_many_as_are_notified(threads: ThreadPoolExecutor) -> None:
    condition, waits, woken = mp.Condition(), mp.Semaphore(0), mp.Semaphore(0)

    def work() -> bool:
        with condition:
            waits.release()
            done = condition.wait(LONG)
            woken.release()
            return done

    results = [threads.submit(work) for _ in range(4)]
    for _ in range(4):
        assert waits.acquire(timeout=LONG)
    with condition:
        assert repr(condition) == "<Condition(<RLock(MainProcess, 1)>, 4)>"
        condition.notify(2)
    assert woken.acquire(timeout=LONG)
    assert woken.acquire(timeout=LONG)
    with condition:
        assert woken.get_value() == 0
        condition.notify_all()
    assert all(each.result() for each in results)
    assert repr(condition) == "<Condition(<RLock(None, 0)>, 0)>"


def test_a_condition_is_waited_for_with_its_lock_released_and_it_is_held_again_afterwards() -> None:
    condition = mp.Condition(mp.RLock())
    with condition, condition:
        assert condition.wait(0.05) is False
        assert condition.wait(0) is False
        assert repr(condition._lock) == "<RLock(MainProcess, 2)>"
    with pytest.raises(AssertionError, match=r"must acquire\(\) condition before using wait\(\)"):
        condition.wait()
    with pytest.raises(AssertionError, match="lock is not owned"):
        condition.notify()


def test_a_condition_waits_for_what_becomes_true(threads: ThreadPoolExecutor) -> None:
    condition, numbers = pickle.loads(pickle.dumps(mp.Condition(mp.Lock()))), [0]

    def count() -> None:
        for _ in range(4):
            with condition:
                numbers[0] += 1
                condition.notify()

    with condition:
        assert condition.wait_for(lambda: numbers[0] == 4, 0.01) is False
        threads.submit(count)
        assert condition.wait_for(lambda: numbers[0] == 4, LONG)


def test_ctrl_c_while_waiting_for_a_notification_leaves_the_lock_as_it_was_and_passes_it_on(
    threads: ThreadPoolExecutor,
) -> None:
    condition, began = mp.Condition(), threading.Event()

    def call() -> None:
        with condition:
            began.set()
            condition.wait()

    def other() -> bool:
        with condition:
            return condition.wait(LONG)

    def notify() -> None:
        with condition:
            condition.notify()

    second: Any = None

    def both_wait() -> bool:
        nonlocal second
        if second is None and began.is_set() and "1)>" in repr(condition):
            second = threads.submit(other)
        return "2)>" in repr(condition)

    if not interrupted(call, both_wait, notify):
        notify()
    assert second.result()
    assert condition.acquire(False)


# -- events --------------------------------------------------------------------------------------------


def test_an_event_releases_all_that_wait(threads: ThreadPoolExecutor) -> None:
    event = mp.Event()
    assert not event.is_set()
    assert event.wait(0.01) is False
    results = [threads.submit(event.wait, LONG) for _ in range(3)]
    event.set()
    assert all(each.result() for each in results)
    assert event.wait()
    assert repr(event).endswith(" set>")
    event.clear()
    assert not pickle.loads(pickle.dumps(event)).is_set()


# -- barriers ------------------------------------------------------------------------------------------


def test_a_barrier_is_passed_by_all_at_once_after_the_last_one_ran_the_action(
    threads: ThreadPoolExecutor,
) -> None:
    ran: list[int] = []
    barrier = mp.Barrier(3, lambda: ran.append(len(ran)), LONG)

    def work() -> list[tuple[int, int]]:
        return [(barrier.wait(), len(ran)) for _ in range(3)]

    results = [each.result() for each in [threads.submit(work) for _ in range(3)]]
    for turn, each in enumerate(zip(*results, strict=True)):
        assert sorted(index for index, _ in each) == [0, 1, 2]
        assert all(count >= turn + 1 for _, count in each)
    assert ran == [0, 1, 2]
    assert (barrier.parties, barrier.n_waiting, barrier.broken) == (3, 0, False)
    assert repr(barrier).endswith(": waiters=0/3>")


def test_a_barrier_breaks_for_all_when_one_waits_no_longer(threads: ThreadPoolExecutor) -> None:
    barrier = mp.Barrier(3)
    waits = threads.submit(barrier.wait)
    eventually(lambda: barrier.n_waiting == 1)
    with pytest.raises(threading.BrokenBarrierError):
        barrier.wait(0.05)
    with pytest.raises(threading.BrokenBarrierError):
        waits.result()
    assert barrier.broken
    with pytest.raises(threading.BrokenBarrierError):
        barrier.wait()
    barrier.reset()
    assert not barrier.broken
    waits = threads.submit(barrier.wait)
    eventually(lambda: barrier.n_waiting == 1)
    barrier.abort()
    with pytest.raises(threading.BrokenBarrierError):
        waits.result()


def test_an_action_that_fails_breaks_the_barrier(threads: ThreadPoolExecutor) -> None:
    barrier = mp.Barrier(2, lambda: 1 // 0)
    waits = threads.submit(barrier.wait)
    eventually(lambda: barrier.n_waiting == 1)
    with pytest.raises(ZeroDivisionError):
        barrier.wait()
    with pytest.raises(threading.BrokenBarrierError):
        waits.result()
    with pytest.raises(ValueError, match="parties must be > 0"):
        mp.Barrier(0)


# -- in other processes --------------------------------------------------------------------------------


def started(target: Callable[..., object], *args: object) -> Process:
    process = Process(target=target, args=args, daemon=True)
    process.start()
    return process


def die(signum: int = signal.SIGKILL) -> None:
    os.kill(os.getpid(), signum)
    time.sleep(LONG)


def count(lock: Any, number: Any, numbers: Any) -> None:
    for index in range(10):
        with lock:
            number.value += 1
        with numbers:
            numbers[index] += index


def be_given(*objects: Any) -> None:
    global given
    given = objects


def count_given(_: int) -> None:
    count(*given)


def test_processes_share_what_they_are_given(make_pool: Callable[..., Any]) -> None:
    lock, number, numbers = mp.Lock(), mp.RawValue("i"), mp.Array("d", 10)
    processes = [started(count, lock, number, numbers) for _ in range(2)]
    pool = make_pool(2, be_given, (lock, number, numbers))
    pool.map(count_given, range(4), chunksize=1)
    pool.starmap(count, [(lock, number, numbers)] * 4, chunksize=1)
    for each in processes:
        each.join(LONG)
        assert each.exitcode == 0
    assert number.value == 100
    assert numbers[:] == [index * 10.0 for index in range(10)]


def hold(lock: Any, held: Any) -> None:
    with lock:
        held.release()
        die()


def test_a_lock_whose_holder_is_killed_is_free_and_the_next_one_is_told() -> None:
    lock, recursive, held = mp.Lock(), mp.RLock(), mp.Semaphore(0)
    for each in (lock, recursive):
        process = started(hold, each, held)
        assert held.acquire(timeout=LONG)
        assert each.acquire(timeout=LONG)
        assert each.owner_died
        each.release()
        assert each.acquire()
        assert not each.owner_died
        process.join(LONG)


def test_a_lock_that_its_holder_leaves_to_others_is_taken_until_they_release_it() -> None:
    lock = mp.Lock()
    process = started(lock.acquire)
    process.join(LONG)
    assert process.exitcode == 0
    assert not lock.acquire(False)
    lock.release()
    assert lock.acquire(False)


def leave_by_an_exception(lock: Any) -> None:
    lock.acquire()
    raise SystemExit(3)


def test_a_lock_whose_holder_ends_by_an_exception_is_free_and_the_next_one_is_told() -> None:
    lock = mp.Lock()
    process = started(leave_by_an_exception, lock)
    process.join(LONG)
    assert process.exitcode == 3
    assert lock.acquire(timeout=LONG)
    assert lock.owner_died


def meet(barrier: Any, ready: Any, never: bool) -> None:
    ready.release()
    if never:
        die()
    barrier.wait(LONG)


@pytest.mark.parametrize("never", [False, True])
def test_a_barrier_breaks_when_one_that_waits_or_is_to_come_is_killed(never: bool) -> None:
    barrier, ready = mp.Barrier(2 + never), mp.Semaphore(0)
    process = started(meet, barrier, ready, never)
    assert ready.acquire(timeout=LONG)
    if not never:
        eventually(lambda: barrier.n_waiting == 1)
        process.kill()
        eventually(lambda: barrier.broken)
    with pytest.raises(threading.BrokenBarrierError):
        barrier.wait(LONG)
    process.join(LONG)


def relay(condition: Any, turn: Any, mine: int, last: int) -> None:
    with condition:
        assert condition.wait_for(lambda: turn.value % 3 == mine or turn.value >= last, LONG)
        while turn.value < last:
            turn.value += 1
            condition.notify_all()
            condition.wait_for(lambda: turn.value % 3 == mine or turn.value >= last, LONG)


def test_processes_take_turns_by_a_condition() -> None:
    condition, turn = mp.Condition(), mp.Value("i")
    processes = [started(relay, condition, turn, mine, 15) for mine in (1, 2)]
    relay(condition, turn, 0, 15)
    for each in processes:
        each.join(LONG)
        assert each.exitcode == 0
    assert turn.value == 15


def set_after(event: Any, answer: Any) -> None:
    assert event.wait(LONG)
    answer.set()


def test_an_event_is_set_from_another_process() -> None:
    event, answer = mp.Event(), mp.Event()
    process = started(set_after, event, answer)
    assert not answer.wait(0.05)
    event.set()
    assert answer.wait(LONG)
    process.join(LONG)
    assert process.exitcode == 0


def test_who_was_thought_lost_does_not_release_what_others_may_hold() -> None:
    lock = mp.Lock()
    lock.acquire()
    # What the engine does when a broker that has forgotten this process welcomes it.
    get_sharing().fail(BrokerLostError("it was forgotten"))
    lock.release()
    assert not lock.acquire(block=False), "who has it now has it still"
    get_sharing().tell(lock._semlock.shared.name, Semaphores.RELEASE)
    with lock:
        pass
    assert lock.acquire(block=False)
    lock.release()
