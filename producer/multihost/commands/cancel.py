"""``multihost cancel``"""

from __future__ import annotations

import json

import click

from multihost.commands.asking import ask
from multihost.commands.shared import asking_options
from multihost_common.messages import STOPPED


@click.command()
@click.argument("key")
@click.option("--forget", is_flag=True, help="Drop its input and its results, too.")
@asking_options
def command(
    key: str, forget: bool, as_json: bool, broker: str, token_file: str | None, keys: str | None
) -> None:
    """End the job KEY; the beginning of a key will do. What has a result by then can be fetched."""
    done = ask(broker, "collect" if forget else "cancel", token_file, keys, about=key)
    if as_json:
        click.echo(json.dumps(done))
    elif forget:
        click.echo(f"job {done['key']} is forgotten")
    elif done["state"] == STOPPED:
        click.echo(f"job {done['key']} is cancelled: {done['count']} items had no result")
    else:
        click.echo(f"job {done['key']} is {done['state']} already")
