"""One process's end of a queue that has a name: how it is opened, and opened anew after a broker was lost.

Whatever is under way when a broker is lost is begun again with the next one: the queue is opened anew, which says what was
accepted and what is with users here; puts that were not confirmed are sent again, with their numbers; and who waits for an
item asks again.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from multihost.engines.choosing import THROUGH_AGENT, get_sharing, resolve_address
from multihost_common import messages as m
from multihost_common.errors import BrokerLostError, ConfigError, HandshakeError, MultihostError
from multihost_common.named import CLIENT, object_of, rows_of
from multihost_common.shared import NamedQueues
from multihost_common.tables import pack_rows

if TYPE_CHECKING:
    from multihost.engines.sharing import Ask, Sharing
    from multihost_common.blocks import Frame

#: Seconds between two attempts to open a queue anew, and those after which a child of a worker gives up: who it works for
#: has to be known to the new broker first.
RETRY = 0.1
PATIENCE = 60.0

#: Seconds after which a put is tried again that the broker's disk had no room for.
PAUSE = 1.0


class NamedBase:
    """See the module. ``title``: the queue's name; ``maxsize``: that it is made with.

    ``_lock`` is held for moments only, never while anything is waited for: who runs the loop takes it, too.
    """

    def __init__(self, title: str, maxsize: int) -> None:
        self.title = title
        self.name = object_of(title)
        self._wanted = maxsize
        self.address = resolve_address(None)
        #: Queue objects of this process that mean it, but for closed ones.
        self.users = 0
        self.reset()

    def reset(self) -> None:
        """Begin anew: also in a forked process, where what there was is the parent's."""
        #: What tells this end from all others, over all brokers.
        self.client = os.urandom(CLIENT)
        self.maxsize = self._wanted
        self.closed = False
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._opening = threading.Lock()
        self._sharing: Sharing | None = None
        #: It is open. How often it was opened: answers to what was asked before that do not count.
        self._up = False
        self._turn = 0
        self._ticket = 0
        #: This process gets items.
        self._gets = False
        self._failure: BaseException | None = None
        self._recovering = False

    @property
    def alive(self) -> bool:
        """Can it be used, with the broker that there is now?"""
        usable = self._sharing is None or self._sharing.usable or self.address == THROUGH_AGENT
        return usable and self._failure is None and self.address == resolve_address(None)

    # -- for subclasses --------------------------------------------------------------------------------

    def _state(self) -> tuple[Sequence[int], Sequence[int]]:
        """Items that were accepted, as far as that is not known to be durable, and those that are with users."""
        return (), ()

    def _reopened(self, accepted: Sequence[int]) -> None:
        """The queue is open, and these are known to be accepted. The lock is held."""

    def _parted(self) -> None:
        """What was asked will not be answered. The lock is held."""

    def _recovered(self) -> None:
        """The queue is open again."""

    def _failed(self) -> None:
        """The queue cannot be used any more. The lock is held."""

    # -- opening ---------------------------------------------------------------------------------------

    def ensure(self) -> None:
        """Have the queue open. Raises ConfigError where there is no broker, BrokerLostError, ValueError if the queue has
        another ``maxsize``."""
        with self._opening:
            if not self._up:
                self._check()
                self._open()

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _open(self) -> None:
        """Open it, also once more. ``_opening`` is held."""
        sharing = get_sharing(self.address)
        with self._lock:
            self._up = False
            self._turn += 1
            self._parted()
            turn = self._turn
            accepted, kept = self._state()
            numbers = pack_rows([(self._wanted, self._ticket)])
            frames = [self.title.encode(), self.client, numbers, rows_of(accepted), rows_of(kept)]
            ask = sharing.begin(self.name, m.OPEN, int(self._gets), frames)
        sharing.wait(ask)
        if not ask.done:
            sharing.check()
        self._understand(ask)
        with self._lock:
            self._sharing = sharing
            self._ticket = ask.amount
            self.maxsize = int.from_bytes(ask.frames[0], "little")
            self._up = True
            sharing.begin(self.name, NamedQueues.WATCH, then=partial(self._watched, turn))
            self._reopened(accepted)
            self._changed.notify_all()

    def _understand(self, ask: Ask) -> None:
        if ask.error is None and ask.status == m.UNKNOWN:
            raise _GoneError(
                f"queue {self.title!r} is no more: it was deleted, or its broker keeps nothing on disk"
            )
        if ask.status == m.FORBIDDEN:
            raise (ConfigError if "MULTIHOST_BROKER" in ask.text else ValueError)(ask.text)
        ask.result()

    # -- losing it -------------------------------------------------------------------------------------

    def _watched(self, turn: int, ask: Ask) -> None:
        if ask.error is not None or ask.status == m.UNKNOWN:
            self.lost(turn)

    def lost(self, turn: int, pause: float = 0.0) -> None:
        """What was asked since it was opened for the ``turn``-th time will not be answered: open it anew."""
        with self._lock:
            if turn != self._turn or not self._up or self.closed:
                return
            self._up = False
            self._parted()
            if self._recovering:
                return
            self._recovering = True
            thread = threading.Thread(
                target=self._recover, args=(pause,), name="multihost-named", daemon=True
            )
            try:
                thread.start()
            except RuntimeError:
                # The interpreter is about to end.
                self._recovering = False

    def _recover(self, pause: float) -> None:
        until = time.monotonic() + PATIENCE
        while True:
            time.sleep(pause)
            try:
                self._check_engine()
                self.ensure()
            except _GoneError as error:
                self.fail(error)
            except (BrokerLostError, HandshakeError) as error:
                if self._may_try_again(until):
                    pause = RETRY
                    continue
                self.fail(error)
            except Exception as error:  # noqa: BLE001
                self.fail(error)
            with self._lock:
                if self._up or self._failure is not None:
                    self._recovering = False
                    break
        self._recovered()

    def _check_engine(self) -> None:
        """Raises what has ended the engine; in a child of a worker there will be another one."""
        if self._sharing is not None and self.address != THROUGH_AGENT:
            self._sharing.check()

    def _may_try_again(self, until: float) -> bool:
        if self.address == THROUGH_AGENT:
            return time.monotonic() < until
        return self._sharing is None or self._sharing.usable

    def fail(self, error: BaseException) -> None:
        """The queue cannot be used any more."""
        with self._lock:
            if self._failure is None:
                self._failure = error
                self._up = False
                self._parted()
                self._failed()
                self._changed.notify_all()

    # -- using it --------------------------------------------------------------------------------------

    def await_up(self, until: float | None = None) -> bool:
        """Wait until the queue is open. False: it is not ``until`` then. Raises what it cannot be opened for."""
        with self._lock:
            # It was not used before, or this process was forked.
            fresh = not (self._up or self._recovering or self._failure is not None)
        if fresh:
            self.ensure()
        with self._changed:
            left = None if until is None else max(0.0, until - time.monotonic())
            met = self._changed.wait_for(lambda: self._up or self._failure is not None, left)
            self._check()
            return met

    def wait(self, ask: Ask, turn: int, until: float | None = None) -> bool:
        """Wait for this answer. False: there is none ``until`` then, or there will be none, and the queue is to be opened
        anew first."""
        sharing = self._sharing
        if sharing is None:
            # This process was forked.
            return False
        left = None if until is None else max(0.0, until - time.monotonic())
        if not sharing.wait(ask, left) and not sharing.usable:
            with suppress(BrokerLostError):
                sharing.check()
        if not ask.done or (ask.error is None and ask.status != m.UNKNOWN):
            return ask.done
        self.lost(turn)
        return False

    def call(self, op: int, amount: int = 0, frames: Sequence[Frame] = ()) -> Ask:
        """Ask, wait for the answer, and ask again after a broker was lost."""
        while True:
            self.await_up()
            with self._lock:
                sharing, turn = self._sharing, self._turn
                if not self._up or sharing is None:
                    continue
                try:
                    ask = sharing.begin(self.name, op, amount, frames)
                except MultihostError:
                    self.lost(turn)
                    continue
            if self.wait(ask, turn):
                answer = ask.result()
                assert answer is not None
                return answer

    def delete(self) -> None:
        """The queue and its items are no more."""
        self.call(m.DELETE)
        self.fail(_GoneError(f"queue {self.title!r} is no more: it was deleted"))


class _GoneError(BrokerLostError):
    """The queue is no more."""


def check_broker() -> None:
    """Raises ConfigError where there is no broker."""
    if not resolve_address(None):
        raise ConfigError("a named queue needs a broker: start one and set MULTIHOST_BROKER")


__all__ = ["PAUSE", "NamedBase", "check_broker"]
