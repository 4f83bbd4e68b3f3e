"""``multihost status``"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import click

from multihost.commands.asking import ask
from multihost.commands.printing import one_line
from multihost.commands.shared import address_argument, json_option, keys_option, token_file_option


@click.command()
@address_argument
@json_option
@token_file_option
@keys_option
def command(address: str, as_json: bool, token_file: str | None, keys: str | None) -> None:
    """Show workers, producers, pools and jobs of the broker at ADDRESS (default $MULTIHOST_BROKER)."""
    state = ask(address, "status", token_file, keys)
    click.echo(json.dumps(state, indent=2) if as_json else "\n".join(_lines(address, state)))


def _lines(address: str, state: dict[str, Any]) -> Iterator[str]:
    workers, producers, pools = state["workers"], state["producers"], state["pools"]
    slots = sum(each["slots"] for each in workers)
    yield (
        f"{address}: {len(workers)} workers, {slots} slots, "
        f"{len(producers)} producers, {len(pools)} pools, Python {state['python'] or 'any'}"
    )
    for each in workers:
        note = ", draining" if each["draining"] else ""
        yield (
            f"  worker {each['session']} {one_line(each['name']) or '-'} on {each['host']}, pid {each['pid']}: "
            f"{each['slots']} slots, {each['held']} items held{note}"
        )
    for each in producers:
        kind = "child" if each["nested"] else "producer"
        yield f"  {kind} {each['session']} {one_line(each['name']) or '-'} on {each['host']}, pid {each['pid']}"
    for each in state["processes"]:
        where = f"on {each['host']}, pid {each['pid']}" if each["pid"] else "waits for a worker"
        yield f"  process {one_line(each['name']) or each['process']} {where}"
    if state["objects"]:
        yield f"  {state['objects']} shared objects, {state['object_bytes']} bytes"
    for pool in pools:
        yield f"  pool {one_line(pool['name']) or pool['pool']}: {pool['slots']} slots"
        for job in pool["jobs"]:
            yield f"    job {one_line(job['name']) or job['job']}: {job['answered']} of {job['fed']} items done"
