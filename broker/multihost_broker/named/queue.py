"""A queue that has a name: who puts items, who gets them, who has some and was not heard to have accepted them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from multihost_broker.journal.records import Erase, Record
from multihost_broker.named.books import CONSUMER, Span, joined
from multihost_broker.named.shelf import Shelf
from multihost_broker.objects.machine import Machine, Party, Request
from multihost_broker.objects.queue import BATCH
from multihost_broker.objects.recall import Recall
from multihost_broker.objects.runs import count_of
from multihost_common import messages as m
from multihost_common.named import CLIENT, MOST_AT_ONCE, Rows, rows_of, unpack_items, unpack_pair
from multihost_common.shared import QUEUE, NamedQueues

#: Bytes on their way to the disk beyond which who puts more has to wait.
UNSYNCED = 64 << 20

_WINDOW = (1 << NamedQueues.WINDOW_BITS) - 1


class End:
    """A process that has the queue open. ``client`` tells it from all others, over all starts of the broker."""

    __slots__ = ("client", "gets", "held", "items", "kept", "ticket")

    def __init__(self, client: bytes) -> None:
        self.client = client
        #: It gets items, and the record that says so.
        self.gets = False
        self.ticket = 0
        #: What it was handed and has not accepted, by the number of the first item; and how many items that is.
        self.held: dict[int, Span] = {}
        self.items = 0
        #: How many of them are with their users, as far as it has said so.
        self.kept = 0

    def spare(self) -> int:
        """Items that wait there for their user."""
        return max(0, self.items - self.kept)

    def give(self, spans: Iterable[Span]) -> None:
        """It has these."""
        for span in spans:
            self.held[span.number] = span
            self.items += len(span)

    def take(self, rows: Rows) -> tuple[list[Span], bool]:
        """These items are with it no more; those that were, and whether all of them were."""
        taken: list[Span] = []
        complete = True
        for first, count in rows:
            while count:
                span = self._begin(first)
                if span is None:
                    # Step by step: what follows may be there.
                    first, count, complete = first + 1, count - 1, False
                    continue
                head = span if count >= len(span) else span.cut(count)
                if head is not span:
                    self.held[span.number] = span
                taken.append(head)
                first, count = first + len(head), count - len(head)
        self.items -= sum(map(len, taken))
        return taken, complete

    def _begin(self, first: int) -> Span | None:
        """The span that begins with this item, taken out."""
        span = self.held.pop(first, None)
        if span is not None:
            return span
        for number, each in self.held.items():
            if number < first < number + len(each):
                del self.held[number]
                self.held[number] = each.cut(first - number)
                return each
        return None


class NamedQueue(Machine):
    """See the module, and :class:`multihost_common.shared.NamedQueues`.

    An item is on the disk before anybody is told that it was put, or handed it, and until somebody has accepted it. Who
    gets items is on the disk, too: after a start of the broker nothing is handed out until all of them have said what they
    have accepted meanwhile, or :meth:`give_up` says that they will not come back.
    """

    kind = QUEUE

    def __init__(self, title: str, maxsize: int, ticket: int, shelf: Shelf) -> None:
        #: Its name, and the ticket of the record that says that there is such a queue.
        self.title = title
        self.maxsize = maxsize
        self.ticket = ticket
        self.shelf = shelf
        shelf.stirred = self._settle
        self._scribe = shelf.scribe
        self.ends: dict[Party, End] = {}
        self._parties: dict[bytes, Party] = {}
        #: Who got items at an earlier start of the broker and has not been heard of since: its record.
        self.expected: dict[bytes, int] = {}
        self.recall = Recall()
        self.getters: deque[Request] = deque()
        self.putters: deque[Request] = deque()
        self.joiners: dict[Request, None] = {}
        self.watchers: dict[Request, None] = {}
        #: Requests that are answered when something is durable.
        self._late: dict[Request, None] = {}
        self._settling = False
        self._does: dict[int, Callable[[Request, End], None]] = {
            NamedQueues.PUT: self._put,
            NamedQueues.GET: self._get,
            NamedQueues.TAKEN: self._taken,
            NamedQueues.GIVE_BACK: self._give_back,
            NamedQueues.LISTEN: self._listen,
            NamedQueues.SIZE: self._size,
            NamedQueues.JOIN: self._join,
            NamedQueues.WATCH: self._watch,
            NamedQueues.PURGE: self._purge,
        }

    def act(self, request: Request) -> None:
        """See :class:`multihost_common.shared.NamedQueues`."""
        does = self._does.get(request.op)
        end = self.ends.get(request.party)
        try:
            if request.op == m.OPEN:
                self._open(request)
            elif does is None:
                request.refuse("a named queue knows no such operation")
            elif end is None:
                # A broker that was started meanwhile does not know it: it opens the queue anew.
                request.done(status=m.UNKNOWN)
            elif not request.number and request.op != NamedQueues.GIVE_BACK:
                request.refuse("what may have to wait has a number")
            else:
                does(request, end)
        except (ValueError, IndexError) as error:
            request.refuse(str(error))

    def size(self) -> int:
        """Bytes of items that are in memory."""
        return self.shelf.loaded

    def items(self) -> int:
        """How many items there are that no user has, as far as is known."""
        return self.shelf.count + sum(end.spare() for end in self.ends.values())

    def _when_durable(self, request: Request, amount: int = 0, frames: Sequence[bytes] = ()) -> None:
        """Answer it once all that was written by now is durable."""
        request.waits = True
        self._late[request] = None
        self._scribe.follow(partial(self._answer_late, request, amount, frames))

    def _answer_late(self, request: Request, amount: int, frames: Sequence[bytes] = ()) -> None:
        if request in self._late:
            del self._late[request]
            request.done(amount, frames)

    # -- opening -------------------------------------------------------------------------------------

    def _open(self, request: Request) -> None:
        client, numbers, accepted, kept = (bytes(frame) for frame in request.frames[1:5])
        if len(client) != CLIENT or not request.number:
            raise ValueError("an end of a queue has a name of 16 bytes")
        maxsize, ticket = unpack_pair(numbers)
        accepted_rows, kept_rows = unpack_items(accepted), unpack_items(kept)
        if ticket and ticket != self.ticket:
            request.done(status=m.UNKNOWN)
            return
        if maxsize and maxsize != self.maxsize:
            raise ValueError(f"queue {self.title!r} has room for {self.maxsize or 'any number of'} items")
        for party in {request.party, self._parties.get(client, request.party)}:
            self._part(party)
        end = self.ends[request.party] = End(client)
        self._parties[client] = request.party
        sender = self.shelf.senders.get(client)
        if sender is not None:
            sender.reopened()
        self.shelf.accept(accepted_rows)
        if kept_rows:
            spans = self.shelf.pick(first + at for first, count in kept_rows for at in range(count))
            end.give(spans)
            end.kept = end.items
        end.ticket = self.expected.pop(client, 0)
        if request.amount & 1:
            end.gets = True
            if not end.ticket:
                # Durable before it is handed anything.
                end.ticket = self._scribe.write(Record(CONSUMER, self.shelf.queue, client), essential=True)
        self._when_durable(request, self.ticket, (self.maxsize.to_bytes(8, "little"),))
        self._settle()

    # -- putting -------------------------------------------------------------------------------------

    def _put(self, request: Request, end: End) -> None:
        count = count_of(request.frames)
        if count > MOST_AT_ONCE or (self.maxsize and count > 1):
            raise ValueError(f"a queue takes {1 if self.maxsize else MOST_AT_ONCE} items at a time")
        if not request.amount:
            raise ValueError("PUTs are numbered from 1 on")
        if not self.putters and (self._room() or request.amount <= self.shelf.sender(end.client).written):
            self._take_in(request, end)
        elif request.now and self.maxsize and self._full():
            request.busy()
        else:
            request.waits = True
            self.putters.append(request)

    def _full(self) -> bool:
        return 0 < self.maxsize <= self.items() + self.shelf.unsynced

    def _room(self) -> bool:
        return self.shelf.unsynced_bytes < UNSYNCED and not self._full()

    def _take_in(self, request: Request, end: End) -> None:
        request.waits = request.settled = True
        self._late[request] = None
        count = len(request.frames[0]) // 4
        self.shelf.put(end.client, request.amount, request.frames, count, partial(self._was_put, request))

    def _was_put(self, request: Request, stored: bool) -> None:
        self._answer_late(request, 0 if stored else NamedQueues.REFUSED)
        self._settle()

    # -- getting -------------------------------------------------------------------------------------

    def _get(self, request: Request, end: End) -> None:
        if not end.gets:
            request.done(status=m.UNKNOWN)
            return
        end.kept = request.amount >> NamedQueues.WINDOW_BITS
        request.waits = True
        self.getters.append(request)
        self._settle()
        if request.waits and request.now and not self.shelf.count:
            self.recall.tell_others({request.party})

    def _hand(self, request: Request, end: End) -> None:
        left = max(1, request.amount & _WINDOW)
        others = sum(1 for each in self.ends.values() if each.gets) - 1
        if others:
            left = max(1, min(left, self.shelf.count // (2 * (others + 1))))
        spans = self.shelf.cut(left, BATCH)
        end.give(spans)
        end.kept += 1
        table = rows_of(span.number + at for span in spans for at in range(len(span)))
        request.done(0, [*joined(spans), table])
        self.shelf.handed(spans)

    def _taken(self, request: Request, end: End) -> None:
        rows = unpack_items(request.frames[0])
        _, complete = end.take(rows)
        end.kept = request.amount
        self.shelf.accept(rows, held=complete)
        self._when_durable(request)
        self._settle()

    # -- giving back ---------------------------------------------------------------------------------

    def _listen(self, request: Request, end: End) -> None:
        if not end.gets or self.recall.request_of(request.party) is not None:
            raise ValueError("only who gets items listens, once")
        others = any(getter.party != request.party for getter in self.getters)
        self.recall.listen(request, end, wanted=others)

    def _give_back(self, request: Request, end: End) -> None:
        spans, _ = end.take(unpack_items(request.frames[0]))
        end.kept = request.amount
        self.shelf.put_back(spans)
        request.done()
        self._settle()

    # -- the rest ------------------------------------------------------------------------------------

    def _size(self, request: Request, end: End) -> None:
        end.kept = request.amount
        request.done(self.items())

    def _join(self, request: Request, end: End) -> None:
        request.waits = True
        self.joiners[request] = None
        self._settle()

    def _watch(self, request: Request, end: End) -> None:
        request.waits = True
        self.watchers[request] = None

    def _purge(self, request: Request, end: End) -> None:
        self._when_durable(request, self.purge())
        self._settle()

    def purge(self) -> int:
        """Items that nobody has are no more; how many they were."""
        count = self.shelf.purge()
        self._settle()
        return count

    # -- who goes ------------------------------------------------------------------------------------

    def withdraw(self, request: Request) -> None:
        """Nobody waits for the answer any more."""
        self.recall.withdraw(request)
        for each in (self.joiners, self.watchers, self._late):
            each.pop(request, None)
        for waiting in (self.getters, self.putters):
            if request in waiting:
                waiting.remove(request)

    def depart(self, party: Party) -> None:
        """What the process had, and has not accepted, is for others."""
        self._part(party)
        self._settle()

    def _part(self, party: Party) -> None:
        end = self.ends.pop(party, None)
        if end is None:
            return
        self._parties.pop(end.client, None)
        late = [each for each in self._late if each.party == party]
        waiting = [*self.getters, *self.putters, *self.joiners, *self.watchers, *late]
        listen = self.recall.request_of(party)
        if listen is not None:
            waiting.append(listen)
        for request in waiting:
            if request.party == party:
                # It opens the queue anew, and has heard that these will not be answered.
                self.withdraw(request)
                request.done(status=m.UNKNOWN)
        self.shelf.put_back(end.held.values())
        if end.ticket:
            self._scribe.write(Erase((end.ticket,)), essential=True)

    def give_up(self) -> None:
        """Who has not come back by now will not."""
        tickets, self.expected = tuple(self.expected.values()), {}
        if tickets:
            self._scribe.write(Erase(tickets), essential=True)
            self._settle()

    def clients(self) -> list[bytes]:
        """The ends that are here."""
        return list(self._parties)

    # -- who waits -----------------------------------------------------------------------------------

    def _settle(self) -> None:
        """Something has changed: answer everybody whose turn it is."""
        if self._settling:
            # It is being looked at.
            return
        self._settling = True
        try:
            self._serve()
        finally:
            self._settling = False

    def _serve(self) -> None:
        shelf = self.shelf
        while not shelf.gone:
            while self.getters and shelf.count and not self.expected and shelf.available():
                request = self.getters.popleft()
                self._hand(request, self.ends[request.party])
            if not self.putters or not self._room():
                break
            request = self.putters.popleft()
            self._take_in(request, self.ends[request.party])
        if not shelf.count:
            for request in [each for each in self.getters if each.now]:
                self.getters.remove(request)
                request.busy()
        if self.getters and self.recall.listening and not shelf.count:
            self.recall.tell_others({request.party for request in self.getters})
        if not shelf.left and not shelf.unsynced:
            while self.joiners:
                self.joiners.popitem()[0].done()


__all__ = ["UNSYNCED", "End", "NamedQueue"]
