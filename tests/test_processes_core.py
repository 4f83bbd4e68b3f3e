"""Processes in the cores: who runs them, what is told of them, and what becomes of them when somebody is gone."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from multihost_broker import core as broker
from multihost_broker import events as be
from multihost_broker import processes
from multihost_common import messages as m
from multihost_common.blobs import digest_of
from multihost_common.blocks import pack_lengths
from multihost_worker import core as agent
from multihost_worker import events as ae

SETUP = b"how it is set up"
DIGEST = digest_of(SETUP)


class Office:
    """A broker's core, and what it has said to whom."""

    def __init__(self) -> None:
        self.core = broker.Core(broker.CoreConfig(numbers=False))
        self.said: dict[str, list[m.Message]] = {}
        self.now = 1.0

    def join(self, name: str, kind: str, slots: int = 0, session: int = 0, workers: int = 0) -> None:
        hello = m.Hello(kind, m.PROTOCOL_VERSION, "3.11", 5, name, 1, slots, session=session, workers=workers)
        self.hear(name, kind, hello)

    def hear(self, name: str, role: str, message: m.Message) -> None:
        self._note(self.core.handle(be.Received(name, role, message), self.now))

    def _note(self, actions: list[be.Action]) -> None:
        for action in actions:
            if isinstance(action, be.Send):
                self.said.setdefault(str(action.peer), []).append(action.message)

    def tick(self) -> None:
        self._note(self.core.handle(be.Tick(), self.now))

    def told(self, name: str, *kinds: type[m.Message]) -> list[m.Message]:
        """What was said to this peer since the last time, of these kinds."""
        return [each for each in self.said.pop(name, []) if isinstance(each, kinds)]

    def launch(self, number: int, setup: bytes = b"", owner: str = "script") -> None:
        self.hear(owner, m.PRODUCER, m.Launch(number, setup, b"", "p", frames=(b"payload",)))

    def placed(self, name: str) -> int:
        """The broker's number of the one process that this worker was given."""
        (launch,) = self.told(name, m.Launch)
        assert isinstance(launch, m.Launch)
        return launch.process


@pytest.fixture
def office() -> Office:
    made = Office()
    made.join("script", m.PRODUCER)
    return made


def test_a_process_goes_to_the_worker_that_has_least_to_do(office: Office) -> None:
    office.join("small", m.WORKER, 2)
    office.join("large", m.WORKER, 4)
    for number in range(1, 7):
        office.launch(number)
    assert len(office.told("small", m.Launch)) == 2
    assert len(office.told("large", m.Launch)) == 4


def test_more_processes_than_slots_all_run(office: Office) -> None:
    office.join("host", m.WORKER, 2)
    for number in range(1, 50):
        office.launch(number)
    assert len(office.told("host", m.Launch)) == 49


def test_a_worker_that_drains_gets_no_process(office: Office) -> None:
    office.join("host", m.WORKER, 2)
    office.hear("host", m.WORKER, m.Drain())
    office.launch(1)
    assert office.told("host", m.Launch) == []


def test_a_process_waits_for_the_first_worker(office: Office) -> None:
    office.launch(1)
    office.join("host", m.WORKER, 2)
    assert office.placed("host")


def test_a_process_waits_for_its_content(office: Office) -> None:
    office.join("host", m.WORKER, 2)
    office.launch(1, DIGEST)
    assert [each.digest for each in office.told("script", m.Need) if isinstance(each, m.Need)] == [DIGEST]
    assert office.told("host", m.Launch) == []
    office.hear("script", m.PRODUCER, m.Blob(DIGEST, (SETUP,)))
    assert [type(each) for each in office.told("host", m.Blob, m.Launch)] == [m.Blob, m.Launch]


def test_what_waits_for_a_worker_is_bounded(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "MOST_WAITING", 10)
    office.launch(1)
    office.launch(2)
    (exited,) = office.told("script", m.Exited)
    assert isinstance(exited, m.Exited)
    assert (exited.process, exited.exitcode) == (2, 1)


def test_its_owner_is_told_under_its_own_number(office: Office) -> None:
    office.join("host", m.WORKER, 2)
    office.launch(7)
    number = office.placed("host")
    office.hear("host", m.WORKER, m.Launched(number, "host", 123))
    office.hear("host", m.WORKER, m.Output(number, "host", 123, 1, (b"hello",)))
    office.hear("host", m.WORKER, m.Exited(number, "host", 3))
    launched, output, exited = office.told("script", m.Launched, m.Output, m.Exited)
    assert launched == m.Launched(7, "host", 123)
    assert isinstance(output, m.Output)
    assert output.pool == 7
    assert exited == m.Exited(7, "host", 3)


def test_a_signal_goes_to_who_runs_it(office: Office) -> None:
    office.join("host", m.WORKER, 2)
    office.launch(1)
    number = office.placed("host")
    office.hear("script", m.PRODUCER, m.Signal(1, 15))
    assert office.told("host", m.Signal) == [m.Signal(number, 15)]


def test_a_signal_ends_what_nobody_runs_yet(office: Office) -> None:
    office.launch(1)
    office.hear("script", m.PRODUCER, m.Signal(1, 15))
    assert office.told("script", m.Exited) == [m.Exited(1, "", -15)]
    office.join("host", m.WORKER, 2)
    assert office.told("host", m.Launch) == []


def test_a_process_is_lost_with_its_host(office: Office) -> None:
    office.join("host", m.WORKER, 2)
    office.launch(1)
    office.hear("host", m.WORKER, m.Bye("stopped"))
    (exited,) = office.told("script", m.Exited)
    assert isinstance(exited, m.Exited)
    assert exited.exitcode == -9
    assert "host was lost" in exited.text


def test_a_process_is_killed_when_its_script_is_gone(office: Office) -> None:
    office.join("host", m.WORKER, 2)
    office.launch(1)
    number = office.placed("host")
    office.hear("script", m.PRODUCER, m.Bye())
    assert office.told("host", m.Signal) == [m.Signal(number, 9)]
    assert not office.core.processes.by_number


def test_what_nobody_waits_for_is_killed_where_it_turns_up(office: Office) -> None:
    office.join("host", m.WORKER, 2)
    office.hear("host", m.WORKER, m.Launched(4711, "host", 123))
    assert office.told("host", m.Signal) == [m.Signal(4711, 9)]


def test_only_who_runs_it_says_that_it_has_ended(office: Office) -> None:
    office.join("host", m.WORKER, 2)
    office.launch(1)
    number = office.placed("host")
    office.join("other", m.WORKER, 2)
    office.hear("other", m.WORKER, m.Exited(number, "other", 0))
    assert office.told("script", m.Exited) == []


# -- a broker that was started anew --------------------------------------------------------------------

#: The numbers that its peers have had.
SCRIPT, HOST = 7, 8
NUMBER = SCRIPT << 32 | 1
HELD = m.Held((b"", b""))


@pytest.fixture
def anew() -> Office:
    """Its peers had sessions with the one before, and are on their way back."""
    office = Office()
    office.join("script", m.PRODUCER, session=SCRIPT, workers=1)
    return office


def come_back(office: Office, *said: m.Message) -> None:
    """The worker is back, and has said this."""
    office.join("host", m.WORKER, 2, session=HOST)
    for message in (*said, HELD):
        office.hear("host", m.WORKER, message)


def restate(office: Office, payload: bytes) -> None:
    """The script is back, and waits for its process; without a payload it knows that it runs."""
    office.hear("script", m.PRODUCER, m.Launch(1, b"", b"", "p", frames=(payload,)))
    office.hear("script", m.PRODUCER, m.Restated())


@pytest.mark.parametrize("payload", [b"", b"payload"])
@pytest.mark.parametrize("worker_first", [True, False])
def test_a_process_that_runs_is_adopted(anew: Office, payload: bytes, worker_first: bool) -> None:
    if worker_first:
        come_back(anew, m.Launched(NUMBER, "host", 77))
        restate(anew, payload)
    else:
        restate(anew, payload)
        come_back(anew, m.Launched(NUMBER, "host", 77))
    assert anew.told("script", m.Launched) == [m.Launched(1, "host", 77)]
    anew.hear("host", m.WORKER, m.Exited(NUMBER, "host", 3))
    assert anew.told("script", m.Exited) == [m.Exited(1, "host", 3)]
    assert anew.told("host", m.Launch, m.Signal) == []


@pytest.mark.parametrize("worker_first", [True, False])
def test_a_process_that_has_ended_meanwhile_has_ended(anew: Office, worker_first: bool) -> None:
    if worker_first:
        come_back(anew, m.Exited(NUMBER, "host", 3))
        restate(anew, b"payload")
    else:
        restate(anew, b"payload")
        come_back(anew, m.Exited(NUMBER, "host", 3))
    assert anew.told("script", m.Exited) == [m.Exited(1, "host", 3)]
    assert anew.told("host", m.Launch) == []


def test_a_process_that_nobody_has_is_lost_or_begun_when_workers_are_back(anew: Office) -> None:
    restate(anew, b"")
    anew.hear("script", m.PRODUCER, m.Launch(2, b"", b"", "p", frames=(b"payload",)))
    assert anew.told("script", m.Exited) == []
    come_back(anew)
    (exited,) = anew.told("script", m.Exited)
    assert isinstance(exited, m.Exited)
    assert (exited.process, exited.exitcode) == (1, -9)
    assert anew.placed("host") == SCRIPT << 32 | 2


def test_a_signal_waits_for_who_runs_it(anew: Office) -> None:
    restate(anew, b"")
    anew.hear("script", m.PRODUCER, m.Signal(1, 15))
    come_back(anew, m.Launched(NUMBER, "host", 77))
    assert anew.told("host", m.Signal) == [m.Signal(NUMBER, 15)]


def test_a_process_that_nobody_comes_back_for_is_killed(anew: Office) -> None:
    come_back(anew, m.Launched(NUMBER, "host", 77))
    assert anew.told("host", m.Signal) == []
    anew.now += 10.0
    anew.core.handle(be.Received("host", m.WORKER, m.Beat()), anew.now)
    anew.tick()
    assert anew.told("host", m.Signal) == [m.Signal(NUMBER, 9)]


# -- the agent -----------------------------------------------------------------------------------------


class Desk:
    """An agent's core."""

    def __init__(self) -> None:
        self.core = agent.Core(agent.CoreConfig(slots=1, host="here"))
        self.hear(ae.Connected())

    def hear(self, event: ae.Event | m.Message, now: float = 1.0) -> list[ae.Action]:
        return self.core.handle(ae.Received(event) if isinstance(event, m.Message) else event, now)

    def launch(self, number: int = 5) -> int:
        """Launch a process; the number of its child."""
        start = next(each for each in self.hear(launch(number)) if isinstance(each, ae.StartChild))
        return start.child


def launch(number: int, setup: bytes = b"") -> m.Launch:
    return m.Launch(number, setup, b"", "p", frames=(b"payload",))


def sent(actions: Sequence[ae.Action]) -> list[m.Message]:
    return [each.message for each in actions if isinstance(each, ae.Send)]


def died(child: int, exitcode: int = 0, signal: int = 0) -> ae.ChildDied:
    return ae.ChildDied(child, -1, 77, exitcode, signal, 0, False, "")


@pytest.fixture
def desk() -> Desk:
    return Desk()


def test_a_process_is_a_child_beside_the_slots(desk: Desk) -> None:
    children = {desk.launch(number) for number in range(1, 20)}
    assert len(children) == 19


def test_it_is_given_what_it_runs(desk: Desk) -> None:
    actions = desk.hear(launch(5))
    assert [type(each) for each in actions] == [ae.StartChild, ae.Begin]
    assert isinstance(actions[1], ae.Begin)
    assert actions[1].frames == (b"payload",)


def test_it_begins_when_its_content_is_here(desk: Desk) -> None:
    assert sent(desk.hear(launch(5, DIGEST))) == [m.Need(DIGEST)]
    (start, _) = desk.hear(m.Blob(DIGEST, (SETUP,)))
    assert isinstance(start, ae.StartChild)
    assert start.setup == SETUP


def test_the_broker_is_told_that_it_runs_and_how_it_ended(desk: Desk) -> None:
    child = desk.launch(5)
    assert sent(desk.hear(ae.ChildReady(child, 77))) == [m.Launched(5, "here", 77)]
    assert sent(desk.hear(died(child, exitcode=3))) == [m.Exited(5, "here", 3)]
    child = desk.launch(6)
    desk.hear(ae.ChildReady(child, 77))
    assert sent(desk.hear(died(child, signal=15))) == [m.Exited(6, "here", -15)]
    assert not desk.core.processes.by_number


def test_what_cannot_be_set_up_says_why(desk: Desk) -> None:
    child = desk.launch(5)
    desk.hear(ae.ChildFailed(child, "Traceback: no"))
    assert m.Exited(5, "here", 1, "Traceback: no") in sent(desk.hear(died(child, exitcode=1)))


def test_signals_reach_the_child_once_it_can_take_them(desk: Desk) -> None:
    child = desk.launch(5)
    assert desk.hear(m.Signal(5, 15)) == []
    assert desk.hear(ae.ChildReady(child, 77))[1:] == [ae.SignalChild(child, 15)]
    assert desk.hear(m.Signal(5, 10)) == [ae.SignalChild(child, 10)]
    assert desk.hear(m.Signal(5, 9)) == [ae.KillChild(child)]


def test_a_drain_waits_for_processes_and_ends_them_at_its_end(desk: Desk) -> None:
    child = desk.launch(5)
    desk.hear(ae.Stop())
    desk.hear(m.Drain())
    actions = desk.hear(ae.Tick(), 1.0 + 25.0)
    assert ae.KillChild(child) in actions
    assert isinstance(actions[-1], ae.Exit)


def test_a_drain_is_over_when_the_last_process_is(desk: Desk) -> None:
    child = desk.launch(5)
    desk.hear(ae.Stop())
    desk.hear(m.Drain())
    assert isinstance(desk.hear(died(child))[-1], ae.Exit)


def test_another_broker_is_told_what_runs_and_what_has_ended(desk: Desk) -> None:
    running, ended = desk.launch(5), desk.launch(6)
    desk.hear(ae.ChildReady(running, 77))
    desk.hear(ae.ChildReady(ended, 78))
    desk.hear(ae.Disconnected())
    desk.hear(died(ended, exitcode=3))
    launched, exited, held = sent(desk.hear(ae.Connected(fresh=True)))
    assert launched == m.Launched(5, "here", 77)
    assert exited == m.Exited(6, "here", 3)
    assert type(held) is m.Held


def test_processes_end_when_the_broker_has_been_away_for_long(desk: Desk) -> None:
    child = desk.launch(5)
    desk.hear(ae.Disconnected())
    assert ae.KillChild(child) in desk.hear(ae.Tick(), 1.0 + 300.0)


# -- processes of processes ----------------------------------------------------------------------------


def nested(office: Office) -> int:
    """A process of the script's has started another one; the broker's number of that."""
    office.launch(1)
    root = office.placed("host")
    for message in (
        m.Hello(m.PRODUCER, m.PROTOCOL_VERSION, "3.11", 5, "host", 2),
        m.Launch(1, b"", b"", "p", frames=(b"payload",)),
    ):
        office.hear("host", m.WORKER, m.Via(3, root, frames=m.encode(message)))
    return office.placed("host")


def one_item() -> list[m.Message]:
    items = pack_lengths([4]), b"item"
    return [m.OpenPool(9), m.OpenJob(8, 9), m.Feed(8, 0, 1, 1, items)]


def test_a_pool_of_a_child_has_work_done_beside_slots_that_are_all_taken(office: Office) -> None:
    office.join("host", m.WORKER, 1)
    for message in one_item():
        office.hear("script", m.PRODUCER, message)
    (grant,) = office.told("host", m.Grant)
    assert isinstance(grant, m.Grant)
    for message in (m.Hello(m.PRODUCER, m.PROTOCOL_VERSION, "3.11", 5, "host", 2), *one_item()):
        office.hear("host", m.WORKER, m.Via(3, grant.pool, frames=m.encode(message)))
    beside, lease = office.told("host", m.Grant, m.Lease)
    assert isinstance(beside, m.Grant) and isinstance(lease, m.Lease)
    assert (beside.slots, lease.count) == (1, 1)
    assert beside.pool != grant.pool


def test_an_orphan_is_told_so_and_ends_with_the_script(office: Office) -> None:
    office.join("host", m.WORKER, 2)
    number = nested(office)
    office.hear("host", m.WORKER, m.Via(3, 0, frames=m.encode(m.Bye())))
    assert office.told("host", m.Signal) == [m.Signal(number, 0)]
    office.hear("host", m.WORKER, m.Exited(number, "host", 0))
    assert office.told("script", m.Exited) == []
    assert len(office.core.processes.by_number) == 1


def test_orphans_die_with_the_script(office: Office) -> None:
    office.join("host", m.WORKER, 2)
    number = nested(office)
    office.hear("host", m.WORKER, m.Via(3, 0, frames=m.encode(m.Bye())))
    office.told("host")
    office.hear("script", m.PRODUCER, m.Bye())
    assert m.Signal(number, 9) in office.told("host", m.Signal)
    assert not office.core.processes.by_number


def test_a_child_signals_its_parent_alone(office: Office) -> None:
    office.join("host", m.WORKER, 2)
    number = nested(office)

    def say(child: int, root: int, message: m.Message) -> None:
        office.hear("host", m.WORKER, m.Via(child, root, frames=m.encode(message)))

    say(4, number, m.Hello(m.PRODUCER, m.PROTOCOL_VERSION, "3.11", 5, "host", 3))
    office.told("host")
    say(4, number, m.Signal(0, 2))
    (via,) = office.told("host", m.Via)
    assert isinstance(via, m.Via)
    assert (via.child, m.decode(via.frames)) == (3, m.Signal(0, 2)), "to the process that has started it"
    assert office.told("script", m.Signal) == []
    say(3, 0, m.Signal(0, 10))
    assert office.told("script", m.Signal) == [m.Signal(0, 10)]
    office.hear("script", m.PRODUCER, m.Signal(0, 10))
    say(3, 0, m.Bye())
    office.told("host")
    say(4, number, m.Signal(0, 2))
    assert office.told("host", m.Via, m.Signal) == office.told("script", m.Signal) == [], "it is an orphan"


def test_an_orphan_has_a_while_to_end(desk: Desk) -> None:
    child = desk.launch(5)
    assert desk.hear(m.Signal(5, 0)) == [ae.Orphan(child)]
    due = desk.core.deadline()
    assert due is not None
    assert ae.KillChild(child) in desk.hear(ae.Tick(), 1.0 + 10.0)
