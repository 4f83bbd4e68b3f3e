"""What the documents say is what the code has."""

from __future__ import annotations

import importlib
import multiprocessing
import re
from pathlib import Path

import click
import pytest

from multihost_common import messages as m
from multihost_common.errors import ProtocolError

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "common" / "PROTOCOL.md"])
PROTOCOL = (ROOT / "common" / "PROTOCOL.md").read_text()
README = (ROOT / "README.md").read_text()

#: Those of multiprocessing that list their names.
MODULES = (
    "connection",
    "managers",
    "pool",
    "process",
    "queues",
    "shared_memory",
    "sharedctypes",
    "synchronize",
)

NAMED_RANGES = {
    m.U8: "0 .. 255",
    m.U32: "0 .. 2^32-1",
    m.U64: "0 .. 2^64-1",
    m.I32: "-2^31 .. 2^31-1",
    m.COUNT: "1 .. 2^32-1",
    m.SECONDS: "0 .. 31557600",
}


def section(name: str) -> str:
    """The part of PROTOCOL.md about this message."""
    found = re.search(rf"^#### {name} .*?(?=^##|\Z)", PROTOCOL, re.MULTILINE | re.DOTALL)
    assert found, f"PROTOCOL.md does not tell of {name}"
    return found[0]


def told_range(kind: type, bounds: tuple[float, float] | None) -> str:
    """How PROTOCOL.md writes the range of a field."""
    if bounds is None:
        return "false, true"
    if kind in (str, bytes):
        return f"up to {bounds[1]} {'characters' if kind is str else 'bytes'}"
    return NAMED_RANGES.get(bounds, f"{bounds[0]} .. {bounds[1]}")


def test_the_tests_that_show_the_guarantees_exist() -> None:
    told = (ROOT / "docs" / "guarantees.md").read_text()
    named = re.findall(r"`(test_\w+\.py)(?:::(\w+))?`", told)
    assert len(named) > 15
    for file, function in named:
        source = (ROOT / "tests" / file).read_text()
        assert f"def {function}(" in source if function else source, f"{file}::{function}"


def test_every_name_of_multiprocessing_is_on_its_page() -> None:
    told = (ROOT / "docs" / "multiprocessing.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \|", told, re.MULTILINE)
    assert not set(multiprocessing.__all__) - set(rows)
    words = set(re.findall(r"\w+", told))
    for module in MODULES:
        assert module in rows
        names = importlib.import_module(f"multiprocessing.{module}").__all__
        assert not set(names) - words, module


@pytest.mark.parametrize("cls", m.TABLE.values(), ids=lambda cls: str(cls.__name__))
def test_protocol_tells_of_every_message(cls: type[m.Message]) -> None:
    told = section(cls.__name__)
    assert told.startswith(f"#### {cls.__name__} ({cls.opcode})\n")
    senders = re.search(r"Sent by: (.*?)\. Payload frames: (.*?)\. Reply: .", told)
    assert senders, told
    assert set(senders[1].split(", ")) == cls.senders
    low, high = cls.carries
    assert senders[2] in {f"{low} .. {high}", f"{low} or {high}", "none" if high == 0 else str(high)}
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| ([^|]+) \| (.+) \|$", told, re.MULTILINE)
    expected = [(name, kind.__name__, told_range(kind, bounds)) for name, kind, bounds in m.schema(cls)]
    assert [row[:3] for row in rows] == expected
    assert all(row[3].strip() for row in rows)


def test_protocol_tells_of_nothing_else() -> None:
    told = re.findall(r"^#### (\w+) \((\d+)\)$", PROTOCOL, re.MULTILINE)
    assert {(name, int(code)) for name, code in told} == {(c.__name__, c.opcode) for c in m.TABLE.values()}
    assert f"Version {m.PROTOCOL_VERSION}." in PROTOCOL


def test_protocol_tells_every_error_code() -> None:
    used = set()
    for folder in ("common", "broker", "worker", "producer"):
        for path in (ROOT / folder).rglob("*.py"):
            used |= set(re.findall(r'"(E_[A-Z]+)"', path.read_text()))
    told = set(re.findall(r"^\| `(E_[A-Z]+)` \|", PROTOCOL, re.MULTILINE))
    assert told == used


def test_error_codes_of_decoding_are_as_told() -> None:
    with pytest.raises(ProtocolError, match="E_OP"):
        m.decode([b"\x91\xcc\xff"])
    with pytest.raises(ProtocolError, match="E_DECODE"):
        m.decode([b"\xc1"])
    with pytest.raises(ProtocolError, match="E_FRAMES"):
        m.decode([])


def test_readme_program_is_the_example() -> None:
    program = re.search(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    assert program
    assert (ROOT / "examples" / "hello.py").read_text().endswith(program[1])


def test_readme_has_its_two_commands() -> None:
    commands = re.findall(r"^```sh\n(.*?)\n```$", README, re.MULTILINE | re.DOTALL)
    assert commands == [
        "python3 -m venv .venv && .venv/bin/pip install . && .venv/bin/multihost run examples/census.py --check",
        ".venv/bin/pip install -e '.[dev]' && .venv/bin/pytest",
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_and_options_in_the_documents_exist(page: Path) -> None:
    shown = re.findall(r"(?:^ {4}|bin/|`)multihost (\w+)([^`\n]*)", page.read_text(), re.MULTILINE)
    for name, rest in shown:
        command = importlib.import_module(f"multihost.commands.{name}").command
        words = rest.split(".py")[0].split()
        if isinstance(command, click.Group) and words:
            command = command.commands[words[0]]
        known = {option for each in command.params for option in (*each.opts, *each.secondary_opts)}
        for option in words:
            assert option in known or not option.startswith("-"), f"{page.name}: multihost {name} {option}"
