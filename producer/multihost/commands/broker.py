"""``multihost broker``"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from multihost.commands.shared import keys_option, log_level_option, size, start_logging

if TYPE_CHECKING:
    from multihost_broker.journal.store import Durability


@click.command()
@click.option(
    "--bind",
    envvar="MULTIHOST_BIND",
    show_envvar=True,
    default="tcp://127.0.0.1:5555",
    show_default=True,
    metavar="ADDRESS",
    help="Where to listen; tcp://0.0.0.0:5555 for every interface, port 0 for a free one.",
)
@click.option(
    "--max-memory",
    envvar="MULTIHOST_MAX_MEMORY",
    show_envvar=True,
    metavar="SIZE",
    help="Input of producers, such as 512M or 20G, that is here at once; whoever has more waits. 0: not bounded. "
    "Default: half of the memory there is for this process.",
)
@keys_option
@click.option(
    "--journal",
    envvar="MULTIHOST_JOURNAL",
    show_envvar=True,
    metavar="DIR",
    help="Directory of its own for detached jobs. Default: one for the port in the directory that --keys names, "
    "or below ~/.local/state/multihost/journal.",
)
@click.option(
    "--durability",
    envvar="MULTIHOST_DURABILITY",
    show_envvar=True,
    default="full",
    show_default=True,
    type=click.Choice(["full", "relaxed", "none"]),
    help="What is confirmed outlives a loss of power (full), a broker that is killed (relaxed), nothing (none).",
)
@log_level_option
def command(
    bind: str,
    max_memory: str | None,
    keys: str | None,
    journal: str | None,
    durability: Durability,
    log_level: str,
) -> None:
    """Serve producers and workers on one TCP port.

    The first start makes the broker's key and a token for each role; every connection is encrypted and
    needs one of these tokens. SIGTERM and SIGINT end the broker.
    """
    from multihost_broker.server import Config, serve

    start_logging(log_level)
    serve(
        Config(
            bind=bind,
            keys=Path(keys) if keys else None,
            journal=Path(journal) if journal else None,
            durability=durability,
            max_memory=size(max_memory) if max_memory else None,
        )
    )
