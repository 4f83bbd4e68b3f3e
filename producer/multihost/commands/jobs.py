"""``multihost jobs``"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import click

from multihost.commands.asking import ask
from multihost.commands.printing import one_line
from multihost.commands.shared import asking_options


@click.command()
@asking_options
def command(as_json: bool, broker: str, token_file: str | None, keys: str | None) -> None:
    """List the jobs that the broker keeps: those that are under way, and those whose results wait to be fetched."""
    found = ask(broker, "jobs", token_file, keys)
    click.echo(json.dumps(found, indent=2) if as_json else "\n".join(_lines(found["jobs"])))


def _lines(jobs: list[dict[str, Any]]) -> Iterator[str]:
    if not jobs:
        yield "no jobs"
    for job in jobs:
        of = f"of {job['fed']} so far" if job["count"] is None else f"of {job['count']}"
        parts = [f"{job['answered']} {of} items done"]
        parts += [f"{job[what]} {what}" for what in ("failed", "dead") if job[what]]
        parts.append(f"submitted {moment(job['submitted'])}")
        if job["ended"] is not None:
            parts.append(f"ended {moment(job['ended'])}")
        if job["kept_until"] is not None:
            parts.append(f"kept until {moment(job['kept_until'])}")
        yield f"{job['key']} {job['state']} {one_line(job['name']) or '-'}: {', '.join(parts)}"


def moment(seconds: float) -> str:
    """A time of the wall clock, as people here write it."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
