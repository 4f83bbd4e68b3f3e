"""What can go wrong with the journal."""

from __future__ import annotations

from multihost_common.errors import EX_CANTCREAT, EX_IOERR, MultihostError


class StoreError(MultihostError):
    """The journal cannot be written or read, or part of it is damaged; to try again would not help."""

    exit_code = EX_IOERR


class StoreFullError(StoreError):
    """There is no room. What was to be written has not been, all else is as before."""


class StoreInUseError(StoreError):
    """Another broker has this journal."""

    exit_code = EX_CANTCREAT
