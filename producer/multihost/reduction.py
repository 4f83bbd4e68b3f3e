"""What travels: functions and items on their way out, results on their way back.

Plain pickle comes first, because it is fast and refers to code by name. What lives in ``__main__``,
and what plain pickle refuses (lambdas, closures, functions of a notebook), goes by cloudpickle, which
is imported only then. Buffers of 64 KiB and more travel out of band (pickle protocol 5).
"""

from __future__ import annotations

import io
import pickle
import sys
from collections.abc import Callable, Sequence
from itertools import chain, islice
from types import BuiltinFunctionType, FunctionType
from typing import Any, TypeAlias

from multihost_common import errors, shipments
from multihost_common.blocks import Frame, unpack_lengths
from multihost_common.pickling import MAX_BUFFERS, Carried

#: Buffers of this many bytes and more are frames of their own.
OUT_OF_BAND_BYTES = 65_536

#: A batch of pickles ends when it has grown to this many bytes.
BATCH_BYTES = 1 << 20

#: Types whose pickles refer to no code, so that nothing about them needs to be looked at.
ATOMS = frozenset({type(None), bool, int, float, str, bytes})

#: (True, value) or (False, exception), one an item.
Outcome: TypeAlias = "tuple[bool, Any]"

_MAIN = b"__main__"


# -- out ---------------------------------------------------------------------------------------------


def dump_function(func: Callable[..., Any]) -> bytes:
    """The pickle of a callable; by value if it, or what it is made of, lives in ``__main__``."""
    return _dump(func, None)


def dump_once(obj: Any, forked: bool = False) -> bytes:
    """Like :func:`dump_function`, and objects of the script's are asked for their state once. ``forked``: not at all
    where that can be avoided, see :mod:`multihost_common.rawstate`."""
    return _dump(obj, None, None, _plainly, forked)


def dump_item(
    obj: Any, dumps: Callable[..., bytes] = pickle.dumps, forked: bool = False
) -> tuple[bytes, list[Frame]]:
    """(pickle, out-of-band buffers) of an item, or of a chunk of them. ``dumps`` is what plain pickling is, ``forked`` as
    in :func:`dump_once`.

    Raises what pickle raised when neither pickle nor cloudpickle can do it.
    """
    buffers: list[Frame] = []

    def keep(buffer: pickle.PickleBuffer) -> bool:
        raw = buffer.raw()
        if raw.nbytes < OUT_OF_BAND_BYTES or len(buffers) == MAX_BUFFERS:
            return True
        buffers.append(raw)
        return False

    return _dump(obj, keep, buffers, dumps, forked), buffers


def dump_shared(obj: Any, forked: bool = False) -> tuple[bytes, list[Frame]]:
    """Like :func:`dump_item`, with all that multiprocessing knows how to pickle: sockets and connections, too.
    ``forked``: as in :func:`dump_once`."""
    from multiprocessing.reduction import ForkingPickler

    class Pickler(ForkingPickler):
        reducer_override = _refuse_mains

    def dumps(obj: Any, protocol: int, buffer_callback: Any) -> bytes:
        with io.BytesIO() as file:
            Pickler(file, protocol, True, buffer_callback).dump(obj)
            return file.getvalue()

    return dump_item(obj, dumps, forked)


class _OfMainError(Exception):
    """Plain pickle need not go on: something has to travel by value."""


def _refuse_mains(self: pickle.Pickler, obj: Any) -> Any:
    """The ``reducer_override`` of a pickler that has nothing to do with ``__main__``, nor calls its hooks."""
    if type(obj).__module__ == "__main__" or (
        isinstance(obj, (type, FunctionType)) and obj.__module__ == "__main__"
    ):
        raise _OfMainError
    return NotImplemented


class _PlainPickler(pickle.Pickler):
    reducer_override = _refuse_mains


def _plainly(obj: Any, protocol: int, buffer_callback: Any) -> bytes:
    with io.BytesIO() as file:
        _PlainPickler(file, protocol, buffer_callback=buffer_callback).dump(obj)
        return file.getvalue()


def dump_many(items: Sequence[Any], limit: int = BATCH_BYTES) -> list[bytes]:
    """The pickles of the first items, each by itself: as many as go together in one block.

    All of them when they are plain values. Otherwise it ends before an item that has out-of-band
    buffers or does not pickle, and once ``limit`` bytes are reached, so that the result may be shorter
    than ``items``; it is empty when the first item has to go by :func:`dump_item` alone.
    """
    if _plain(items):
        return list(map(pickle.dumps, items))
    pieces: list[bytes] = []
    size = 0
    for item in items:
        try:
            data, buffers = dump_item(item)
        except Exception:  # noqa: BLE001
            break
        if buffers:
            break
        pieces.append(data)
        size += len(data)
        if size >= limit:
            break
    return pieces


def failures(items: Sequence[Any]) -> dict[int, Exception]:
    """Which of the items do not pickle, by index, and why."""
    found: dict[int, Exception] = {}
    for index, item in enumerate(items):
        try:
            dump_item(item)
        except Exception as error:  # noqa: BLE001
            found[index] = error
    return found


def renew(forked: bool) -> None:
    """Definitions of ``__main__`` are made anew from here on; every new pool says so. ``forked``: and the globals that
    travel with them as in :func:`dump_once`."""
    global _forked
    _forked = forked
    byvalue = sys.modules.get("multihost_common.byvalue")
    if byvalue is not None:
        byvalue.renew()


_forked = False


def cacheable(func: object) -> bool:
    """Whether one pickle of ``func`` stands for all later calls of it (within one pool).

    A closure, a bound method or a partial may have changed by the next call; a plain function is
    its code. Globals of ``__main__`` travel as they were when the pool first ran the function.
    """
    kind = type(func)
    if kind is FunctionType:
        return func.__closure__ is None  # type: ignore[attr-defined]
    if kind is BuiltinFunctionType:
        owner = getattr(func, "__self__", None)
        return owner is None or type(owner) is type(pickle)
    return isinstance(func, type)


def _plain(items: Sequence[Any]) -> bool:
    kinds = set(map(type, items))
    if kinds == {tuple}:
        kinds = set(map(type, chain.from_iterable(items)))
    if not kinds <= ATOMS:
        return False
    if kinds.isdisjoint((str, bytes)):
        return True
    # Long texts are cut into batches by size, on the slower path.
    return sum(map(_size, islice(items, 64))) < 1024 * 64 and max(map(_size, items)) < OUT_OF_BAND_BYTES


def _size(item: Any) -> int:
    kind = type(item)
    if kind is str or kind is bytes:
        return len(item)
    return sum(map(_size, item)) if kind is tuple else 8


def _dump(
    obj: Any,
    keep: Callable[[pickle.PickleBuffer], bool] | None,
    buffers: list[Frame] | None = None,
    dumps: Callable[..., bytes] = pickle.dumps,
    forked: bool = False,
) -> bytes:
    if _is_mains(obj):
        return _dump_by_value(obj, keep, None, buffers, forked)
    failure: Exception | None = None
    marked = shipments.mark()
    try:
        data = dumps(obj, 5, buffer_callback=keep)
        if _MAIN not in data:
            return data
    except _OfMainError:
        pass
    except Exception as error:  # noqa: BLE001
        failure = error
    shipments.void_since(marked)
    if buffers is not None:
        buffers.clear()
    return _dump_by_value(obj, keep, failure, buffers, forked)


def _is_mains(obj: Any) -> bool:
    """Whether plain pickle need not be tried (which may call the user's ``__getstate__``)."""
    kind = type(obj)
    if kind is Carried:
        obj = obj.items
        kind = type(obj)
    if kind is list and obj:
        obj = obj[0]
        kind = type(obj)
    if kind is tuple:
        # Arguments; or, of a call, those and its keywords.
        for each in obj:
            kind = type(each)
            if kind.__module__ == "__main__":
                return True
            if kind is tuple:
                for inner in each:
                    if type(inner).__module__ == "__main__":
                        return True
        return False
    return getattr(obj, "__module__", None) == "__main__" or type(obj).__module__ == "__main__"


def _dump_by_value(
    obj: Any,
    keep: Callable[[pickle.PickleBuffer], bool] | None,
    failure: Exception | None,
    buffers: list[Frame] | None,
    forked: bool,
) -> bytes:
    from multihost_common import byvalue

    byvalue.forked = _forked
    marked = shipments.mark()
    if forked:
        try:
            return byvalue.dumps(obj, keep, raw=True)
        except Exception:  # noqa: BLE001
            # There is something in it that can only be forked: its hooks may know what to do.
            shipments.void_since(marked)
            if buffers is not None:
                buffers.clear()
    try:
        return byvalue.dumps(obj, keep)
    except Exception as error:  # noqa: BLE001
        shipments.void_since(marked)
        # What plain pickle said is what a user of multiprocessing knows.
        raise failure or error from None


# -- back --------------------------------------------------------------------------------------------


def load_values(frames: Sequence[Frame]) -> list[Any]:
    """The values of a result in the encoding VALUES. Raises what unpickling raised."""
    buffers = _writable(frames[2:])
    if len(frames[0]) == 4:
        values: list[Any] = pickle.loads(frames[1], buffers=buffers)
        return values
    values = []
    data = memoryview(frames[1])
    begin = 0
    for length in unpack_lengths(frames[0]):
        values += pickle.loads(data[begin : begin + length], buffers=buffers)
        begin += length
    return values


def load_outcomes(frames: Sequence[Frame], executor: bool = False) -> list[Outcome]:
    """The outcomes of a result in the encoding OUTCOMES, with exceptions ready to be raised.

    ``executor``: causes and errors are those of concurrent.futures, else those of
    multiprocessing.pool. An outcome that does not unpickle becomes a RemoteError.
    """
    buffers = _writable(frames[2:])
    data = memoryview(frames[1])
    outcomes: list[Outcome] = []
    begin = 0
    for length in unpack_lengths(frames[0]):
        piece = data[begin : begin + length]
        begin += length
        try:
            made = pickle.loads(piece, buffers=buffers)
            outcomes.append((True, made[1]) if made[0] == 0 else (False, _error(made, executor)))
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001
            outcomes.append((False, _not_loaded(error, piece)))
    return outcomes


def load_results(encoding: int, count: int, frames: Sequence[Frame], executor: bool = False) -> list[Outcome]:
    """One outcome for each of the ``count`` items of a result, whatever happens in unpickling it."""
    if encoding:
        return load_outcomes(frames, executor)
    try:
        return [(True, value) for value in load_values(frames)]
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001
        return _salvage(count, frames, error)


def _salvage(count: int, frames: Sequence[Frame], error: BaseException) -> list[Outcome]:
    """Values from both ends up to the pieces that do not unpickle; RemoteError for the rest."""
    lengths = unpack_lengths(frames[0])
    data = memoryview(frames[1])
    pieces = []
    begin = 0
    for length in lengths:
        pieces.append(data[begin : begin + length])
        begin += length
    head = _until_failure(pieces, frames)
    tail = _until_failure(pieces[::-1], frames) if len(pieces) > 1 else []
    first: list[Outcome] = [(True, value) for piece in head for value in piece]
    last: list[Outcome] = [(True, value) for piece in reversed(tail) for value in piece]
    missing = count - len(first) - len(last)
    lost = _not_loaded(error, b"")
    return first + [(False, lost)] * missing + last


def _until_failure(pieces: Sequence[Frame], frames: Sequence[Frame]) -> list[list[Any]]:
    loaded: list[list[Any]] = []
    for piece in pieces:
        try:
            loaded.append(pickle.loads(piece, buffers=_writable(frames[2:])))
        except BaseException:  # noqa: BLE001
            break
    return loaded


def _writable(buffers: Sequence[Frame]) -> Sequence[Frame]:
    """Buffers as pickle wants them: an array that multiprocessing would return can be written to."""
    if not buffers:
        return ()
    return [bytearray(buffer) if memoryview(buffer).readonly else buffer for buffer in buffers]


def _error(outcome: tuple[Any, ...], executor: bool) -> BaseException:
    kind = outcome[0]
    if kind == 1:
        error: BaseException = outcome[1]
        error.__cause__ = _traceback_class(executor)(f'\n"""\n{outcome[2]}"""')
        return error
    if kind == 2:
        return errors.RemoteError(
            f"an exception that cannot be pickled: {outcome[1]}\n\n{outcome[2].rstrip()}"
        )
    if kind == 3:
        return _encoding_error(outcome[1], outcome[2], executor)
    return errors.RemoteError(
        f"the function or its argument cannot be unpickled on the worker\n\n{outcome[1].rstrip()}"
    )


def _traceback_class(executor: bool) -> Callable[[str], BaseException]:
    if executor:
        from concurrent.futures import process

        kind: Callable[[str], BaseException] = process._RemoteTraceback  # type: ignore[assignment]
        return kind
    from multiprocessing import pool

    return pool.RemoteTraceback  # type: ignore[attr-defined,no-any-return]


def _encoding_error(reason: Any, shown: str, executor: bool) -> BaseException:
    if executor:
        return reason if isinstance(reason, BaseException) else errors.RemoteError(str(reason))
    from multiprocessing import pool

    error: Any = pool.MaybeEncodingError(reason, shown)  # type: ignore[attr-defined]
    # Both are texts already, made where the value was.
    error.value = shown
    error.exc = repr(reason) if isinstance(reason, BaseException) else str(reason)
    error.args = (error.exc, error.value)
    made: BaseException = error
    return made


def _not_loaded(error: BaseException, piece: Frame) -> errors.RemoteError:
    line = f"{type(error).__name__}: {error}"
    text = _traceback_in(piece)
    if text:
        return errors.RemoteError(f"the exception cannot be unpickled here ({line})\n\n{text.rstrip()}")
    lost = errors.RemoteError(f"the result cannot be unpickled here ({line})")
    lost.__cause__ = error
    return lost


def _traceback_in(piece: Frame) -> str:
    """The remote traceback in the pickle of an outcome, without running any of it."""
    import pickletools

    found = ""
    try:
        for _, argument, _ in pickletools.genops(bytes(piece)):
            if isinstance(argument, str) and "Traceback (most recent call last)" in argument:
                found = argument
    except Exception:  # noqa: BLE001
        return found
    return found
