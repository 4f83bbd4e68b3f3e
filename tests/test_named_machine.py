"""Named queues in the broker's core: what is durable when, who gets what, and what is there after the broker was killed."""

from __future__ import annotations

import pytest
from frontier import NAME, Client, Site

from multihost_broker import core as broker
from multihost_broker import events as be
from multihost_broker.named import directory, shelf
from multihost_common import messages as m
from multihost_common.blocks import pack_lengths
from multihost_common.named import object_of, rows_of
from multihost_common.shared import NamedQueues
from multihost_common.tables import pack_rows


@pytest.fixture
def site() -> Site:
    return Site()


# -- putting -----------------------------------------------------------------------------------------


def test_a_put_is_confirmed_once_it_is_durable_and_nobody_gets_it_before(site: Site) -> None:
    one, two = site.client("a"), site.client("b")
    get = two.get()
    put = one.put("x")
    assert put not in site.answers and get not in site.answers
    site.sync()
    assert site.answers[put].status == m.GRANTED
    assert list((two.items(get) or {}).values()) == ["x"]


def test_items_come_in_the_order_in_which_they_were_put(site: Site) -> None:
    one = site.client("a")
    assert one.stored("x", "y") and one.stored("z")
    assert list(one.got(10).values()) == ["x", "y", "z"]


def test_what_is_put_twice_is_there_once(site: Site) -> None:
    one = site.client("a")
    assert one.stored("x", number=1)
    assert one.stored("x", number=1)
    again = [one.put("y", number=2), one.put("y", number=2)]
    site.sync()
    assert [site.answers[number].status for number in again] == [m.GRANTED] * 2
    assert one.size() == 2


def test_what_is_put_again_after_a_restart_is_there_once_even_if_it_was_accepted_meanwhile(
    site: Site,
) -> None:
    one, two = site.client("a"), site.client("b")
    assert one.stored("x")
    (item,) = two.got()
    two.take(item)
    site.restart()
    one.hello()
    one.open()
    two.hello()
    two.open()
    # Its confirmation was lost, say.
    assert one.stored("x", number=1)
    assert one.size() == 0
    assert one.stored("y", number=2)
    assert one.size() == 1


def test_a_put_that_the_disk_has_no_room_for_is_refused_with_all_behind_it_until_they_come_again(
    site: Site,
) -> None:
    one = site.client("a")
    site.journal.full = True
    first = one.put("x" * 10, number=1)
    site.tell(site.journal.sync())
    site.journal.full = False
    second = one.put("y", number=2)
    site.sync()
    assert [site.answers[each].amount for each in (first, second)] == [NamedQueues.REFUSED] * 2
    one.open()
    assert one.stored("x" * 10, number=1) and one.stored("y", number=2)
    assert list(one.got(5).values()) == ["x" * 10, "y"]


def test_what_is_stored_behind_a_put_that_was_refused_is_stored_again_behind_it(site: Site) -> None:
    one = site.client("a")
    site.journal.full = True
    first, second = one.put("x", number=1), one.put("y", number=2)
    site.tell(site.journal.sync(1))
    site.journal.full = False
    site.sync()
    assert [site.answers[each].amount for each in (first, second)] == [NamedQueues.REFUSED] * 2
    one.open()
    assert one.stored("x", number=1) and one.stored("y", number=2)
    assert list(one.got(5).values()) == ["x", "y"]
    assert site.records.count(33) == 2


def test_a_full_queue_has_who_puts_wait_until_an_item_was_handed_out(site: Site) -> None:
    one, two = site.client("a", maxsize=1), site.client("b")
    assert one.stored("x")
    now, later = one.put("y", number=2, now=True), one.put("z", number=3)
    site.sync()
    assert site.answers[now].status == m.BUSY
    assert later not in site.answers
    two.got()
    assert site.answers[later].status == m.GRANTED


def test_who_waits_for_room_may_give_up_but_not_once_its_item_is_being_written(site: Site) -> None:
    one, two = site.client("a", maxsize=1), site.client("b")
    assert one.stored("x")
    later = one.put("y", number=2)
    one.begin(m.WITHDRAW, later)
    assert site.answers[later].status == m.WITHDRAWN
    last = one.put("z", number=3)
    two.begin(NamedQueues.GET, 1)
    one.begin(m.WITHDRAW, last)
    site.sync()
    assert site.answers[last].status == m.GRANTED
    assert list(two.got().values()) == ["z"]


# -- getting -----------------------------------------------------------------------------------------


def test_what_was_accepted_is_on_the_disk_no_more(site: Site) -> None:
    one = site.client("a")
    for number in range(4):
        assert one.stored(str(number), "more")
    before = len(site.journal.records)
    one.take(*one.got(100))
    # The queue, who gets from it, and the number of the last PUT are.
    assert site.records == [32, 35, 36] and before > 3


def test_items_are_accepted_in_any_order_and_a_restart_knows_which(site: Site) -> None:
    one = site.client("a")
    assert one.stored(*"abcdefgh")
    got = one.got(100)
    one.take(*[number for number, item in got.items() if item in "bdg"])
    one.take(*[number for number, item in got.items() if item in "ce"])
    assert site.records.count(34) == 1
    site.restart()
    one.hello()
    one.open()
    assert list(one.got(100).values()) == [*"afh"]


def test_what_a_dead_consumer_held_goes_to_another_in_front(site: Site) -> None:
    one, two = site.client("a"), site.client("b")
    assert one.stored(*"abcd")
    assert list(one.got().values()) == ["a"]
    get = two.get(2)
    assert list((two.items(get) or {}).values()) == ["b"]
    one.bye()
    assert [*two.got(9, kept=1).values()] == ["a", "c", "d"]


def test_what_a_dead_consumer_had_accepted_does_not_come_back(site: Site) -> None:
    one, two = site.client("a"), site.client("b")
    assert one.stored(*"abcd")
    first, *_ = one.got(4)
    one.take(first)
    one.bye()
    assert [*two.got(9).values()] == [*"bcd"]


def test_who_asks_for_an_item_that_may_not_wait_is_told_that_there_is_none(site: Site) -> None:
    one = site.client("a")
    assert site.answers[one.get(now=True)].status == m.BUSY
    assert one.stored("x")
    assert one.items(one.get(now=True))


def test_items_got_early_are_given_back_for_who_waits(site: Site) -> None:
    one, two = site.client("a"), site.client("b", gets=False)
    assert one.stored(*"abcd")
    listen = one.begin(NamedQueues.LISTEN)
    got = list(one.got(4))
    two.open()
    get = two.get()
    assert site.answers[listen].status == m.GRANTED
    one.ask(NamedQueues.GIVE_BACK, 1, [rows_of(got[1:])])
    assert list((two.items(get) or {}).values()) == ["b"]
    # It has nothing to give back now, and is not asked for it again and again.
    listen = one.begin(NamedQueues.LISTEN)
    two.get(kept=1)
    two.get(kept=2)
    two.get(kept=3)
    assert listen not in site.answers


def test_join_waits_until_all_was_accepted(site: Site) -> None:
    one = site.client("a")
    assert one.stored("x")
    join = one.begin(NamedQueues.JOIN)
    (item,) = one.got()
    assert join not in site.answers
    one.take(item)
    assert site.answers[join].status == m.GRANTED


def test_what_does_not_fit_into_memory_is_read_when_it_is_needed(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shelf, "MEMORY", 300)
    monkeypatch.setattr(shelf, "AHEAD", 150)
    one = site.client("a")
    for number in range(20):
        assert one.stored(f"{number:50}")
    queue = site.core.named.queues[object_of(NAME)]
    assert queue.shelf.loaded <= 300
    found: list[int] = []
    while len(found) < 20:
        got = one.got(3)
        found += map(int, got.values())
        one.take(*got)
        assert queue.shelf.loaded <= 300
    assert found == list(range(20))
    assert queue.shelf.loaded == site.core.named._budget.used == 0


def test_items_that_the_disk_has_lost_are_left_out_and_that_is_noted(site: Site) -> None:
    one = site.client("a")
    assert one.stored("x") and one.stored("y")
    site.restart()
    records = site.journal.records.items()
    bad = next(
        number
        for number, record in records
        if isinstance(record.payload, tuple) and b"x" in record.payload[1:]
    )
    site.journal.records.pop(bad)
    one.hello()
    one.open()
    assert list(one.got().values()) == ["y"]
    assert any("damaged" in note for note in site.notes)


# -- restarts ----------------------------------------------------------------------------------------


def test_after_a_restart_all_that_was_confirmed_is_there(site: Site) -> None:
    one = site.client("a", gets=False)
    assert one.stored(*"abc") and one.stored("d")
    lost = one.put("e")
    site.restart()
    assert lost not in site.answers
    one.hello()
    assert one.open() is not None
    assert list(one.got(9).values()) == [*"abcd"]


def test_nothing_is_handed_out_after_a_restart_before_all_have_said_what_they_accepted(site: Site) -> None:
    one, two = site.client("a"), site.client("b")
    assert one.stored(*"abcd")
    first = list(one.got())
    second = list(two.got())
    # Both are with their users, and the broker was not told that the first one was accepted.
    site.restart()
    two.hello()
    two.open(kept=second)
    get = two.get(9, kept=1)
    assert two.items(get) is None
    one.hello()
    one.open(accepted=first)
    assert [*(two.items(get) or {}).values()] == ["c"]
    assert one.size() == 1


def test_who_does_not_come_back_is_waited_for_a_while(site: Site) -> None:
    one, two = site.client("a"), site.client("b")
    assert one.stored(*"ab")
    one.got()
    site.restart()
    two.hello()
    two.open()
    get = two.get(9)
    site.wait(directory.GRACE - 1)
    two.ask(m.CLOSE, object=b"nobody".ljust(16))
    assert two.items(get) is None
    site.wait(1.1)
    assert [*(two.items(get) or {}).values()] == ["a", "b"]
    # The next start waits for the other one alone.
    assert site.records.count(36) == 1


def test_who_comes_back_too_late_keeps_what_nobody_else_was_handed(site: Site) -> None:
    one, two = site.client("a"), site.client("b", gets=False)
    assert one.stored(*"abc")
    held = list(one.got(3))
    site.restart()
    site.wait(directory.GRACE + 1)
    two.hello()
    two.open()
    assert [*two.got().values()] == ["a"]
    one.hello()
    one.open(accepted=held[:1], kept=held[1:])
    assert one.size(kept=2) == 0
    one.take(*held[1:])
    assert set(site.records) == {32, 35, 36}


def test_a_process_that_was_thought_dead_opens_the_queue_anew(site: Site) -> None:
    one = site.client("a")
    assert one.stored(*"ab")
    held = list(one.got(2))
    waits = one.get(kept=2)
    former = one.peer
    one.hello()
    one.open(kept=held[:1], accepted=held[1:])
    assert site.answers[waits].status == m.UNKNOWN
    assert one.items(one.get(now=True)) is None
    site.tell(be.Received(former, m.PRODUCER, m.Bye()))
    one.take(*held)
    assert one.size() == 0


def test_a_broker_that_does_not_know_the_process_tells_it_so(site: Site) -> None:
    one = site.client("a")
    site.restart()
    one.hello()
    acted = one.ask(NamedQueues.SIZE)
    assert acted is not None and acted.status == m.UNKNOWN


# -- queues ------------------------------------------------------------------------------------------


def test_a_queue_that_was_deleted_is_gone_for_all_and_can_be_made_anew(site: Site) -> None:
    one, two = site.client("a"), site.client("b")
    assert one.stored("x")
    watch, get = two.begin(NamedQueues.WATCH), two.get()
    put = one.put("y")
    acted = one.ask(m.DELETE)
    assert acted is not None and acted.status == m.GRANTED
    assert [site.answers[each].status for each in (watch, put)] == [m.UNKNOWN] * 2
    assert two.items(get)
    acted = two.open()
    assert acted is not None and acted.status == m.UNKNOWN
    two.ticket = 0
    two.open()
    assert two.size() == 0
    site.restart()
    two.hello()
    two.open()
    assert two.size() == 0


def test_a_queue_that_was_purged_keeps_what_its_consumers_have(site: Site) -> None:
    one = site.client("a")
    assert one.stored(*"abc") and one.stored("d")
    (item,) = one.got()
    acted = one.ask(NamedQueues.PURGE)
    assert acted is not None and acted.amount == 3
    site.restart()
    one.hello()
    one.open(kept=[item])
    assert one.size(kept=1) == 0
    one.take(item)
    assert set(site.records) == {32, 35, 36}


def test_a_queue_goes_by_its_name_and_by_no_other(site: Site) -> None:
    one = Client(site, "a")
    for name in ("", "a\nb", "x" * 300):
        acted = one.open(name=name)
        assert acted is not None and acted.status == m.FORBIDDEN, name
    frames = [b"other", one.id, pack_rows([(0, 0)]), b"", b""]
    acted = one.ask(m.OPEN, 1, frames)
    assert acted is not None and acted.status == m.FORBIDDEN


def test_a_queue_has_the_room_it_was_made_with(site: Site) -> None:
    site.client("a", maxsize=2)
    two = Client(site, "b")
    two.maxsize = 3
    acted = two.open()
    assert acted is not None and acted.status == m.FORBIDDEN and "room for 2" in acted.text


def test_without_a_journal_there_are_no_named_queues(site: Site) -> None:
    site.core = broker.Core(broker.CoreConfig(journal=False))
    one = Client(site, "a")
    acted = one.open()
    assert acted is not None and acted.status == m.FORBIDDEN and "MULTIHOST_BROKER" in acted.text


def test_operators_see_queues_purge_and_delete_them(site: Site) -> None:
    one = site.client("a")
    assert one.stored(*"ab")
    answer = site.ask("queues")
    assert isinstance(answer, m.Answer) and b'"frontier"' in answer.frames[0]
    assert isinstance(site.ask("purge", NAME), m.Answer)
    assert one.size() == 0
    assert isinstance(site.ask("delete", NAME), m.Answer)
    refused = site.ask("delete", NAME)
    assert isinstance(refused, m.Refused) and refused.reason == "E_JOB"
    assert not site.journal.records


def test_who_has_put_something_is_remembered_for_a_day(site: Site) -> None:
    one = site.client("a")
    assert one.stored("x")
    one.take(*one.got())
    one.bye()
    site.wait(3600)
    assert 35 in site.records
    site.wait(2 * directory.KEPT)
    assert site.records == [32]


@pytest.mark.parametrize(
    ("op", "amount", "frames"),
    [
        (NamedQueues.PUT, 1, [b"123", b"x"]),
        (NamedQueues.PUT, 1, [pack_lengths([1] * 5000), b"x" * 5000]),
        (NamedQueues.PUT, 0, [pack_lengths([1]), b"x"]),
        (NamedQueues.TAKEN, 0, [b"123"]),
        (NamedQueues.TAKEN, 0, []),
        (NamedQueues.TAKEN, 0, [pack_rows([(1, 1 << 40)])]),
        (NamedQueues.GIVE_BACK, 0, []),
        (NamedQueues.LISTEN + 50, 0, []),
        (m.OPEN, 1, []),
        (m.OPEN, 1, [NAME.encode(), b"short", pack_rows([(0, 0)]), b"", b""]),
        (m.OPEN, 1, [NAME.encode(), b"x" * 16, b"", b"", b""]),
    ],
)
def test_nonsense_is_refused(site: Site, op: int, amount: int, frames: list[bytes]) -> None:
    one = site.client("a")
    acted = one.ask(op, amount, frames)
    assert acted is not None and acted.status == m.FORBIDDEN
    assert one.stored("x")
