"""The machines of locks, conditions, events, barriers and values: no process, no socket, no clock."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from multihost_broker.objects.kinds import KINDS
from multihost_broker.objects.machine import Machine, Request
from multihost_common import messages as m
from multihost_common.shared import (
    BARRIER,
    CELL,
    CONDITION,
    EVENT,
    SEMAPHORE,
    Barriers,
    Cells,
    Conditions,
    Events,
    Semaphores,
)

NAME = b"n" * m.OBJECT


class Desk:
    """Asks one machine, as the registry does, in the names of parties 1, 2, 3 and so on."""

    def __init__(self, kind: int, *numbers: int, first: bytes = b"") -> None:
        frames = [number.to_bytes(8, "little") for number in numbers] + [first] * bool(first)
        self.machine: Machine = KINDS[kind](
            Request(1, m.Act(0, NAME, m.MAKE, kind, False, frames=frames), self._take)
        )
        self.answers: dict[int, m.Acted] = {}
        self.waiting: dict[int, Request] = {}
        self._numbers = 0

    def _take(self, request: Request, acted: m.Acted) -> None:
        assert request.number not in self.answers, "a request is answered once"
        self.waiting.pop(request.number, None)
        self.answers[request.number] = acted

    def ask(self, party: int, op: int, amount: int = 0, *frames: bytes, now: bool = False) -> int:
        """Answers the number of the request."""
        self._numbers += 1
        request = Request(party, m.Act(self._numbers, NAME, op, amount, now, frames=frames), self._take)
        self.machine.act(request)
        if request.waits:
            self.waiting[request.number] = request
        assert request.waits == (request.number not in self.answers)
        return request.number

    def get(self, *args: Any, now: bool = False) -> tuple[int, int]:
        """Status and amount of a request that is answered at once."""
        acted = self.answers[self.ask(*args, now=now)]
        return acted.status, acted.amount

    def amount(self, number: int) -> int | None:
        """What the request was granted; None: it waits."""
        acted = self.answers.get(number)
        assert acted is None or acted.status == m.GRANTED
        return None if acted is None else acted.amount

    def withdraw(self, number: int) -> None:
        request = self.waiting[number]
        self.machine.withdraw(request)
        request.withdrawn()

    def end(self, party: int, died: bool = False) -> None:
        """It ends in good order, or not."""
        for number, request in list(self.waiting.items()):
            if request.party == party and request.waits:
                self.withdraw(number)
        if died:
            self.machine.died(party)
        self.machine.depart(party)

    def die(self, party: int) -> None:
        self.end(party, died=True)


def lock() -> Desk:
    return Desk(SEMAPHORE, 1, 1, 1)


# -- locks and semaphores ------------------------------------------------------------------------------


def test_a_lock_has_one_holder_and_the_others_get_it_in_the_order_in_which_they_came() -> None:
    desk = lock()
    first, second, third = (desk.ask(party, Semaphores.ACQUIRE) for party in (1, 2, 3))
    assert [desk.amount(each) for each in (first, second, third)] == [0, None, None]
    desk.ask(1, Semaphores.RELEASE)
    assert [desk.amount(each) for each in (second, third)] == [0, None]
    desk.ask(2, Semaphores.RELEASE)
    assert desk.amount(third) == 0


def test_a_lock_whose_holder_dies_goes_to_the_next_one_who_is_told_and_nobody_after_that() -> None:
    desk = lock()
    desk.ask(1, Semaphores.ACQUIRE)
    second = desk.ask(2, Semaphores.ACQUIRE)
    desk.die(1)
    assert desk.amount(second) == 1
    desk.ask(2, Semaphores.RELEASE)
    assert desk.get(3, Semaphores.ACQUIRE) == (m.GRANTED, 0)


def test_a_lock_is_never_given_to_one_that_has_died_or_given_up() -> None:
    desk = lock()
    desk.ask(1, Semaphores.ACQUIRE)
    desk.ask(2, Semaphores.ACQUIRE)
    third = desk.ask(3, Semaphores.ACQUIRE)
    fourth = desk.ask(4, Semaphores.ACQUIRE)
    desk.die(2)
    desk.withdraw(third)
    desk.ask(1, Semaphores.RELEASE)
    assert desk.amount(fourth) == 0


def test_what_is_not_to_wait_is_told_that_the_lock_is_taken() -> None:
    desk = lock()
    desk.ask(1, Semaphores.ACQUIRE)
    assert desk.get(2, Semaphores.ACQUIRE, now=True)[0] == m.BUSY


def test_a_release_too_many_is_refused_and_any_process_may_release_a_lock() -> None:
    desk = lock()
    assert desk.get(1, Semaphores.RELEASE)[0] == m.FORBIDDEN
    desk.ask(1, Semaphores.ACQUIRE)
    assert desk.get(2, Semaphores.RELEASE)[0] == m.GRANTED
    desk.die(1)
    assert desk.get(1, Semaphores.VALUE) == (m.GRANTED, 1)


def test_permits_of_the_dead_come_back_where_each_has_a_holder() -> None:
    desk = Desk(SEMAPHORE, 3)
    for party in (1, 1, 2):
        desk.ask(party, Semaphores.ACQUIRE)
    desk.die(1)
    assert desk.get(2, Semaphores.VALUE) == (m.GRANTED, 2)


def test_a_semaphore_that_counts_items_does_not_gain_one_when_a_consumer_dies() -> None:
    desk = Desk(SEMAPHORE, 0)
    desk.ask(1, Semaphores.RELEASE)
    assert desk.get(2, Semaphores.ACQUIRE) == (m.GRANTED, 0)
    desk.die(2)
    assert desk.get(1, Semaphores.VALUE) == (m.GRANTED, 0)


def test_a_process_that_ends_in_good_order_keeps_the_permits_it_has_taken_but_no_recursive_lock() -> None:
    desk = Desk(SEMAPHORE, 2)
    desk.ask(2, Semaphores.ACQUIRE)
    desk.end(2)
    assert desk.get(1, Semaphores.VALUE) == (m.GRANTED, 1)
    desk = Desk(SEMAPHORE, 1, 1, 2)
    desk.ask(2, Semaphores.ACQUIRE)
    desk.end(2)
    waiting = desk.ask(1, Semaphores.ACQUIRE)
    assert desk.amount(waiting) is None
    assert desk.get(3, Semaphores.RELEASE)[0] == m.GRANTED
    assert desk.amount(waiting) == 0
    desk.die(1)
    assert desk.get(3, Semaphores.ACQUIRE) == (m.GRANTED, 1)
    desk = lock()
    desk.ask(2, Semaphores.ACQUIRE)
    desk.end(2)
    assert desk.get(1, Semaphores.ACQUIRE) == (m.GRANTED, 1)


# -- conditions ----------------------------------------------------------------------------------------


def test_a_notification_wakes_as_many_as_it_says_who_came_first_first() -> None:
    desk = Desk(CONDITION)
    waits = [desk.ask(party, Conditions.WAIT) for party in (1, 2, 3)]
    desk.ask(9, Conditions.NOTIFY, 2)
    assert [desk.amount(each) for each in waits] == [0, 0, None]
    assert desk.get(9, Conditions.COUNT) == (m.GRANTED, 1)
    desk.ask(9, Conditions.NOTIFY, 2**63)
    assert desk.amount(waits[2]) == 0


def test_nobody_is_notified_of_what_was_before() -> None:
    desk = Desk(CONDITION)
    desk.ask(9, Conditions.NOTIFY, 5)
    assert desk.amount(desk.ask(1, Conditions.WAIT)) is None


def test_a_notification_of_one_that_dies_before_it_wakes_goes_to_another_that_waited_then() -> None:
    desk = Desk(CONDITION)
    desk.ask(1, Conditions.WAIT)
    second = desk.ask(2, Conditions.WAIT)
    desk.ask(9, Conditions.NOTIFY, 1)
    later = desk.ask(3, Conditions.WAIT)
    desk.die(1)
    assert desk.amount(second) == 0
    desk.die(2)
    assert desk.amount(later) is None


def test_a_notification_that_was_taken_is_not_given_twice() -> None:
    desk = Desk(CONDITION)
    first = desk.ask(1, Conditions.WAIT)
    second = desk.ask(2, Conditions.WAIT)
    desk.ask(9, Conditions.NOTIFY, 1)
    desk.ask(1, Conditions.WOKEN, first)
    desk.die(1)
    desk.ask(1, Conditions.PASS, first)
    assert desk.amount(second) is None


def test_who_is_interrupted_as_it_is_notified_passes_it_on() -> None:
    desk = Desk(CONDITION)
    first = desk.ask(1, Conditions.WAIT)
    second = desk.ask(2, Conditions.WAIT)
    desk.ask(9, Conditions.NOTIFY, 1)
    desk.ask(1, Conditions.PASS, first)
    assert desk.amount(second) == 0


def test_a_notification_does_not_go_to_who_has_given_up_or_died() -> None:
    desk = Desk(CONDITION)
    first = desk.ask(1, Conditions.WAIT)
    desk.ask(2, Conditions.WAIT)
    third = desk.ask(3, Conditions.WAIT)
    desk.withdraw(first)
    desk.die(2)
    desk.ask(9, Conditions.NOTIFY, 1)
    assert desk.amount(third) == 0


# -- events --------------------------------------------------------------------------------------------


def test_an_event_releases_all_and_whoever_comes_while_it_is_set() -> None:
    desk = Desk(EVENT)
    assert desk.get(1, Events.IS_SET) == (m.GRANTED, 0)
    waits = [desk.ask(party, Events.WAIT) for party in (1, 2)]
    assert desk.get(3, Events.WAIT, now=True)[0] == m.BUSY
    desk.ask(4, Events.SET)
    assert [desk.amount(each) for each in waits] == [0, 0]
    assert desk.get(5, Events.WAIT) == (m.GRANTED, 0)
    assert desk.get(5, Events.IS_SET) == (m.GRANTED, 1)
    desk.ask(4, Events.CLEAR)
    late = desk.ask(1, Events.WAIT)
    assert desk.amount(late) is None
    desk.die(1)
    desk.ask(4, Events.SET)
    assert desk.answers[late].status == m.WITHDRAWN


# -- barriers ------------------------------------------------------------------------------------------


def test_a_barrier_lets_all_go_when_the_last_one_comes_each_with_its_index() -> None:
    desk = Desk(BARRIER, 3, 0)
    for _ in range(2):
        waits = [desk.ask(party, Barriers.WAIT) for party in (1, 2)]
        assert [desk.amount(each) for each in waits] == [None, None]
        assert desk.get(9, Barriers.STATE) == (m.GRANTED, 2)
        waits.append(desk.ask(3, Barriers.WAIT))
        assert [desk.amount(each) for each in waits] == [0, 1, 2]


def test_the_last_one_runs_the_action_before_the_others_go_on_and_who_is_early_waits_for_the_next_time() -> (
    None
):
    desk = Desk(BARRIER, 2, 1)
    first = desk.ask(1, Barriers.WAIT)
    last = desk.ask(2, Barriers.WAIT)
    early = desk.ask(3, Barriers.WAIT)
    assert [desk.amount(each) for each in (first, last, early)] == [None, 1, None]
    assert desk.get(2, Barriers.RELEASE, last) == (m.GRANTED, 0)
    assert [desk.amount(each) for each in (first, early)] == [0, None]
    assert desk.amount(desk.ask(1, Barriers.WAIT)) == 1


@pytest.mark.parametrize("how", ["it dies", "it gives up", "abort", "another does not want to wait"])
def test_a_barrier_breaks_for_all_when_one_will_not_come(how: str) -> None:
    desk = Desk(BARRIER, 4, 0)
    first, second = (desk.ask(party, Barriers.WAIT) for party in (1, 2))
    if how == "it dies":
        desk.die(2)
    elif how == "it gives up":
        desk.withdraw(second)
    elif how == "abort":
        desk.ask(3, Barriers.ABORT)
    else:
        assert desk.get(3, Barriers.WAIT, now=True)[0] == m.BUSY
    assert desk.amount(first) == Barriers.BROKEN
    assert desk.get(3, Barriers.WAIT) == (m.GRANTED, Barriers.BROKEN)
    assert desk.get(3, Barriers.STATE) == (m.GRANTED, Barriers.BROKEN)
    desk.ask(3, Barriers.RESET)
    assert desk.get(3, Barriers.STATE) == (m.GRANTED, 0)
    assert desk.amount(desk.ask(1, Barriers.WAIT)) is None


def test_a_barrier_breaks_when_who_runs_the_action_dies_in_it() -> None:
    desk = Desk(BARRIER, 2, 1)
    first = desk.ask(1, Barriers.WAIT)
    desk.ask(2, Barriers.WAIT)
    desk.die(2)
    assert desk.amount(first) == Barriers.BROKEN


def test_a_barrier_breaks_when_a_process_that_has_it_is_killed_and_not_when_it_ends() -> None:
    desk = Desk(BARRIER, 2, 0)
    for party in (1, 2, 3):
        desk.ask(party, Barriers.JOIN)
    desk.end(3)
    desk.die(4)
    first = desk.ask(1, Barriers.WAIT)
    assert desk.amount(first) is None
    desk.die(2)
    assert desk.amount(first) == Barriers.BROKEN


def test_a_reset_sends_who_waits_away_and_an_action_that_was_under_way_releases_nobody() -> None:
    desk = Desk(BARRIER, 2, 1)
    first = desk.ask(1, Barriers.WAIT)
    last = desk.ask(2, Barriers.WAIT)
    desk.ask(3, Barriers.RESET)
    assert desk.amount(first) == Barriers.BROKEN
    again = desk.ask(1, Barriers.WAIT)
    assert desk.get(2, Barriers.RELEASE, last) == (m.GRANTED, Barriers.BROKEN)
    assert desk.amount(again) is None


# -- bytes ---------------------------------------------------------------------------------------------


def test_a_cell_keeps_ranges_of_bytes() -> None:
    desk = Desk(CELL, 8, first=b"abc")
    assert desk.machine.size() == 8
    assert desk.get(1, Cells.WRITE, 2, b"XY", b"Z") == (m.GRANTED, 0)
    read = desk.ask(2, Cells.READ, 1 + 5 * Cells.SPAN)
    assert desk.answers[read].frames == (b"bXYZ\0",)
    assert desk.get(1, Cells.WRITE, 7, b"XY")[0] == m.FORBIDDEN
    assert desk.machine.size() == 8


# -- nonsense ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "first"), [("<i", 5), ("<q", -3), ("<B", 251), ("<d", 0.5), ("<f", 1.25)])
def test_what_is_added_to_a_number_counts_whatever_it_is_by_then(kind: str, first: float) -> None:
    desk = Desk(CELL, 16, first=b"\xff" * 4 + struct.pack(kind, first))
    real = [b"f"] if kind in ("<d", "<f") else []
    for _ in range(2):
        # Both have read the same.
        old, new = (struct.pack(kind, number) for number in (first, first + 2))
        assert desk.get(1, Cells.ADD, 4, old, new, *real) == (m.GRANTED, 0)
    read = desk.ask(2, Cells.READ, 4 + struct.calcsize(kind) * Cells.SPAN)
    assert struct.unpack(kind, desk.answers[read].frames[0]) == (first + 4,)
    assert desk.get(1, Cells.ADD, 14, b"1234", b"1235")[0] == m.FORBIDDEN
    assert desk.get(1, Cells.ADD, 0, b"1234", b"123")[0] == m.FORBIDDEN
    assert desk.get(1, Cells.ADD, 0, b"12", b"13", b"f")[0] == m.FORBIDDEN
    assert desk.get(1, Cells.ADD, 0)[0] == m.FORBIDDEN


@pytest.mark.parametrize("kind", [SEMAPHORE, CONDITION, EVENT, BARRIER, CELL])
def test_an_operation_that_an_object_does_not_know_is_refused(kind: int) -> None:
    assert Desk(kind, 1, 1).get(1, 99)[0] == m.FORBIDDEN


@pytest.mark.parametrize("kind", [SEMAPHORE, BARRIER, CELL])
def test_numbers_that_make_no_object_are_refused(kind: int) -> None:
    with pytest.raises(ValueError, match=r"."):
        Desk(kind, *([0, 0] if kind == BARRIER else [2**64 - 1, 1]))
