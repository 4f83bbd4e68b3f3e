"""A named queue in the broker's core, used in any order, with processes and brokers that die: no item is lost or comes twice."""

from __future__ import annotations

from collections import Counter
from itertools import count
from typing import Any

from frontier import Site
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from multihost_common import messages as m
from multihost_common.named import rows_of
from multihost_common.shared import NamedQueues


class Life(RuleBasedStateMachine):
    """Processes put, get, accept, give back and die, and the broker is killed, in any order."""

    names = st.sampled_from("abc")

    def __init__(self) -> None:
        super().__init__()
        self.site = Site()
        self.clients = {name: self.site.client(name) for name in "abc"}
        self.items = count()
        self.confirmed: set[str] = set()
        self.accepted: Counter[str] = Counter()
        #: Of each client: what it was handed, what it has accepted and was not told that it is known; requests.
        self.hands: dict[str, dict[int, str]] = {name: {} for name in "abc"}
        self.untold: dict[str, dict[int, str]] = {name: {} for name in "abc"}
        self.telling: dict[str, dict[int, list[int]]] = {name: {} for name in "abc"}
        self.gets: dict[str, int] = {}
        self.puts: dict[str, dict[int, tuple[int, list[str]]]] = {name: {} for name in "abc"}
        self.generation = 0

    def _look(self) -> None:
        """What has been answered."""
        for name, client in self.clients.items():
            asked = self.gets.get(name)
            if asked in self.site.answers:
                for number, item in (client.items(self.gets.pop(name)) or {}).items():
                    assert number not in self.hands[name], "it has it already"
                    self.hands[name][number] = item
            for asked, numbers in list(self.telling[name].items()):
                if asked in self.site.answers:
                    del self.telling[name][asked]
                    for number in numbers:
                        self.untold[name].pop(number, None)
            for put, (asked, items) in list(self.puts[name].items()):
                if asked in self.site.answers:
                    assert self.site.answers[asked].status == m.GRANTED
                    del self.puts[name][put]
                    self.confirmed.update(items)

    @rule(name=names, many=st.integers(1, 4))
    def put(self, name: str, many: int) -> None:
        items = [f"{name}{next(self.items)}" for _ in range(many)]
        asked = self.clients[name].put(*items)
        self.puts[name][self.clients[name].puts] = asked, items

    @rule(name=names, window=st.integers(1, 5))
    def get(self, name: str, window: int) -> None:
        if name not in self.gets:
            self.gets[name] = self.clients[name].begin(
                NamedQueues.GET, len(self.hands[name]) << NamedQueues.WINDOW_BITS | window
            )
            self._look()

    @rule(name=names, pick=st.randoms(use_true_random=False))
    def accept(self, name: str, pick: Any) -> None:
        hands = self.hands[name]
        if hands:
            numbers = pick.sample(sorted(hands), pick.randint(1, len(hands)))
            for number in numbers:
                self.untold[name][number] = hands.pop(number)
                self.accepted[self.untold[name][number]] += 1
            asked = self.clients[name].begin(NamedQueues.TAKEN, 0, [rows_of(sorted(numbers))])
            self.telling[name][asked] = numbers
            self._look()

    @rule(name=names)
    def give_back(self, name: str) -> None:
        hands, self.hands[name] = self.hands[name], {}
        self.clients[name].begin(NamedQueues.GIVE_BACK, 0, [rows_of(sorted(hands))])
        self._look()

    @rule()
    def sync(self) -> None:
        self.site.sync()
        self._look()

    @rule()
    def sync_some(self) -> None:
        if self.site.journal.pending:
            self.site.tell(self.site.journal.sync(1))
            self._look()

    @rule(name=names)
    def die(self, name: str) -> None:
        """What it has accepted was confirmed, as far as anybody can rely on it; it begins anew under another name."""
        self.site.sync()
        self._look()
        self.clients[name].bye()
        self.site.sync()
        self.generation += 1
        self.gets.pop(name, None)
        self.hands[name], self.untold[name], self.telling[name], self.puts[name] = {}, {}, {}, {}
        self.clients[name] = self.site.client(f"{name}{self.generation}")

    @rule(order=st.permutations("abc"))
    def restart(self, order: list[str]) -> None:
        self.site.restart()
        for name in order:
            client = self.clients[name]
            client.hello()
            self.gets.pop(name, None)
            self.telling[name].clear()
            client.open(True, sorted(self.untold[name]), sorted(self.hands[name]))
            self.untold[name].clear()
            for number, (_, items) in list(self.puts[name].items()):
                data = client.puts
                self.puts[name][number] = client.put(*items, number=number), items
                client.puts = data
        self._look()

    @precondition(lambda self: not self.site.journal.pending and not self.site.reads)
    @rule()
    def drain(self) -> None:
        """All that was confirmed, and nobody has, can be got."""
        self._look()
        client = self.clients["a"]
        if "a" not in self.gets:
            while (found := client.items(client.get(9, len(self.hands["a"]), now=True))) is not None:
                self.hands["a"].update(found)
            held = [item for hands in self.hands.values() for item in hands.values()]
            assert sorted(held) == sorted(self.confirmed - set(self.accepted))

    @invariant()
    def each_item_is_in_one_place(self) -> None:
        held = Counter(item for hands in self.hands.values() for item in hands.values())
        assert not [item for item, times in (held + self.accepted).items() if times > 1]


Life.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestLife = Life.TestCase
