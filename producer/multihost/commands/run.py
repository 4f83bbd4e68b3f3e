"""``multihost run``: an unmodified script on multihost."""

from __future__ import annotations

import os

import click

from multihost.patching import install
from multihost.runner import run_module, run_script


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option("--broker", metavar="ADDRESS", envvar="MULTIHOST_BROKER", show_envvar=True,
              help="Address of the broker; without it the processes are this machine's.")  # fmt: skip
@click.option("--processes", type=click.IntRange(1), envvar="MULTIHOST_PROCESSES", show_envvar=True,
              help="Processes of a pool for which the script names no number.")  # fmt: skip
@click.option("-m", "module", is_flag=True, help="SCRIPT is the name of a module, as with python -m.")
@click.argument("script")
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
def command(
    broker: str | None, processes: int | None, module: bool, script: str, args: tuple[str, ...]
) -> None:
    """Run a Python SCRIPT with multiprocessing served by multihost.

    Everything of multiprocessing, and concurrent.futures.ProcessPoolExecutor, runs on the cluster; all
    else is as with `python SCRIPT ARGS`.
    """
    if broker:
        os.environ["MULTIHOST_BROKER"] = broker
    install(processes)
    if module:
        run_module(script, args)
    run_script(script, args)
