"""``multihost broker``"""

from __future__ import annotations

from pathlib import Path

import click

from multihost.commands.shared import keys_option, log_level_option, start_logging


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
@keys_option
@log_level_option
def command(bind: str, keys: str | None, log_level: str) -> None:
    """Serve producers and workers on one TCP port.

    The first start makes the broker's key and a token for each role; every connection is encrypted and
    needs one of these tokens. SIGTERM and SIGINT end the broker.
    """
    from multihost_broker.server import Config, serve

    start_logging(log_level)
    serve(Config(bind=bind, keys=Path(keys) if keys else None))
