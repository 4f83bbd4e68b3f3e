"""The command line's entry."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Sequence

from multihost_common.errors import MultihostError

#: What supervisors run every few seconds, and what it may cost: these forms go without the import of click.
HEALTH = (["health"], ["health", "--worker"])


def main(args: Sequence[str] | None = None) -> None:
    """Entry point of ``multihost``. An error is one line on stderr and an exit code of sysexits.h."""
    try:
        _run(list(sys.argv[1:] if args is None else args))
    except MultihostError as error:
        print(f"multihost: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def _run(args: list[str]) -> None:
    if args in HEALTH and "MULTIHOST_HEALTH_TIMEOUT" not in os.environ:
        # To look for garbage takes some 2 ms of 95, in a process that makes none.
        gc.disable()
        from multihost.commands.asking import check

        check(worker=len(args) > 1)
        return
    from multihost.commands.group import cli

    cli.main(args=args, prog_name="multihost")
