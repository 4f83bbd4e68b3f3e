"""``multihost dead``: items of detached jobs that killed their processes, or took too long."""

from __future__ import annotations

import json
from typing import Any

import click

from multihost.commands.asking import ask, key_and_item
from multihost.commands.jobs import moment
from multihost.commands.printing import one_line
from multihost.commands.shared import asking_options
from multihost_common.errors import JobError

about_argument = click.argument("about", metavar="KEY[:ITEM]")


@click.group()
def command() -> None:
    """Look at items of detached jobs that have no result, for each process that ran them ended, or was too slow."""


@command.command()
@asking_options
def ls(as_json: bool, broker: str, token_file: str | None, keys: str | None) -> None:
    """List them, a line each: KEY:ITEM and what became of it."""
    found = ask(broker, "dead", token_file, keys)
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    for each in found["dead"]:
        where = f"pid {each['pid']} on {each['host']}" if each["host"] else "nowhere"
        click.echo(
            f"{each['key']}:{each['item']} {one_line(each['name']) or '-'}: {each['reason']}, {each['deaths']} processes, "
            f"the last one {where}, {moment(each['since'])}"
        )


@command.command()
@about_argument
@asking_options
def show(about: str, as_json: bool, broker: str, token_file: str | None, keys: str | None) -> None:
    """Show all that is known of the item, or of all such items of the job."""
    key, item = key_and_item(about)
    dead = [
        each
        for each in ask(broker, "dead", token_file, keys)["dead"]
        if each["key"].startswith(key) and item in (None, each["item"])
    ]
    if not dead:
        raise JobError(f"there is no dead letter {about}; 'multihost dead ls' lists those there are")
    if as_json:
        click.echo(json.dumps({"dead": dead}, indent=2))
        return
    click.echo("\n\n".join("\n".join(f"{name} {_shown(name, each[name])}" for name in each) for each in dead))


def _shown(name: str, value: Any) -> Any:
    return moment(value) if name == "since" else one_line(value) if name == "name" else value


@command.command()
@about_argument
@asking_options
def retry(about: str, as_json: bool, broker: str, token_file: str | None, keys: str | None) -> None:
    """Run the item again, or all such items of the job: the cause is gone."""
    _order("retry", "will be run again", about, as_json, broker, token_file, keys)


@command.command()
@about_argument
@asking_options
def drop(about: str, as_json: bool, broker: str, token_file: str | None, keys: str | None) -> None:
    """Take the item, or all such items of the job, off the list. They stay errors in the job's results."""
    _order("drop", "dropped", about, as_json, broker, token_file, keys)


def _order(
    what: str, done: str, about: str, as_json: bool, broker: str, token_file: str | None, keys: str | None
) -> None:
    key_and_item(about)
    answer = ask(broker, what, token_file, keys, about=about)
    click.echo(json.dumps(answer) if as_json else f"{answer['count']} items of job {answer['key']} {done}")
