"""The pure machine of pipes: what is sent, received, told of the end, and when."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from multihost_broker.objects.machine import Request
from multihost_broker.objects.pipe import BATCH_BYTES, BYTES, LARGEST, LOOSE, MESSAGES, Pipe
from multihost_common import messages as m
from multihost_common.shared import PIPE, Pipes

MAKER, OTHER, THIRD = 1, 2, 3
TICKET = b"t" * 16


class Asked:
    """A request, and its answer once there is one."""

    def __init__(self, pipe: Pipe, party: int, act: m.Act) -> None:
        self.answers: list[m.Acted] = []
        self._pipe = pipe
        self.request = Request(party, act, lambda _, acted: self.answers.append(acted))
        pipe.act(self.request)
        if act.number:
            assert self.request.waits != bool(self.answers), "answered once, now or later"

    @property
    def answer(self) -> m.Acted:
        """The only answer."""
        assert len(self.answers) == 1
        return self.answers[0]

    @property
    def waits(self) -> bool:
        """Is it still to be answered?"""
        return not self.answers

    @property
    def got(self) -> list[bytes]:
        """The messages received."""
        assert self.answer.status == m.GRANTED
        assert self.answer.amount & (Pipes.MORE - 1) == len(self.answer.frames)
        return [bytes(each) for each in self.answer.frames]

    @property
    def more(self) -> bool:
        """Was it told that there is more?"""
        return bool(self.answer.amount & Pipes.MORE)

    def withdraw(self) -> None:
        """It is not wanted any more."""
        self._pipe.withdraw(self.request)
        self.request.withdrawn()


class Bench:
    """A pipe and who uses it."""

    def __init__(self, one_way: bool = False) -> None:
        frames = (PIPE.to_bytes(8, "little"), b"\1" if one_way else b"")
        self.made: list[m.Acted] = []
        make = Request(MAKER, m.Act(1, b"p" * 16, m.MAKE, PIPE, False, frames=frames), lambda *_: None)
        self.pipe = Pipe(make)
        self._numbers = 0

    def ask(
        self,
        party: int,
        op: int,
        amount: int,
        frames: Sequence[bytes] = (),
        now: bool = False,
        number: int = -1,
    ) -> Asked:
        """This process asks this."""
        self._numbers += 1
        act = m.Act(self._numbers if number < 0 else number, b"p" * 16, op, amount, now, frames=frames)
        return Asked(self.pipe, party, act)

    def send(self, side: int, message: bytes = b"x", party: int = MAKER, now: bool = False) -> Asked:
        """Send one message."""
        return self.ask(party, Pipes.SEND, side, (message,), now)

    def recv(self, side: int, most: int = 1, party: int = MAKER, now: bool = False) -> Asked:
        """Receive some."""
        return self.ask(party, Pipes.RECV, side | most << 1, now=now)

    def call(self, side: int, message: bytes = b"x", party: int = MAKER) -> Asked:
        """Send one message, and receive the next."""
        return self.ask(party, Pipes.CALL, side | 1 << 1, (message,))

    def poll(self, side: int, party: int = MAKER, now: bool = False) -> Asked:
        """Learn whether there is something."""
        return self.ask(party, Pipes.POLL, side, now=now)

    def pass_on(self, side: int, to: int, ticket: bytes = TICKET) -> None:
        """The maker ships a handle, and it lands."""
        self.ship(side, ticket)
        self.ask(to, Pipes.OPEN, side, (ticket,))

    def ship(self, side: int, ticket: bytes = TICKET, back: Sequence[bytes] = ()) -> None:
        """The maker ships a handle."""
        self.ask(MAKER, Pipes.SHIP, side, (ticket, *back))

    def shut(self, side: int, party: int = MAKER) -> None:
        """Close a handle."""
        self.ask(party, Pipes.SHUT, side)


@pytest.fixture
def bench() -> Bench:
    """A pipe that goes both ways."""
    return Bench()


# -- messages ------------------------------------------------------------------------------------------


def test_what_one_side_sends_the_other_receives_in_order(bench: Bench) -> None:
    for each in (b"a", b"", b"c"):
        assert bench.send(0, each).answer.amount == 0
    assert [bench.recv(1).got for _ in range(3)] == [[b"a"], [b""], [b"c"]]
    bench.send(1, b"back")
    assert bench.recv(0).got == [b"back"]
    assert bench.recv(1).waits


def test_who_waits_receives_what_comes_first_come_first_served(bench: Bench) -> None:
    first, second = bench.recv(1), bench.recv(1)
    bench.send(0, b"a")
    assert first.got == [b"a"]
    assert second.waits
    bench.send(0, b"b")
    assert second.got == [b"b"]


def test_a_side_does_not_hear_itself(bench: Bench) -> None:
    bench.send(0)
    assert bench.recv(0, now=True).answer.status == m.BUSY


def test_the_only_reader_gets_several_at_once_and_learns_whether_there_is_more(bench: Bench) -> None:
    for each in (b"a", b"b", b"c"):
        bench.send(0, each)
    asked = bench.recv(1, most=2)
    assert asked.got == [b"a", b"b"]
    assert asked.more
    asked = bench.recv(1, most=2)
    assert asked.got == [b"c"]
    assert not asked.more


def test_batches_are_bounded_by_their_bytes(bench: Bench) -> None:
    half = b"h" * (BATCH_BYTES // 2)
    for each in (half, half, b"x", half * 3):
        bench.send(0, each)
    assert bench.recv(1, most=9).got == [half, half]
    assert bench.recv(1, most=9).got == [b"x"]
    assert bench.recv(1, most=9).got == [half * 3]


@pytest.mark.parametrize("how", ["two handles", "another process", "on its way"])
def test_readers_that_share_a_side_get_one_message_each(bench: Bench, how: str) -> None:
    if how == "on its way":
        bench.ship(1)
    else:
        bench.pass_on(1, MAKER if how == "two handles" else OTHER)
    for each in (b"a", b"b"):
        bench.send(0, each)
    assert bench.recv(1, most=9).got == [b"a"]
    assert bench.recv(1, most=9, party=OTHER).got == [b"b"]


def test_polling_takes_nothing(bench: Bench) -> None:
    assert bench.poll(1, now=True).answer.status == m.BUSY
    waiting, reader, late = bench.poll(1), bench.recv(1), bench.poll(1)
    bench.send(0, b"a")
    assert waiting.answer.status == m.GRANTED
    assert reader.got == [b"a"]
    assert late.waits
    bench.send(0, b"b")
    assert late.answer.status == m.GRANTED
    assert bench.poll(1, now=True).answer.status == m.GRANTED
    assert bench.recv(1).got == [b"b"]


def test_what_is_withdrawn_receives_nothing(bench: Bench) -> None:
    first, second, poll = bench.recv(1), bench.recv(1), bench.poll(1)
    first.withdraw()
    poll.withdraw()
    bench.send(0, b"a")
    assert second.got == [b"a"]
    assert first.answer.status == poll.answer.status == m.WITHDRAWN


# -- bounds --------------------------------------------------------------------------------------------


def test_who_sends_too_many_waits_until_there_is_room(bench: Bench) -> None:
    for _ in range(MESSAGES):
        assert not bench.send(0).waits
    assert bench.send(0, now=True).answer.status == m.BUSY
    first, second = bench.send(0, b"first"), bench.send(0, b"second")
    assert first.waits
    assert second.waits
    bench.recv(1)
    assert first.answer.amount == 0
    assert second.waits
    bench.recv(1)
    assert not second.waits


def test_who_sends_too_much_waits_until_there_is_room_and_nobody_overtakes(bench: Bench) -> None:
    bench.send(0, b"x" * BYTES)
    full, small = bench.send(0, b"f" * BYTES), bench.send(0, b"small")
    assert full.waits
    assert small.waits
    assert bench.recv(1).got == [b"x" * BYTES]
    assert not full.waits
    assert small.waits
    assert bench.recv(1).got == [b"f" * BYTES]
    assert bench.recv(1).got == [b"small"]
    assert bench.pipe.size() == 0


def test_who_sends_a_large_message_waits_until_it_is_received(bench: Bench) -> None:
    large = bytes(5 * BYTES)
    bench.send(0, b"before")
    sent, after = bench.send(0, large), bench.send(0, b"after")
    asked = bench.recv(1, most=9)
    assert asked.got == [b"before"]
    assert asked.more
    assert sent.waits
    assert bench.poll(1, now=True).answer.status == m.GRANTED
    assert bench.recv(1).got == [large]
    assert not sent.waits
    assert not after.waits
    waiting = bench.recv(1, most=9)
    assert waiting.got == [b"after"]
    waiting = bench.recv(1)
    assert not bench.send(0, large).waits
    assert waiting.got == [large]


def test_what_waits_behind_a_withdrawn_message_goes_on(bench: Bench) -> None:
    large, small = bench.send(0, bytes(2 * BYTES)), bench.send(0, b"small")
    assert small.waits
    large.withdraw()
    assert not small.waits


def test_a_message_that_is_too_large_is_refused() -> None:
    class Huge(bytes):
        def __len__(self) -> int:
            return LARGEST + 1

    answer = Bench().send(0, Huge()).answer
    assert answer.status == m.FORBIDDEN
    assert "256 MiB" in answer.text


def test_what_is_sent_unanswered_is_bounded(bench: Bench) -> None:
    for _ in range(LOOSE * 2):
        bench.ask(MAKER, Pipes.SEND, 0, (b"x",), number=0)
    assert bench.pipe.size() == LOOSE
    bench.send(0)
    bench.ask(MAKER, Pipes.SEND, 0, (b"x",), number=0)
    assert bench.pipe.size() == LOOSE + 2


@pytest.mark.parametrize("op", [15, 99])
def test_unknown_operations_are_refused(bench: Bench, op: int) -> None:
    assert bench.ask(MAKER, op, 0).answer.status == m.FORBIDDEN


@pytest.mark.parametrize("op", [Pipes.SEND, Pipes.RECV, Pipes.OPEN, Pipes.SHUT, Pipes.SHIP, Pipes.VOID])
def test_nonsense_is_answered(bench: Bench, op: int) -> None:
    for amount in (0, 1, 2, 3, (1 << 64) - 1):
        for frames in ((), (b"",), (b"a", b"b", b"c")):
            bench.ask(THIRD, op, amount, frames, now=True)


# -- in turns ------------------------------------------------------------------------------------------


def test_who_sends_and_receives_in_turns_asks_once(bench: Bench) -> None:
    bench.recv(0, now=True)
    call = bench.call(0, b"question")
    assert bench.recv(1, party=OTHER).got == [b"question"]
    assert call.waits
    bench.send(1, b"answer", party=OTHER)
    assert call.got == [b"answer"]


def test_nothing_goes_unasked_to_one_of_several_readers(bench: Bench) -> None:
    bench.recv(0, party=MAKER, now=True)
    call = bench.call(0)
    assert call.waits
    asked = bench.recv(0, party=OTHER)
    assert call.answer.status == m.BUSY
    assert bench.call(0).answer.status == m.BUSY
    bench.send(1, b"answer")
    assert asked.got == [b"answer"]
    assert [bench.recv(1).got for _ in range(2)] == [[b"x"]] * 2


def test_who_calls_a_closed_end_learns_of_the_end(bench: Bench) -> None:
    bench.recv(0, now=True)
    bench.shut(1)
    assert bench.call(0).got == []


# -- one way -------------------------------------------------------------------------------------------


def test_a_one_way_pipe_goes_one_way() -> None:
    bench = Bench(one_way=True)
    bench.send(1, b"a")
    assert bench.recv(0).got == [b"a"]
    assert bench.send(0).answer.status == m.FORBIDDEN
    assert bench.recv(1).answer.status == m.FORBIDDEN
    assert bench.poll(1).answer.status == m.FORBIDDEN


# -- the end -------------------------------------------------------------------------------------------


def test_after_the_last_message_of_a_closed_side_comes_the_end(bench: Bench) -> None:
    bench.send(0, b"last")
    bench.shut(0)
    asked = bench.recv(1)
    assert asked.got == [b"last"]
    assert asked.more
    for _ in range(2):
        asked = bench.recv(1)
        assert asked.got == []
        assert asked.more
    assert bench.poll(1, now=True).answer.status == m.GRANTED


def test_who_waits_is_told_of_the_end(bench: Bench) -> None:
    recv, poll = bench.recv(1), bench.poll(1)
    bench.shut(0)
    assert recv.got == []
    assert poll.answer.status == m.GRANTED


def test_sending_to_a_closed_side_says_so(bench: Bench) -> None:
    bench.shut(1)
    assert bench.send(0).answer.amount == 1
    bench.ask(MAKER, Pipes.SEND, 0, (b"x",), number=0)
    assert bench.pipe.size() == 0


def test_who_waits_for_room_is_told_when_the_reader_is_gone(bench: Bench) -> None:
    bench.send(0, bytes(BYTES))
    waiting = bench.send(0)
    bench.shut(1)
    assert waiting.answer.amount == 1
    assert bench.pipe.size() == 0


def test_what_waits_for_room_arrives_before_the_end() -> None:
    bench = Bench()
    bench.pass_on(0, OTHER)
    bench.shut(0)
    bench.send(0, bytes(BYTES), party=OTHER)
    waiting = bench.send(0, b"waits", party=OTHER)
    bench.shut(0, party=OTHER)
    assert bench.recv(1).got == [bytes(BYTES)]
    assert not waiting.waits
    assert bench.recv(1).got == [b"waits"]
    assert bench.recv(1).got == []


def test_a_side_is_open_while_any_process_has_a_handle(bench: Bench) -> None:
    bench.pass_on(0, OTHER)
    bench.pass_on(0, OTHER, b"u" * 16)
    bench.shut(0)
    waiting = bench.recv(1)
    bench.shut(0, OTHER)
    assert waiting.waits
    bench.shut(0, OTHER)
    assert waiting.got == []


def test_a_handle_on_its_way_keeps_its_side_open_until_it_lands_and_closes(bench: Bench) -> None:
    bench.ship(0)
    bench.shut(0)
    waiting = bench.recv(1)
    assert waiting.waits
    bench.ask(OTHER, Pipes.OPEN, 0, (TICKET,))
    assert waiting.waits
    bench.send(0, b"hello", party=OTHER)
    assert waiting.got == [b"hello"]
    bench.pipe.depart(OTHER)
    assert bench.recv(1).got == []


def test_a_handle_that_lands_twice_is_two_handles(bench: Bench) -> None:
    bench.ship(0)
    bench.shut(0)
    for party in (OTHER, THIRD):
        bench.ask(party, Pipes.OPEN, 0, (TICKET,))
    bench.pipe.depart(OTHER)
    waiting = bench.recv(1)
    assert waiting.waits
    bench.pipe.depart(THIRD)
    assert waiting.got == []


def test_a_handle_that_will_not_arrive_does_not_keep_its_side_open(bench: Bench) -> None:
    bench.ship(0)
    bench.shut(0)
    waiting = bench.recv(1)
    bench.ask(MAKER, Pipes.VOID, 0, (TICKET,))
    assert waiting.got == []


def test_voiding_what_has_landed_changes_nothing(bench: Bench) -> None:
    bench.pass_on(0, OTHER)
    bench.ask(MAKER, Pipes.VOID, 0, (TICKET,))
    bench.shut(0)
    assert bench.recv(1).waits


def test_what_was_received_too_early_goes_back_in_front_when_a_handle_is_shipped(bench: Bench) -> None:
    for each in (b"a", b"b", b"c", b"d"):
        bench.send(0, each)
    assert bench.recv(1, most=3).got == [b"a", b"b", b"c"]
    bench.ship(1, back=(b"b", b"c"))
    bench.ask(OTHER, Pipes.OPEN, 1, (TICKET,))
    assert [bench.recv(1, most=9, party=OTHER).got for _ in range(3)] == [[b"b"], [b"c"], [b"d"]]
    assert bench.pipe.size() == 0


def test_messages_go_back_without_a_handle_too(bench: Bench) -> None:
    waiting = bench.recv(1, party=OTHER)
    bench.ship(1, b"", back=(b"a",))
    assert waiting.got == [b"a"]
    bench.shut(1)
    assert bench.send(0).answer.amount == 1


def test_a_process_that_departs_closes_its_handles(bench: Bench) -> None:
    bench.pass_on(0, OTHER)
    bench.shut(0)
    bench.send(0, b"last words", party=OTHER)
    bench.pipe.depart(OTHER)
    assert bench.recv(1).got == [b"last words"]
    assert bench.recv(1).got == []
    assert bench.send(1).answer.amount == 1


def test_it_is_over_once_nobody_has_a_handle(bench: Bench) -> None:
    bench.shut(0)
    bench.ship(1)
    bench.shut(1)
    assert not bench.pipe.over
    bench.ask(OTHER, Pipes.OPEN, 1, (TICKET,))
    assert not bench.pipe.over
    bench.pipe.depart(OTHER)
    assert bench.pipe.over
