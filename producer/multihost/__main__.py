"""``python -m multihost``: the command line."""

from __future__ import annotations

from multihost.cli import main

main()
