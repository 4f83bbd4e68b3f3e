"""``multihost map``: a function over the lines of standard input."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import click

from multihost.commands.printing import EXIT_INTERRUPTED, Printer
from multihost_common.errors import EX_USAGE, MultihostError, RemoteError, WorkerLostError


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
    printer = Printer("map", as_json, numbered=not unordered)
    from multihost.pool import Pool

    with Pool(processes, address=broker) as pool:
        results = (pool.imap_unordered if unordered else pool.imap)(called, lines(), chunksize)
        try:
            with printer:
                _print(results, printer)
        except KeyboardInterrupt:
            raise SystemExit(EXIT_INTERRUPTED) from None
    raise SystemExit(1 if printer.failed else 0)


def _print(results: Iterator[Any], printer: Printer) -> None:
    """Print results as they come."""
    while True:
        try:
            value = next(results)
        except StopIteration:
            return
        except Exception as error:
            if isinstance(error, MultihostError) and not isinstance(error, (RemoteError, WorkerLostError)):
                raise
            printer.error(error)
        else:
            printer.value(value)


def load(name: str, command: str = "map") -> Callable[[str], Any]:
    """The function that ``module:function`` names, with the current folder on the path."""

    def refuse(text: str) -> NoReturn:
        print(f"multihost {command}: {text}", file=sys.stderr)
        raise SystemExit(EX_USAGE)

    import importlib

    module, _, path = name.partition(":")
    if not module or not path:
        refuse(f"write MODULE:FUNCTION, such as math:sqrt, not {name!r}")
    sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        refuse(f"{name} cannot be loaded: {error}")
    if not callable(found):
        refuse(f"{name} is not a function")
    function: Callable[[str], Any] = found
    return function


def lines() -> Iterator[str]:
    """The lines of standard input, without their ends, as they come."""
    # Not sys.stdin: a thread that still reads it would block the interpreter's end.
    with open(0, "rb", closefd=False) as stdin:
        for line in stdin:
            yield line.removesuffix(b"\n").removesuffix(b"\r").decode(errors="surrogateescape")
