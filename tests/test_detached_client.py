"""A detached job on its way in and out: the machines of the producer's side, without a socket."""

from __future__ import annotations

import pickle
import random
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from multihost.detached import storing as storing_module
from multihost.detached.exchange import Exchange, Order
from multihost.detached.fetching import Fetching
from multihost.detached.result import _Gathered, blocks, parse_key
from multihost.detached.storing import Storing
from multihost.failures import Raised
from multihost.iterators import Inbox
from multihost.packing import BLOCK_BYTES, Packed
from multihost.reduction import load_values
from multihost_common import messages as m
from multihost_common.blocks import pack_lengths
from multihost_common.errors import JobError, RemoteError, WorkerLostError

KEY = bytes(range(16))
OTHER = bytes(16)


def packed(count: int, size: int = 10) -> Packed:
    each = max(1, size // count)
    return Packed(count, 1, [pack_lengths([each] * count), b"x" * each * count], size)


def told(messages: Sequence[m.Message]) -> list[Any]:
    """What is sent, in short."""
    short: dict[type, Any] = {
        m.Submit: lambda each: "submit",
        m.Put: lambda each: (each.start, each.count),
        m.Seal: lambda each: f"seal {each.count}",
        m.Fetch: lambda each: f"fetch {each.cursor}",
    }
    return [short[type(each)](each) for each in messages]


def stored(fed: int, sealed: bool = False) -> m.Stored:
    return m.Stored(KEY, fed, sealed)


@pytest.fixture
def storing() -> Storing:
    made = Storing(m.Submit(KEY, frames=[b"setup", b"function"]))
    assert told(made.begin()) == ["submit"]
    return made


# -- in --------------------------------------------------------------------------------------------


def test_nothing_is_put_before_the_broker_has_told_what_it_has(storing: Storing) -> None:
    assert not storing.known
    storing.take(stored(0), 0.0)
    assert storing.known
    storing.begin()
    # Behind a refusal that is on its way it would be dropped.
    assert not storing.put(packed(5))
    assert told(storing.take(stored(0), 0.0)) == [(0, 5)]


def test_a_job_is_over_once_it_is_sealed_and_no_earlier(storing: Storing) -> None:
    storing.take(stored(0), 0.0)
    assert told(storing.put(packed(5))) == [(0, 5)]
    assert told(storing.put(packed(3))) == [(5, 3)]
    assert told(storing.seal()) == ["seal 8"]
    assert storing.take(stored(8), 0.0) == () or not storing.over
    storing.take(stored(8, sealed=True), 0.0)
    assert storing.over


def test_the_window_is_bytes_that_are_not_stored(storing: Storing, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storing_module, "WINDOW_BYTES", 100)
    storing.take(stored(0), 0.0)
    storing.put(packed(1, 60))
    assert not storing.full
    storing.put(packed(1, 60))
    assert storing.full
    storing.take(stored(1), 0.0)
    assert not storing.full


def test_after_a_lost_connection_it_goes_on_where_the_journal_ends(storing: Storing) -> None:
    storing.take(stored(0), 0.0)
    for _ in range(3):
        storing.put(packed(5))
    storing.seal()
    storing.take(stored(5), 0.0)
    assert told(storing.begin()) == ["submit"]
    # Of what was on its way one block has got there.
    assert told(storing.take(stored(10), 0.0)) == [(10, 5), "seal 15"]


def test_a_job_that_was_sealed_before_the_connection_was_lost_is_over(storing: Storing) -> None:
    storing.take(stored(0), 0.0)
    storing.put(packed(5))
    storing.seal()
    storing.begin()
    assert not storing.take(stored(5, sealed=True), 0.0)
    assert storing.over


def test_that_the_broker_has_forgotten_what_it_had_confirmed_is_an_error(storing: Storing) -> None:
    storing.take(stored(0), 0.0)
    storing.put(packed(5))
    storing.put(packed(5))
    storing.take(stored(5), 0.0)
    storing.begin()
    # It has made a new job of that key, which lacks what is not kept here any more.
    with pytest.raises(JobError, match="forgotten"):
        storing.take(stored(0), 0.0)


def test_refused_for_now_it_waits_and_then_sends_again_what_is_not_stored(storing: Storing) -> None:
    storing.take(stored(0), 0.0)
    storing.put(packed(5))
    storing.put(packed(5))
    assert not storing.take(m.Denied(KEY, "E_FULL", "the disk is full", 2.0), 100.0)
    assert storing.due == 102.0 and storing.complaint == "the disk is full"
    # What was there before it is stored meanwhile; nothing is sent until the time has come.
    assert not storing.take(stored(5), 100.5)
    assert not storing.put(packed(5)) and not storing.seal()
    assert not storing.tick(101.9)
    assert told(storing.tick(102.0)) == ["submit"] and storing.due is None
    assert told(storing.take(stored(5), 102.1)) == [(5, 5), (10, 5), "seal 15"]


def test_refused_for_good_is_an_error(storing: Storing) -> None:
    with pytest.raises(JobError, match="no journal"):
        storing.take(m.Denied(KEY, "E_JOURNAL", "this broker has no journal", 0.0), 0.0)


def test_another_process_goes_on_with_what_is_missing(storing: Storing) -> None:
    storing.take(stored(7), 0.0)
    assert storing.fed == 7
    assert told(storing.put(packed(3))) == [(7, 3)]
    assert told(storing.seal()) == ["seal 10"]


def test_a_job_that_is_complete_needs_no_input(storing: Storing) -> None:
    storing.take(stored(7, sealed=True), 0.0)
    assert storing.known and storing.over


def test_another_input_under_the_same_key_is_found_out(storing: Storing) -> None:
    storing.take(stored(0), 0.0)
    storing.put(packed(5))
    storing.seal()
    with pytest.raises(JobError, match="submitted before, with 3 items instead of 5"):
        storing.take(stored(3, sealed=True), 0.0)


def test_somebody_else_with_the_same_key_is_found_out(storing: Storing) -> None:
    storing.take(stored(0), 0.0)
    storing.put(packed(5))
    with pytest.raises(JobError, match="somebody else"):
        storing.take(stored(3), 0.0)


def test_another_number_of_items_is_found_out_when_somebody_else_was_faster(storing: Storing) -> None:
    storing.take(stored(0), 0.0)
    storing.take(stored(6, sealed=True), 0.0)
    storing.put(packed(6))
    with pytest.raises(JobError, match="6 items instead of 7"):
        storing.put(packed(1))
    storing.begin()
    with pytest.raises(JobError, match="6 items instead of 2"):
        storing.compare(2)


def test_what_the_broker_does_not_take_is_an_error(storing: Storing, fetching: Fetching) -> None:
    for exchange in (storing, fetching):
        exchange.begin()
        with pytest.raises(JobError, match="timeout is out of range"):
            exchange.take(m.Refused("E_FIELD", "Submit.timeout is out of range"), 0.0)


def test_what_is_said_of_another_job_is_not_heeded(storing: Storing) -> None:
    assert not storing.take(m.Stored(OTHER, 3, True), 0.0)
    assert not storing.take(m.Denied(OTHER, "E_FULL", "", 0.0), 0.0)
    assert not storing.known and not storing.over


class Journal:
    """A broker as far as detached jobs go: it stores in order, some time later, and refuses at times."""

    def __init__(self, source: random.Random) -> None:
        self.source = source
        self.durable: list[int] = []
        self.taken = 0
        self.count: int | None = None
        self.known = self.dropping = False
        self.replies: deque[m.Message] = deque()

    def hear(self, message: m.Message) -> None:
        if type(message) is m.Submit:
            self.known, self.dropping = True, False
            # What was taken in before this is stored before the answer.
            self.sync()
        elif self.dropping or not self.known:
            return
        elif self.source.random() < 0.1:
            self.dropping = True
            self.replies.append(m.Denied(KEY, "E_FULL", "full", 1.0))
        elif type(message) is m.Put and message.start <= self.taken:
            new = max(0, message.start + message.count - self.taken)
            self.taken += new
            if self.source.random() < 0.5:
                self.sync()
        elif type(message) is m.Seal:
            assert message.count == self.taken, "sealed before all of it was there"
            self.count = message.count
            self.sync()

    def sync(self) -> None:
        self.durable += range(len(self.durable), self.taken)
        self.replies.append(m.Stored(KEY, len(self.durable), self.count is not None))

    def crash(self) -> None:
        self.taken = len(self.durable)
        self.dropping = False
        self.replies.clear()


@pytest.mark.parametrize("seed", range(200))
def test_whatever_gets_lost_all_items_are_stored_once_and_in_order(seed: int) -> None:
    source = random.Random(seed)
    journal = Journal(source)
    storing = Storing(m.Submit(KEY))
    wire = deque(storing.begin())
    now, left = 0.0, 30
    for _ in range(5000):
        if storing.over:
            break
        now += 0.3
        act = source.random()
        if act < 0.05:
            # The connection is lost, with what is on its way in either direction; at times the broker is, too.
            if act < 0.02:
                journal.crash()
            wire.clear()
            journal.replies.clear()
            wire.extend(storing.begin())
        elif act < 0.4 and wire:
            journal.hear(wire.popleft())
        elif act < 0.7 and journal.replies:
            wire.extend(storing.take(journal.replies.popleft(), now))
        elif storing.known and left:
            left -= 1
            wire.extend(storing.put(packed(source.randint(1, 4))))
            if not left:
                wire.extend(storing.seal())
        else:
            wire.extend(storing.tick(now))
    assert storing.over, f"seed {seed}: not stored"
    assert journal.count == journal.taken == len(journal.durable) == storing.fed
    assert journal.durable == list(range(journal.taken))


# -- packing ---------------------------------------------------------------------------------------


def items_of(made: list[Packed]) -> list[Any]:
    return [item for each in made for item in load_items(each)]


def load_items(block: Packed) -> list[Any]:
    loaded: list[Any] = []
    at = 0
    for length in memoryview(block.frames[0]).cast("I"):
        piece = pickle.loads(memoryview(block.frames[1])[at : at + length], buffers=block.frames[2:])
        loaded += [piece] if block.chunksize == 1 else piece
        at += length
    return loaded


@pytest.mark.parametrize("chunksize", [1, 3, 1000])
@pytest.mark.parametrize("skip", [0, 1, 4321])
def test_blocks_hold_all_items_behind_those_that_are_stored(chunksize: int, skip: int) -> None:
    made = list(blocks(range(10_000), chunksize, skip))
    assert items_of(made) == list(range(skip, 10_000))
    assert all(each.chunksize == chunksize for each in made)
    assert all(each.count % chunksize == 0 for each in made[:-1])


def test_input_is_read_no_further_ahead_than_a_block_holds() -> None:
    read = 0

    def source() -> Iterator[bytes]:
        nonlocal read
        for _ in range(64):
            read += 1
            yield bytes(BLOCK_BYTES // 4)

    given = 0
    for block in blocks(source(), 1):
        given += block.count
        assert read - given <= 8
    assert given == 64


def test_an_item_that_does_not_pickle_is_an_error_at_once() -> None:
    with pytest.raises(Exception, match="pickle"):
        list(blocks([1, 2, threading.Lock()], 1))


def test_keys() -> None:
    assert parse_key(KEY) == parse_key(KEY.hex()) == parse_key(KEY.hex().upper()) == KEY
    for wrong in ("", "00", "x" * 32, KEY[:5], "é" * 32):
        with pytest.raises(ValueError, match="32 hexadecimal digits"):
            parse_key(wrong)


# -- out -------------------------------------------------------------------------------------------


def result(start: int, *values: Any) -> m.Result:
    data = pickle.dumps(list(values), 5)
    return m.Result(1, start, len(values), 1, 10, m.VALUES, (pack_lengths([len(data)]), data))


def part(cursor: int, message: m.Message, key: bytes = KEY) -> m.Part:
    made = m.decode(m.encode(m.Part(key, cursor, m.encode(message))))
    assert isinstance(made, m.Part)
    return made


def fetched(
    cursor: int, count: int = 10, over: bool = False, state: str = m.RUNNING, text: str = ""
) -> m.Fetched:
    return m.Fetched(KEY, cursor, count, 0, state, over, text)


@pytest.fixture
def gathered() -> _Gathered:
    return _Gathered()


@pytest.fixture
def fetching(gathered: _Gathered) -> Fetching:
    made = Fetching(KEY, gathered)
    assert told(made.begin()) == ["fetch 0"]
    return made


def take(exchange: Exchange, *messages: m.Message) -> list[Any]:
    return [each for message in messages for each in told(exchange.take(message, 0.0))]


def test_results_helper_is_what_children_send() -> None:
    assert load_values(result(0, 1, "a").frames) == [1, "a"]


def test_answers_are_asked_for_until_there_are_no_more(fetching: Fetching, gathered: _Gathered) -> None:
    assert take(fetching, part(0, result(2, "c", "d")), fetched(1, 4)) == ["fetch 1"]
    assert take(fetching, part(1, result(0, "a", "b")), fetched(2, 4, True, m.DONE)) == []
    assert fetching.over and fetching.state == m.DONE
    assert gathered.outcome(single=False) == ["a", "b", "c", "d"]


def test_of_two_answers_of_an_item_the_first_counts(fetching: Fetching, gathered: _Gathered) -> None:
    take(fetching, part(0, result(1, "b", "c")), part(1, result(0, "a", "WRONG", "WRONG", "d")))
    take(fetching, fetched(2, 4, True, m.DONE))
    assert gathered.outcome(single=False) == ["a", "b", "c", "d"]


def test_after_a_lost_connection_it_asks_from_the_last_place_that_is_sure(
    fetching: Fetching, gathered: _Gathered
) -> None:
    take(fetching, part(0, result(0, "a")), fetched(1, 3), part(1, result(1, "b")))
    assert told(fetching.begin()) == ["fetch 1"]
    take(fetching, part(1, result(1, "b")), part(2, result(2, "c")), fetched(3, 3, True, m.DONE))
    assert gathered.outcome(single=False) == ["a", "b", "c"]


def test_without_patience_it_takes_what_is_there_and_goes_on_later(gathered: _Gathered) -> None:
    fetching = Fetching(KEY, gathered)
    fetching.patient = False
    fetching.begin()
    assert take(fetching, part(0, result(0, "a")), fetched(1, 2)) == ["fetch 1"]
    assert take(fetching, fetched(1, 2)) == [] and fetching.paused and not fetching.over
    assert told(fetching.begin()) == ["fetch 1"]
    take(fetching, part(1, result(1, "b")), fetched(2, 2, True, m.DONE))
    assert gathered.outcome(single=False) == ["a", "b"]


def test_it_pauses_after_so_many_bytes(fetching: Fetching) -> None:
    fetching.pause_bytes = 1000
    assert take(fetching, part(0, result(0, "a")), fetched(1)) == ["fetch 1"]
    assert take(fetching, part(1, result(1, "x" * 1000)), fetched(2)) == []
    assert fetching.paused and told(fetching.begin()) == ["fetch 2"]
    assert take(fetching, part(2, result(2, "a")), fetched(3)) == ["fetch 3"]


def test_an_item_that_killed_its_processes_raises_what_a_pool_raises(
    fetching: Fetching, gathered: _Gathered
) -> None:
    failed = m.Failed(1, 1, 1, m.DIED, 3, "anvil", 77, 9)
    take(fetching, part(0, result(0, "a")), part(1, failed), fetched(2, 2, True, m.DONE))
    value = gathered.outcome(single=False)
    assert isinstance(value, Raised) and isinstance(value.error, WorkerLostError)
    assert value.error.item == 1 and "anvil" in str(value.error) and "SIGKILL" in str(value.error)


def test_the_first_error_by_index_is_raised(fetching: Fetching, gathered: _Gathered) -> None:
    for cursor, item in enumerate((2, 0, 1)):
        take(fetching, part(cursor, m.Failed(1, item, 1, m.DIED, 3, f"host{item}", 7, 9)))
    take(fetching, fetched(3, 3, True, m.DONE))
    value = gathered.outcome(single=False)
    assert isinstance(value, Raised) and "host0" in str(value.error)


def test_an_initializer_that_failed_is_told_of_all_items_without_an_answer(
    fetching: Fetching, gathered: _Gathered
) -> None:
    take(fetching, part(0, result(1, "b")), fetched(1, 3, True, m.BROKEN, "ZeroDivisionError"))
    assert fetching.over
    assert [type(value) for value in gathered.values] == [Raised, str, Raised]
    value = gathered.outcome(single=False)
    assert isinstance(value.error, RemoteError) and "ZeroDivisionError" in str(value.error)


def test_a_job_that_is_not_there_is_an_error(fetching: Fetching) -> None:
    with pytest.raises(JobError, match="no such job"):
        fetching.take(m.Denied(KEY, "E_KEY", "there is no such job", 0.0), 0.0)


def test_a_broker_that_is_busy_is_asked_again(fetching: Fetching) -> None:
    assert not fetching.take(m.Denied(KEY, "E_BUSY", "later", 1.5), 10.0)
    assert not fetching.tick(11.0)
    assert told(fetching.tick(11.5)) == ["fetch 0"]


def test_nothing_is_taken_for_an_answer_that_is_none(fetching: Fetching) -> None:
    assert take(fetching, part(0, result(0, "a"), OTHER), m.Beat()) == []
    with pytest.raises(JobError, match="answered Beat for a result"):
        fetching.take(part(0, m.Beat()), 0.0)


def test_one_value_of_an_apply(fetching: Fetching, gathered: _Gathered) -> None:
    take(fetching, part(0, result(0, "a")), fetched(1, 1, True, m.DONE))
    assert gathered.outcome(single=True) == "a"


def test_answers_are_taken_out_in_order_and_once() -> None:
    ordered = Inbox(ordered=True)
    fetching = Fetching(KEY, ordered)
    fetching.begin()
    take(fetching, part(0, result(2, "c")), part(1, result(0, "a")))
    assert list(ordered.ready) == ["a"]
    ordered.ready.clear()
    take(fetching, part(2, result(0, "WRONG", "b")), part(3, result(3, "d")))
    assert list(ordered.ready) == ["b", "c", "d"]


# -- orders ----------------------------------------------------------------------------------------


def test_an_order_is_said_again_over_a_new_connection() -> None:
    order = Order("cancel", "00ff")
    first, again = order.begin(), order.begin()
    assert list(first) == list(again) == [m.Ask("cancel", "00ff")]
    order.take(m.Answer("cancel", (b'{"count": 3}',)), 0.0)
    assert order.over and order.answer == {"count": 3}


def test_a_refused_order_is_an_error() -> None:
    with pytest.raises(JobError, match="no job begins with"):
        Order("cancel", "00ff").take(m.Refused("E_KEY", "no job begins with 00ff"), 0.0)


def test_a_job_that_ended_before_its_input_had_is_never_taken_for_whole(gathered: _Gathered) -> None:
    fetching = Fetching(KEY, gathered)
    fetching.begin()
    fetching.take(part(1, result(0, "a", "b")), 0.0)
    fetching.take(fetched(2, 2, over=True, state=m.STOPPED), 0.0)
    assert gathered.values[:2] == ["a", "b"]
    assert isinstance(gathered.outcome(False), Raised)


def test_of_a_result_that_the_journal_lost_no_death_is_told(gathered: _Gathered) -> None:
    fetching = Fetching(KEY, gathered)
    failed = m.Failed(1, 0, 1, m.LOST, text="its result of 30 MiB did not fit on the broker's disk")
    take(fetching, part(0, failed), fetched(1, 1, True, m.DONE))
    value = gathered.outcome(single=False)
    assert isinstance(value, Raised) and isinstance(value.error, WorkerLostError)
    assert str(value.error) == f"item 0 has no result: {failed.text}"
