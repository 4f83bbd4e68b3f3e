"""Pickling as both ends do it: protocol 5, large buffers out of band, cloudpickle where plain pickle fails.

Results travel in *pieces*, pickles laid end to end: either lists of values, or one *outcome* an item,
a tuple that begins with one of the codes below.
"""

from __future__ import annotations

from array import array
from sys import byteorder

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pickle import PickleBuffer, dumps, loads
    from typing import Any

    from multihost_common.blocks import Frame
else:
    # The C module itself: `import pickle` brings `re` along, which a child would pay for at its start.
    try:
        from _pickle import PickleBuffer, dumps, loads
    except ImportError:
        from pickle import PickleBuffer, dumps, loads

__all__ = ["PickleBuffer", "dumps", "loads"]

#: Buffers of this size and more leave the pickle and become frames of their own.
LARGE = 65_536

#: A message has at most 64 frames; what is left after these stays in the pickle.
MAX_BUFFERS = 60

#: (DONE, value): the function returned.
DONE = 0
#: (RAISED, exception, traceback text): it raised.
RAISED = 1
#: (RAISED_TEXT, last line, traceback text): it raised what does not survive pickling.
RAISED_TEXT = 2
#: (NO_PICKLE, exception or text, repr of the value): what it returned cannot be pickled.
NO_PICKLE = 3
#: (NO_UNPICKLE, traceback text): the argument or the function could not be unpickled.
NO_UNPICKLE = 4

REPR = 1000


class Fresh:
    """A callable with a state, as it travels: whoever runs it has a new copy for each chunk, as in multiprocessing.

    ``content``: its pickle.
    """

    __slots__ = ("content",)

    def __init__(self, content: bytes) -> None:
        self.content = content

    def __reduce__(self) -> tuple[type[Fresh], tuple[bytes]]:
        return Fresh, (self.content,)


class Carried:
    """A chunk that brings the :class:`Fresh` callable along, since that has changed. ``items``: a list, or the one item."""

    __slots__ = ("content", "items")

    def __init__(self, content: bytes, items: Any) -> None:
        self.content = content
        self.items = items

    def __reduce__(self) -> tuple[type[Carried], tuple[bytes, Any]]:
        return Carried, (self.content, self.items)


def dumps_value(value: object, by_value: bool = False) -> tuple[bytes, list[memoryview]]:
    """The pickle of ``value`` and its large buffers.

    Plain pickle first. What it cannot do cloudpickle tries; with ``by_value`` also all that refers
    to ``__main__``, which the other end does not have.
    """
    buffers: list[memoryview] = []
    try:
        data = dumps(value, 5, buffer_callback=keeper(buffers))
        if not by_value or b"__main__" not in data:
            return data, buffers
    except Exception as error:  # noqa: BLE001
        return _dumps_by_value(value, error)
    return _dumps_by_value(value, None)


def _dumps_by_value(value: object, plain: Exception | None) -> tuple[bytes, list[memoryview]]:
    from multihost_common import byvalue

    buffers: list[memoryview] = []
    try:
        data = byvalue.dumps(value, keeper(buffers))
    except Exception as error:  # noqa: BLE001
        # What plain pickle says is what people know from multiprocessing.
        raise plain or error from None
    if plain is not None and b"__main__" not in data:
        # As multiprocessing has it: only what the script itself defines travels by value.
        raise plain
    return data, buffers


def keeper(buffers: list[memoryview]) -> Callable[[PickleBuffer], bool]:
    """A ``buffer_callback`` that puts large buffers into ``buffers`` and leaves small ones in the pickle."""

    def keep_in_band(buffer: PickleBuffer) -> bool:
        if len(buffers) == MAX_BUFFERS:
            return True
        try:
            raw = buffer.raw()
        except BufferError:
            return True
        if raw.nbytes < LARGE:
            return True
        buffers.append(raw)
        return False

    return keep_in_band


def loads_pieces(frames: Sequence[Frame]) -> Iterator[Any]:
    """The object of each piece in ``[lengths, pickles end to end, buffer, ...]``, unpickled one by one."""
    data, buffers = frames[1], frames[2:]
    if len(frames[0]) == 4:
        yield loads(data, buffers=buffers)
        return
    view = memoryview(data)
    end = 0
    for length in lengths_of(frames[0]):
        begin, end = end, end + length
        yield loads(view[begin:end], buffers=buffers)


def pieces_frames(pieces: Sequence[bytes], buffers: Iterable[Frame] = ()) -> list[Frame]:
    """The inverse: frames that hold ``pieces``."""
    if len(pieces) == 1:
        return [len(pieces[0]).to_bytes(4, "little"), pieces[0], *buffers]
    lengths = array("I", map(len, pieces))
    if byteorder == "big":
        lengths.byteswap()
    return [lengths.tobytes(), b"".join(pieces), *buffers]


def lengths_of(frame: Frame) -> array[int]:
    """Little-endian 32-bit integers, as :func:`multihost_common.blocks.unpack_lengths` does it."""
    lengths: array[int] = array("I")
    lengths.frombytes(frame)
    if byteorder == "big":
        lengths.byteswap()
    return lengths


def dumps_outcome(outcome: tuple[Any, ...]) -> tuple[bytes, list[memoryview]]:
    """The pickle of one item's outcome. Never fails: what cannot be sent becomes text."""
    code = outcome[0]
    if code == RAISED:
        return _dumps_raised(outcome[1], outcome[2])
    try:
        return dumps_value(outcome)
    except BaseException as error:  # noqa: BLE001
        return _dumps_no_pickle(error, outcome[1]), []


def _dumps_raised(error: BaseException, trace: str) -> tuple[bytes, list[memoryview]]:
    survives = False
    data, buffers = b"", list[memoryview]()
    try:
        data, buffers = dumps_value((RAISED, error, trace))
        # An exception whose __init__ takes other arguments pickles, and fails at the far end.
        survives = type(loads(data, buffers=buffers)[1]) is type(error)
    except BaseException:  # noqa: BLE001
        survives = False
    if survives:
        return data, buffers
    lines = trace.rstrip().rsplit("\n", 1)
    return dumps((RAISED_TEXT, lines[-1], trace), 5), []


def _dumps_no_pickle(error: BaseException, value: object) -> bytes:
    try:
        shown = repr(value)[:REPR]
    except BaseException as failure:  # noqa: BLE001
        shown = f"<{type(value).__name__} whose repr() raised {type(failure).__name__}>"
    try:
        # As concurrent.futures has it, a SystemExit arrives as one.
        if not isinstance(error, (Exception, SystemExit)):
            raise TypeError("what would end the producer goes as text")
        data: bytes = dumps((NO_PICKLE, error, shown), 5)
        loads(data)
    except BaseException:  # noqa: BLE001
        data = dumps((NO_PICKLE, f"{type(error).__name__}: {error}", shown), 5)
    return data
