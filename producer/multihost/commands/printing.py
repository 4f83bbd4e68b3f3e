"""How the commands print what calls returned, and what they raised."""

from __future__ import annotations

import json
import os
import sys
from types import TracebackType
from typing import Any, Self

from multihost_common.errors import EX_IOERR, MultihostError

#: As a shell reports a program that SIGPIPE, or SIGINT, ended.
EXIT_PIPE = 141
EXIT_INTERRUPTED = 130


class OutputError(MultihostError):
    """Standard output takes no more."""

    exit_code = EX_IOERR


def one_line(text: str) -> str:
    """``text``, without what would forge lines or control the terminal: it is what somebody has called something."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)


class Printer:
    """Values on standard output, errors on standard error: a line each, in the order in which it gets them.

    A context that ends the command once nobody reads its output any more. ``numbered``: errors name their line.
    """

    def __init__(self, command: str, as_json: bool, numbered: bool = True) -> None:
        self._command = command
        self._as_json = as_json
        self._numbered = numbered
        self._last: BaseException | None = None
        #: Lines so far, and how many of them raised.
        self.count = 0
        self.failed = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, BrokenPipeError):
            _give_up_output()
            raise SystemExit(EXIT_PIPE) from None

    def value(self, value: Any) -> None:
        """What a call returned; if it cannot be printed, that is its error."""
        try:
            text = json.dumps(value) if self._as_json else str(value)
        except Exception as error:  # noqa: BLE001
            self.error(error)
            return
        self.count += 1
        try:
            sys.stdout.buffer.write(text.encode(errors="surrogateescape") + b"\n")
            sys.stdout.buffer.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            _give_up_output()
            raise OutputError(f"the output cannot be written: {error.strerror}") from None

    def error(self, error: BaseException) -> None:
        """What a call raised. The same error as before, of many items, is told once."""
        self.count += 1
        self.failed += 1
        if error is self._last:
            return
        self._last = error
        where = f"line {self.count}: " if self._numbered else ""
        text = f"multihost {self._command}: {where}{type(error).__name__}: {error}"
        print(text, file=sys.stderr, flush=True)


def _give_up_output() -> None:
    """The interpreter must not try to flush what is left."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
