"""What the objects that processes share have in common: a name at the broker, which is what travels.

An object lives as long as the process that made it, or, if it never left that process, as long as somebody there
refers to it.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from multihost.engines.choosing import get_sharing, resolve_address
from multihost.engines.sharing import Ask, Sharing
from multihost_common import messages as m

if TYPE_CHECKING:
    from multihost_common.blocks import Frame

#: So many times, and bytes, something may be told before it is asked whether all of that has arrived.
TELL_COUNT, TELL_BYTES = 256, 1 << 20


class Shared:
    """A handle of one object. It pickles as its name, and asks the broker of the process that unpickles it."""

    def __init__(self, name: bytes, address: str | None = None) -> None:
        self.name = name
        #: Where it was made; None: the broker of this process.
        self._address = address
        self._end: weakref.finalize[Any, Any] | None = None
        self._told = 0

    @classmethod
    def make(cls, kind: int, amount: int = 0, frames: Sequence[Frame] = ()) -> Shared:
        """A new object. Raises ValueError for what makes none of this kind."""
        address = resolve_address(None)
        sharing = get_sharing(address)
        name = sharing.make(kind, amount, frames)
        shared = cls(name, address)
        shared._end = weakref.finalize(shared, sharing.tell_later, name, m.CLOSE)
        shared._end.atexit = False
        return shared

    def __reduce__(self) -> tuple[Any, ...]:
        # From now on others may have it, and nobody knows for how long.
        if self._end is not None:
            self._end.detach()
        return Shared, (self.name,)

    @property
    def sharing(self) -> Sharing:
        """The way to its broker; another one after a fork."""
        return get_sharing(self._address)

    def ask(
        self,
        op: int,
        amount: int = 0,
        frames: Sequence[Frame] = (),
        *,
        now: bool = False,
        timeout: float | None = None,
        undo: Callable[[Sharing, Ask], None] | None = None,
    ) -> Ask | None:
        """Ask and wait; None: it was not done within ``timeout`` seconds, or at once (``now``). ``undo`` is called if
        the wait was broken off and it was done nevertheless, see :meth:`Sharing.finish`."""
        sharing = self.sharing
        now = now or (timeout is not None and timeout <= 0)
        ask = sharing.begin(self.name, op, amount, frames, now=now, kick=False)
        return sharing.finish(ask, None if now else timeout, partial(undo, sharing) if undo else None)

    def number(self, op: int, amount: int = 0) -> int:
        """Ask for what is answered without waiting; the amount that the answer has."""
        ask = self.ask(op, amount)
        return 0 if ask is None else ask.amount

    def tell(self, op: int, amount: int = 0, frames: Sequence[Frame] = ()) -> None:
        """Have something done that needs no answer. Now and then one is waited for, so that what is under way is bounded."""
        self._told += TELL_BYTES // TELL_COUNT + sum(map(len, frames))
        if self._told < TELL_BYTES:
            self.sharing.tell(self.name, op, amount, frames)
        else:
            self._told = 0
            self.ask(op, amount, frames)


__all__ = ["Shared"]
