"""What several sub-commands need: options, logging."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

import click

from multihost.commands.asking import DEFAULT_BROKER
from multihost.commands.printing import one_line
from multihost_common.errors import ConfigError

address_argument = click.argument("address", envvar="MULTIHOST_BROKER", default=DEFAULT_BROKER)

broker_option = click.option(
    "--broker",
    envvar="MULTIHOST_BROKER",
    show_envvar=True,
    default=DEFAULT_BROKER,
    show_default=True,
    metavar="ADDRESS",
    help="Address of the broker.",
)

token_file_option = click.option(
    "--token-file",
    envvar="MULTIHOST_TOKEN_FILE",
    show_envvar=True,
    metavar="FILE",
    help="File with this peer's token. Default: the container's secret, or the keys directory.",
)

keys_option = click.option(
    "--keys",
    envvar="MULTIHOST_KEYS",
    show_envvar=True,
    metavar="DIR",
    help="Directory of the keys. Default: ~/.local/state/multihost/keys.",
)

log_level_option = click.option(
    "--log-level",
    envvar="MULTIHOST_LOG_LEVEL",
    show_envvar=True,
    default="info",
    show_default=True,
    type=click.Choice(["debug", "info", "warning", "error"], case_sensitive=False),
    help="Least level that is logged to standard error.",
)

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def asking_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Of a command that asks the broker something and prints the answer."""
    return json_option(broker_option(token_file_option(keys_option(command))))


class _OneLine(logging.Formatter):
    """What peers chose to call themselves must not forge log lines."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return text if record.exc_info else one_line(text)


def start_logging(level: str) -> None:
    """Log to standard error, one line an event."""
    handler = logging.StreamHandler()
    handler.setFormatter(_OneLine("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=level.upper(), handlers=[handler])


def size(text: str | None) -> int:
    """Bytes in ``512M``, ``2GiB``, ``100000``; 0 for None."""
    if not text:
        return 0
    number, unit = text.strip().rstrip("iIbB"), 1
    if number[-1:].upper() in ("K", "M", "G", "T"):
        unit = 1024 ** ("KMGT".index(number[-1].upper()) + 1)
        number = number[:-1]
    try:
        amount = float(number) * unit
    except ValueError:
        amount = math.nan
    if not 0 <= amount < math.inf:
        raise ConfigError(f"{text!r} is no amount of memory; write it like 512M or 2G")
    return int(amount)
