"""The codec takes exactly what the schema says, and answers everything else with a ProtocolError."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from multihost_common import messages as m
from multihost_common.errors import ProtocolError

CODES = sorted(m.TABLE)


def values(kind: type, bounds: Any) -> st.SearchStrategy[Any]:
    """All values that a field may have."""
    if kind is int:
        return st.integers(*bounds)
    if kind is float:
        return st.floats(*bounds)
    if kind is bool:
        return st.booleans()
    if kind is bytes:
        return st.binary(max_size=bounds[1])
    return st.text(max_size=min(bounds[1], 60))


@st.composite
def messages(draw: st.DrawFn) -> m.Message:
    cls = m.TABLE[draw(st.sampled_from(CODES))]
    made: Any = cls(**{name: draw(values(kind, bounds)) for name, kind, bounds in m.schema(cls)})
    low, high = cls.carries
    if high:
        made.frames = [draw(st.binary(max_size=9)) for _ in range(draw(st.integers(low, min(high, low + 3))))]
    return made  # type: ignore[no-any-return]


@given(messages())
def test_what_is_encoded_is_decoded(message: Any) -> None:
    again: Any = m.decode(m.encode(message))
    assert type(again) is type(message)
    assert all(getattr(again, name) == getattr(message, name) for name, _, _ in m.schema(type(message)))
    assert list(getattr(again, "frames", ())) == list(getattr(message, "frames", ()))


@given(st.lists(st.binary(max_size=40), max_size=5))
def test_garbage_is_a_protocol_error(frames: list[bytes]) -> None:
    try:
        m.decode(frames)
    except ProtocolError as error:
        assert error.code.startswith("E_")


NESTED = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.floats()
    | st.text()
    | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=12,
)


@given(st.sampled_from([*CODES, 0, 99, -1]), st.lists(NESTED, max_size=12), st.integers(0, 4))
def test_a_header_of_anything_is_decoded_to_the_schema_or_refused(
    code: int, fields: list[Any], frames: int
) -> None:
    header: bytes = msgpack.packb([code, *fields])
    try:
        message = m.decode([header, *[b""] * frames])
    except ProtocolError as error:
        assert error.code in {"E_FRAMES", "E_HEADER", "E_DECODE", "E_OP", "E_FIELD"}
        return
    told = m.schema(type(message))
    for (name, kind, _), given_value in zip(told, fields[: len(told)], strict=True):
        value = getattr(message, name)
        assert type(value) is kind and value == given_value
    # A small payload may come within the header.
    assert list(getattr(message, "frames", ())) == (fields[len(told) :] or [b""] * frames)


@given(messages(), st.integers(0, 200), st.integers(0, 255))
def test_a_bit_flipped_on_the_way_never_does_worse_than_a_refusal(message: Any, at: int, byte: int) -> None:
    frames = [bytearray(memoryview(frame)) for frame in m.encode(message)]
    frames[0][at % len(frames[0])] = byte
    try:
        m.decode([bytes(frame) for frame in frames])
    except ProtocolError as error:
        assert error.text


@pytest.mark.parametrize(
    ("code", "frames"),
    [
        ("E_FRAMES", []),
        ("E_FRAMES", [b""] * (m.MAX_FRAMES + 3)),
        ("E_FRAMES", [msgpack.packb([m.Feed.opcode, 1, 0, 1, 1]), b""]),
        ("E_FRAMES", [msgpack.packb([m.Bye.opcode, ""]), b""]),
        ("E_HEADER", [b"\x90" * (m.MAX_HEADER_BYTES + 1)]),
        ("E_DECODE", [b""]),
        ("E_DECODE", [b"\xc1"]),
        ("E_DECODE", [msgpack.packb({})]),
        ("E_DECODE", [msgpack.packb([])]),
        ("E_DECODE", [msgpack.packb([True])]),
        ("E_DECODE", [msgpack.packb([m.Bye.opcode])]),
        ("E_DECODE", [msgpack.packb([m.Bye.opcode, "", ""])]),
        ("E_DECODE", [msgpack.packb([m.Bye.opcode, "a"]) + b"x"]),
        ("E_DECODE", [b"\xdd\xff\xff\xff\xff"]),
        ("E_OP", [msgpack.packb([99])]),
        ("E_FIELD", [msgpack.packb([m.Bye.opcode, 1])]),
        ("E_FIELD", [msgpack.packb([m.Bye.opcode, "x" * 257])]),
        ("E_FIELD", [msgpack.packb([m.EndJob.opcode, -1, 0])]),
        ("E_FIELD", [msgpack.packb([m.EndJob.opcode, True, 0])]),
        ("E_FIELD", [msgpack.packb([m.ClosePool.opcode, 1, 1])]),
        ("E_FIELD", [msgpack.packb([m.Welcome.opcode, 1, 1, 1, 1, 1, 1, False, 1, 1])]),
        ("E_FIELD", [msgpack.packb([m.Welcome.opcode, 1, 1, float("nan"), 1, 1, 1, False, 1, 1])]),
        ("E_FIELD", [msgpack.packb([m.Revoke.opcode, 1, 0])]),
    ],
)
def test_each_refusal_has_its_code(code: str, frames: list[bytes]) -> None:
    with pytest.raises(ProtocolError) as caught:
        m.decode(frames)
    assert caught.value.code == code


def test_a_name_that_is_no_text_does_not_stop_a_message() -> None:
    again = m.decode(m.encode(m.Bye("file \udcff")))
    assert again == m.Bye("file ?")


def test_codes_are_unique_and_every_message_has_a_sender() -> None:
    assert len({cls.__name__ for cls in m.TABLE.values()}) == len(m.TABLE)
    assert all(cls.senders and cls.opcode == code for code, cls in m.TABLE.items())
