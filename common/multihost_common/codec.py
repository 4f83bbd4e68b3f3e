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

#: Headers are small and flat; what is larger is not ours and is refused unparsed.
MAX_HEADER_BYTES = 65_536

#: More payload frames than this in one message are refused (a block with 60 buffers is plenty).
MAX_FRAMES = 64

#: Payload of so many bytes in all travels inside the header: a frame of its own costs more than a copy.
INLINE_BYTES = 1024

#: More payload frames than this do not travel inside the header.
INLINE_FRAMES = 4


class _Form:
    """How messages of one class are written and checked."""

    __slots__ = ("cls", "fields", "high", "low", "read")

    def __init__(self, cls: type[Message]) -> None:
        told = schema(cls)
        self.cls: Any = cls
        self.low, self.high = cls.carries
        #: (name, type, least, most, whether these are of the length) of each field.
        self.fields = [
            (name, kind, *(bounds or (False, True)), kind in (str, bytes)) for name, kind, bounds in told
        ]
        # The code once more, so that it is a tuple even without fields.
        self.read = attrgetter("opcode", *(name for name, _, _ in told), "opcode")


_forms: dict[type[Message], _Form] = {}


def _form(cls: type[Message]) -> _Form:
    form = _forms.get(cls)
    if form is None:
        form = _forms[cls] = _Form(cls)
    return form


@cache
def _packer() -> Callable[[object], bytes]:
    """msgpack's, kept: to make one costs more than to use it. It does not let other threads in."""
    import msgpack

    # A host or file name may hold what is no text: a question mark there is better than no message.
    pack: Callable[[object], bytes] = msgpack.Packer(unicode_errors="replace").pack
    return pack


def encode(msg: Message) -> list[Frame]:
    """Header and payload frames, ready to send."""
    form = _form(type(msg))
    header = form.read(msg)[:-1]
    frames: Sequence[Frame] = msg.frames if form.high else ()  # type: ignore[attr-defined]
    inline = 0 < len(frames) <= INLINE_FRAMES and sum(map(len, frames)) <= INLINE_BYTES
    packed = _packer()((*header, *frames) if inline else header)
    return [packed] if inline else [packed, *frames]


def decode(frames: Sequence[Frame]) -> Message:
    """The message in ``frames``. Raises ProtocolError unless it is exactly of the schema."""
    import msgpack

    if not 1 <= len(frames) <= MAX_FRAMES + 1:
        raise ProtocolError("E_FRAMES", f"{len(frames)} frames")
    if len(frames[0]) > MAX_HEADER_BYTES:
        raise ProtocolError("E_HEADER", f"a header of {len(frames[0])} bytes")
    try:
        header = msgpack.unpackb(
            frames[0], max_array_len=64, max_map_len=0, max_ext_len=0, max_str_len=TEXT, max_bin_len=4096
        )
    except (ValueError, TypeError) as error:
        raise ProtocolError("E_DECODE", str(error) or type(error).__name__) from None
    return _build(header, frames)


def _build(header: object, frames: Sequence[Frame]) -> Message:
    if type(header) is not list or not header or type(header[0]) is not int:
        raise ProtocolError("E_DECODE", "the header is not an array that begins with a code")
    cls = TABLE.get(header[0])
    if cls is None:
        raise ProtocolError("E_OP", f"no message has code {header[0]}")
    form = _form(cls)
    end = len(form.fields) + 1
    payload = frames[1:] if len(frames) > 1 or len(header) == end else _inline(header, end)
    if len(header) != end:
        raise ProtocolError("E_DECODE", f"{cls.__name__} has {len(form.fields)} fields")
    del header[0]
    for value, (name, kind, least, most, sized) in zip(header, form.fields, strict=True):
        if type(value) is not kind or not least <= (len(value) if sized else value) <= most:
            raise ProtocolError("E_FIELD", f"{cls.__name__}.{name} is out of range")
    if not form.low <= len(payload) <= form.high:
        raise ProtocolError("E_FRAMES", f"{cls.__name__} with {len(payload)} payload frames")
    made: Message = form.cls(*header, payload) if form.high else form.cls(*header)
    return made


def _inline(header: list[Any], end: int) -> list[Any]:
    """Take the payload out of a header that has it at its end."""
    payload = header[end:]
    if {bytes}.issuperset(map(type, payload)):
        del header[end:]
    return payload
