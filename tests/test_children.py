"""Child processes: what they answer, how items fail, and how they are set up."""

from __future__ import annotations

import os
import pickle
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from socket import socketpair
from typing import Any

import pytest
import tasks
from nursery import Nursery, nothing_left, open_files

from multihost_common.pickling import NO_PICKLE, NO_UNPICKLE, RAISED, RAISED_TEXT
from multihost_worker.child import Child, Job
from multihost_worker.claims import PAGE
from multihost_worker.events import (
    ChildFailed,
    ChildMemory,
    ChildReady,
    Forget,
    Inspect,
    KillChild,
    Progress,
    Run,
    StartChild,
)
from multihost_worker.outbox import Failure
from multihost_worker.segments import anonymous_file

MIB = 1 << 20


@pytest.fixture
def nurse() -> Iterator[Nursery]:
    with nothing_left(), Nursery() as made:
        yield made


# -- answers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunksize", [1, 3, 7, 100])
@pytest.mark.parametrize("at_most_once", [False, True])
def test_each_item_has_its_answer(nurse: Nursery, chunksize: int, at_most_once: bool) -> None:
    nurse.begin(function=tasks.double)
    nurse.define(tasks.double, job=2, at_most_once=at_most_once)
    nurse.give(range(50), job=2, chunksize=chunksize)
    skip = min(2, chunksize - 1)
    nurse.give(range(50, 100), job=2, chunksize=chunksize, skip=skip, start=50)
    answers = nurse.outcomes(100 - skip, job=2)
    assert answers == {item: 2 * item for item in range(100) if not 50 <= item < 50 + skip}


@pytest.mark.parametrize(("call", "item", "answer"), [(0, 3, 3), (1, (7, 2), 1), (2, ((7,), {"by": 4}), 3)])
def test_ways_to_call(nurse: Nursery, call: int, item: Any, answer: int) -> None:
    nurse.begin(function=tasks.same)
    nurse.define(tasks.remainder if call else tasks.same, job=2, call=call)
    nurse.give([item], job=2)
    assert nurse.outcomes(1, job=2) == {0: answer}


@pytest.mark.parametrize("size", [0, 1, 65_535, 65_536, 16 * MIB])
def test_items_and_results_of_every_size(nurse: Nursery, size: int) -> None:
    nurse.begin(function=tasks.same)
    nurse.give([b"a" * size, bytearray(b"b" * size), "c" * size])
    assert nurse.outcomes(3) == {0: b"a" * size, 1: bytearray(b"b" * size), 2: "c" * size}


def test_large_values_of_plain_types_do_not_pile_up_in_one_message(nurse: Nursery) -> None:
    nurse.begin(function=tasks.same)
    nurse.give([b"a" * (3 * MIB // 4)] * 20, chunksize=5)
    assert len(nurse.outcomes(20)) == 20
    for result in nurse.results():
        assert sum(map(len, result.frames)) <= 5 * MIB


@pytest.mark.parametrize("chunksize", [1, 4])
def test_arrays_travel_beside_the_pickle_in_both_directions(nurse: Nursery, chunksize: int) -> None:
    numpy = pytest.importorskip("numpy")
    nurse.begin(function=tasks.add_one)
    arrays = [numpy.full(50_000, float(at)) for at in range(4)]
    for start in range(0, 4, chunksize):
        nurse.give(arrays[start : start + chunksize], chunksize=chunksize, start=start)
    for item, array in nurse.outcomes(4).items():
        assert array.flags.writeable
        assert (array == item + 1).all()
    assert all(len(result.frames) > 2 for result in nurse.results())
    assert all(len(result.frames[1]) < 2000 for result in nurse.results())


def test_a_result_that_is_a_view_of_its_item(nurse: Nursery) -> None:
    numpy = pytest.importorskip("numpy")
    nurse.begin(function=tasks.second_half)
    for start in range(20):
        nurse.give([numpy.arange(40_000) + start], start=start)
    for item, array in nurse.outcomes(20).items():
        assert (array == numpy.arange(20_000, 40_000) + item).all()


def test_a_child_may_keep_what_it_was_given(nurse: Nursery) -> None:
    numpy = pytest.importorskip("numpy")
    nurse.begin(function=tasks.keep)
    for start in range(200):
        nurse.give([numpy.full(10_000, start)], start=start)
    nurse.outcomes(200)
    nurse.define(tasks.kept, job=2)
    nurse.give([0], job=2)
    assert nurse.outcomes(1, job=2) == {0: list(range(200))}
    kept = nurse.children._children[1].link.segments.used
    assert len(kept) <= 64


def test_more_results_held_than_there_are_segments(nurse: Nursery) -> None:
    numpy = pytest.importorskip("numpy")
    nurse.begin(function=tasks.filled)
    nurse.give(range(300))
    for item, array in nurse.outcomes(300).items():
        assert array.shape == (10_000,)
        assert (array == numpy.int64(item)).all()
    held = len(open_files())
    assert held < 300


def test_recycling_bounds_the_memory_of_both_ends(nurse: Nursery) -> None:
    nurse.begin(function=tasks.same)
    for start in range(100):
        nurse.give([b"a" * (4 * MIB)], start=start)
        nurse.until(lambda: nurse.results())
        nurse.events.clear()
    assert nurse.children._segments._last <= 4
    assert len(nurse.children._children[1].link.mappings._maps) <= 4


@pytest.mark.parametrize("chunksize", [1, 5, 1000])
@pytest.mark.parametrize("count", [1, 10, 5000])
def test_answers_do_not_wait_for_a_slow_successor(
    nurse: Nursery, tmp_path: Path, count: int, chunksize: int
) -> None:
    """Whoever consumes them may be what that one waits for."""
    nurse.begin(function=tasks.wait_for_file)
    gate = tmp_path / "gate"
    nurse.give([*[""] * count, str(gate), "", ""], chunksize=chunksize)
    assert set(nurse.outcomes(count)) == set(range(count))
    gate.touch()
    answers = nurse.outcomes(count + 3)
    assert answers == {**dict.fromkeys(range(count + 3), ""), count: str(gate)}


def test_a_child_is_not_prompted_without_need(nurse: Nursery) -> None:
    nurse.begin(function=tasks.count_prompts)
    nurse.give([0.3])
    nurse.give([0.0, 0.0, 0.3], start=1, chunksize=3)
    nurse.give([0.0], start=4)
    answers = nurse.outcomes(5)
    assert (answers[0], answers[4]) == (0, 1)
    assert nurse.children.deadline() is not None
    nurse.children.poll(0.1)
    assert nurse.children.deadline() is None, "nobody has anything to do, so nobody looks"


def test_a_job_that_is_forgotten_or_unknown(nurse: Nursery) -> None:
    nurse.begin(function=tasks.same)
    nurse.children.do(Forget(1, 1))
    nurse.give([1], job=1)
    code, text = nurse.outcomes(1)[0]
    assert code == NO_UNPICKLE
    assert "was not defined" in text


def test_actions_for_a_child_that_is_gone_do_nothing(nurse: Nursery) -> None:
    nurse.begin(function=tasks.same)
    nurse.kill()
    nurse.death()
    before = len(nurse.events)
    nurse.positions[1] = 0
    nurse.give([1])
    nurse.children.do(Forget(1, 1))
    nurse.children.do(KillChild(1))
    nurse.children.do(Inspect(1))
    nurse.stop()
    assert len(nurse.events) == before


# -- failures of items -------------------------------------------------------------------------------

RAISES: list[tuple[BaseException, type[BaseException]]] = [
    (ValueError("no"), ValueError),
    (SystemExit(3), SystemExit),
    (KeyboardInterrupt(), KeyboardInterrupt),
    (GeneratorExit(), GeneratorExit),
    (RecursionError("deep"), RecursionError),
]


@pytest.mark.parametrize(("error", "kind"), RAISES, ids=lambda each: getattr(each, "__name__", ""))
@pytest.mark.parametrize("chunksize", [1, 3])
def test_an_item_that_raises(
    nurse: Nursery, error: BaseException, kind: type[BaseException], chunksize: int
) -> None:
    nurse.begin(function=tasks.raise_if_error)
    nurse.give([1, error, 3], chunksize=chunksize)
    answers = nurse.outcomes(3)
    assert (answers[0], answers[2]) == (1, 3)
    code, raised, trace = answers[1]
    assert code == RAISED
    assert type(raised) is kind
    assert raised.args == error.args
    assert trace.startswith("Traceback (most recent call last):")
    assert "raise_if_error" in trace
    assert "child.py" not in trace, "the traceback begins with the user's code"


def test_an_exception_with_an_array(nurse: Nursery) -> None:
    numpy = pytest.importorskip("numpy")
    nurse.begin(function=tasks.raise_it)
    nurse.give([ValueError(numpy.arange(20_000))])
    code, raised, _ = nurse.outcomes(1)[0]
    assert (code, type(raised)) == (RAISED, ValueError)
    assert (raised.args[0] == numpy.arange(20_000)).all()


def test_sys_exit_in_a_task_is_an_exception_of_that_item(nurse: Nursery) -> None:
    nurse.begin(function=tasks.sys_exit)
    nurse.give([5])
    code, raised, _ = nurse.outcomes(1)[0]
    assert (code, type(raised), raised.code) == (RAISED, SystemExit, 5)


FAULTS = {
    "LocalError": (RAISED_TEXT, "LocalError: of a class that nobody can import"),
    "TwoArgumentsError": (RAISED_TEXT, "TwoArgumentsError: 1 and 2"),
    "lock": (NO_PICKLE, "lock"),
    "BadReduce": (NO_PICKLE, "BadReduce"),
    "ExitReduce": (NO_PICKLE, "ExitReduce"),
    "BadRepr": (NO_PICKLE, "whose repr() raised ZeroDivisionError"),
}


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.parametrize("chunksize", [1, 3])
def test_what_does_not_pickle(nurse: Nursery, name: str, chunksize: int) -> None:
    nurse.begin(function=tasks.misbehave)
    nurse.give(["", name, ""], chunksize=chunksize)
    answers = nurse.outcomes(3)
    assert (answers[0], answers[2]) == ("", "")
    code, _, shown = answers[1]
    assert code == FAULTS[name][0]
    assert FAULTS[name][1] in shown + str(answers[1][1])


@pytest.mark.parametrize("chunksize", [1, 2])
def test_an_item_that_does_not_unpickle(nurse: Nursery, chunksize: int) -> None:
    nurse.begin(function=tasks.same)
    bad = pickle.dumps([tasks.FailsToLoad()] * chunksize if chunksize > 1 else tasks.FailsToLoad())
    good = pickle.dumps([1, 2] if chunksize > 1 else 1)
    nurse.give(range(3 * chunksize), pickles=[good, bad, good], chunksize=chunksize)
    answers = nurse.outcomes(3 * chunksize)
    for item, answer in answers.items():
        if chunksize <= item < 2 * chunksize:
            assert answer[0] == NO_UNPICKLE
            assert "LookupError: it cannot be loaded" in answer[1]
        else:
            assert answer in (1, 2)


@pytest.mark.parametrize("blob", [b"rubbish", pickle.dumps(tasks.FailsToLoadFunction())])
def test_a_function_that_does_not_unpickle(nurse: Nursery, blob: bytes) -> None:
    nurse.begin(function=tasks.same)
    nurse.define(blob, job=2)
    nurse.give([1, 2], job=2, chunksize=2)
    nurse.give([1], job=2, start=2)
    answers = nurse.outcomes(3, job=2)
    assert {answer[0] for answer in answers.values()} == {NO_UNPICKLE}
    nurse.give([1])
    assert nurse.outcomes(1) == {0: 1}


@pytest.mark.parametrize("retries", [0, 1, 2])
@pytest.mark.parametrize("chunksize", [1, 2])
def test_retries_happen_in_place(nurse: Nursery, retries: int, chunksize: int) -> None:
    nurse.begin(function=tasks.same)
    nurse.define(tasks.third_time, job=2, retries=retries)
    nurse.give(["a", "b"], job=2, chunksize=chunksize)
    answers = nurse.outcomes(2, job=2)
    if retries == 2:
        assert answers == {0: 3, 1: 3}
    else:
        assert [answers[item][1].args[0] for item in (0, 1)] == [retries + 1] * 2


def test_a_signal_in_a_task_is_an_exception_of_that_task(nurse: Nursery) -> None:
    nurse.begin(function=tasks.nap)
    nurse.give([600])
    nurse.running()
    os.kill(nurse.children.pids()[1], signal.SIGINT)
    code, raised, _ = nurse.outcomes(1)[0]
    assert (code, type(raised)) == (RAISED, KeyboardInterrupt)
    nurse.give([0], start=1)
    nurse.outcomes(2)


class RaisingList(list[Any]):
    """As if a signal's handler raised right after the third value was noted."""

    def append(self, value: Any) -> None:
        super().append(value)
        if len(self) == 3:
            raise TimeoutError


@pytest.mark.parametrize("chunksize", [1, 10])
def test_an_exception_between_two_items_does_not_shift_answers(chunksize: int) -> None:
    items = list(range(10))
    with nothing_left():
        ours, theirs = socketpair()
        page = anonymous_file(PAGE)
        child = Child(theirs, page)
        child.outbox.values = RaisingList()
        job = Job(tasks.double, False, 0, False)
        if chunksize == 1:
            child._singles(job, [pickle.dumps(item) for item in items], 0, 10, 1, [])
        else:
            child._items(job, items, 1)
        values = child.outbox.values
        assert [*values[:3], *values[4:]] == [0, 2, 4, 8, 10, 12, 14, 16, 18]
        assert type(values[3]) is Failure
        assert type(values[3].outcome[1]) is TimeoutError
        child.link.close()
        ours.close()
        del child
        os.close(page)


# -- set-up ------------------------------------------------------------------------------------------


def test_fields_of_the_setup(nurse: Nursery, tmp_path: Path) -> None:
    (tmp_path / "only_here.py").write_text("value = 'found'\n")
    nurse.begin(
        function=tasks.surroundings,
        sys_path=[str(tmp_path), *sys.path],
        cwd=str(tmp_path),
        environ={"PATH": "/bin", "ONLY": "this"},
        argv=["script.py", "-v"],
        name="PoolWorker",
        initializer=pickle.dumps(tasks.remember),
        initargs=pickle.dumps((1, "two")),
    )
    nurse.give(["only_here"])
    assert nurse.outcomes(1)[0] == {
        "cwd": str(tmp_path),
        "environ": {"PATH": "/bin", "ONLY": "this"},
        "argv": ["script.py", "-v"],
        "name": "PoolWorker-1",
        "initialized": (1, "two"),
        "module": "found",
        "stdin": "",
    }


INITIALIZERS = {"raise_it": "ValueError: not today", "sys_exit": "SystemExit", "missing": "cannot be loaded"}


@pytest.mark.parametrize("name", INITIALIZERS)
def test_an_initializer_that_fails(nurse: Nursery, name: str) -> None:
    function: Any = tasks.FailsToLoadFunction() if name == "missing" else getattr(tasks, name)
    argument = ValueError("not today") if name == "raise_it" else 3
    nurse.begin(initializer=pickle.dumps(function), initargs=pickle.dumps((argument,)))
    died = nurse.death()
    failed = nurse.found(ChildFailed)[0]
    assert INITIALIZERS[name] in failed.text
    assert nurse.events.index(failed) < nurse.events.index(died)
    assert (died.exitcode, died.signal, died.position) == (1, 0, -1)
    assert not nurse.found(ChildReady)


def test_a_directory_that_is_not_there(nurse: Nursery, tmp_path: Path) -> None:
    nurse.begin(cwd=str(tmp_path / "nowhere"))
    assert "nowhere" in nurse.wait(ChildFailed).text
    nurse.death()


def test_modules_come_in_a_bundle(tmp_path: Path) -> None:
    import io
    import zipfile

    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as bundle:
        bundle.writestr("bundled_only.py", "def answer(item): return 42 + item\n")
    with nothing_left(), Nursery(private_dir=str(tmp_path)) as nurse:
        for child in (1, 2, 3):
            nurse.children.do(StartChild(child, 7, b"", data.getvalue()))
            nurse.positions[child] = 0
        for child in (1, 2, 3):
            nurse.wait(ChildReady, child=child)
            nurse.define(b"cbundled_only\nanswer\n.", child=child)
            nurse.give([child], child=child)
            assert nurse.outcomes(1, child=child) == {0: 42 + child}
    assert len(list((tmp_path / "code").iterdir())) == 1


# -- progress ----------------------------------------------------------------------------------------


def test_progress_tells_since_when_an_item_of_a_timed_job_runs(nurse: Nursery) -> None:
    nurse.begin(function=tasks.same)
    nurse.define(tasks.nap, job=2, timeout=600.0)
    nurse.children.do(Inspect(1))
    assert nurse.found(Progress)[-1].position == -1
    begun = time.monotonic()
    nurse.give([0.2, 600], job=2)
    nurse.until(lambda: nurse.running().position == 1)
    seen = nurse.found(Progress)[-1]
    assert begun + 0.2 <= seen.since <= time.monotonic()
    assert nurse.running().since == seen.since


def test_progress_of_other_jobs_counts_from_the_first_look(nurse: Nursery) -> None:
    nurse.begin(function=tasks.nap)
    nurse.give([600])
    seen = nurse.running()
    assert nurse.running().since == seen.since


def test_memory_is_sampled(nurse: Nursery) -> None:

    nurse.begin(function=tasks.same)
    nurse.children.sample()
    assert MIB < nurse.found(ChildMemory)[-1].rss < 1 << 30


def test_run_is_for_a_child_that_exists(nurse: Nursery) -> None:
    nurse.children.do(Run(99, 0, 1, 0, 1, 1, 0, [b"", b""]))
    assert nurse.events == []
