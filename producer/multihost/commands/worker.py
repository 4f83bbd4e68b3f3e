"""``multihost worker``"""

from __future__ import annotations

import sys

import click

from multihost.commands.shared import (
    address_argument,
    keys_option,
    log_level_option,
    size,
    start_logging,
    token_file_option,
)


@click.command()
@address_argument
@click.option(
    "-c",
    "--concurrency",
    envvar="MULTIHOST_CONCURRENCY",
    show_envvar=True,
    type=click.IntRange(min=1),
    metavar="N",
    help="Child processes at once. Default: the CPUs this process may use.",
)
@click.option(
    "--name", envvar="MULTIHOST_NAME", show_envvar=True, default="", help="A name for status and logs."
)
@click.option(
    "--max-memory-per-child",
    envvar="MULTIHOST_MAX_MEMORY_PER_CHILD",
    show_envvar=True,
    metavar="SIZE",
    help="Resident memory, such as 512M or 2G, above which a child is ended.",
)
@click.option(
    "--drain-timeout",
    envvar="MULTIHOST_DRAIN_TIMEOUT",
    show_envvar=True,
    type=click.FloatRange(min=0),
    default=25.0,
    show_default=True,
    metavar="SECONDS",
    help="How long running items may take to end after SIGTERM.",
)
@click.option(
    "--orphan-timeout",
    envvar="MULTIHOST_ORPHAN_TIMEOUT",
    show_envvar=True,
    type=click.FloatRange(min=0),
    default=300.0,
    show_default=True,
    metavar="SECONDS",
    help="How long work and its results are kept while there is no broker.",
)
@click.option(
    "--spool-bytes",
    envvar="MULTIHOST_SPOOL_BYTES",
    show_envvar=True,
    metavar="SIZE",
    help="Disk, such as 500M or 20G, for results while they cannot be sent; 0: none. Default: 4G, or half of what is "
    "free on that disk if that is less.",
)
@token_file_option
@keys_option
@log_level_option
def command(
    address: str,
    concurrency: int | None,
    name: str,
    max_memory_per_child: str | None,
    drain_timeout: float,
    orphan_timeout: float,
    spool_bytes: str | None,
    token_file: str | None,
    keys: str | None,
    log_level: str,
) -> None:
    """Run tasks on this host for the broker at ADDRESS (default $MULTIHOST_BROKER).

    SIGTERM drains: what runs is finished, the rest goes back. A second SIGTERM hands everything back.
    """
    from multihost_common.keys import find_token
    from multihost_worker.agent import Config, work

    start_logging(log_level)
    config = Config(
        address=address,
        token=find_token("worker", token_file=token_file, keys=keys),
        concurrency=concurrency or 0,
        name=name,
        max_memory=size(max_memory_per_child),
        drain_timeout=drain_timeout,
        orphan_timeout=orphan_timeout,
        spool_bytes=size(spool_bytes) if spool_bytes else None,
    )
    sys.exit(work(config))
