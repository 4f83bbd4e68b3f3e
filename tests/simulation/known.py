"""Faults of the cores that schedules have found and that are not mended yet: an entry goes when its fault does.

What a violation that matches says is counted, and is no failure. The seed shows it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Known:
    """One of them: ``pattern`` matches what a violation says, ``seed`` is a schedule that shows it."""

    pattern: str
    seed: int
    text: str
    #: Only what careless users do shows it.
    careless: bool = False


KNOWN: dict[str, Known] = {}


def known(violation: str, careless: bool = False) -> str:
    """The name of the known fault that this is, or nothing."""
    for name, each in KNOWN.items():
        if each.careless <= careless and re.search(each.pattern, violation):
            return name
    return ""
