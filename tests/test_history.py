"""The judge of histories finds what cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest
from history import Writer, ended, judge


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("", 0),
        ("call 3\nanswer 3 9\nend\n", 0),
        ("call 3\ncall 4\nanswer 4 16\nanswer 3 9\n", 0),
        ("call 3\ncall 4\nanswer 3 9\n", 0),
        ("call 3\ncall 4\nanswer 3 9\nend\n", 1),
        ("call 3\nanswer 3 8\nend\n", 1),
        ("call 3\nanswer 3 9\nanswer 3 9\nend\n", 1),
        ("answer 3 9\nend\n", 1),
        ("call 3\nend\nanswer 3 9\n", 2),
        ("nonsense\n", 1),
    ],
)
def test_what_is_wrong(text: str, wrong: int) -> None:
    assert len(judge(text)) == wrong, judge(text)


def test_what_was_written_is_there(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "history")
    writer.write("call", 2)
    writer.write("answer", 2, 4)
    assert judge((tmp_path / "history").read_text()) == []
    assert not ended((tmp_path / "history").read_text())
    writer.write("end")
    writer.close()
    assert ended((tmp_path / "history").read_text())
