"""Errors that are BrokenProcessPool too, as scripts for ``concurrent.futures`` expect. Import them from ``errors``."""

from __future__ import annotations

from multihost_common.errors import MultihostError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from concurrent.futures.process import BrokenProcessPool as Broken
    from typing import Any
else:
    try:
        from concurrent.futures.process import BrokenProcessPool as Broken
    except RuntimeError:
        # The interpreter is ending: that module would register what is to be done then.
        from concurrent.futures._base import BrokenExecutor as Broken


class RemoteError(MultihostError, Broken):
    """Something that cannot be pickled or unpickled; the text holds the remote traceback."""


class WorkerLostError(MultihostError, Broken):
    """The process that ran an item ended too often (or once, with ``at_most_once``).

    ``item``: index in its job. ``deaths``: how many processes it took along. ``host``, ``pid``,
    ``signal`` (0: it exited), ``exitcode``, ``rss`` (peak, bytes) and ``oom`` tell of the last one.
    """

    def __init__(
        self,
        text: str,
        *,
        item: int = -1,
        deaths: int = 0,
        host: str = "",
        pid: int = 0,
        signal: int = 0,
        exitcode: int = 0,
        rss: int = 0,
        oom: bool = False,
    ) -> None:
        super().__init__(text)
        self.item, self.deaths = item, deaths
        self.host, self.pid = host, pid
        self.signal, self.exitcode = signal, exitcode
        self.rss, self.oom = rss, oom

    def __reduce__(self) -> tuple[object, ...]:
        facts = {name: self.__dict__[name] for name in _FACTS}
        return _lost_again, (str(self), facts)


_FACTS = ("item", "deaths", "host", "pid", "signal", "exitcode", "rss", "oom")


def _lost_again(text: str, facts: dict[str, Any]) -> WorkerLostError:
    return WorkerLostError(text, **facts)
