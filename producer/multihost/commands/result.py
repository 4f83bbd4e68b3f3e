"""``multihost result``: what the calls of a detached job returned."""

from __future__ import annotations

import sys
from typing import Any, NoReturn

import click

from multihost.commands.asking import find_job
from multihost.commands.printing import EXIT_INTERRUPTED, Printer
from multihost.commands.shared import asking_options
from multihost.detached.result import DetachedResult
from multihost.failures import Raised
from multihost_common.errors import EX_TEMPFAIL
from multihost_common.messages import FILLING, RUNNING


@click.command()
@click.argument("key")
@click.option("--wait/--no-wait", default=True, show_default=True,
              help="Wait for results that are not there yet.")  # fmt: skip
@click.option("--keep", is_flag=True, help="Leave the job with the broker, until its retention is over.")
@asking_options
def command(
    key: str, wait: bool, keep: bool, as_json: bool, broker: str, token_file: str | None, keys: str | None
) -> None:
    """Print the results of the job KEY, in order; the beginning of a key will do.

    Errors go to standard error, and the exit status is then 1, and the job kept. Otherwise the broker forgets it, for its
    results have been fetched. With --no-wait the exit status is 75 if the job has not ended.
    """
    job = find_job(broker, key, token_file, keys)
    if not wait and job["state"] in (FILLING, RUNNING):
        of = "" if job["count"] is None else f" of {job['count']}"
        text = f"job {job['key']} is {job['state']}: {job['answered']}{of} items are done; try again later"
        print(f"multihost: {text}", file=sys.stderr)
        raise SystemExit(EX_TEMPFAIL)
    result = DetachedResult(bytes.fromhex(job["key"]), broker, token_file=token_file, keys=keys)
    try:
        finish(result, "result", as_json, keep)
    except KeyboardInterrupt:
        raise SystemExit(EXIT_INTERRUPTED) from None


def finish(result: DetachedResult, command: str, as_json: bool, keep: bool) -> NoReturn:
    """Print what there is of a job, until all of it is; then have it forgotten, unless something failed."""
    printer = Printer(command, as_json)
    with printer:
        for value in result.outcomes():
            _print(value, printer)
    if printer.failed:
        print(
            f"multihost {command}: {printer.failed} of {printer.count} items failed; the job is kept, "
            f"until 'multihost cancel --forget {result.key}'",
            file=sys.stderr,
        )
        raise SystemExit(1)
    if not keep:
        result.collect()
    raise SystemExit(0)


def _print(value: Any, printer: Printer) -> None:
    if type(value) is Raised:
        printer.error(value.error)
    else:
        printer.value(value)
