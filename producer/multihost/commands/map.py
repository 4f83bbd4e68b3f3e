"""``multihost map``: a function over the lines of standard input."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import click

from multihost_common.errors import EX_USAGE, MultihostError, RemoteError, WorkerLostError

#: As a shell reports a program that SIGPIPE, or SIGINT, ended.
EXIT_PIPE = 141
EXIT_INTERRUPTED = 130


@click.command()
@click.argument("function", metavar="MODULE:FUNCTION")
@click.option("--broker", metavar="ADDRESS", envvar="MULTIHOST_BROKER", show_envvar=True,
              help="Address of the broker; without it the processes are this machine's.")  # fmt: skip
@click.option("--processes", type=click.IntRange(1), envvar="MULTIHOST_PROCESSES", show_envvar=True,
              help="At most so many processes.")  # fmt: skip
@click.option("--chunksize", type=click.IntRange(1), default=1, envvar="MULTIHOST_CHUNKSIZE",
              show_envvar=True, show_default=True, help="Lines that a process takes in one go.")  # fmt: skip
@click.option("--unordered", is_flag=True, envvar="MULTIHOST_UNORDERED", show_envvar=True,
              help="Print results as they come, not in the order of the lines.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, envvar="MULTIHOST_JSON", show_envvar=True,
              help="Print each result as one line of JSON.")  # fmt: skip
def command(
    function: str, broker: str | None, processes: int | None, chunksize: int, unordered: bool, as_json: bool
) -> None:
    """Call FUNCTION with each line of standard input and print what it returns, in order.

    A call that raises is reported on standard error and the others go on; the exit status is then 1.
    """
    called = load(function)
    show: Callable[[Any], str] = json.dumps if as_json else str
    from multihost.pool import Pool

    with Pool(processes, address=broker) as pool:
        results = (pool.imap_unordered if unordered else pool.imap)(called, lines(), chunksize)
        try:
            failed = _print(results, show, None if unordered else function)
        except BrokenPipeError:
            # Nobody reads any more, and the interpreter must not try to flush what is left.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(EXIT_PIPE) from None
        except KeyboardInterrupt:
            raise SystemExit(EXIT_INTERRUPTED) from None
    raise SystemExit(1 if failed else 0)


def load(name: str) -> Callable[[str], Any]:
    """The function that ``module:function`` names, with the current folder on the path."""
    import importlib

    module, _, path = name.partition(":")
    if not module or not path:
        _refuse(f"write MODULE:FUNCTION, such as math:sqrt, not {name!r}")
    sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        _refuse(f"{name} cannot be loaded: {error}")
    if not callable(found):
        _refuse(f"{name} is not a function")
    function: Callable[[str], Any] = found
    return function


def lines() -> Iterator[str]:
    """The lines of standard input, without their ends, as they come."""
    # Not sys.stdin: a thread that still reads it would block the interpreter's end.
    with open(0, "rb", closefd=False) as stdin:
        for line in stdin:
            yield line.removesuffix(b"\n").removesuffix(b"\r").decode(errors="surrogateescape")


def _print(results: Iterator[Any], show: Callable[[Any], str], name: str | None) -> bool:
    """Print results as they come; answers whether a call raised."""
    failed = False
    number = 0
    while True:
        number += 1
        try:
            text = show(next(results))
        except StopIteration:
            return failed
        except Exception as error:
            if isinstance(error, MultihostError) and not isinstance(error, (RemoteError, WorkerLostError)):
                raise
            failed = True
            where = f"line {number}: " if name else ""
            print(f"multihost map: {where}{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        else:
            sys.stdout.buffer.write(text.encode(errors="surrogateescape") + b"\n")
            sys.stdout.buffer.flush()


def _refuse(text: str) -> NoReturn:
    print(f"multihost map: {text}", file=sys.stderr)
    raise SystemExit(EX_USAGE)
