"""The group of all sub-commands. One is a module of :mod:`multihost.commands`, imported when it is used."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import click

from multihost.commands.printing import EXIT_INTERRUPTED

#: Sub-commands in the order of ``--help``, with a line each, so that help needs no imports.
COMMANDS = {
    "run": "Run a script that uses multiprocessing on multihost.",
    "map": "Call a function for each line of standard input.",
    "submit": "Hand in a job that outlives this command.",
    "jobs": "List the jobs that the broker keeps.",
    "result": "Print the results of such a job.",
    "cancel": "End such a job.",
    "queue": "Look at named queues, empty them, delete them.",
    "dead": "Look at items that killed their processes, and run them again.",
    "broker": "Serve producers and workers on one TCP port.",
    "worker": "Run tasks on this host for a broker.",
    "status": "Show workers, pools and jobs of a broker.",
    "drain": "Have workers finish what they run, and leave.",
    "health": "Exit 0 if the broker, or this host's worker, is well.",
    "keys": "Show or make keys and tokens.",
    "bench": "Compare with multiprocessing on this machine.",
    "version": "Show versions.",
}


class LazyGroup(click.Group):
    """Imports a sub-command when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name."""
        if cmd_name not in COMMANDS:
            return None
        command = import_module(f"multihost.commands.{cmd_name}").command
        assert isinstance(command, click.Command)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """As any group's, but what Ctrl-C ends says so by its exit status alone."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise SystemExit(EXIT_INTERRUPTED) from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of sub-commands in ``--help``."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Python's multiprocessing, spanning hosts."""
