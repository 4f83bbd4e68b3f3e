"""``multihost health``"""

from __future__ import annotations

import time

import click

from multihost.commands.shared import address_argument, ask, keys_option, token_file_option
from multihost_common.errors import BrokerLostError

#: Seconds since a worker's last sign of life, which it gives every second.
STALE = 10.0


@click.command()
@address_argument
@click.option("--worker", is_flag=True, help="Ask for this host's worker instead of the broker.")
@click.option(
    "--timeout",
    envvar="MULTIHOST_HEALTH_TIMEOUT",
    show_envvar=True,
    type=click.FloatRange(min=0.1),
    default=5.0,
    show_default=True,
    metavar="SECONDS",
    help="How long the broker may take to answer.",
)
@token_file_option
@keys_option
def command(address: str, worker: bool, timeout: float, token_file: str | None, keys: str | None) -> None:
    """Exit 0 if all is well: a round trip to the broker at ADDRESS (default $MULTIHOST_BROKER), or, with
    --worker, this host's worker is registered and its loop turns, however busy its children are."""
    if worker:
        _check_workers()
    else:
        ask(address, "", token_file, keys, timeout)
    click.echo("ok")


def _check_workers() -> None:
    from multihost_worker.privatedir import states

    found = states()
    if not found:
        raise BrokerLostError("no worker of this user runs on this host; start one with 'multihost worker'")
    for state in found:
        if time.monotonic() - state["at"] > STALE:
            raise BrokerLostError(f"the worker with pid {state.get('pid')} does not respond; restart it")
        if not state["registered"]:
            raise BrokerLostError(f"the worker with pid {state['pid']} is not registered with a broker")
