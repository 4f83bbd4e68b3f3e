"""A queue: items, who has got some early, who waits for one, and who waits for room."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

from multihost_broker.objects.machine import Machine, Party, Request
from multihost_broker.objects.recall import Recall
from multihost_broker.objects.room import Room
from multihost_broker.objects.runs import Run, count_of, joined
from multihost_common.shared import QUEUE, Queues

#: Bytes of items that are here before who puts more has to wait, also in a queue that is not bounded.
ROOM = 256 << 20

#: Room for items where nothing bounds it.
UNBOUNDED = 1 << 62

#: Bytes that one process gets at once, if that is more than an item.
BATCH = 1 << 20

#: Operations that may have to wait, so that they need an answer.
_WAITING = frozenset({Queues.PUT, Queues.GET, Queues.JOIN, Queues.LISTEN})

_WINDOW = (1 << Queues.WINDOW_BITS) - 1


class Consumer:
    """A process that has asked for items."""

    __slots__ = ("early", "handed", "held", "spoken")

    def __init__(self) -> None:
        #: What it was handed, and is not known to have taken, by number; and how many items that is.
        self.early: deque[Run] = deque()
        self.held = 0
        #: The number of the next item that it is handed.
        self.handed = 0
        #: The item that somebody waited for, and so has by now, until that is said; or -1.
        self.spoken = -1

    def spare(self) -> int:
        """Items that wait there for their user."""
        return self.held - (self.spoken >= 0)

    def take(self, number: int) -> list[Run]:
        """Its user has all items below this number: they are no more."""
        early, gone = self.early, []
        while early and early[0].number < number:
            count = number - early[0].number
            gone.append(early.popleft() if count >= len(early[0]) else early[0].cut(count))
            self.held -= len(gone[-1])
        if self.spoken < number:
            self.spoken = -1
        return gone

    def give_back(self, first: int, count: int) -> list[Run]:
        """Items ``first .. first + count``, as far as it has them; they are the caller's now."""
        kept: list[Run] = []
        back: list[Run] = []
        for run in self.early:
            for limit, where in ((first, kept), (first + count, back)):
                if run.number < limit < run.number + len(run):
                    where.append(run.cut(limit - run.number))
            (back if first <= run.number < first + count else kept).append(run)
        self.early = deque(kept)
        self.held -= sum(map(len, back))
        if first <= self.spoken < first + count:
            self.spoken = -1
        return back


class Queue(Machine):
    """Made with a number: at most ``maxsize`` items (0: as many as there is memory for).

    Each item is here, or with one process that was handed it; there it counts as being here until that process says
    that its user has it. What a process has got early comes back in front, in its order, when another one waits for
    an item and the process answers its LISTEN by giving it back, or when it ends.

    A process that is the only one to ask is handed as many items at once as it asks for; of several, each gets a
    small share of what there is, so that there is always some for the others.
    """

    kind = QUEUE

    def __init__(self, make: Request) -> None:
        super().__init__(make)
        self.maxsize = int.from_bytes(make.frames[0][:8], "little")
        self.ready: deque[Run] = deque()
        #: Items in ``ready``; bytes of all items, also of those that are with a process early.
        self.count = 0
        self.bytes = 0
        self.room = Room()
        self.consumers: dict[Party, Consumer] = {}
        self.recall = Recall()
        self.getters: deque[Request] = deque()
        #: Those that wait for room, with what of theirs is not here yet.
        self.putters: deque[tuple[Request, Run]] = deque()
        self.producers: set[Party] = set()
        self.joiners: deque[Request] = deque()
        #: Items put for which nobody has said TASK_DONE.
        self.unfinished = 0
        self.shut = False
        self.discards = False
        self._serial = 0
        self._does: dict[int, Callable[[Request], None]] = {
            Queues.PUT: self._put,
            Queues.GET: self._get,
            Queues.SIZE: self._size,
            Queues.TASK_DONE: self._task_done,
            Queues.JOIN: self._join,
            Queues.SHUTDOWN: self._shutdown,
            Queues.GIVE_BACK: self._give_back,
            Queues.LISTEN: self._listen,
            Queues.TAKEN: self._taken,
        }

    def share(self, room: Room) -> None:
        """The items do."""
        self.room = room

    def act(self, request: Request) -> None:
        """See :class:`multihost_common.shared.Queues`."""
        does = self._does.get(request.op)
        if does is None:
            request.refuse("a queue knows no such operation")
        elif not request.number and request.op in _WAITING:
            request.refuse("what may have to wait has a number")
        else:
            does(request)

    def size(self) -> int:
        """Bytes of the items."""
        return self.bytes

    def forgotten(self) -> None:
        """What was in it takes no room any more."""
        self.room.leave(self, self.bytes)

    def resume(self) -> None:
        """There may be room again."""
        self._settle()

    def items(self) -> int:
        """How many items there are that no user has, as far as is known."""
        return self.count + sum(consumer.spare() for consumer in self.consumers.values())

    # -- putting -------------------------------------------------------------------------------------

    def _put(self, request: Request) -> None:
        try:
            count = count_of(request.frames)
        except ValueError as error:
            request.refuse(str(error))
            return
        if self.shut:
            request.done(Queues.SHUT)
            return
        self.producers.add(request.party)
        run = Run(request.frames, count, self._serial)
        self._serial += count
        if request.now and (self.putters or self._room() < count):
            request.busy()
        elif self.putters or not self._take_in(request, run):
            request.waits = True
            self.putters.append((request, run))
        self._settle()

    def _room(self) -> int:
        """For how many items there is room."""
        if self.bytes >= ROOM:
            return 0
        if not self.room.has(self.bytes):
            self.room.wait(self)
            return 0
        return max(0, self.maxsize - self.items()) if self.maxsize else UNBOUNDED

    def _take_in(self, request: Request, run: Run) -> bool:
        """Take as many of these items as there is room for. True: that is all of them, and who puts them is told."""
        room = self._room()
        if not room:
            return False
        part = run if len(run) <= room else run.cut(room)
        self.ready.append(part)
        self.count += len(part)
        self.bytes += part.size
        self.room.used += part.size
        self.unfinished += len(part)
        if part is run:
            room = (self._room() if self.maxsize else 0) // len(self.producers)
            request.done(room * Queues.ROOM)
        return part is run

    # -- getting -------------------------------------------------------------------------------------

    def _get(self, request: Request) -> None:
        consumer = self.consumers.get(request.party)
        if consumer is None:
            consumer = self.consumers[request.party] = Consumer()
        if consumer.early:
            self._drop(consumer.take(request.amount >> Queues.WINDOW_BITS))
        if self.count:
            self._hand(request, consumer)
        elif self.shut and not self.items():
            request.done()
        elif request.now:
            self.recall.tell_others({request.party})
            request.busy()
        else:
            request.waits = True
            self.getters.append(request)
        self._settle()

    def _hand(self, request: Request, consumer: Consumer) -> None:
        left = max(1, request.amount & _WINDOW)
        if len(self.consumers) > 1:
            left = max(1, min(left, self.count // (2 * len(self.consumers))))
        runs = self._cut(left)
        consumer.spoken = consumer.handed
        for run in runs:
            run.number = consumer.handed
            consumer.handed += len(run)
        consumer.early.extend(runs)
        count = consumer.handed - consumer.spoken
        consumer.held += count
        self.count -= count
        request.done(consumer.spoken, joined(runs))

    def _cut(self, left: int) -> list[Run]:
        """The next items, one or more: at most so many, and what goes into one message."""
        ready, runs, room = self.ready, list[Run](), BATCH
        while left and ready and not (runs and ready[0].alone):
            run = ready[0]
            count = min(left, run.within(room))
            if not count and runs:
                break
            count = count or 1
            runs.append(ready.popleft() if count == len(run) else run.cut(count))
            left -= count
            room -= runs[-1].size
            if run.alone:
                break
        return runs

    def _taken(self, request: Request) -> None:
        consumer = self.consumers.get(request.party)
        if consumer is not None:
            self._drop(consumer.take(request.amount))
            self._settle()
        request.done()

    def _size(self, request: Request) -> None:
        consumer = self.consumers.get(request.party)
        if consumer is not None:
            self._drop(consumer.take(request.amount))
        request.done(self.items())
        self._settle()

    def _drop(self, runs: Iterable[Run]) -> None:
        for run in runs:
            self.bytes -= run.size
            self.room.used -= run.size

    # -- giving back ---------------------------------------------------------------------------------

    def _listen(self, request: Request) -> None:
        consumer = self.consumers.get(request.party)
        if consumer is None or self.recall.request_of(request.party) is not None:
            request.refuse("only who gets items listens, once")
            return
        others = any(getter.party != request.party for getter in self.getters)
        self.recall.listen(request, consumer, wanted=self.discards or others)

    def _give_back(self, request: Request) -> None:
        consumer = self.consumers.get(request.party)
        if consumer is not None:
            first, count = request.amount >> Queues.WINDOW_BITS, request.amount & _WINDOW
            self._restore(consumer.give_back(first, count))
            self._settle()
        request.done()

    def _restore(self, runs: list[Run]) -> None:
        """Put these items where they were, before all that came after them."""
        if self.discards:
            self._discard(runs)
        elif runs:
            last = max(run.serial for run in runs)
            self.count += sum(map(len, runs))
            while self.ready and self.ready[0].serial < last:
                runs.append(self.ready.popleft())
            self.ready.extendleft(sorted(runs, key=lambda run: -run.serial))

    # -- tasks ---------------------------------------------------------------------------------------

    def _task_done(self, request: Request) -> None:
        consumer = self.consumers.get(request.party)
        if consumer is not None:
            # Else it would come to another process should this one end, and be done with twice.
            self._drop(consumer.take(request.amount))
        if self.unfinished:
            self.unfinished -= 1
            request.done()
        else:
            request.refuse("task_done() called too many times")
        self._settle()

    def _join(self, request: Request) -> None:
        if not self.unfinished:
            request.done()
        elif request.now:
            request.busy()
        else:
            request.waits = True
            self.joiners.append(request)

    # -- the end -------------------------------------------------------------------------------------

    def _shutdown(self, request: Request) -> None:
        self.shut = True
        if request.amount:
            self.discards = True
            runs = list(self.ready)
            self.ready.clear()
            self.count = 0
            self._discard(runs)
            self.recall.tell_all()
        request.done()
        self._settle()

    def _discard(self, runs: list[Run]) -> None:
        self._drop(runs)
        self.unfinished = max(0, self.unfinished - sum(map(len, runs)))

    def withdraw(self, request: Request) -> None:
        """Nobody waits for the answer any more."""
        if request.op == Queues.LISTEN:
            self.recall.withdraw(request)
        elif request.op == Queues.PUT:
            self.putters = deque(each for each in self.putters if each[0] is not request)
        else:
            (self.getters if request.op == Queues.GET else self.joiners).remove(request)

    def depart(self, party: Party) -> None:
        """What the process had early, and did not take, is for others."""
        self.producers.discard(party)
        consumer = self.consumers.pop(party, None)
        if consumer is not None:
            self._restore(list(consumer.early))
            self._settle()

    # -- who waits -----------------------------------------------------------------------------------

    def _settle(self) -> None:
        """Something has changed: answer everybody whose turn it is."""
        while True:
            while self.getters and self.count:
                request = self.getters.popleft()
                self._hand(request, self.consumers[request.party])
            if not self.putters or self.shut or not self._room():
                break
            if self._take_in(*self.putters[0]):
                self.putters.popleft()
        if self.shut:
            self._end()
        if self.getters and self.recall.listening:
            self.recall.tell_others({request.party for request in self.getters})
        if not self.unfinished:
            while self.joiners:
                self.joiners.popleft().done()

    def _end(self) -> None:
        while self.putters:
            self.putters.popleft()[0].done(Queues.SHUT)
        if not self.items():
            while self.getters:
                self.getters.popleft().done()


__all__ = ["BATCH", "ROOM", "Consumer", "Queue"]
