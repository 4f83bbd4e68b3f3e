"""The answers of a detached job on their way out of the journal. No I/O, no clock."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import CancelledError

from multihost.detached.exchange import Exchange
from multihost.failures import Raised, answers
from multihost.sources import Ranges, Sink, fresh_parts
from multihost_common import errors
from multihost_common.errors import JobError
from multihost_common.messages import (
    BROKEN,
    DONE,
    STOPPED,
    Denied,
    Failed,
    Fetch,
    Fetched,
    Message,
    Part,
    Result,
    decode,
)


class Fetching(Exchange):
    """Asks for answers from a cursor on and hands them to a sink, each item's once. It pauses after each round that
    :attr:`patient` or news do not give a reason to go on; then :meth:`begin` asks again."""

    def __init__(self, key: bytes, sink: Sink, timeout: float = 0.0) -> None:
        super().__init__()
        self.key = key
        #: Answers that are not there yet are waited for.
        self.patient = True
        #: After this many bytes of answers it pauses, so that somebody can take them out; 0: never.
        self.pause_bytes = 0
        #: Nothing is asked for.
        self.paused = True
        #: What is known of the job: items in all (0: not yet), answered ones, its state.
        self.count = self.answered = 0
        self.state = ""
        self._sink = sink
        self._timeout = timeout
        self._cursor = 0
        self._known = Ranges()
        self._bytes = self._news = 0

    def begin(self) -> Sequence[Message]:
        """Ask, from the last place that is known for sure. What came behind it comes again."""
        self.due = None
        self.paused = False
        self._bytes = 0
        return (self._ask(),)

    def _ask(self) -> Fetch:
        self._news = 0
        return Fetch(self.key, self._cursor, self.patient)

    def take(self, message: Message, now: float) -> Sequence[Message]:
        """An answer, or that those asked for have come."""
        if type(message) is Part and message.key == self.key:
            self._part(message)
        elif type(message) is Fetched and message.key == self.key:
            return self._fetched(message)
        elif type(message) is Denied and message.key == self.key:
            self._denied(message, now)
        self._refused(message)
        return ()

    def _part(self, part: Part) -> None:
        message = decode(part.frames)
        if not isinstance(message, (Result, Failed)):
            raise JobError(
                f"the broker answered {type(message).__name__} for a result: is it of this version?"
            )
        self._news += 1
        self._bytes += sum(map(len, part.frames))
        values, failed = answers(message, timeout=self._timeout)
        for start, fresh in fresh_parts(self._known, message.start, values):
            self._sink.put(start, fresh, failed, [])

    def _fetched(self, fetched: Fetched) -> Sequence[Message]:
        self._cursor = fetched.cursor
        self.count, self.answered, self.state = fetched.count, fetched.answered, fetched.state
        if fetched.over:
            self._finish(fetched)
        elif (self.patient or self._news) and not (self.pause_bytes and self._bytes >= self.pause_bytes):
            return (self._ask(),)
        self.paused = True
        return ()

    def _finish(self, fetched: Fetched) -> None:
        missing = self._known.missing(fetched.count)
        if fetched.state != DONE and not missing:
            # It ended before all of its input had come: what there is is not all that there should be.
            missing = [(fetched.count, fetched.count + 1)]
        for start, stop in missing:
            error = _unanswered(fetched)
            self._known.add(start, stop)
            self._sink.put(start, [error] * (stop - start), True, [])
        self._sink.finish(fetched.count, [])
        self.over = True


def _unanswered(fetched: Fetched) -> Raised:
    """Of items that have no answer, although the job has ended."""
    if fetched.state == STOPPED:
        return Raised(CancelledError(), cancelled=True)
    if fetched.state == BROKEN:
        return Raised(errors.RemoteError(f"the pool's initializer failed:\n{fetched.text}"))
    return Raised(JobError(f"the job is {fetched.state}, and this item has no answer"))
