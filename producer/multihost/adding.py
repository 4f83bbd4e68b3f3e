"""``value.value += 1`` is one step: nothing that another process adds meanwhile is lost.

Reading, adding and writing are three steps in multiprocessing, too, but they take less than a microsecond there, and here
another process is more often faster than not. So what is written by such a statement is the difference.
"""

from __future__ import annotations

import threading
from opcode import opmap
from types import CodeType, FrameType
from typing import Any

#: The instruction that adds or subtracts in place, with its argument for each, and what follows it up to the one that
#: stores into an attribute: BINARY_OP, its cache, SWAP 2, STORE_ATTR.
_OPERATION, _SWAP, _STORE = opmap.get("BINARY_OP", -1), opmap.get("SWAP", -1), opmap.get("STORE_ATTR", -1)
_IN_PLACE = (13, 23)
_BACK, _WORD = 6, 2

#: What is known of a statement that stores: its code and where in it.
_known: dict[tuple[CodeType, int], bool] = {}
MOST_KNOWN = 1024


class _Seen(threading.local):
    """What this thread has read last: the object, the value, and for which call of which function."""

    of: Any = None
    value: Any = None
    frame: int = 0


_seen = _Seen()


def note(frame: FrameType, of: object, value: object) -> None:
    """This function has read this value of the object."""
    _seen.of, _seen.value, _seen.frame = id(of), value, id(frame)


def before(frame: FrameType, of: object) -> Any:
    """The value that this function has added to, if it is storing what ``+=`` or ``-=`` made of it; else None."""
    if _seen.frame != id(frame) or _seen.of != id(of):
        return None
    value, _seen.value, _seen.frame = _seen.value, None, 0
    return value if type(value) in (int, float) and _adds(frame.f_code, frame.f_lasti) else None


def _adds(code: CodeType, at: int) -> bool:
    known = _known.get((code, at))
    if known is None:
        if len(_known) >= MOST_KNOWN:
            _known.clear()
        known = _known[code, at] = _looks_added(code.co_code, at)
    return known


def _looks_added(code: bytes, at: int) -> bool:
    if at < _BACK or code[at] != _STORE or code[at - _WORD] != _SWAP:
        return False
    return code[at - _BACK] == _OPERATION and code[at - _BACK + 1] in _IN_PLACE


__all__ = ["before", "note"]
