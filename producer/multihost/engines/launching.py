"""Processes of their own, as an engine sees them: each is launched once, runs somewhere, and ends.

Everything here is done by who runs the engine's loop, but for :meth:`Launch.sentinel` and what is said to be for
everybody.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from multihost.engines.base import Completion
from multihost.logs import log
from multihost_common import messages as m
from multihost_common import shipments
from multihost_common.blobs import digest_of

if TYPE_CHECKING:
    from multihost.engines.loop import Loop
    from multihost_common.blocks import Frame

#: What a process that nobody can say more of has ended by.
SIGKILL = 9

#: Contents that count as sent to this broker; more are sent again.
MOST_SENT = 256


@dataclass(slots=True)
class LaunchSpec:
    """What a process is made from: ``setup`` and ``code`` as in :class:`~multihost.engines.base.PoolSpec`, and the frames of
    the pickled callable that it runs, which answers its exit code. ``promises``: what is taken back once it has ended,
    see :mod:`multihost_common.shipments`."""

    setup: bytes
    code: bytes
    name: str
    frames: Sequence[Frame]
    promises: list[shipments.Void] = field(default_factory=list)


class Launch:
    """One process. ``host`` and ``pid`` are known once it is ``launched``, ``exitcode`` once it has ``exited``."""

    def __init__(self, number: int, spec: LaunchSpec) -> None:
        self.number = number
        self.spec = spec
        self.launched = Completion()
        self.exited = Completion()
        self.host = ""
        self.pid = 0
        self.exitcode = 0
        #: The broker may have heard of it.
        self.sent = False
        #: The signal that it was sent last.
        self.signal = 0
        #: Why it could not run, or was lost.
        self.text = ""
        # Reentrant: the garbage collector may close it in the middle of anything.
        self._pipe = threading.RLock()
        self._reader = self._writer = -1

    def message(self) -> m.Launch:
        """What launches it; or, once that is done, says that it is still waited for."""
        spec = self.spec
        setup, code = (digest_of(each) if each else b"" for each in (spec.setup, spec.code))
        return m.Launch(
            self.number,
            setup,
            code,
            spec.name[: m.NAME],
            frames=(b"",) if self.launched.done else spec.frames,
        )

    def sentinel(self) -> int:
        """A descriptor that is readable once the process has ended. Made when it is first asked for."""
        with self._pipe:
            if self._reader < 0:
                self._reader, self._writer = os.pipe()
                if self.exited.done:
                    self._ring()
            return self._reader

    def _ring(self) -> None:
        if self._writer >= 0:
            # A byte: a forked process may have the other end, too, so that closing it tells nobody.
            os.write(self._writer, b"x")
            os.close(self._writer)
            self._writer = -1

    def begin(self, host: str, pid: int) -> None:
        """It runs."""
        self.host, self.pid = host, pid
        self.spec.frames = ()
        self.launched.done = True

    def end(self, host: str, exitcode: int, text: str) -> None:
        """It has ended."""
        if self.exited.done:
            return
        self.host = host or self.host
        self.exitcode, self.text = exitcode, text
        self.spec.frames = ()
        shipments.void(self.spec.promises)
        with self._pipe:
            self.exited.done = self.launched.done = True
            self._ring()

    def close(self) -> None:
        """Nobody waits for it any more."""
        with self._pipe:
            for fd in (self._reader, self._writer):
                if fd >= 0:
                    os.close(fd)
            self._reader = self._writer = -1


class Launching:
    """The processes of one engine."""

    def __init__(self, engine: Loop) -> None:
        self._engine = engine
        #: Those that have not ended.
        self.alive: dict[int, Launch] = {}
        self._sent: dict[bytes, None] = {}

    # -- for everybody -----------------------------------------------------------------------------

    def launch(self, spec: LaunchSpec) -> Launch:
        """Start a process. Raises what ended the engine."""
        self._engine._check_alive()
        launch = Launch(self._engine._number(), spec)
        self._engine._do(lambda: self._begin(launch))
        return launch

    def signal(self, launch: Launch, signum: int) -> None:
        """Send the process a signal, if it has not ended."""
        if not launch.exited.done:
            launch.signal = signum
            self._engine._do(lambda: self._signal(launch, signum))

    # -- for who runs the loop ---------------------------------------------------------------------

    def _begin(self, launch: Launch) -> None:
        if self._engine._failure is not None:
            launch.end("", -SIGKILL, str(self._engine._failure))
            return
        self.alive[launch.number] = launch
        launch.sent = self._engine.reaches
        message = launch.message()
        contents = ((message.setup, launch.spec.setup), (message.code, launch.spec.code))
        for digest, content in contents:
            if digest and digest not in self._sent:
                self._sent[digest] = None
                self._engine._send(m.Blob(digest, (content,)))
        while len(self._sent) > MOST_SENT:
            del self._sent[next(iter(self._sent))]
        self._engine._send(message)

    def _signal(self, launch: Launch, signum: int) -> None:
        if launch.number in self.alive:
            self._engine._send(m.Signal(launch.number, signum))

    def take(self, message: m.Launched | m.Exited) -> None:
        """What has become of a process."""
        launch = self.alive.get(message.process)
        if launch is None:
            return
        if isinstance(message, m.Launched):
            launch.begin(message.host, message.pid)
        else:
            if message.text:
                log().warning("%s has ended: %s", launch.spec.name, message.text)
            self._end(launch, message.host, message.exitcode, message.text)

    def _end(self, launch: Launch, host: str, exitcode: int, text: str) -> None:
        self.alive.pop(launch.number, None)
        launch.end(host, exitcode, text)

    def contents(self) -> Iterator[bytes]:
        """What the broker may ask for."""
        for launch in self.alive.values():
            yield launch.spec.setup
            yield launch.spec.code

    def resumed(self) -> None:
        """The broker has all that was said, or is about to."""
        for launch in self.alive.values():
            launch.sent = True

    def restate(self, given_up: bool) -> Iterator[m.Message]:
        """What a broker has to be told that knows nothing of it. ``given_up``: it did, had thought this process lost, and
        has ended all that it had launched; which may not begin again."""
        self._sent.clear()
        for launch in list(self.alive.values()):
            if given_up and launch.sent:
                text = "the broker had heard nothing of its parent for too long"
                self._end(launch, "", -SIGKILL, text)
                continue
            launch.sent = True
            yield launch.message()
            if launch.signal:
                yield m.Signal(launch.number, launch.signal)

    def unsendable(self, number: int, text: str) -> None:
        """This process cannot be launched, and why."""
        launch = self.alive.get(number)
        if launch is not None:
            self._end(launch, "", 1, text)

    def fail(self, error: BaseException) -> None:
        """Nothing will be heard of any of them."""
        for launch in list(self.alive.values()):
            self._end(launch, "", -SIGKILL, str(error))


def take_signal(signum: int) -> None:
    """A child on another host has sent this process a signal."""
    with suppress(OSError, ValueError):
        if signum in _UNCATCHABLE:
            os.kill(os.getpid(), signum)
        else:
            # To the main thread: it is what waits, and others would not wake it up.
            main: Any = threading.main_thread().ident
            signal.pthread_kill(main, signum)


_UNCATCHABLE = (signal.SIGKILL, signal.SIGSTOP)

__all__ = ["Launch", "LaunchSpec", "Launching", "take_signal"]
