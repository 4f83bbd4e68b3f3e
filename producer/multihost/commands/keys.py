"""``multihost keys``"""

from __future__ import annotations

import json
import time
from pathlib import Path

import click

from multihost.commands.shared import json_option, keys_option


@click.group()
def command() -> None:
    """Show or make keys and tokens. Their contents are never printed."""


@command.command()
@keys_option
@json_option
def show(keys: str | None, as_json: bool) -> None:
    """List the tokens in the keys directory."""
    from multihost_common.keys import default_directory, load_keys

    found = load_keys(Path(keys) if keys else default_directory())
    rows = [{"role": each.role, "name": each.name, "expires": each.expires} for each in found.tokens]
    if as_json:
        click.echo(json.dumps({"directory": str(found.directory), "tokens": rows}, indent=2))
        return
    click.echo(f"keys in {found.directory}")
    for each in found.tokens:
        until = time.strftime("until %Y-%m-%d", time.gmtime(each.expires)) if each.expires else "for ever"
        click.echo(f"  {each.role} {each.name}, {until}")


@command.command()
@click.argument("role", required=False)
@click.option("--name", help="A name for the token; it shows in the broker's log.")
@click.option("--days", type=click.IntRange(min=1), help="Days after which it expires. Default: never.")
@keys_option
def make(role: str | None, name: str | None, days: int | None, keys: str | None) -> None:
    """Make all keys that are missing, and one more token if a ROLE is given.

    A running broker takes note of a new token at its next start.
    """
    from multihost_common.keys import make_keys, make_token

    made = make_keys(keys)
    if role is None:
        click.echo(f"keys in {made.directory}")
        return
    expires = int(time.time()) + days * 86_400 if days else 0
    click.echo(make_token(made.directory, role, name or f"{role}-{time.time_ns():x}", expires))
