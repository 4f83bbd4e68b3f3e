"""Rules drawn by chance against the real broker core: what all kinds of them have in common, and how they are run."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test
from rude import Rude
from simulation.planted import planted
from stage import BEAT, Client, Stage

#: Rules that are applied in each example.
STEPS = 50

#: The seed of the first examples.
FIRST = int(os.environ.get("MULTIHOST_RULES_SEED", "0"))

#: Examples drawn from one seed: what Hypothesis draws after the first ten resembles those.
BATCH = 10

#: Within so many examples a planted fault is found.
FOUND_WITHIN = 300

FEW = st.integers(0, 3)
FLAGS = st.booleans()

T = TypeVar("T")


class Drawn(RuleBasedStateMachine):
    """A broker and its peers, and rules of what happens to their connections."""

    #: Seconds that everything takes at most once nothing goes wrong any more.
    patience: int

    def __init__(self) -> None:
        super().__init__()
        self.stage = Stage()
        self.rude: list[Rude] = []
        self._names = count(1)

    def clients(self) -> list[Client]:
        """Everybody who is honest and has a connection of its own."""
        raise NotImplementedError

    def _second(self) -> None:
        """A second passes in good order."""
        raise NotImplementedError

    def _work(self) -> None:
        """Everybody does what there is to do."""

    def _pick(self, data: Any, of: Sequence[T]) -> T | None:
        return data.draw(st.sampled_from(of)) if of else None

    # -- connections ---------------------------------------------------------------------------------

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
        self._settle()

    def _settle(self) -> None:
        self.stage.exchange(*self.clients())

    @rule(data=st.data(), said=FEW, heard=FEW)
    def a_connection_ends(self, data: Any, said: int, heard: int) -> None:
        """It may be a while until either end hears of it."""
        peer = self._pick(data, [each for each in self.clients() if not each.cut])
        if peer is not None:
            self.stage.hang_up(peer, said, heard)

    @rule(data=st.data(), told=FLAGS)
    def a_peer_dials_again(self, data: Any, told: bool) -> None:
        """Because its connection has ended, or it thinks so: the broker may have both for a while."""
        peer = self._pick(data, [each for each in self.clients() if each.cut] or self.clients())
        if peer is not None:
            peer.dial(told)

    # -- time ----------------------------------------------------------------------------------------

    def _beat(self) -> None:
        """A second has passed: everybody says so, and the broker does what was due."""
        stage = self.stage
        stage.now += BEAT
        for client in self.clients():
            if not client.cut:
                client.beat()
                stage.flush(client)
        while (due := stage.core.deadline()) is not None and due <= stage.now:
            stage.tick()

    def _listen(self) -> None:
        for client in self.clients():
            if not client.cut:
                self.stage.read(client)

    # -- the end -------------------------------------------------------------------------------------

    def teardown(self) -> None:
        """Nothing goes wrong any more: everything has its answer, and then nothing is left."""
        if self.stage.failed:
            return
        for peer in self.rude:
            self.stage.hang_up(peer, 0, 0)
        for client in self.clients():
            client.dial()
        self._end()

    def _end(self) -> None:
        """Everybody ends, and nothing is left."""
        raise NotImplementedError

    def _until(self, done: Callable[[], bool], what: str) -> None:
        for _ in range(self.patience):
            self._settle()
            self._work()
            if done():
                return
            self._settle()
            self._second()
        raise AssertionError(f"somebody waits for ever for {what}")


def run(rules: type[Drawn], examples: int, first: int = FIRST, shrink: bool = True) -> None:
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
            run_state_machine_as_test(seed(number)(rules), settings=options)
        except BaseException as error:
            error.add_note(f"seed {number}")
            raise


def examples(usual: int) -> int:
    """How many examples a test draws."""
    return int(os.environ.get("MULTIHOST_RULES", usual))


def long_run(test: Callable[[], None]) -> Callable[[], None]:
    """A test that draws :func:`examples`: as long as that takes."""
    return pytest.mark.long(pytest.mark.timeout(0 if "MULTIHOST_RULES" in os.environ else 300)(test))


def find(rules: type[Drawn], fault: str) -> None:
    """Plant this fault, and find it."""
    with planted(fault), pytest.raises(Exception):  # noqa: B017 - whatever it is that shows it
        run(rules, FOUND_WITHIN, 0, shrink=False)
