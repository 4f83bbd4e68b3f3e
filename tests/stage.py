"""The broker's core with peers whose connections lose what they like, for rules that are drawn by chance.

Each peer has an outbox, what it has said and the broker has not read, and an inbox, what the broker has said and it
has not read: so all that two ends can know and not know of each other is reached without any delays.
"""

from __future__ import annotations

from collections import Counter, deque
from typing import Any

from simulation.invariants import audit, audit_bounds, audit_lease
from simulation.journaled import audit_archive, audit_promise, audit_restored
from simulation.journals import VirtualJournal
from simulation.objects import audit_objects, audit_processes

from multihost_broker import core as broker
from multihost_broker import events as be
from multihost_common import messages as m

#: Seconds between two signs of life.
BEAT = 1.0

#: What contents there are; a digest stands for itself.
SETUP, FUNCTION = b"s" * m.DIGEST, b"f" * m.DIGEST


def content(digest: bytes) -> bytes:
    """What an honest producer sends by this digest."""
    return b"content of " + digest


class Peer:
    """Somebody at the other end of a connection. ``role``: what its token allows."""

    def __init__(self, stage: Stage, name: str, role: str) -> None:
        self.stage = stage
        self.name = name
        self.role = role
        #: Where the broker knows it; empty: it has no connection.
        self.address = ""
        #: Nothing passes any more, and it has not noticed.
        self.cut = False
        self.outbox: deque[m.Message] = deque()
        self.inbox: deque[m.Message] = deque()

    def hear(self, message: m.Message) -> None:
        """It reads this."""

    def say(self, message: m.Message) -> None:
        """It sends this; the broker reads it once it is flushed."""
        self.outbox.append(message)


class Stage:
    """The broker's core, the time, and who is connected. After each event the core's books are audited."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.epoch = 1
        #: What is on its way to the disk is durable when it is synced.
        self.journal = VirtualJournal()
        self._reads: list[be.Read] = []
        self.peers: dict[str, Peer] = {}
        self.core = self._start()
        #: Addresses whose connections have ended without the broker having been told.
        self.dead: list[str] = []
        self._dials = 0
        #: How often honest workers have begun an item, and have lost a child by it.
        self.begun: Counter[bytes] = Counter()
        self.deaths: Counter[bytes] = Counter()
        #: Pools whose initializers have failed, as their workers know them.
        self.broken: set[int] = set()
        #: Something did not hold.
        self.failed = False
        #: Somebody who is not honest has been welcomed as a worker: answers may be anything.
        self.infiltrated = False

    # -- the broker ----------------------------------------------------------------------------------

    def _start(self) -> broker.Core:
        core = broker.Core(broker.CoreConfig(epoch=self.epoch, python="3.11", last_ticket=self.journal.last))
        self._carry_out(core, core.restore(self.journal.load(), self.now))
        audit_restored(core, self.journal)
        return core

    def restart(self) -> None:
        """The broker is killed, and another one starts."""
        # The time of its start, in milliseconds, as the shell has it.
        self.epoch += 1 + int(self.now * 1000)
        self.journal.crash()
        self._reads.clear()
        self.dead.clear()
        for address in list(self.peers):
            self._lose(self.peers.pop(address), 0, 0)
        self.core = self._start()

    def sync(self, most: int | None = None) -> None:
        """What the broker has written, or some of it, is durable; what it wants to read is read."""
        if self.journal.pending:
            self.tell(self.journal.sync(most))
        if not self.journal.pending:
            reads, self._reads = self._reads, []
            for each in reads:
                self.tell(self.journal.read(each))

    def tell(self, event: be.Event) -> None:
        """Tell the core, hand on what it says, and audit it."""
        self.failed = True
        core = self.core
        self._carry_out(core, core.handle(event, self.now))
        audit(core)
        audit_bounds(core, self.now)
        audit_archive(core, self.journal)
        audit_objects(core)
        audit_processes(core)
        self.failed = False

    def _carry_out(self, core: broker.Core, actions: list[be.Action]) -> None:
        for action in actions:
            if type(action) is be.Write:
                self.journal.write(action)
            elif type(action) is be.Read:
                self._reads.append(action)
            elif type(action) is be.Send:
                self._send(core, str(action.peer), action.message)

    def _send(self, core: broker.Core, address: str, said: m.Message) -> None:
        # Whatever it says can be sent; and each end has a copy of its own.
        message = m.decode([bytes(frame) for frame in m.encode(said)])
        if isinstance(said, m.Lease):
            audit_lease(core, said)
        elif isinstance(said, m.Stored):
            audit_promise(self.journal, said)
        if address in self.peers:
            self.peers[address].inbox.append(message)

    def tick(self) -> None:
        """The deadline has come, if it has."""
        due = self.core.deadline()
        if due is None or due > self.now:
            return
        self.tell(be.Tick())
        due = self.core.deadline()
        assert due is None or due > self.now, "a tick is due again at once"

    def forget_detached_jobs(self) -> None:
        """An operator collects them all."""
        self.journal.full = False
        admin = Peer(self, "admin", m.ADMIN)
        self.connect(admin)
        admin.say(m.Hello(m.ADMIN, m.PROTOCOL_VERSION))
        self.flush(admin)
        for _ in range(3):
            self.sync()
        for key in list(self.core.archive.jobs):
            admin.say(m.Ask("collect", key.hex()))
        admin.say(m.Bye())
        self.flush(admin)
        self.hang_up(admin, 0, 0)
        self.mourn()

    # -- connections ---------------------------------------------------------------------------------

    def connect(self, peer: Peer, tell: bool = True) -> None:
        """It has a new connection; ``tell``: the broker learns first that the old one has ended."""
        self.hang_up(peer, 0, 0)
        self._dials += 1
        peer.cut = False
        peer.address = f"{peer.name}#{self._dials}"
        self.peers[peer.address] = peer
        if tell:
            self.mourn()

    def hang_up(self, peer: Peer, said: int, heard: int) -> None:
        """The connection ends, or nothing passes any more: but for so many messages the outbox and the inbox are
        lost."""
        if self.peers.pop(peer.address, None) is not None:
            kept = [peer.outbox.popleft() for _ in range(min(said, len(peer.outbox)))]
            for message in kept:
                self.tell(be.Received(peer.address, peer.role, message))
            self.dead.append(peer.address)
        self._lose(peer, 0, heard)

    def _lose(self, peer: Peer, said: int, heard: int) -> None:
        peer.cut = True
        for box, left in ((peer.outbox, said), (peer.inbox, heard)):
            while len(box) > left:
                box.pop()

    def mourn(self, most: int = 1 << 30) -> None:
        """The broker is told of connections that have ended."""
        for _ in range(min(most, len(self.dead))):
            self.tell(be.Gone(self.dead.pop(0)))

    # -- messages ------------------------------------------------------------------------------------

    def flush(self, peer: Peer, most: int = 1 << 30) -> None:
        """The broker reads what this peer has said."""
        for _ in range(min(most, len(peer.outbox))):
            if not peer.outbox:
                return
            message = peer.outbox.popleft()
            if peer.address in self.peers:
                self.tell(be.Received(peer.address, peer.role, message))

    def read(self, peer: Peer, most: int = 1 << 30) -> None:
        """This peer reads what the broker has said."""
        for _ in range(min(most, len(peer.inbox))):
            if peer.inbox:
                self.failed = True
                peer.hear(peer.inbox.popleft())
                self.failed = False

    def exchange(self, *peers: Peer) -> None:
        """Until nobody has anything to say."""
        for _ in range(1000):
            if not any(peer.outbox or peer.inbox for peer in peers):
                return
            for peer in peers:
                self.flush(peer)
                self.read(peer)
        raise AssertionError("they talk for ever")


class Client(Peer):
    """An honest peer: it dials again, says who it was, and goes on."""

    slots = 0

    def __init__(self, stage: Stage, name: str, role: str) -> None:
        super().__init__(stage, name, role)
        self.client = name.encode().ljust(16)
        self.session = self.era = 0
        self.welcomed = False
        #: Workers it has heard of.
        self.workers = 0
        self.beat_at = 0.0
        #: It has left in good order.
        self.left = False

    @property
    def heard(self) -> int:
        """The last numbered message of the broker's that came."""
        return 0

    @property
    def ready(self) -> bool:
        """It may say what it likes."""
        return self.welcomed and not self.left

    def dial(self, tell: bool = True) -> None:
        """Connect, and say Hello."""
        self.stage.connect(self, tell)
        self.outbox.clear()
        self.inbox.clear()
        self._greet()

    def _greet(self) -> None:
        self.welcomed = False
        self.beat_at = self.stage.now
        self.outbox.clear()
        self.say(
            m.Hello(
                self.role, m.PROTOCOL_VERSION, "3.11", 5, self.name, 1, self.slots, self.name, self.client,
                self.session, self.workers, heard=self.heard, era=self.era,
            )
        )  # fmt: skip

    def hear(self, message: m.Message) -> None:
        if type(message) is m.Refused:
            self._refused(message)
        elif not self.welcomed:
            if type(message) is m.Welcome:
                again, self.session, self.welcomed = self.session != 0, message.session, True
                self.era = message.era
                self.on_welcome(again)
        elif not self.left:
            reaction: Any = getattr(self, f"on_{type(message).__name__.lower()}", None)
            if reaction is not None:
                reaction(message)

    def _refused(self, refused: m.Refused) -> None:
        if refused.reason == "E_HELLO":
            if self.welcomed:
                self._greet()
        else:
            assert refused.text.startswith("that content"), f"{self.name} was refused: {refused}"

    def on_welcome(self, again: bool) -> None:
        """It has a session; ``again``: it had one before."""
        raise NotImplementedError

    def beat(self) -> None:
        """A sign of life."""
        if self.ready:
            self.say(m.Beat())

    def leave(self) -> None:
        """It says good-bye; what it has said is heard."""
        self.say(m.Bye())
        self.stage.flush(self)
        self.stage.hang_up(self, 0, 0)
        self.left = True
