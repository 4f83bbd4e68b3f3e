"""The machine of a queue, used by processes in any order, some of which die: no item is lost or comes twice."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from queue_site import Site, unpacked

from multihost_common import messages as m
from multihost_common.shared import Queues


class Life:
    """What an honest process knows of what it has got."""

    def __init__(self) -> None:
        self.buffer: list[str] = []
        #: The number after the last item of the buffer.
        self.end = 0
        self.asked = 0
        self.listens = 0

    @property
    def taken(self) -> int:
        return self.end - len(self.buffer)


class Honest(RuleBasedStateMachine):
    """Processes that do what ours do, in any order; some die."""

    maxsize = 0

    def __init__(self) -> None:
        super().__init__()
        self.site = Site(self.maxsize)
        self.lives: dict[int, Life] = {}
        self.puts: dict[int, list[str]] = {}
        self.put_by: dict[int, int] = {}
        self.used: list[str] = []
        self.numbers = 0

    def life(self, party: int) -> Life:
        return self.lives.setdefault(party, Life())

    def step(self) -> None:
        """Everybody reads what has been said."""
        for number in list(self.puts):
            if self.site.status(number) is not None:
                del self.puts[number]
        for party, life in self.lives.items():
            if life.asked and self.site.status(life.asked) is not None:
                acted, life.asked = self.site.answers[life.asked], 0
                if acted.status == m.GRANTED and acted.frames:
                    assert not life.buffer
                    life.buffer = unpacked(acted)
                    life.end = acted.amount + len(life.buffer)
                    # Who waited has it.
                    self.used.append(life.buffer.pop(0))
            if life.listens and self.site.status(life.listens) is not None:
                life.listens = 0
                back = len(life.buffer)
                life.buffer.clear()
                life.end -= back
                self.site.give_back(party, life.end, back)

    @rule(party=st.integers(1, 3), count=st.integers(1, 6))
    def put(self, party: int, count: int) -> None:
        items = [f"{party} {self.numbers + n}" for n in range(count)]
        self.numbers += count
        number = self.site.put(party, *items)
        if self.site.status(number) is None:
            self.puts[number] = items
        self.step()

    @rule(party=st.integers(4, 6), window=st.integers(1, 5))
    def get(self, party: int, window: int) -> None:
        life = self.life(party)
        if life.buffer:
            self.used.append(life.buffer.pop(0))
        elif not life.asked:
            if window > 1 and not life.listens and life.end:
                life.listens = self.site.ask(party, Queues.LISTEN)
            life.asked = self.site.get(party, window, life.taken)
        self.step()
        self.step()

    @rule(party=st.integers(4, 6))
    def give_up(self, party: int) -> None:
        life = self.life(party)
        if life.asked:
            self.site.withdraw(life.asked)
        self.step()

    @rule(party=st.integers(4, 6))
    def tell_what_is_taken(self, party: int) -> None:
        self.site.ask(party, Queues.TAKEN, self.life(party).taken)
        self.step()

    @precondition(lambda self: self.lives)
    @rule(party=st.integers(4, 6))
    def die(self, party: int) -> None:
        # The last thing that came through is what it has taken: the rest is not lost, and nothing comes twice.
        self.site.ask(party, Queues.TAKEN, self.life(party).taken)
        self.site.depart(party)
        del self.lives[party]
        self.step()

    @invariant()
    def each_item_is_in_exactly_one_place(self) -> None:
        queue = self.site.queue
        here = [item for run in queue.ready for item in _texts(run.frames())]
        early = [item for life in self.lives.values() for item in life.buffer]
        waiting = [item for _, run in queue.putters for item in _texts(run.frames())]
        everywhere = here + early + waiting + self.used
        assert len(everywhere) == len(set(everywhere)) == self.numbers
        assert queue.count == len(here)
        for producer in "123":
            mine = [int(item.split()[1]) for item in here if item.startswith(producer)]
            assert mine == sorted(mine)

    @invariant()
    def nobody_waits_while_there_is_an_item_or_room(self) -> None:
        queue = self.site.queue
        assert not (queue.getters and queue.count)
        if queue.maxsize:
            assert queue.items() <= queue.maxsize + len(self.lives) + 20
            assert not (queue.putters and queue.items() < queue.maxsize)
        else:
            assert not queue.putters
        waiting = {party for party, life in self.lives.items() if life.asked}
        for party, life in self.lives.items():
            if life.buffer and life.listens:
                assert not waiting - {party}, "it was told to give back"

    @invariant()
    def bytes_are_counted(self) -> None:
        queue = self.site.queue
        runs = [*queue.ready, *(run for each in queue.consumers.values() for run in each.early)]
        assert queue.bytes == sum(run.size for run in runs)


class HonestBounded(Honest):
    """The same with little room."""

    maxsize = 3


def _texts(frames: Sequence[bytes | bytearray | memoryview]) -> list[str]:
    return unpacked(m.Acted(1, m.GRANTED, 0, "", frames=frames))


def _test(machine: type[RuleBasedStateMachine]) -> Callable[[], None]:
    case = machine.TestCase
    case.settings = settings(max_examples=60, stateful_step_count=40, deadline=None, derandomize=True)
    return case  # type: ignore[return-value]


TestHonest = _test(Honest)
TestHonestBounded = _test(HonestBounded)
