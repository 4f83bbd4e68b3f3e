"""How much input the broker has in memory for producers that hold theirs until it is answered, and who has to wait.

The room is shared as switches share their buffers between ports, by dynamic thresholds: a producer may have here as much
as is free. So one alone gets half of it, of many each gets about the same, and there is always some left for who comes
next. Who has more is told to feed nothing new (``Hold``) until it has half as much as is free. Who does not heed that, or had
much on its way, finds its Feeds dropped once it has four times as much as is free; it has them still, and states
their jobs anew when it is told to go on.

What is counted is what is here: a block counts from when it was taken until nothing refers to it any more, wherever
its items are meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable

from multihost_broker.events import WARNING, Action, Note, Send
from multihost_broker.jobs import Job
from multihost_broker.sessions import NUMBER, Session
from multihost_common.blocks import Block
from multihost_common.messages import Feed, Hold
from multihost_common.tables import pack_rows

#: Times what is free that a producer may have before its Feeds are dropped.
MOST = 4

#: Seconds between two looks at who may go on.
LOOK = 0.02

#: Bytes that a block takes beyond its payload, about.
OVERHEAD = 1000


class Account:
    """What one producer has here."""

    __slots__ = ("dropped", "held", "session", "told", "used")

    def __init__(self, session: Session) -> None:
        self.session = session
        #: Bytes of input.
        self.used = 0
        #: It has been told to feed nothing new; and whether the log says so already.
        self.held = False
        self.told = False
        #: Numbers of jobs of which input was dropped, in their order.
        self.dropped: dict[int, None] = {}


class Counted(Block):
    """A block of input that counts until it is gone."""

    __slots__ = ("_account", "_memory", "_size")

    def __init__(self, feed: Feed, memory: Memory, account: Account) -> None:
        Block.__init__(self, feed.start, feed.count, feed.chunksize, feed.frames)
        size = OVERHEAD
        for frame in feed.frames:
            size += len(frame)
        self._size = size
        self._memory = memory
        self._account = account
        memory.used += size
        account.used += size

    def __del__(self) -> None:
        self._memory.used -= self._size
        self._account.used -= self._size


class Memory:
    """The room for input: ``limit`` bytes, 0: not bounded. ``find`` answers the open job of a number."""

    def __init__(
        self, emit: Callable[[Action], None], find: Callable[[int], tuple[object, Job] | None], limit: int = 0
    ) -> None:
        self._emit = emit
        self._find = find
        self.limit = limit
        #: Bytes taken.
        self.used = 0
        self._accounts: dict[int, Account] = {}
        #: Those that were told to wait, and when to look at them next.
        self._held: dict[int, Account] = {}
        self._look_at = 0.0

    # -- input -------------------------------------------------------------------------------------

    def take(self, producer: Session, job: Job, feed: Feed, now: float) -> Block | None:
        """The block of this Feed, counted; its producer may have to wait from now on. None: there is no room for it."""
        account = self._accounts.get(producer.number)
        if account is None:
            account = self._accounts[producer.number] = Account(producer)
        free = self.limit - self.used
        if account.used > MOST * free or free <= 0 or job.dropped:
            # What is stated anew there was room for before, and of what is here still no more is kept.
            crowded = free <= 0 or producer.stated is None
            if feed.start >= job.fed and (job.dropped or crowded):
                return None
        block = Counted(feed, self, account)
        if account.used > self.limit - self.used and not account.held:
            self._hold(account, now)
        return block

    def drop(self, producer: Session, job: Job, now: float) -> None:
        """Input of this job was not taken; it is asked for, once, when its producer may go on."""
        if job.dropped:
            return
        account = self._accounts[producer.number]
        job.dropped = True
        account.dropped[job.number] = None
        if not account.held:
            self._hold(account, now)

    # -- who waits ---------------------------------------------------------------------------------

    def _hold(self, account: Account, now: float) -> None:
        account.held = True
        if not self._held:
            self._look_at = now + LOOK
        self._held[account.session.number] = account
        self._emit(Send(account.session.peer, Hold(True)))
        if not account.told:
            account.told = True
            text = f"producer {account.session.number} waits: {account.used >> 20} MiB of its input are here"
            self._emit(Note(WARNING, f"{text}, {self.used >> 20} of {self.limit >> 20} MiB in all"))

    def deadline(self) -> float | None:
        """When :meth:`tick` is due."""
        return self._look_at if self._held else None

    def tick(self, now: float) -> None:
        """Let go on who may."""
        if not self._held or now < self._look_at:
            return
        self._look_at = now + LOOK
        free = self.limit - self.used
        for account in [each for each in self._held.values() if 2 * each.used < free]:
            self._release(account)

    def _release(self, account: Account) -> None:
        account.held = False
        del self._held[account.session.number]
        dropped, account.dropped = account.dropped, {}
        jobs = [found[1] for found in map(self._find, dropped) if found is not None]
        rows = pack_rows((job.number & NUMBER, job.fed) for job in jobs if job.dropped)
        self._emit(Send(account.session.peer, Hold(False, (rows,) if rows else ())))

    # -- coming and going --------------------------------------------------------------------------

    def back(self, producer: Session) -> None:
        """The producer goes on over another connection, and knows nothing of having to wait."""
        account = self._accounts.get(producer.number)
        if account is not None and account.held:
            self._emit(Send(producer.peer, Hold(True)))

    def ended(self, producer: Session) -> None:
        """The session is over; what is left of its input counts until it is gone."""
        self._accounts.pop(producer.number, None)
        self._held.pop(producer.number, None)


__all__ = ["Memory"]
