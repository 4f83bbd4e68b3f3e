"""What several sub-commands need: options, logging, a question to the broker."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from typing import TYPE_CHECKING, Any

import click

from multihost_common.errors import BrokerLostError, ConfigError, HandshakeError

if TYPE_CHECKING:
    from multihost_common.wire import Dealer

DEFAULT_BROKER = "tcp://127.0.0.1:5555"

address_argument = click.argument("address", envvar="MULTIHOST_BROKER", default=DEFAULT_BROKER)

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


class _OneLine(logging.Formatter):
    """What peers chose to call themselves must not forge log lines."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        if record.exc_info or text.isprintable():
            return text
        return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)


def start_logging(level: str) -> None:
    """Log to standard error, one line an event."""
    handler = logging.StreamHandler()
    handler.setFormatter(_OneLine("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=level.upper(), handlers=[handler])


def ask(
    address: str, what: str, token_file: str | None = None, keys: str | None = None, timeout: float = 5.0
) -> dict[str, Any]:
    """The broker's answer to ``what``, over its real socket; just its welcome if ``what`` is empty."""
    from multihost_common.keys import find_token
    from multihost_common.messages import ADMIN, PRODUCER, WORKER, Ask, Bye
    from multihost_common.wire import Dealer

    deadline = time.monotonic() + timeout
    # A worker's token opens no questions, but being welcomed at all is answer enough for some.
    roles = (ADMIN, PRODUCER) if what else (ADMIN, PRODUCER, WORKER)
    dealer = Dealer(address, find_token(*roles, token_file=token_file, keys=keys))
    try:
        dealer.handshake(_hello(), timeout)
        if not what:
            dealer.send(Bye())
            return {}
        dealer.send(Ask(what))
        return _answer(dealer, deadline)
    finally:
        dealer.close()


def _hello() -> Any:
    from multihost_common.messages import ADMIN, PROTOCOL_VERSION, Hello

    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    return Hello(ADMIN, PROTOCOL_VERSION, python, 5, os.uname().nodename, os.getpid(), 0, "command line")


def _answer(dealer: Dealer, deadline: float) -> dict[str, Any]:
    from multihost_common.messages import Answer, Bye, Refused
    from multihost_common.wire import milliseconds

    while dealer.socket.poll(milliseconds(deadline - time.monotonic())):
        for message in dealer.receive():
            if isinstance(message, Answer):
                answer: dict[str, Any] = json.loads(bytes(message.frames[0]))
                dealer.send(Bye())
                return answer
            if isinstance(message, Refused):
                raise HandshakeError(message.text)
    raise BrokerLostError(f"the broker at {dealer.address} does not answer; see its log")


def size(text: str | None) -> int:
    """Bytes in ``512M``, ``2GiB``, ``100000``; 0 for None."""
    if not text:
        return 0
    number, unit = text.strip().rstrip("iIbB"), 1
    if number[-1:].upper() in ("K", "M", "G", "T"):
        unit = 1024 ** ("KMGT".index(number[-1].upper()) + 1)
        number = number[:-1]
    try:
        return int(float(number) * unit)
    except (ValueError, OverflowError):
        raise ConfigError(f"{text!r} is no amount of memory; write it like 512M or 2G") from None
