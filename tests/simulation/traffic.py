"""What processes do with queues and pipes, and what each of them may expect of it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from random import Random
from typing import TYPE_CHECKING, Any

from multihost_common import messages as m
from multihost_common.blocks import pack_lengths
from multihost_common.shared import PIPE, QUEUE, Pipes, Queues

from .games import Game, number
from .ledgers import items_of
from .partners import Ask, Partner, Program, Thread
from .world import ViolationError

if TYPE_CHECKING:
    from .scene import Era, Scene

#: Messages that a process sends at most before it waits until one was taken.
LOOSE = 60


class QueueGame(Game):
    """Some put, others get, until it is shut down."""

    def __init__(self, scene: Scene, random: Random) -> None:
        super().__init__(scene, random)
        self.queue = b""
        self.maxsize = random.choice((0, 0, 1, 2, 5))
        self.tasks = random.random() < 0.3
        #: Who has put what, as far as they know, and who has taken it.
        self.accepted: list[bytes] = []
        self.takers: dict[bytes, list[Era]] = {}
        self.consumers: dict[Partner, Consumer] = {}
        self._putters = 0

    def master(self, partner: Partner) -> Program:
        random = self.random
        self.queue = yield from self.make(partner, QUEUE, number(self.maxsize))
        consumers = self.have(partner, *[self.consumer] * random.randint(1, 4))
        producers = self.have(partner, *[self.producer] * random.randint(1, 3))
        if self.tasks:
            self.have(partner, self.joiner)
        delay = 0.02
        while any(not each.over for each in producers):
            yield delay
            delay = min(1.0, delay * 1.5)
            if all(each.over for each in consumers):
                consumers += self.have(partner, self.consumer)
        immediate = int(random.random() < 0.2)
        yield partner.ask(self.queue, Queues.SHUTDOWN, immediate)
        yield from self.until(consumers)
        if not immediate:
            self._complete()
        yield from self.until(self.players)
        partner.tell(self.queue, m.CLOSE)

    def _complete(self) -> None:
        """What nobody has taken is there still."""
        broker = self.scene.world.broker
        machine = broker.core.objects.machines.get(self.queue)
        book = broker.witness.books.get(self.queue) if broker.witness is not None else None
        if machine is None or book is None:
            return
        lost = [item for item in self.accepted if item not in self.takers]
        here = {*book.ready, *(item for each in book.early.values() for item in each.values())}  # type: ignore[attr-defined]
        if not here.issuperset(lost):
            raise ViolationError(f"items {sorted(set(lost) - here)} were put, and nobody has them")

    # -- putting -------------------------------------------------------------------------------------

    def producer(self, partner: Partner) -> Program:
        """Puts some items, one after the other or without waiting."""
        self._putters += 1
        who = self._putters
        items = [b"%d/%d" % (who, each) for each in range(self.random.randint(1, 12))]
        eager = self.random.random() < 0.4
        asks: list[tuple[Ask, list[bytes]]] = []
        while items:
            batch = [
                items.pop(0) for _ in range(1 if self.maxsize else min(len(items), self.random.randint(1, 3)))
            ]
            frames = (pack_lengths([*map(len, batch)]), b"".join(batch))
            ask = partner.ask(self.queue, Queues.PUT, 0, frames, **({} if eager else self.patience()))
            asks.append((ask, batch))
            ask.then = self._put(batch)
            if not eager:
                yield ask
            yield self.pause()
        for ask, _ in asks:
            yield ask

    def _put(self, batch: list[bytes]) -> Callable[[Ask], None]:
        def then(ask: Ask) -> None:
            if ask.granted and ask.amount != Queues.SHUT:
                self.accepted.extend(batch)

        return then

    # -- getting -------------------------------------------------------------------------------------

    def consumer(self, partner: Partner) -> Program:
        """Takes items, of which it may have got some early."""
        known = self.consumers.get(partner)
        if known is None or known.era is not partner.era:
            known = self.consumers[partner] = Consumer(self, partner)
        if not known.busy:
            # One of its threads asks for all.
            known.busy = True
            try:
                yield from known.program()
            finally:
                known.busy = False

    def take(self, era: Era, item: bytes) -> None:
        """Its user has it."""
        takers = self.takers.setdefault(item, [])
        if era.live and any(each.live for each in takers):
            raise ViolationError(f"{item!r} is taken a second time")
        self.scene.world.counts["item came back"] += bool(takers)
        takers.append(era)

    def joiner(self, partner: Partner) -> Program:
        """Waits until all is done, for a while."""
        for _ in range(3):
            yield self.pause()
            join = yield partner.ask(self.queue, Queues.JOIN, timeout=self.random.uniform(0.0, 1.0))
            self.scene.world.counts["queue is joined"] += join.granted


class Consumer:
    """One process that gets items."""

    def __init__(self, game: QueueGame, partner: Partner) -> None:
        self.game = game
        self.partner = partner
        self.era = partner.era
        self.window = game.random.choice((1, 1, 2, 8))
        #: Number and item; all below ``taken`` are with the user.
        self.early: deque[tuple[int, bytes]] = deque()
        self.taken = 0
        self.listens = self.closed = False
        #: One of its threads gets items.
        self.busy = False

    def program(self) -> Program:
        """Gets until there will be no more; or gives up earlier."""
        game = self.game
        left = game.random.choice((3, 1000, 1000, 1000))
        ended = False
        while left and not ended:
            if self.early:
                left -= 1
                yield from self._use()
            else:
                ended = not (yield from self._get())
        self._give_back()
        self.partner.tell(game.queue, Queues.TAKEN, self.taken)
        if game.random.random() < 0.5:
            self.partner.tell(game.queue, m.CLOSE)
            self.closed = True
            # Its items are numbered from 0 on, then.
            del game.consumers[self.partner]

    def _get(self) -> Generator[Any, Any, bool]:
        game = self.game
        amount = self.window | self.taken << Queues.WINDOW_BITS
        get = yield self.partner.ask(game.queue, Queues.GET, amount, **game.patience())
        if not get.granted:
            yield 0.01
            return True
        if not get.frames:
            return False
        self.early.extend(enumerate(items_of(get.frames), get.amount))
        if self.window > 1 and not self.listens:
            self._listen()
        return True

    def _use(self) -> Program:
        game = self.game
        at, item = self.early.popleft()
        self.taken = at + 1
        game.take(self.era, item)
        if game.maxsize or game.random.random() < 0.3:
            self.partner.tell(game.queue, Queues.TAKEN, self.taken)
        yield game.pause()
        if game.tasks:
            yield self.partner.ask(game.queue, Queues.TASK_DONE, self.taken)

    def _listen(self) -> None:
        self.listens = True
        ask = self.partner.ask(self.game.queue, Queues.LISTEN)
        ask.then = self._called
        if ask.done:
            self._called(ask)

    def _called(self, ask: Ask) -> None:
        self.listens = False
        if ask.granted and not self.closed:
            self.game.scene.world.counts["items are called back"] += 1
            self._give_back()
            self._listen()

    def _give_back(self) -> None:
        if self.early:
            first = self.early[0][0]
            amount = first << Queues.WINDOW_BITS | len(self.early)
            self.partner.tell(self.game.queue, Queues.GIVE_BACK, amount)
            self.early.clear()


class PipeGame(Game):
    """One side is shipped to who writes, the other one to who reads."""

    def __init__(self, scene: Scene, random: Random) -> None:
        super().__init__(scene, random)
        self.pipe = b""
        self.one_way = random.random() < 0.5
        self.sent: list[bytes] = []
        self.received: list[bytes] = []
        #: Who has sent all, in its session.
        self.finished: Era | None = None
        self.opened: set[int] = set()

    def master(self, partner: Partner) -> Program:
        self.pipe = yield from self.make(partner, PIPE, number(0), b"\1" if self.one_way else b"")
        tickets = {at: self.random.getrandbits(64).to_bytes(8, "little") for at in (0, 1)}
        threads: dict[int, Thread] = {}
        for at, program in ((0, self.reader), (1, self.writer)):
            # Whatever carries a handle comes after this.
            yield partner.ask(self.pipe, Pipes.SHIP, at, (tickets[at],))
            (threads[at],) = self.have(partner, lambda player, at=at, does=program: does(player, tickets[at]))  # type: ignore[misc]
            partner.tell(self.pipe, Pipes.SHUT, at)
        delay = 0.02
        while threads:
            yield delay
            delay = min(1.0, delay * 1.5)
            for at in [at for at, thread in threads.items() if thread.over]:
                del threads[at]
                if at not in self.opened:
                    # The handle is with nobody, and will not be.
                    partner.tell(self.pipe, Pipes.VOID, at, (tickets[at],))

    def writer(self, partner: Partner, ticket: bytes) -> Program:
        """Sends some messages."""
        yield partner.ask(self.pipe, Pipes.OPEN, 1, (ticket,))
        self.opened.add(1)
        for each in range(self.random.choice((1, 5, 30))):
            message = b"message %d" % each
            self.sent.append(message)
            if self.random.random() < 0.5:
                partner.tell(self.pipe, Pipes.SEND, 1, (message,))
                continue
            send = yield partner.ask(self.pipe, Pipes.SEND, 1, (message,))
            if send.amount:
                return
            yield self.pause()
        self.finished = partner.era
        partner.tell(self.pipe, Pipes.SHUT, 1)

    def reader(self, partner: Partner, ticket: bytes) -> Program:
        """Receives until there is no more."""
        yield partner.ask(self.pipe, Pipes.OPEN, 0, (ticket,))
        self.opened.add(0)
        left = self.random.choice((3, 1000, 1000))
        while left:
            left -= 1
            if self.random.random() < 0.2:
                yield partner.ask(self.pipe, Pipes.POLL, 0, **self.patience())
            recv = yield partner.ask(self.pipe, Pipes.RECV, 10 << 1, **self.patience())
            if not recv.granted:
                yield 0.01
                continue
            if not recv.frames:
                self._complete()
                break
            self.received += [bytes(frame) for frame in recv.frames]
            if self.received != self.sent[: len(self.received)]:
                raise ViolationError(f"{self.received} were received of {self.sent}")
        partner.tell(self.pipe, Pipes.SHUT, 0)

    def _complete(self) -> None:
        if self.finished is not None and self.finished.live and self.received != self.sent:
            raise ViolationError(f"{len(self.sent)} messages were sent, and {len(self.received)} have come")
