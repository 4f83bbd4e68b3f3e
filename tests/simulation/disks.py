"""The broker's journal on a disk in virtual time: it is durable in groups, after a while, and told of later still; a broker
that is killed takes along what is on its way, in either direction."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from multihost_broker import events as be
from multihost_broker.detached.books import RESULT
from multihost_broker.journal.records import Record

from .journals import VirtualJournal

if TYPE_CHECKING:
    from .brokers import Broker
    from .world import World

Job: TypeAlias = be.Write | be.Read


class Disk(VirtualJournal):
    """Outlives brokers."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world
        #: Seconds that a group takes, at most.
        self.slow = 0.002
        #: The reserve is used up, too: nothing is durable until there is room.
        self.stuck = False
        self.was_full = False
        #: The last ticket that was taken in.
        self.taken = 0
        self._queue: list[Job] = []
        self._told_at = 0.0
        self._ready = False
        #: The broker is killed at so many writes from now; 0: it is not.
        self.trap = 0
        #: Which broker's writes these are.
        self._of = 0

    # -- what the broker wants -----------------------------------------------------------------------

    def begin(self) -> None:
        """Another broker has opened it."""
        self._of += 1
        self._ready = False

    def do(self, broker: Broker, action: Job) -> None:
        """Carry this out, in turn."""
        if type(action) is be.Write:
            self._check_order(action)
            self.world.counts["written"] += 1
            if self.full and self._refuses(action) and self.world.random.random() < 0.5:
                # Told at once, before all that was written earlier is durable.
                self._tell(broker, 0.0, be.Synced(self.last, (action.ticket,), True))
            else:
                self._queue.append(action)
            if self.trap:
                self.trap -= 1
                if not self.trap:
                    self.world.after(
                        self.world.random.choice((0.0, 0.0001, 0.001, 0.003)), broker.crash_and_return
                    )
        else:
            self._queue.append(action)
        self._stir(broker)

    def _check_order(self, action: be.Write) -> None:
        assert action.ticket == self.taken + 1, f"ticket {action.ticket} follows {self.taken}"
        self.taken = action.ticket

    def _refuses(self, action: be.Write) -> bool:
        change = action.change
        if not isinstance(change, Record):
            return False
        # A large result may not fit, although it is essential.
        large = change.kind == RESULT and action.ticket % 5 == 0
        return large or not action.essential

    # -- in its own time -----------------------------------------------------------------------------

    def _stir(self, broker: Broker) -> None:
        if not self._ready and self._queue:
            self._ready = True
            self.world.after(self.world.random.uniform(0.0, self.slow), self._commit, broker, self._of)

    def _commit(self, broker: Broker, of: int) -> None:
        """One group becomes durable; the broker hears of it a moment later."""
        if of != self._of or not broker.alive:
            return
        self._ready = False
        if self.stuck and self.full:
            self.world.after(0.05, self._stir, broker)
            return
        random = self.world.random
        count = random.choice((1, len(self._queue), random.randint(1, len(self._queue))))
        group, self._queue = self._queue[:count], self._queue[count:]
        refused: list[int] = []
        found: list[be.Records] = []
        for each in group:
            if isinstance(each, be.Read):
                found.append(self.read(each))
                continue
            if self.full and self._refuses(each):
                refused.append(each.ticket)
            else:
                self._carry_out(each.ticket, each.change)
            self.last = each.ticket
        delay = random.choice((0.0, random.uniform(0.0, self.slow)))
        events: list[be.Event] = [be.Synced(self.last, tuple(refused), self.full), *found]
        for event in events:
            self._tell(broker, delay, event)
        self._stir(broker)

    def _tell(self, broker: Broker, delay: float, event: be.Event) -> None:
        # In order: what is refused is told before a higher ticket is.
        self._told_at = at = max(self._told_at, self.world.now + delay)
        self.world.at(at, broker.deliver, broker.tell, event)

    def fill(self, stuck: bool) -> None:
        """There is no room any more."""
        self.full = self.was_full = True
        self.stuck = stuck

    def make_room(self) -> None:
        """There is room again."""
        self.full = self.stuck = False

    def crash(self) -> None:
        """The broker is gone, and with it what was not durable."""
        self._of += 1
        self._queue.clear()
        self.taken = self.last
        self._ready = False
