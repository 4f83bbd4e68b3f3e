"""Rules drawn by chance against the broker's core where peers share objects and launch processes: honest ones, ones that say
what no honest one does, lost connections, and time. The books are audited after every event, and in the end they are empty.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import count
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from rude import KINDS, Rude, any_message, hello, numbers_of
from sharers import Host, Sharer, rude_word
from simulation.planted import planted
from simulation.planted_shared import PLANTED_IN_WHAT_IS_SHARED
from stage import BEAT, Client, Stage

from multihost_broker import events as be
from multihost_common import messages as m

#: Examples of each run of the tests, and how many rules are applied in each.
EXAMPLES = int(os.environ.get("MULTIHOST_RULES", "100"))
FIRST = int(os.environ.get("MULTIHOST_RULES_SEED", "0"))
STEPS = 50
BATCH = 10
FOUND_WITHIN = 300

#: Seconds that everything takes at most once nothing goes wrong any more.
PATIENCE = 60

FEW = st.integers(0, 3)
FLAGS = st.booleans()
SPANS = st.sampled_from((0.001, 0.5, 1.0, 3.1, 5.1, 10.1, 61.0))

T = TypeVar("T")


class SharedRules(RuleBasedStateMachine):
    """See the module."""

    def __init__(self) -> None:
        super().__init__()
        self.stage = Stage()
        self.sharers: list[Sharer] = []
        self.hosts: list[Host] = []
        self.rude: list[Rude] = []
        self._names = count(1)

    @initialize()
    def begin(self) -> None:
        """Somebody is there."""
        for _ in range(2):
            self._comes(Sharer(self.stage, f"p{next(self._names)}"), self.sharers)
        self._comes(Host(self.stage, f"w{next(self._names)}"), self.hosts)
        self.stage.exchange(*self.clients())

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

    def _pick(self, data: Any, of: Sequence[T]) -> T | None:
        return data.draw(st.sampled_from(of)) if of else None

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

    # -- connections and time ------------------------------------------------------------------------

    @rule(data=st.data(), most=st.sampled_from((1, 2, 100)))
    def the_broker_reads(self, data: Any, most: int) -> None:
        peer = self._pick(data, [each for each in self.clients() if each.outbox])
        if peer is not None:
            self.stage.flush(peer, most)

    @rule(data=st.data(), most=st.sampled_from((1, 2, 100)))
    def a_peer_reads(self, data: Any, most: int) -> None:
        peer = self._pick(data, [each for each in self.clients() if each.inbox])
        if peer is not None:
            self.stage.read(peer, most)

    @rule()
    def everybody_reads(self) -> None:
        self.stage.exchange(*self.clients())

    @rule(data=st.data(), said=FEW, heard=FEW)
    def a_connection_ends(self, data: Any, said: int, heard: int) -> None:
        peer = self._pick(data, [each for each in self.clients() if not each.cut])
        if peer is not None:
            self.stage.hang_up(peer, said, heard)

    @rule(data=st.data(), told=FLAGS)
    def a_peer_dials_again(self, data: Any, told: bool) -> None:
        peer = self._pick(data, [each for each in self.clients() if each.cut] or self.clients())
        if peer is not None:
            peer.dial(told)

    @rule(seconds=SPANS)
    def time_passes(self, seconds: float) -> None:
        self.stage.now += seconds
        self.stage.tick()

    @rule()
    def a_second_passes(self) -> None:
        stage = self.stage
        stage.now += BEAT
        for client in self.clients():
            if not client.cut:
                client.beat()
                stage.flush(client)
        while (due := stage.core.deadline()) is not None and due <= stage.now:
            stage.tick()
        stage.mourn()
        for client in self.clients():
            if not client.cut:
                stage.read(client)

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

    def teardown(self) -> None:
        """Nothing goes wrong any more: everything has its answer, and then nothing is left."""
        if self.stage.failed:
            return
        for peer in self.rude:
            self.stage.hang_up(peer, 0, 0)
        for client in self.clients():
            client.dial()
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

    def _until(self, done: Any, what: str) -> None:
        for _ in range(PATIENCE):
            self.stage.exchange(*self.clients())
            if done():
                return
            self.stage.exchange(*self.clients())
            self.a_second_passes()
        raise AssertionError(f"somebody waits for ever for {what}")


def run(examples: int, first: int = 0, shrink: bool = True) -> None:
    """Draw so many examples, from this seed on. ``shrink``: somebody will read the one that fails."""
    options = settings(
        max_examples=BATCH,
        stateful_step_count=STEPS,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink) if shrink else (Phase.generate,),
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    for number in range(first, first + examples // BATCH):
        try:
            run_state_machine_as_test(seed(number)(SharedRules), settings=options)
        except BaseException as error:
            error.add_note(f"seed {number}")
            raise


@pytest.mark.timeout(0 if "MULTIHOST_RULES" in os.environ else 300)
@pytest.mark.long
def test_whatever_is_said_of_what_is_shared_the_books_hold_and_nobody_waits_for_ever() -> None:
    run(EXAMPLES, FIRST)


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
    with planted(name), pytest.raises(Exception):  # noqa: B017 - whatever it is that shows it
        run(FOUND_WITHIN, shrink=False)
