"""From what a worker or the broker says to what a user's ``get()`` returns or raises."""

from __future__ import annotations

import signal as signals
from typing import Any

from multihost.reduction import load_results, load_values
from multihost_common import errors
from multihost_common.messages import CANCELLED, MEMORY, TIMED_OUT, VALUES, Failed, Result


class Raised:
    """An exception in the place of a value. ``cancelled``: the call was given up by the producer."""

    __slots__ = ("cancelled", "error")

    def __init__(self, error: BaseException, cancelled: bool = False) -> None:
        self.error = error
        self.cancelled = cancelled


def load(message: Result, executor: bool = False) -> tuple[list[Any], bool]:
    """(values, failed) of a result: a value or a :class:`Raised` for each of its items."""
    count = message.count
    if message.encoding == VALUES:
        values: list[Any] | None
        try:
            values = load_values(message.frames)
        except BaseException:  # noqa: BLE001
            # Which of them it is, and what to say of it, is found out below.
            values = None
        if values is not None and len(values) == count:
            return values, False
    outcomes = load_results(message.encoding, count, message.frames, executor)
    loaded = [value if fine else Raised(value) for fine, value in outcomes]
    if len(loaded) != count:
        text = f"a worker answered {len(loaded)} results for {count} items; are its versions the same?"
        loaded = [Raised(errors.WorkerLostError(text))] * count
    return loaded, True


def answers(message: Result | Failed, executor: bool = False, timeout: float = 0.0) -> tuple[list[Any], bool]:
    """(values, failed) of what has come back: a value or a :class:`Raised` for each of its items. ``timeout``: of
    the job, seconds."""
    if type(message) is Result:
        return load(message, executor)
    assert type(message) is Failed
    stop = message.start + message.count
    return [raised(message, item, executor, timeout) for item in range(message.start, stop)], True


def raised(message: Failed, item: int, executor: bool = False, timeout: float = 0.0) -> Raised:
    """The exception of an item that has no result of its own. ``timeout``: of the job, seconds."""
    return Raised(failure(message, item, executor, timeout), message.reason == CANCELLED)


def failure(message: Failed, item: int, executor: bool = False, timeout: float = 0.0) -> BaseException:
    """What to raise for ``item``, with everything known about the cause in one sentence."""
    if message.reason == CANCELLED:
        from concurrent.futures import CancelledError

        return CancelledError()
    if message.reason == TIMED_OUT:
        if executor:
            return TimeoutError(_timeout_text(message, item, timeout))
        from multiprocessing import TimeoutError as PoolTimeoutError

        return PoolTimeoutError(_timeout_text(message, item, timeout))
    return errors.WorkerLostError(
        _lost_text(message, item),
        item=item,
        deaths=message.deaths,
        host=message.host,
        pid=message.pid,
        signal=message.signal,
        exitcode=message.exitcode,
        rss=message.rss,
        oom=message.oom,
    )


def _timeout_text(message: Failed, item: int, timeout: float) -> str:
    text = message.text or f"it ran longer than timeout={timeout:g} s"
    return f"item {item} was stopped on host {message.host or 'unknown'}: {text}"


def _lost_text(message: Failed, item: int) -> str:
    if message.text and not message.host and not message.deaths:
        # No process ended, or nobody knows of it.
        return f"item {item} has no result: {message.text}"
    times = {0: "", 1: " once"}.get(message.deaths, f" {message.deaths} times")
    where = (
        f"pid {message.pid} on host {message.host}" if message.pid else f"host {message.host or 'unknown'}"
    )
    parts = [f"the process that ran item {item} ended{times}; the last one ({where}) {_how(message)}"]
    if message.rss:
        parts.append(f"peak memory {message.rss / 2**20:.0f} MiB")
    parts.append("out of memory (OOM killer)" if message.oom else "not by the OOM killer")
    if message.text:
        parts.append(message.text)
    return ", ".join(parts)


def _how(message: Failed) -> str:
    if message.reason == MEMORY:
        return "took more memory than a child may have"
    if message.signal:
        try:
            return f"was killed by {signals.Signals(message.signal).name}"
        except ValueError:
            return f"was killed by signal {message.signal}"
    if not message.pid:
        return "went away with its host"
    return f"exited with code {message.exitcode}"
