"""``multihost queue``"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import click

from multihost.commands.asking import ask
from multihost.commands.printing import one_line
from multihost.commands.shared import asking_options

NAME = click.argument("name")


@click.group()
def command() -> None:
    """Look at the named queues of a broker, empty them, delete them."""


@command.command("list")
@asking_options
def list_queues(as_json: bool, broker: str, token_file: str | None, keys: str | None) -> None:
    """List the queues that have a name."""
    found = ask(broker, "queues", token_file, keys)
    lines = [_line(queue) for queue in found["queues"]] or ["no queues"]
    click.echo(json.dumps(found, indent=2) if as_json else "\n".join(lines))


@command.command()
@NAME
@asking_options
def show(name: str, as_json: bool, broker: str, token_file: str | None, keys: str | None) -> None:
    """Show the queue NAME, and who uses it."""
    (queue,) = ask(broker, "queues", token_file, keys, about=name)["queues"]
    click.echo(json.dumps(queue, indent=2) if as_json else "\n".join([_line(queue), *_users(queue)]))


@command.command()
@NAME
@asking_options
def purge(name: str, as_json: bool, broker: str, token_file: str | None, keys: str | None) -> None:
    """Drop the items of the queue NAME that nobody has got."""
    done = ask(broker, "purge", token_file, keys, about=name)
    click.echo(json.dumps(done) if as_json else f"dropped {done['count']} items of queue {one_line(name)}")


@command.command()
@NAME
@asking_options
def delete(name: str, as_json: bool, broker: str, token_file: str | None, keys: str | None) -> None:
    """Delete the queue NAME with all its items. Who uses it gets an error."""
    done = ask(broker, "delete", token_file, keys, about=name)
    click.echo(json.dumps(done) if as_json else f"deleted queue {one_line(name)} with {done['count']} items")


def _line(queue: dict[str, Any]) -> str:
    held = queue["items"] - queue["waiting"]
    parts = [f"{queue['waiting']} items wait", f"{held} are with consumers"]
    if queue["maxsize"]:
        parts.append(f"room for {queue['maxsize']}")
    parts.append(f"{queue['bytes']} bytes on disk")
    parts.append(f"{len(queue['users'])} users")
    if queue["expected"]:
        parts.append(f"waits for {queue['expected']} consumers to come back")
    return f"{one_line(queue['name'])}: {', '.join(parts)}"


def _users(queue: dict[str, Any]) -> Iterator[str]:
    for user in queue["users"]:
        gets = f"gets, has {user['holds']}" if user["gets"] else "puts"
        yield f"  {one_line(user['name']) or '?'} on {one_line(user['host'])}, pid {user['pid']}: {gets}"
