"""What schedules of shared objects and processes have shown once (see :mod:`simulation.shared`), each in a few messages."""

from __future__ import annotations

from typing import Any

import pytest

from multihost.engines.launching import Launching, LaunchSpec
from multihost_broker import core as broker
from multihost_broker import events as be
from multihost_broker.sessions import LOST
from multihost_common import messages as m
from multihost_common import session as sessions
from multihost_common.blobs import digest_of
from multihost_common.shared import SEMAPHORE, Semaphores
from multihost_common.wire import CONNECTED

LOCK = b"l" * m.OBJECT
CONTENT = b"how it is set up"


def hello(kind: str, name: str, **facts: Any) -> m.Hello:
    return m.Hello(
        kind, m.PROTOCOL_VERSION, "3.11", 5, name, 1, 2 if kind == m.WORKER else 0, name,
        name.encode().ljust(16), **facts,
    )  # fmt: skip


class Desk:
    """A broker's core, and what it has said to whom, in order."""

    def __init__(self) -> None:
        self.core = broker.Core(broker.CoreConfig(epoch=7))
        self.now = 1.0
        self.said: dict[str, list[Any]] = {}
        self._numbers: dict[str, int] = {}

    def hear(self, peer: str, role: str, message: Any) -> None:
        if hasattr(message, "seq") and not isinstance(message, m.Heard):
            message.seq = self._numbers[peer] = self._numbers.get(peer, 0) + 1
        self._do(be.Received(peer, role, message))

    def tick(self, seconds: float) -> None:
        self.now += seconds
        self._do(be.Tick())

    def _do(self, event: be.Event) -> None:
        for action in self.core.handle(event, self.now):
            if isinstance(action, be.Send):
                assert isinstance(action.peer, str), "only who has a connection is sent anything"
                self.said.setdefault(action.peer, []).append(action.message)

    def told(self, peer: str, *kinds: type[m.Message]) -> list[Any]:
        return [each for each in self.said.pop(peer, []) if isinstance(each, kinds)]

    def join(self, kind: str, name: str, **facts: Any) -> m.Welcome:
        self.hear(name, kind, hello(kind, name, **facts))
        if kind == m.WORKER:
            self.hear(name, kind, m.Held((b"", b"")))
        welcome = self.told(name, m.Welcome)[-1]
        assert isinstance(welcome, m.Welcome)
        return welcome

    def launch(self, number: int = 1, setup: bytes = b"") -> int:
        """The broker's number of a process that the worker has been given."""
        self.hear("script", m.PRODUCER, m.Launch(number, setup, frames=(b"payload",)))
        (launch,) = self.told("worker", m.Launch)
        return int(launch.process)

    def through(self, root: int, message: m.Message, child: int = 1) -> None:
        self.hear("worker", m.WORKER, m.Via(child, root, frames=m.encode(message)))


@pytest.fixture
def desk() -> Desk:
    made = Desk()
    made.join(m.PRODUCER, "script")
    made.join(m.WORKER, "worker")
    return made


def test_what_is_for_a_worker_and_for_its_children_goes_out_as_it_is_numbered(desk: Desk) -> None:
    """The worker would wait for ever for what it takes to be missing."""
    process = desk.launch()
    desk.through(process, hello(m.PRODUCER, "child"))
    desk.hear("script", m.PRODUCER, m.Act(1, LOCK, m.MAKE, SEMAPHORE, frames=[(1).to_bytes(8, "little")] * 3))
    desk.through(process, m.Act(1, LOCK, Semaphores.ACQUIRE))
    desk.through(process, m.Act(2, LOCK, Semaphores.ACQUIRE))
    before = max(each.seq for each in desk.told("worker", m.Via))
    # The child is told that the lock is no more, its worker that nobody waits for its process.
    desk.hear("script", m.PRODUCER, m.Bye())
    said = desk.told("worker", m.Via, m.Signal)
    assert [type(each) for each in said] == [m.Via, m.Signal]
    assert [each.seq for each in said] == [before + 1, before + 2]


def test_a_child_that_is_refused_leaves_nothing_behind(desk: Desk) -> None:
    desk.through(99, m.Act(1, LOCK, Semaphores.ACQUIRE))
    (via,) = desk.told("worker", m.Via)
    assert isinstance(m.decode(via.frames), m.Refused)
    assert not desk.core.nested._here


def test_what_has_become_of_nobodys_process_is_not_kept(desk: Desk) -> None:
    process = desk.launch()
    desk.tick(LOST / 2)
    desk.hear("worker", m.WORKER, m.Beat())
    desk.tick(LOST / 2 + 1)
    desk.hear("script", m.PRODUCER, m.Bye())
    desk.hear("worker", m.WORKER, m.Exited(process, "host", -9))
    assert not desk.core.processes._strays


def test_content_that_was_lost_on_its_way_is_asked_for_again(desk: Desk) -> None:
    welcome = desk.join(m.PRODUCER, "other")
    desk.hear("other", m.PRODUCER, m.Launch(1, digest_of(CONTENT), frames=(b"payload",)))
    assert len(desk.told("other", m.Need)) == 1
    again = hello(m.PRODUCER, "other", session=welcome.session, era=welcome.era)
    desk._do(be.Received("other again", m.PRODUCER, again))
    desk._do(be.Received("other again", m.PRODUCER, m.Restated()))
    assert len(desk.told("other again", m.Need)) == 1


def test_a_session_that_its_owner_was_not_welcomed_to_is_not_resumed(desk: Desk) -> None:
    """Its Welcome was lost, and it may have the number of the one before."""
    first = desk.join(m.PRODUCER, "other")
    desk.hear("other", m.PRODUCER, m.Bye())
    facts = {"session": first.session, "era": first.era}
    lost = desk.join(m.PRODUCER, "other", **facts)
    assert lost.fresh and lost.session == first.session
    third = desk.join(m.PRODUCER, "other", **facts)
    assert third.fresh and third.heard == 0
    fourth = desk.join(m.PRODUCER, "other", session=third.session, era=third.era)
    assert not fourth.fresh


class Engine:
    """As far as processes need one."""

    _failure = None
    reaches = True

    def __init__(self) -> None:
        self.said: list[m.Message] = []
        self._numbers = 0

    def _check_alive(self) -> None:
        pass

    def _number(self) -> int:
        self._numbers += 1
        return self._numbers

    def _do(self, call: Any) -> None:
        call()

    def _send(self, message: m.Message) -> None:
        self.said.append(message)


def test_a_process_that_a_broker_has_given_up_does_not_run_again() -> None:
    engine = Engine()
    launching = Launching(engine)  # type: ignore[arg-type]
    known = launching.launch(LaunchSpec(b"", b"", "known", (b"",)))
    engine.reaches = False
    unheard = launching.launch(LaunchSpec(b"", b"", "unheard", (b"",)))
    assert [each.process for each in launching.restate(given_up=True) if isinstance(each, m.Launch)] == [
        unheard.number
    ]
    assert known.exited.done and known.exitcode == -9 and not unheard.exited.done
    # To a broker that was started anew all are stated.
    assert len(list(launching.restate(given_up=False))) == 1


class Dealer:
    """A connection that says what it is told to."""

    address = "tcp://nowhere:1"
    fds = (0, 1)

    def __init__(self, *_: Any) -> None:
        self.said: list[m.Message] = []
        self.inbox: list[m.Message] = []
        self.news: list[str] = []

    def send(self, message: m.Message) -> None:
        self.said.append(message)

    def receive(self, limit: int) -> list[m.Message]:
        inbox, self.inbox = self.inbox, []
        return inbox

    def signals(self) -> list[str]:
        news, self.news = self.news, []
        return news

    def welcomed(self, welcome: m.Welcome) -> None:
        pass


class Nobody:
    """An owner that does not care."""

    def welcomed(self, welcome: m.Welcome) -> None:
        pass

    parted = heard = welcomed


def test_a_welcome_that_was_for_an_earlier_hello_is_not_the_last_word(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """This process stood still: it reads of its second connection before it reads what came over the first."""
    monkeypatch.setattr(sessions, "Dealer", Dealer)
    session = sessions.Session("", None, hello(m.PRODUCER, "p"), Nobody(), lambda *_: None)  # type: ignore[arg-type]
    dealer: Any = session.dealer
    dealer.news = [CONNECTED]
    session.read_signals()
    dealer.news = [CONNECTED]
    session.read_signals()
    dealer.inbox = [m.Welcome(7, 1, fresh=True, era=11)]
    session.receive(10)
    session.send(m.Act(1, LOCK, m.MAKE))
    # The broker has ended session 11 when it read the second Hello, and took this for the first of session 12.
    dealer.inbox = [m.Welcome(7, 2, fresh=True, era=12)]
    session.receive(10)
    assert not session.up and isinstance(dealer.said[-1], m.Hello) and dealer.said[-1].era == 11
    dealer.inbox = [m.Welcome(7, 3, fresh=True, era=13)]
    session.receive(10)
    assert session.up
    session.send(m.Act(2, LOCK, m.MAKE))
    assert dealer.said[-1].seq == 1
