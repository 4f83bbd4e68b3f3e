"""The long runs, made short: that they run, and that their judges can find fault."""

from __future__ import annotations

from pathlib import Path

import pytest
from soaks.detached import detached, judge


@pytest.mark.long
def test_brokers_killed_during_detached_jobs(tmp_path: Path) -> None:
    assert detached(tmp_path, kills=5, jobs=10, chunks=100, seed=1, clients=2, nap=0.002)


def history(*lines: str) -> list[str]:
    return ["\n".join(lines)]


GOOD = ("submit 0", "stored 0 key", "fetch 0", "answer 0 0", "answer 0 1", "collected 0")


def test_the_judge_of_detached_jobs_finds_what_is_wrong() -> None:
    assert judge(history(*GOOD), 1, 2).well
    assert judge(history(*GOOD[:-2], GOOD[-1]), 1, 2).lost == ["item 1 of job 0"]
    assert judge(history(*GOOD, "answer 0 1"), 1, 2).doubled == ["item 1 of job 0"]
    assert judge(history(*GOOD, "answer 0 2"), 1, 2).wrong == ["item 2 of job 0"]
    assert judge(history(*GOOD, "raised 0 KeyError(3)"), 1, 2).wrong == ["raised 0 KeyError(3)"]
    assert judge(history(*GOOD, "stored 0 other"), 1, 2).doubled == ["stored of job 0"]
    assert judge(history(*GOOD), 2, 2).lost[:1] == ["submit of job 1"]
