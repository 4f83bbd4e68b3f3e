"""``multihost drain``"""

from __future__ import annotations

import json
import time
from typing import Any

import click

from multihost.commands.shared import asking_options
from multihost_common.errors import EX_TEMPFAIL, JobError, MultihostError

#: Seconds between two looks at whether they have gone.
LOOK = 0.2


class StillThereError(MultihostError):
    """Workers have not gone in time; they go on draining."""

    exit_code = EX_TEMPFAIL


@click.command()
@click.argument("host", metavar="HOST-OR-NAME")
@click.option("--wait/--no-wait", default=True, show_default=True, help="Wait until they have gone.")
@click.option("--timeout", type=click.FloatRange(min=0), default=60.0, envvar="MULTIHOST_DRAIN_WAIT",
              show_envvar=True, show_default=True, metavar="SECONDS", help="How long to wait.")  # fmt: skip
@asking_options
def command(
    host: str,
    wait: bool,
    timeout: float,
    as_json: bool,
    broker: str,
    token_file: str | None,
    keys: str | None,
) -> None:
    """Have the workers on a host, or of a name, finish what they run, and leave; others take over the rest.

    The exit status is 75 if some are still there after the timeout; they go on draining.
    """
    from multihost.detached.client import Client

    with Client(broker, token_file=token_file, keys=keys) as client:
        workers = client.order("drain", host)["workers"]
        if not workers:
            raise JobError(
                f"no worker is called {host!r} or runs on a host of that name; see 'multihost status'"
            )
        deadline = time.monotonic() + timeout
        left = workers
        while wait and (left := _left(client, workers)):
            if time.monotonic() >= deadline:
                names = ", ".join(_named(each) for each in left)
                raise StillThereError(f"after {timeout:g} s not gone yet: {names}; they go on draining")
            client.until(lambda: False, min(deadline, time.monotonic() + LOOK))
    if as_json:
        click.echo(json.dumps({"workers": workers}))
    else:
        click.echo("\n".join(f"{_named(each)} {'is gone' if wait else 'drains'}" for each in workers))


def _left(client: Any, workers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    there = {each["session"] for each in client.order("status")["workers"]}
    return [each for each in workers if each["session"] in there]


def _named(worker: dict[str, Any]) -> str:
    return f"worker {worker['session']} {worker['name'] or '-'} on {worker['host']}"
