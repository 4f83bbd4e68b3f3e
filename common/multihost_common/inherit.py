"""What a forked process has of its parent beyond modules and globals: how logging is set up."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import logging

#: Loggers that are not the user's.
OURS = "multihost"

STREAMS = ("stdout", "stderr")

#: Name ("": the root), level, whether it propagates, whether it is disabled, its handlers.
Logger: TypeAlias = "tuple[str, int, bool, bool, list[dict[str, Any]]]"


def describe(local: bool) -> list[Logger]:
    """How logging is set up in this process, picklable; nothing if it is not.

    ``local``: the other process is on this host, so that it can append to the same files.
    """
    return _loggers(local) if "logging" in sys.modules else []


def adopt(loggers: list[Logger]) -> None:
    """Set up logging as it was described."""
    import logging

    for name, level, propagate, disabled, handlers in loggers:
        logger = logging.getLogger(name or None)
        logger.setLevel(level)
        logger.propagate = propagate
        logger.disabled = disabled
        for about in handlers:
            logger.addHandler(_make_handler(about))


def _loggers(local: bool) -> list[Logger]:
    import logging

    found = []
    for name, logger in [("", logging.root), *logging.root.manager.loggerDict.items()]:
        if isinstance(logger, logging.Logger) and name.partition(".")[0] != OURS:
            handlers = [each for each in (_handler(handler, local) for handler in logger.handlers) if each]
            if handlers or logger.level != (logging.NOTSET if name else logging.WARNING):
                found.append((name, logger.level, logger.propagate, logger.disabled, handlers))
    return found


def _handler(handler: logging.Handler, local: bool) -> dict[str, Any] | None:
    """Handlers that write to standard output or error, and on the same host to files; None for others."""
    import logging

    about: dict[str, Any] = {"level": handler.level, "format": _format(handler.formatter)}
    if type(handler) is logging.StreamHandler:
        for name in STREAMS:
            if handler.stream is getattr(sys, name) or handler.stream is getattr(sys, f"__{name}__"):
                return {**about, "stream": name}
    if type(handler) is logging.FileHandler and local:
        return {**about, "file": handler.baseFilename, "encoding": handler.encoding}
    return None


def _format(formatter: logging.Formatter | None) -> tuple[str | None, str | None, str] | None:
    """(format, format of dates, kind of placeholders) of a formatter."""
    import logging

    if formatter is None:
        return None
    kind: Any = type(formatter._style)
    style = next((key for key, (each, _) in logging._STYLES.items() if each is kind), "%")
    return formatter._fmt, formatter.datefmt, style


def _make_handler(about: dict[str, Any]) -> logging.Handler:
    import logging

    handler: logging.Handler
    if "file" in about:
        handler = logging.FileHandler(about["file"], "a", about["encoding"], delay=True)
    else:
        handler = logging.StreamHandler(getattr(sys, about["stream"]))
    handler.setLevel(about["level"])
    if about["format"] is not None:
        text, dates, style = about["format"]
        handler.setFormatter(logging.Formatter(text, dates, style, validate=False))
    return handler
