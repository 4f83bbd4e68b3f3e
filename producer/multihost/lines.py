"""One process's end of a queue: what it has put and not yet sent, what it has got early and not yet used.

All of a process's :class:`~multihost.queues.Queue` objects that mean the same queue share one :class:`Line`. It is one
consumer to the broker, and one producer: several threads that wait for an item share one request.

    put() -> buffer -> feeder thread, or put() itself when puts come seldom -> PUT
    GET -> items -> get()
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from queue import Empty
from typing import TYPE_CHECKING, Any

from multihost.reduction import BATCH_BYTES, dump_function, dump_item, dump_many
from multihost.sharing import Ask, get_sharing
from multihost_common import messages as m
from multihost_common.blocks import Frame, pack_lengths, unpack_lengths
from multihost_common.shared import Queues

if TYPE_CHECKING:
    from multihost.sharing import Sharing

if sys.version_info >= (3, 13):
    from queue import ShutDown
else:

    class ShutDown(Exception):  # noqa: N818 - its name in Python 3.13
        """Raised by ``put`` and ``get`` of a queue that was shut down."""


#: An item as it came: its pickle, or that and its out-of-band buffers.
Piece = bytes | tuple[Frame, ...]

#: Bytes that the pickle of an item and its buffers may have together.
MAX_ITEM = 256 << 20

#: Buffers of one item that travel out of band: with more it travels as one pickle.
MAX_BUFFERS = m.MAX_FRAMES - 2

#: Items, and messages without an answer, that are put at once.
MOST_PUT = 16_384
DEPTH = 4

#: Seconds between two puts: if it is longer, the second one is not left to the feeder.
SELDOM = 0.0002

#: Items got at once are about as many as are used within so many seconds, and at most MOST.
AHEAD = 0.005
MOST = 1024

#: An item that is used within so many seconds is used fast. After so many of them some are got at once.
FAST = 0.001
SIGNS = 8

#: Seconds between two reports of what is taken while items are used fast.
REPORT = 0.002

#: Seconds that who only looks waits for a feeder, which may be waiting for room.
LOOK = 0.2

#: Seconds without a broker after which a process that ends does not wait for one.
PATIENCE = 5.0

#: Seconds that a thread of ours waits for something to do before it ends.
IDLE = 0.5

_WINDOW = (1 << Queues.WINDOW_BITS) - 1


class Line:
    """See the module. ``bounded``: the queue has a ``maxsize``."""

    def __init__(self, name: bytes, bounded: bool) -> None:
        self.name = name
        self.bounded = bounded
        #: Queue objects of this process, but for closed ones.
        self.users = 0
        #: Another process may have it, too; this process made it.
        self.shared = False
        self.made = False
        self.reset()

    def reset(self) -> None:
        """Begin anew: also in a forked process, where what was got early and not yet sent is the parent's."""
        self._sharing: Sharing | None = None
        self._lock = threading.RLock()
        # Getting.
        self.items: deque[Piece] = deque()
        #: The number after that of the last item in ``items``; all below ``_told`` are known to be taken.
        self._end = 0
        self._told = 0
        #: Somebody has to say so when an item is taken: the reporter does not.
        self.quiet = True
        self._asking = threading.Lock()
        self._ask: Ask | None = None
        self._waiting = 0
        self._listen: Ask | None = None
        self._pace = Pace()
        # Putting.
        self.buffer: deque[Any] = deque()
        self.shut = False
        self.cancelled = False
        self.onerror: Callable[[Exception, Any], object] = _ignore
        self._packing = 0
        self._outstanding: deque[Ask] = deque()
        self._failure: BaseException | None = None
        self._feeding = threading.RLock()
        self._put_at = 0.0
        self._feeder: threading.Thread | None = None
        self._asleep = False
        self._news = threading.Event()

    @property
    def sharing(self) -> Sharing:
        """The way to the broker."""
        sharing = self._sharing
        if sharing is None:
            sharing = self._sharing = get_sharing()
            _flush_at_exit(sharing)
        return sharing

    # -- getting -------------------------------------------------------------------------------------

    def get(self, block: bool, timeout: float | None) -> Piece:
        """The next item, asked for if there is none. Raises Empty, ShutDown, BrokerLostError."""
        deadline = None if timeout is None else time.monotonic() + max(0.0, timeout)
        if timeout is not None and timeout <= 0:
            block = False
        if not block and (self.buffer or self._packing):
            # What this process put is there when it asks.
            self.flush(LOOK)
        while True:
            with self._asking:
                if self.items:
                    piece = self._pop()
                    if piece is not None:
                        return piece
                ask = self._ask
                if ask is None:
                    ask = self._ask = self._begin_get(now=not block)
                elif not block and not ask.done:
                    # Another thread waits, so there is none.
                    raise Empty
                self._waiting += 1
            self._wait(ask, block, deadline)

    def _pop(self) -> Piece | None:
        try:
            piece = self.items.popleft()
        except IndexError:
            # Another thread was faster.
            return None
        if self.quiet:
            self.stir()
        return piece

    def _wait(self, ask: Ask, block: bool, deadline: float | None) -> None:
        """Wait for this answer, of which :meth:`get` then finds the items. Raises what there is to raise."""
        try:
            left = None if deadline is None or not block else max(0.0, deadline - time.monotonic())
            self.sharing.wait(ask, left)
        finally:
            self._leave(ask)
        answer = ask.result() if ask.done else None
        if self.items:
            return
        if answer is not None and not answer.frames:
            raise ShutDown
        if not block or (deadline is not None and time.monotonic() >= deadline):
            raise Empty

    def _leave(self, ask: Ask) -> None:
        """This thread does not wait any more; the last one takes the request back."""
        with self._asking:
            self._waiting -= 1
            if not ask.done and not self._waiting:
                self.sharing.withdraw(ask)
                self.sharing.wait(ask)
            if self._ask is ask and (ask.done or not self._waiting):
                self._ask = None

    def _begin_get(self, now: bool) -> Ask:
        window = self._pace.window()
        if window > 1 and self._listen is None:
            self._listen = self.sharing.begin(self.name, Queues.LISTEN, then=self._recalled)
        amount = self._taken() << Queues.WINDOW_BITS | window
        return self.sharing.begin(self.name, Queues.GET, amount, now=now, then=self._arrived)

    def _taken(self) -> int:
        """The number of the first item that is not with its user; it is about to be told."""
        with self._lock:
            self._told = self._end - len(self.items)
            return self._told

    def _arrived(self, ask: Ask) -> None:
        if ask.status == m.GRANTED and ask.error is None and ask.frames:
            pieces = _split(ask.frames)
            with self._lock:
                self.items.extend(pieces)
                self._end = ask.amount + len(pieces)
            self._pace.arrived(len(pieces))
            if not self.bounded and (len(pieces) > 1 or self._pace.fast()):
                self.quiet = False
                _reporter.watch(self)

    def _recalled(self, ask: Ask) -> None:
        """Another process waits for what is here early."""
        self._listen = None
        if ask.status == m.GRANTED and ask.error is None:
            self.give_back()

    def give_back(self) -> None:
        """Whatever was got early goes back."""
        with self._lock:
            count = 0
            while self.items:
                try:
                    self.items.pop()
                except IndexError:
                    break
                count += 1
            self._end -= count
            first = self._end
        self._pace.rest()
        if count:
            self.sharing.tell(self.name, Queues.GIVE_BACK, first << Queues.WINDOW_BITS | count)

    def stir(self) -> None:
        """An item was taken, and nobody would report it soon."""
        self.report()
        if not self.bounded and self.items:
            self.quiet = False
            _reporter.watch(self)

    def report(self) -> bool:
        """Say what was taken, if that is not known. False: it is."""
        # Held until it is said: the reporter may have just begun to, and this process may be about to end.
        with self._lock:
            taken = self._end - len(self.items)
            if taken == self._told:
                return False
            self._told = taken
            if self._sharing is not None:
                self._sharing.tell(self.name, Queues.TAKEN, taken)
        return True

    def size(self) -> int:
        """How many items there are, those included that this process has not sent yet."""
        # Not while the feeder is between the two.
        held = self._feeding.acquire(timeout=LOOK)
        try:
            unsent = len(self.buffer) + self._packing
            ask = self.sharing.begin(self.name, Queues.SIZE, self._taken())
        finally:
            if held:
                self._feeding.release()
        answer = self.sharing.finish(ask)
        return unsent + (answer.amount if answer is not None else 0)

    # -- putting -------------------------------------------------------------------------------------

    def put(self, obj: Any) -> None:
        """Have it sent: at once if puts come seldom, else soon, and together with others."""
        if self.shut:
            raise ShutDown
        if self._failure is not None:
            raise self._failure
        self.buffer.append(obj)
        now = time.monotonic()
        seldom, self._put_at = now - self._put_at > SELDOM, now
        if seldom and len(self.buffer) == 1 and self._feeding.acquire(blocking=False):
            try:
                self._pump(until=now)
            finally:
                self._feeding.release()
        if self.buffer:
            if self._asleep:
                self._news.set()
            elif self._feeder is None:
                self._start_feeder()

    def post(self, frames: Sequence[Frame]) -> None:
        """Send an item, waiting only while several are on their way."""
        with self._feeding:
            if self.shut:
                raise ShutDown
            self._make_way()
            if self._failure is not None:
                raise self._failure
            self._begin_put(frames)

    def flush(self, timeout: float | None = None) -> bool:
        """Send what is to be sent, and wait until the broker has it. False: it was not within ``timeout`` seconds."""
        deadline = None if timeout is None else time.monotonic() + timeout
        if not self._feeding.acquire(timeout=-1 if timeout is None else timeout):
            return False
        try:
            self._pump(deadline)
            while self._outstanding:
                left = None if deadline is None else max(0.0, deadline - time.monotonic())
                if not self.sharing.wait(self._outstanding[0], left):
                    return False
                self._outstanding.popleft()
        finally:
            self._feeding.release()
        return True

    def _pump(self, until: float | None = None) -> None:
        """Send what is in the buffer, or as much as there is room for ``until`` then."""
        buffer = self.buffer
        while buffer and self._make_way(until):
            self._packing = count = min(len(buffer), MOST_PUT)
            objs = [buffer.popleft() for _ in range(count)]
            try:
                for frames in pack(objs, self.onerror):
                    self._make_way()
                    self._begin_put(frames)
            finally:
                self._packing = 0

    def _make_way(self, until: float | None = None) -> bool:
        """Wait until another message may be sent. False: none may ``until`` then."""
        outstanding = self._outstanding
        while outstanding and (outstanding[0].done or len(outstanding) >= DEPTH):
            ask = outstanding[0]
            if not ask.done:
                left = None if until is None else max(0.0, until - time.monotonic())
                if not self.sharing.wait(ask, left):
                    if until is None:
                        # The engine has ended: the next request says how.
                        outstanding.clear()
                    return until is None
            if outstanding and outstanding[0] is ask:
                outstanding.popleft()
        return True

    def _begin_put(self, frames: Sequence[Frame]) -> None:
        self._outstanding.append(
            self.sharing.begin(self.name, Queues.PUT, frames=frames, then=self._put_answered)
        )

    def _put_answered(self, ask: Ask) -> None:
        if ask.error is not None:
            self._failure = ask.error
        elif ask.status != m.GRANTED:
            try:
                ask.result()
            except Exception as error:  # noqa: BLE001
                self._failure = error
        elif ask.amount == Queues.SHUT:
            self.shut = True

    def _start_feeder(self) -> None:
        with self._lock:
            if self._feeder is None:
                self._feeder = threading.Thread(target=self._feed, name="QueueFeederThread", daemon=True)
                self._feeder.start()

    def _feed(self) -> None:
        while True:
            try:
                with self._feeding:
                    self._pump()
                if not self.users:
                    self.flush()
            except Exception as error:  # noqa: BLE001
                self._failure = error
                self.buffer.clear()
            self._asleep = True
            # In this order: who puts something looks first whether this thread sleeps.
            idle = not self.buffer and (not self.users or not self._news.wait(IDLE))
            self._asleep = False
            self._news.clear()
            if idle and not self.buffer:
                break
        self._feeder = None
        if self.buffer:
            self._start_feeder()
        elif not self.users:
            self._close()

    # -- the end -------------------------------------------------------------------------------------

    def retire(self) -> None:
        """No Queue object of this process means it any more. Neither waits nor raises."""
        if self.buffer or self._packing or any(not ask.done for ask in list(self._outstanding)):
            # First what was put.
            self._news.set()
            if self._feeder is None:
                self._start_feeder()
            return
        self._close()

    def _close(self) -> None:
        sharing, listen = self._sharing, self._listen
        if sharing is None:
            if self.made and not self.shared:
                get_sharing().tell_later(self.name, m.CLOSE)
            return
        with self._lock:
            taken = self._end - len(self.items)
            count = len(self.items)
            self._told = taken
            self.items.clear()
            self._end = 0
        if listen is not None:
            sharing.tell_later(b"", m.WITHDRAW, listen.number)
        if taken:
            sharing.tell_later(self.name, Queues.TAKEN, taken)
        if not (self.made and self.shared):
            sharing.tell_later(self.name, m.CLOSE)
        elif count:
            # To close it would be the end of it for the others, too.
            sharing.tell_later(self.name, Queues.GIVE_BACK, taken << Queues.WINDOW_BITS | count)

    def finish(self) -> None:
        """The process ends: all that was put is sent, and what was taken is told."""
        sharing = self._sharing
        if sharing is None:
            return
        if self.cancelled:
            self.buffer.clear()
        while not self.cancelled and not self.flush(PATIENCE) and sharing.connected:
            # The queue has no room, and who gets items is slow.
            continue
        taken = self._taken()
        if taken:
            # Whatever the reporter was about to say.
            sharing.wait(sharing.begin(self.name, Queues.TAKEN, taken), PATIENCE)


class Pace:
    """How many items to get at once: as many as their users make use of within a moment."""

    def __init__(self) -> None:
        self._window = 1
        self._fast = 0
        self._got = 0
        self._got_at = 0.0

    def arrived(self, count: int) -> None:
        """So many have come."""
        self._got = count
        self._got_at = time.monotonic()

    def rest(self) -> None:
        """Others want some, too."""
        self._window = 1
        self._got = 0

    def fast(self) -> bool:
        """Are items used so fast that nobody says so each time?"""
        return self._fast >= SIGNS

    def window(self) -> int:
        """All that had come are used: how many to ask for now."""
        got, self._got = self._got, 0
        if got:
            spent = max(1e-6, time.monotonic() - self._got_at)
            self._fast = self._fast + 1 if spent < FAST * got else 0
            if self._fast < SIGNS:
                self._window = 1
            else:
                self._window = max(1, min(2 * self._window, int(AHEAD * got / spent), MOST))
        return self._window


class Reporter:
    """A thread that says what lines have taken, while they are too fast to say it each time."""

    def __init__(self) -> None:
        self._lines: set[Line] = set()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._news = threading.Event()

    def watch(self, line: Line) -> None:
        """Report what this line takes until it takes nothing for a while."""
        self._lines.add(line)
        if self._thread is None:
            with self._lock:
                if self._thread is None:
                    self._thread = threading.Thread(target=self._run, name="multihost-taken", daemon=True)
                    self._thread.start()
        self._news.set()

    def _run(self) -> None:
        while True:
            while self._lines:
                time.sleep(REPORT)
                for line in list(self._lines):
                    if not line.report():
                        self._lines.discard(line)
                        line.quiet = True
                        # It may have taken one just before it could see that.
                        line.report()
            idle = not self._news.wait(IDLE)
            self._news.clear()
            if idle and self._ends():
                return

    def _ends(self) -> bool:
        with self._lock:
            if not self._lines:
                self._thread = None
        return self._thread is None


# -- items, packed ---------------------------------------------------------------------------------------


def pack(objs: Sequence[Any], onerror: Callable[[Exception, Any], object]) -> Iterator[Sequence[Frame]]:
    """Frames of PUTs that bring these objects. What cannot be pickled is left out, and told."""
    objs = list(objs)
    while objs:
        pieces = dump_many(objs, BATCH_BYTES)
        if pieces:
            yield [pack_lengths([len(piece) for piece in pieces]), b"".join(pieces)]
            objs = objs[len(pieces) :]
            continue
        obj = objs.pop(0)
        try:
            frames = pack_one(obj)
        except Exception as error:  # noqa: BLE001
            onerror(error, obj)
        else:
            yield frames


def pack_one(obj: Any) -> Sequence[Frame]:
    """Frames of one object. Raises what pickling it raises, ValueError if it is too large."""
    data, buffers = dump_item(obj)
    if len(buffers) > MAX_BUFFERS:
        data, buffers = dump_function(obj), []
    size = len(data) + sum(map(len, buffers))
    check_size(size)
    return [len(data).to_bytes(4, "little"), data, *buffers]


def check_size(size: int) -> None:
    """Raises ValueError if an item has more bytes than a queue takes."""
    if size > MAX_ITEM:
        raise ValueError(f"an item of {size} bytes is too large for a queue, which takes up to {MAX_ITEM}")


def _split(frames: Sequence[Frame]) -> list[Piece]:
    lengths, data = frames[0], frames[1]
    if len(lengths) == 4:
        if len(frames) == 2:
            return [data if type(data) is bytes else (data,)]
        return [(data, *frames[2:])]
    whole = bytes(data)
    pieces: list[Piece] = []
    begin = 0
    for length in unpack_lengths(lengths):
        end = begin + length
        pieces.append(whole[begin:end])
        begin = end
    return pieces


# -- the lines of this process -----------------------------------------------------------------------------


def open_line(name: bytes, bounded: bool, made: bool = False) -> Line:
    """The line of the queue of this name; its caller calls :func:`close_line` once."""
    with _registry:
        line = _lines.get(name)
        if line is None:
            line = _lines[name] = Line(name, bounded)
        line.users += 1
        line.made = line.made or made
    return line


def close_line(line: Line) -> None:
    """One user less. Also for finalizers."""
    with _registry:
        line.users -= 1
        last = not line.users
    if last:
        line.retire()


def _ignore(error: Exception, obj: Any) -> None:
    """Nobody wants to know."""


def _flush_at_exit(sharing: Sharing) -> None:
    """What was put is sent before this engine ends: what is registered last runs first."""
    if sharing not in _sharings:
        _sharings.add(sharing)
        atexit.register(finish)


def finish() -> None:
    """This process ends: see :meth:`Line.finish`."""
    for line in list(_lines.values()):
        try:
            line.finish()
        except Exception:  # noqa: BLE001, S112
            # Its broker is gone, and so is the queue.
            continue


def _forked() -> None:
    """This process was forked: it has lines of its own."""
    global _registry, _reporter
    _registry = threading.RLock()
    _reporter = Reporter()
    for line in list(_lines.values()):
        line.shared = True
        line.made = False
        line.reset()


_registry = threading.RLock()
_lines: weakref.WeakValueDictionary[bytes, Line] = weakref.WeakValueDictionary()
_sharings: weakref.WeakSet[Sharing] = weakref.WeakSet()
_reporter = Reporter()

os.register_at_fork(after_in_child=_forked)

__all__ = ["Line", "Piece", "ShutDown", "check_size", "close_line", "finish", "open_line", "pack_one"]
