"""``multihost submit``: a function over the lines of standard input, as a job that outlives the command."""

from __future__ import annotations

import os
import sys

import click

from multihost.commands.map import lines, load
from multihost.commands.printing import EXIT_INTERRUPTED
from multihost.commands.shared import broker_option, keys_option, token_file_option


@click.command()
@click.argument("function", metavar="MODULE:FUNCTION")
@click.option("--detach", is_flag=True, help="Print the job's key and end, once the broker has all of it.")
@click.option("--chunksize", type=click.IntRange(1), default=1, envvar="MULTIHOST_CHUNKSIZE",
              show_envvar=True, show_default=True, help="Lines that a process takes in one go.")  # fmt: skip
@click.option("--processes", type=click.IntRange(1), envvar="MULTIHOST_PROCESSES", show_envvar=True,
              help="At most so many processes.")  # fmt: skip
@click.option("--timeout", type=click.FloatRange(min=0, min_open=True), envvar="MULTIHOST_TIMEOUT", show_envvar=True,
              metavar="SECONDS", help="How long a line may take before its process is killed.")  # fmt: skip
@click.option("--retries", type=click.IntRange(0), default=0, envvar="MULTIHOST_RETRIES", show_envvar=True,
              show_default=True, help="How often a line that raised is tried again.")  # fmt: skip
@click.option("--retention", type=click.FloatRange(min=0, min_open=True), envvar="MULTIHOST_RETENTION",
              show_envvar=True, metavar="SECONDS",
              help="How long the job is kept after its end. Default: a week.")  # fmt: skip
@click.option("--name", envvar="MULTIHOST_JOB_NAME", show_envvar=True,
              help="What `multihost jobs` calls it. Default: the function's name.")  # fmt: skip
@click.option("--key", envvar="MULTIHOST_JOB_KEY", show_envvar=True, metavar="KEY",
              help="32 hexadecimal digits that you choose. The same command with the same key and input hands in "
                   "what is missing, however often and wherever it was interrupted.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, envvar="MULTIHOST_JSON", show_envvar=True,
              help="Print each result as one line of JSON.")  # fmt: skip
@broker_option
@token_file_option
@keys_option
def command(
    function: str,
    detach: bool,
    chunksize: int,
    processes: int | None,
    timeout: float | None,
    retries: int,
    retention: float | None,
    name: str | None,
    key: str | None,
    as_json: bool,
    broker: str,
    token_file: str | None,
    keys: str | None,
) -> None:
    """Hand in a job: call FUNCTION with each line of standard input.

    With --detach it prints the job's key, for `multihost result`. Without, it prints what the calls return, in order,
    as `multihost map` does; the job goes on when it is interrupted.
    """
    from multihost.commands.result import finish
    from multihost.detached.result import parse_key
    from multihost.pool import Pool

    called = load(function, "submit")
    if key is not None:
        try:
            parse_key(key)
        except ValueError as error:
            raise click.BadParameter(str(error), param_hint="--key") from None
    for variable, value in (("MULTIHOST_TOKEN_FILE", token_file), ("MULTIHOST_KEYS", keys)):
        if value:
            os.environ[variable] = value
    try:
        with Pool(processes, address=broker, timeout=timeout, retries=retries) as pool:
            result = pool.map_async(
                called, lines(), chunksize, detach=True, retention=retention, name=name or function, key=key
            )
    except KeyboardInterrupt:
        raise SystemExit(EXIT_INTERRUPTED) from None
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    if detach:
        click.echo(result.key)
        return
    try:
        finish(result, "submit", as_json, keep=False)
    except KeyboardInterrupt:
        print(f"multihost submit: the job goes on; see 'multihost result {result.key}'", file=sys.stderr)
        raise SystemExit(EXIT_INTERRUPTED) from None
