"""What is said with a broker about a detached job, as machines without I/O: they are told messages and the time, and
answer messages.

An exchange outlives connections: after each Welcome it begins anew, and all that it says can be said twice.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from multihost_common.errors import JobError
from multihost_common.messages import Answer, Ask, Denied, Message, Refused


class Exchange:
    """Base of all exchanges. Its owner sends what the methods answer, in order."""

    def __init__(self) -> None:
        #: All that was wanted has been said.
        self.over = False
        #: When :meth:`tick` has something to say; seconds of the clock that ``now`` is of. None: never.
        self.due: float | None = None
        #: Why it has to wait, in a sentence, since the broker has said so.
        self.complaint = ""

    def begin(self) -> Sequence[Message]:
        """To be said over a new connection, and again after each wait."""
        raise NotImplementedError

    def take(self, message: Message, now: float) -> Sequence[Message]:
        """The broker has said this. Raises JobError if what is wanted will not be done."""
        raise NotImplementedError

    def tick(self, now: float) -> Sequence[Message]:
        """It is ``now``: what has been waited for is tried again."""
        if self.due is None or now < self.due:
            return ()
        self.due = None
        return self.begin()

    def _refused(self, message: Message) -> None:
        """Raise JobError if that is what the broker says: it did not take what was said, and would not the next time."""
        if type(message) is Refused:
            raise JobError(f"the broker does not take the job: {message.text}")

    def _denied(self, denied: Denied, now: float) -> None:
        if not denied.after:
            raise JobError(denied.text)
        self.complaint = denied.text
        self.due = now + denied.after


class Order(Exchange):
    """One question or order of an operator's: ``what``, ``about`` something (see Ask)."""

    def __init__(self, what: str, about: str = "") -> None:
        super().__init__()
        self._ask = Ask(what, about)
        #: What the broker answered.
        self.answer: dict[str, Any] = {}

    def begin(self) -> Sequence[Message]:
        """The question."""
        return (self._ask,)

    def take(self, message: Message, now: float) -> Sequence[Message]:
        """The answer. Raises JobError if the broker refuses."""
        if type(message) is Answer:
            self.answer = json.loads(bytes(message.frames[0]))
            self.over = True
        elif type(message) is Refused:
            raise JobError(message.text)
        return ()
