"""Rules drawn by chance against the broker's core where peers share objects and launch processes: honest ones, ones that say
what no honest one does, lost connections, and time. The books are audited after every event, and in the end they are empty.
"""

from __future__ import annotations

from typing import Any

import pytest
from drawn import FLAGS, Drawn, examples, find, long_run, run
from hypothesis import strategies as st
from hypothesis.stateful import initialize, rule
from rude import KINDS, Rude, any_message, hello, numbers_of
from sharers import Host, Sharer, rude_word
from simulation.planted_shared import PLANTED_IN_WHAT_IS_SHARED
from stage import Client

from multihost_broker import events as be
from multihost_common import messages as m

SPANS = st.sampled_from((0.001, 0.5, 1.0, 3.1, 5.1, 10.1, 61.0))


class SharedRules(Drawn):
    """See the module."""

    patience = 60

    def __init__(self) -> None:
        super().__init__()
        self.sharers: list[Sharer] = []
        self.hosts: list[Host] = []

    @initialize()
    def begin(self) -> None:
        """Somebody is there."""
        for _ in range(2):
            self._comes(Sharer(self.stage, f"p{next(self._names)}"), self.sharers)
        self._comes(Host(self.stage, f"w{next(self._names)}"), self.hosts)
        self._settle()

    def _comes(self, client: Any, among: list[Any]) -> None:
        among.append(client)
        client.dial()

    def clients(self) -> list[Client]:
        """Everybody who is honest and has a connection of its own."""
        return [*self.sharers, *self.hosts]

    def everybody(self) -> list[Sharer]:
        """Who shares, wherever it is, once it has been welcomed."""
        return [
            *[each for each in self.sharers if each.session],
            *(inner for host in self.hosts for inner in host.inner.values()),
        ]

    # -- what is shared ------------------------------------------------------------------------------

    @rule(data=st.data(), most=st.integers(1, 4))
    def somebody_asks(self, data: Any, most: int) -> None:
        sharer = self._pick(data, self.everybody())
        for _ in range(most if sharer else 0):
            assert sharer is not None
            sharer.ask(data.draw)

    @rule(data=st.data())
    def somebody_does_not_want_it_any_more(self, data: Any) -> None:
        found = self._pick(data, [(each, number) for each in self.everybody() for number in each.asked])
        if found is not None:
            found[0].withdraw(found[1])

    @rule(data=st.data())
    def a_process_is_launched(self, data: Any) -> None:
        sharer = self._pick(data, self.everybody())
        if sharer is not None and len(sharer.launched) < 3 and (sharer.ready or type(sharer) is Sharer):
            sharer.launch()

    @rule(data=st.data(), signal=st.sampled_from((0, 9, 15)))
    def a_process_is_killed(self, data: Any, signal: int) -> None:
        found = self._pick(data, [(each, number) for each in self.everybody() for number in each.launched])
        if found is not None:
            found[0].tell(m.Signal(found[1], signal))

    @rule(data=st.data(), ended=FLAGS)
    def a_process_ends_or_shares(self, data: Any, ended: bool) -> None:
        found = self._pick(data, [(host, number) for host in self.hosts for number in sorted(host.running)])
        if found is not None:
            if ended:
                found[0].end(found[1], data.draw(st.sampled_from((0, 3, -9))))
            else:
                found[0].begin(found[1])

    # -- who comes and goes --------------------------------------------------------------------------

    @rule(data=st.data(), politely=FLAGS)
    def somebody_goes_and_another_comes(self, data: Any, politely: bool) -> None:
        if data.draw(FLAGS):
            self._goes(self._pick(data, self.sharers), politely, self.sharers)
            self._comes(Sharer(self.stage, f"p{next(self._names)}"), self.sharers)
        else:
            self._goes(self._pick(data, self.hosts), politely, self.hosts)
            self._comes(Host(self.stage, f"w{next(self._names)}"), self.hosts)

    def _goes(self, client: Any, politely: bool, among: list[Any]) -> None:
        among.remove(client)
        if politely and client.ready:
            client.leave()
        else:
            self.stage.hang_up(client, 0, 0)

    @rule(redial=FLAGS)
    def the_broker_is_killed(self, redial: bool) -> None:
        self.stage.restart()
        for client in self.clients() if redial else ():
            client.dial()

    # -- time ----------------------------------------------------------------------------------------

    @rule(seconds=SPANS)
    def time_passes(self, seconds: float) -> None:
        self.stage.now += seconds
        self.stage.tick()

    @rule()
    def a_second_passes(self) -> None:
        self._second()

    def _second(self) -> None:
        self._beat()
        self.stage.mourn()
        self._listen()

    # -- who is not honest ---------------------------------------------------------------------------

    @rule(data=st.data())
    def a_rude_peer_comes(self, data: Any) -> None:
        if len(self.rude) < 3:
            role = data.draw(st.sampled_from((m.WORKER, m.PRODUCER)))
            peer = Rude(self.stage, f"x{next(self._names)}", role)
            self.rude.append(peer)
            self.stage.connect(peer)
            self._rudely(peer, hello(data.draw, role, numbers_of(self.stage.core)))

    @rule(data=st.data(), most=st.integers(1, 6), strange=st.sampled_from((False, False, False, True)))
    def a_rude_peer_speaks(self, data: Any, most: int, strange: bool) -> None:
        peer = self._pick(data, self.rude)
        for _ in range(most if peer else 0):
            assert peer is not None
            if strange:
                kinds = [cls for cls in KINDS if peer.role in cls.senders]
                word = any_message(data.draw, kinds, numbers_of(self.stage.core))
            else:
                word = rude_word(data.draw, self.stage.core, peer.role)
            self._rudely(peer, word)

    def _rudely(self, peer: Rude, message: m.Message) -> None:
        peer.say(m.decode(m.encode(message)))
        self.stage.exchange(peer)

    @rule(data=st.data())
    def a_rude_peer_is_gone_or_not(self, data: Any) -> None:
        peer = self._pick(data, self.rude)
        if peer is not None:
            self.stage.tell(be.Gone(peer.address))

    # -- the end -------------------------------------------------------------------------------------

    def _end(self) -> None:
        self._until(lambda: all(each.ready for each in self.clients()), "a welcome")
        self._until(self._answered, "an answer")
        for sharer in self.sharers:
            sharer.leave()
        self.sharers.clear()
        self._until(self._over, "the end")

    def _answered(self) -> bool:
        for host in self.hosts:
            for process in sorted(host.running):
                host.end(process)
        for sharer in self.sharers:
            for number in sharer.asked:
                sharer.withdraw(number)
        return not any(each.asked or each.launched for each in self.sharers)

    def _over(self) -> bool:
        for host in self.hosts:
            for process in sorted(host.running):
                host.end(process)
        core = self.stage.core
        objects, processes, nested = core.objects, core.processes, core.nested
        books: list[Any] = [
            objects.machines, objects._makers, objects._made, objects._used, objects._waiting, processes.by_number,
            processes._waiting, processes._owned, processes._run, processes._strays, processes._waiting_bytes,
            nested._here, nested._roots,
        ]  # fmt: skip
        streams = [each.stream for each in core.sessions.by_number.values()]
        kept = [each._kept for each in (*streams, *[host.stream for host in self.hosts])]
        return len(core.sessions.by_number) == len(self.hosts) and not any((*books, *kept))


@long_run
def test_whatever_is_said_of_what_is_shared_the_books_hold_and_nobody_waits_for_ever() -> None:
    run(SharedRules, examples(100))


@pytest.mark.parametrize(
    "name",
    [
        "nothing_is_said_again",
        "nobody_hears_that_an_object_is_no_more",
        "processes_are_not_lost_with_their_worker",
    ],
)
def test_a_planted_fault_is_found(name: str) -> None:
    assert name in PLANTED_IN_WHAT_IS_SHARED
    find(SharedRules, name)
