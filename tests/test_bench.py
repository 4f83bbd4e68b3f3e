"""``multihost bench``: what it measures it checks, and what it prints follows from the figures."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from scripts import MULTIHOST, ROOT, run

import multihost
from multihost.bench import loads, measure, rows, shared
from multihost.bench.cluster import Cluster, cpu_seconds, resident
from multihost.bench.rows import Goal
from multihost_common.errors import MultihostError

FASTER = Goal("F", "items", "items/s", True, {"L": 15.0, "T": 6.0})
SLOWER = Goal("S", "seconds", "s", False, {"L": 1.03})
SIZE = Goal("B", "bytes", "bytes", False, {"T": 100.0}, absolute=True)


def test_a_ratio_is_the_median_of_the_rounds() -> None:
    figures = {
        ("F", "mp"): [10.0, 20.0, 10.0],
        ("F", "L"): [200.0, 320.0, 100.0],
        ("F", "T"): [50.0, 40.0, 80.0],
    }
    local, tcp = rows.rows(figures, [FASTER])
    assert (local.theirs, local.ours, local.ratio, local.low, local.high) == (10.0, 200.0, 16.0, 10.0, 20.0)
    assert local.met
    assert (tcp.ratio, tcp.met) == (5.0, False)


@pytest.mark.parametrize(("ours", "met"), [(1.03, True), (1.04, False)])
def test_less_is_better_where_it_is(ours: float, met: bool) -> None:
    (row,) = rows.rows({("S", "mp"): [1.0], ("S", "L"): [ours]}, [SLOWER])
    assert row.met is met


@pytest.mark.parametrize(("ours", "met"), [(99.0, True), (101.0, False)])
def test_an_absolute_goal_needs_nothing_to_compare_with(ours: float, met: bool) -> None:
    (row,) = rows.rows({("B", "T"): [ours]}, [SIZE])
    assert (row.ratio, row.theirs, row.met) == (ours, None, met)


def test_what_was_not_measured_has_no_row() -> None:
    assert list(rows.rows({("F", "L"): [1.0]}, [FASTER, SLOWER, SIZE])) == []


def test_the_table_has_a_line_for_each_row() -> None:
    figures = {("F", "mp"): [10.0], ("F", "L"): [200_000.0], ("F", "T"): [50.0], ("B", "T"): [3.25]}
    title, *lines = rows.table(rows.rows(figures, [FASTER, SIZE]))
    assert title.split() == ["side", "mp", "multihost", "ratio", "(range)", "target"]
    assert [line.split()[-1] for line in lines] == ["ok", "MISSED", "ok"]
    assert lines[0].split()[:5] == ["F", "L", "10", "200,000", "items/s"]


def test_every_workload_of_the_issue_has_its_goal() -> None:
    names = {goal.name.split()[0] for goal in rows.GOALS}
    assert {*measure.ALL, "broker"} == names


class Plain:
    """A pool that is none: it computes here, and spoils each result as it is told."""

    def __init__(self, spoil: Callable[[Any], Any] = lambda value: value) -> None:
        self.spoil = spoil

    def map(
        self, func: Callable[[Any], Any], items: Iterable[Any], chunksize: int | None = None
    ) -> list[Any]:
        return [self.spoil(func(item)) for item in items]

    def starmap(
        self, func: Callable[..., Any], items: Iterable[Any], chunksize: int | None = None
    ) -> list[Any]:
        return [self.spoil(func(*item)) for item in items]

    def apply(self, func: Callable[..., Any], args: Any) -> Any:
        return self.spoil(func(*args))

    def apply_async(self, func: Callable[..., Any], args: Any) -> Any:
        value = self.apply(func, args)
        return type("Ready", (), {"get": lambda self: value})()


SMALL: dict[str, dict[str, Any]] = {
    "many": {"items": 10, "chunksize": 1},
    "calls": {"number": 3},
    "futures": {"number": 3},
    "arrays_in": {"number": 2, "size": 1000},
    "arrays_out": {"number": 2, "size": 1000},
    "compute": {"items": 1},
    "uneven": {"items": 3, "rising": True, "chunksize": None},
}


@pytest.mark.parametrize("name", loads.LOADS)
def test_a_workload_answers_figures(name: str) -> None:
    answer = loads.LOADS[name](Plain(), **SMALL[name])
    figures = [
        figure for value in answer.values() for figure in (value if isinstance(value, list) else [value])
    ]
    assert figures and all(figure >= 0 for figure in figures)
    json.dumps(answer)


@pytest.mark.local
@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("queue", {"number": 50, "size": 0}),
        ("queue", {"number": 50, "size": 100}),
        ("pipe", {"number": 5}),
        ("pipe", {"number": 5, "two": True}),
        ("lock", {"number": 5}),
        ("processes", {"number": 2}),
    ],
)
def test_a_workload_of_shared_objects_answers_a_figure(
    address: str, name: str, sizes: dict[str, Any]
) -> None:
    (figure,) = shared.LOADS[name](multihost, **sizes).values()
    assert figure > 0


@pytest.mark.parametrize("name", loads.LOADS)
def test_a_workload_notices_wrong_results(name: str) -> None:
    def spoil(value: Any) -> Any:
        return value + 1 if not hasattr(value, "__len__") else value[:-1]

    with pytest.raises(loads.WrongResultError):
        loads.LOADS[name](Plain(spoil), **SMALL[name])


def test_the_sleeps_are_always_the_same() -> None:
    random, rising = loads.durations(2000, False), loads.durations(2000, True)
    assert random == loads.durations(2000, False) and sorted(random) == rising
    assert 0.0018 < rising[1000] < 0.0022


def test_the_command_prints_the_table_and_its_status_follows_from_it() -> None:
    done = run(*MULTIHOST, "bench", "--quick", "--rounds", "1", "--only", "W4", "--sides", "L", cwd=ROOT)
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("W4")]
    assert done.returncode == (0 if line.endswith("ok") else 1), done.stderr
    assert "round 1 of 1" in done.stderr


def test_json_has_the_figures_of_each_round() -> None:
    words = ("--quick", "--rounds", "2", "--only", "w1", "--sides", "t", "--json")
    done = run(*MULTIHOST, "bench", *words, cwd=ROOT)
    answer = json.loads(done.stdout)
    assert [row["name"] for row in answer["rows"]] == ["W1", "broker CPU", "broker memory"]
    figures = {(each["name"], each["side"]): each["figures"] for each in answer["rounds"]}
    assert len(figures["W1", "mp"]) == len(figures["W1", "T"]) == len(answer["noise"]) == 2
    assert 0 < figures["broker CPU", "T"][0] < 1000


@pytest.mark.parametrize("words", [("--only", "W0"), ("--sides", "X"), ("--only", ","), ("--rounds", "0")])
def test_wrong_options_are_refused(words: tuple[str, ...]) -> None:
    done = run(*MULTIHOST, "bench", *words, cwd=ROOT)
    assert (done.stdout, done.returncode) == ("", 2)
    assert words[0] in done.stderr


def test_a_side_that_fails_is_told() -> None:
    with (
        measure.Side("mp", dict(os.environ)) as side,
        pytest.raises(MultihostError, match="side mp has failed at many"),
    ):
        side.ask("many", no_such_argument=1)


def test_a_cluster_leaves_nothing() -> None:
    with Cluster(1) as cluster:
        keys = Path(cluster.environment["MULTIHOST_KEYS"])
        assert cluster.ask("status")["slots"] == 1
        assert (
            keys.is_dir() and cpu_seconds(cluster.broker.pid) > 0 and resident(cluster.broker.pid) > 1 << 20
        )
    assert not keys.exists()
    assert cluster.broker.returncode == 0
