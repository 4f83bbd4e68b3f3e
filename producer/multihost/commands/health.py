"""``multihost health``"""

from __future__ import annotations

import click

from multihost.commands.asking import TIMEOUT, check
from multihost.commands.shared import address_argument, keys_option, token_file_option


@click.command()
@address_argument
@click.option("--worker", is_flag=True, help="Ask for this host's worker instead of the broker.")
@click.option(
    "--timeout",
    envvar="MULTIHOST_HEALTH_TIMEOUT",
    show_envvar=True,
    type=click.FloatRange(min=0.1),
    default=TIMEOUT,
    show_default=True,
    metavar="SECONDS",
    help="How long the broker may take to answer.",
)
@token_file_option
@keys_option
def command(address: str, worker: bool, timeout: float, token_file: str | None, keys: str | None) -> None:
    """Exit 0 if all is well: a round trip to the broker at ADDRESS (default $MULTIHOST_BROKER), or, with
    --worker, this host's worker is registered and its loop turns, however busy its children are."""
    check(address, worker, token_file, keys, timeout)
