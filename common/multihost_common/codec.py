"""Messages as they travel: frames of bytes.

On the wire a message is one msgpack array ``[code, field, field, ...]`` of at most 64 KiB, followed by
its opaque payload frames; small ones travel in the array. :func:`encode` and :func:`decode` are the only
way in and out; :func:`decode` accepts exactly what the schema says and raises
:class:`~multihost_common.errors.ProtocolError` for everything else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from operator import attrgetter
from typing import Any

from multihost_common.blocks import Frame
from multihost_common.errors import ProtocolError
from multihost_common.schema import TABLE, TEXT, Message, schema
from multihost_common.structs import run

#: Headers are small and flat; what is larger is not ours and is refused unparsed.
MAX_HEADER_BYTES = 65_536

#: More payload frames than this in one message are refused (a block with 60 buffers is plenty), but for one more
#: where the header of another message is one of them.
MAX_FRAMES = 64

#: Payload of so many bytes in all travels inside the header: a frame of its own costs more than a copy.
INLINE_BYTES = 1024

#: More payload frames than this do not travel inside the header.
INLINE_FRAMES = 4


class _Form:
    """How messages of one class are written and read."""

    __slots__ = ("build", "end", "high", "read")

    def __init__(self, cls: type[Message]) -> None:
        told = schema(cls)
        self.high = cls.carries[1]
        #: Length of the header without payload.
        self.end = len(told) + 1
        # The code once more, so that it is a tuple even without fields.
        self.read = attrgetter("opcode", *(name for name, _, _ in told), "opcode")
        self.build = _builder(cls)


def _builder(cls: type[Message]) -> Callable[..., Message | None]:
    """A function that takes a header and payload frames, and answers the message, or None if something
    is not as the schema has it.

    Compiled, as ``dataclass`` does it for ``__init__``: every message of every hop is checked, field by
    field, and with a loop over the schema :func:`decode` takes half as long again.
    """
    told = schema(cls)
    low, high = cls.carries
    checks = [_check(name, kind, bounds) for name, kind, bounds in told]
    checks.append(f"{low} <= len(frames) <= {high}")
    values = ", ".join([name for name, _, _ in told] + ["frames"] * bool(high))
    names = "".join(f"{name}, " for name, _, _ in told)
    source = f"def build(opcode, {names}*frames):\n if {' and '.join(checks)}:\n  return cls({values})"
    build: Callable[..., Message | None] = run(source, cls=cls)["build"]
    return build


def _check(name: str, kind: type, bounds: tuple[Any, Any] | None) -> str:
    check = f"type({name}) is {kind.__name__}"
    if bounds is None:
        return check
    value = f"len({name})" if kind in (str, bytes) else name
    return f"{check} and {bounds[0]!r} <= {value} <= {bounds[1]!r}"


_forms: dict[type[Message], _Form] = {}


def _form(cls: type[Message]) -> _Form:
    form = _forms[cls] = _Form(cls)
    return form


@cache
def _packer() -> Callable[[object], bytes]:
    """msgpack's, kept: to make one costs more than to use it. It does not let other threads in."""
    import msgpack

    # A host or file name may hold what is no text: a question mark there is better than no message.
    pack: Callable[[object], bytes] = msgpack.Packer(unicode_errors="replace").pack
    return pack


@cache
def _unpackb() -> Callable[..., object]:
    import msgpack

    return msgpack.unpackb


def encode(msg: Message) -> list[Frame]:
    """Header and payload frames, ready to send."""
    form = _forms.get(type(msg)) or _form(type(msg))
    header = form.read(msg)[:-1]
    frames: Sequence[Frame] = msg.frames if form.high else ()  # type: ignore[attr-defined]
    if 0 < len(frames) <= INLINE_FRAMES and sum(map(len, frames)) <= INLINE_BYTES:
        return [_packer()((*header, *frames))]
    return [_packer()(header), *frames]


def decode(frames: Sequence[Frame]) -> Message:
    """The message in ``frames``. Raises ProtocolError unless it is exactly of the schema."""
    if not 1 <= len(frames) <= MAX_FRAMES + 2:
        raise ProtocolError("E_FRAMES", f"{len(frames)} frames")
    if len(frames[0]) > MAX_HEADER_BYTES:
        raise ProtocolError("E_HEADER", f"a header of {len(frames[0])} bytes")
    try:
        header = _unpackb()(
            frames[0], max_array_len=64, max_map_len=0, max_ext_len=0, max_str_len=TEXT, max_bin_len=4096
        )
    except (ValueError, TypeError) as error:
        raise ProtocolError("E_DECODE", str(error) or type(error).__name__) from None
    if type(header) is not list or not header or type(header[0]) is not int:
        raise ProtocolError("E_DECODE", "the header is not an array that begins with a code")
    cls = TABLE.get(header[0])
    if cls is None:
        raise ProtocolError("E_OP", f"no message has code {header[0]}")
    form = _forms.get(cls) or _form(cls)
    made = None
    if len(header) == form.end:
        made = form.build(*header, *frames[1:])
    elif len(header) > form.end and len(frames) == 1 and _all_bytes(header[form.end :]):
        made = form.build(*header)
    if made is None:
        raise _misfit(cls, header, frames)
    return made


def _all_bytes(payload: list[Any]) -> bool:
    return {bytes}.issuperset(map(type, payload))


def _misfit(cls: type[Message], header: list[Any], frames: Sequence[Frame]) -> ProtocolError:
    """What is wrong with a message of this class."""
    name, told = cls.__name__, schema(cls)
    payload = header[len(told) + 1 :]
    if len(header) <= len(told) or (payload and (len(frames) > 1 or not _all_bytes(payload))):
        return ProtocolError("E_DECODE", f"{name} has {len(told)} fields")
    for value, (field, kind, bounds) in zip(header[1:], told, strict=False):
        least, most = bounds or (False, True)
        size = len(value) if type(value) in (str, bytes) else value
        if type(value) is not kind or not least <= size <= most:
            return ProtocolError("E_FIELD", f"{name}.{field} is out of range")
    return ProtocolError("E_FRAMES", f"{name} with {len(payload) or len(frames) - 1} payload frames")
