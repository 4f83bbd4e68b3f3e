"""Child processes: what they answer, how they die, and that nothing stays of them."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nursery
import pytest
from nursery import PATIENCE, Nursery, exists, nothing_left, wait_gone

from multihost_common.pickling import NO_PICKLE, NO_UNPICKLE, RAISED, RAISED_TEXT
from multihost_worker.events import (
    ChildDied,
    ChildFailed,
    ChildReady,
    ChildResult,
    Forget,
    Inspect,
    KillChild,
    Progress,
    Run,
    StartChild,
)

MIB = 1 << 20


@pytest.fixture
def nurse() -> Iterator[Nursery]:
    with nothing_left(), Nursery() as made:
        yield made


# -- answers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunksize", [1, 3, 7, 100])
@pytest.mark.parametrize("at_most_once", [False, True])
def test_each_item_has_its_answer(nurse: Nursery, chunksize: int, at_most_once: bool) -> None:
    nurse.begin(function=nursery.double)
    nurse.define(nursery.double, job=2, at_most_once=at_most_once)
    nurse.give(range(50), job=2, chunksize=chunksize)
    skip = min(2, chunksize - 1)
    nurse.give(range(50, 100), job=2, chunksize=chunksize, skip=skip, start=50)
    answers = nurse.outcomes(100 - skip, job=2)
    assert answers == {item: 2 * item for item in range(100) if not 50 <= item < 50 + skip}


@pytest.mark.parametrize(("call", "item", "answer"), [(0, 3, 3), (1, (7, 2), 1), (2, ((7,), {"by": 4}), 3)])
def test_ways_to_call(nurse: Nursery, call: int, item: Any, answer: int) -> None:
    nurse.begin(function=nursery.same)
    nurse.define(nursery.remainder if call else nursery.same, job=2, call=call)
    nurse.give([item], job=2)
    assert nurse.outcomes(1, job=2) == {0: answer}


@pytest.mark.parametrize("size", [0, 1, 65_535, 65_536, 16 * MIB])
def test_items_and_results_of_every_size(nurse: Nursery, size: int) -> None:
    nurse.begin(function=nursery.same)
    nurse.give([b"a" * size, bytearray(b"b" * size), "c" * size])
    assert nurse.outcomes(3) == {0: b"a" * size, 1: bytearray(b"b" * size), 2: "c" * size}


def test_large_values_of_plain_types_do_not_pile_up_in_one_message(nurse: Nursery) -> None:
    nurse.begin(function=nursery.same)
    nurse.give([b"a" * (3 * MIB // 4)] * 20, chunksize=5)
    assert len(nurse.outcomes(20)) == 20
    for result in nurse.results():
        assert sum(map(len, result.frames)) <= 5 * MIB


@pytest.mark.parametrize("chunksize", [1, 4])
def test_arrays_travel_beside_the_pickle_in_both_directions(nurse: Nursery, chunksize: int) -> None:
    numpy = pytest.importorskip("numpy")
    nurse.begin(function=nursery.add_one)
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
    nurse.begin(function=nursery.second_half)
    for start in range(20):
        nurse.give([numpy.arange(40_000) + start], start=start)
    for item, array in nurse.outcomes(20).items():
        assert (array == numpy.arange(20_000, 40_000) + item).all()


def test_a_child_may_keep_what_it_was_given(nurse: Nursery) -> None:
    numpy = pytest.importorskip("numpy")
    nurse.begin(function=nursery.keep)
    for start in range(200):
        nurse.give([numpy.full(10_000, start)], start=start)
    nurse.outcomes(200)
    nurse.define(nursery.kept, job=2)
    nurse.give([0], job=2)
    assert nurse.outcomes(1, job=2) == {0: list(range(200))}
    kept = nurse.children._children[1].link.segments.used
    assert len(kept) <= 64


def test_more_results_held_than_there_are_segments(nurse: Nursery) -> None:
    numpy = pytest.importorskip("numpy")
    nurse.begin(function=nursery.filled)
    nurse.give(range(300))
    for item, array in nurse.outcomes(300).items():
        assert array.shape == (10_000,)
        assert (array == numpy.int64(item)).all()
    held = len(nursery.open_files())
    assert held < 300


def test_recycling_bounds_the_memory_of_both_ends(nurse: Nursery) -> None:
    nurse.begin(function=nursery.same)
    for start in range(100):
        nurse.give([b"a" * (4 * MIB)], start=start)
        nurse.until(lambda: nurse.results())
        nurse.events.clear()
    assert nurse.children._segments._last <= 4
    assert len(nurse.children._children[1].link.mappings._maps) <= 4


def test_an_answer_does_not_wait_for_a_slow_successor(nurse: Nursery, tmp_path: Path) -> None:
    """The consumer of the first result may be what the next item waits for."""
    nurse.begin(function=nursery.wait_for_file)
    gate = tmp_path / "gate"
    nurse.give(["", str(gate)], chunksize=1)
    assert nurse.outcomes(1) == {0: ""}
    gate.touch()
    assert len(nurse.outcomes(2)) == 2


def test_a_job_that_is_forgotten_or_unknown(nurse: Nursery) -> None:
    nurse.begin(function=nursery.same)
    nurse.children.do(Forget(1, 1))
    nurse.give([1], job=1)
    code, text = nurse.outcomes(1)[0]
    assert code == NO_UNPICKLE
    assert "was not defined" in text


def test_actions_for_a_child_that_is_gone_do_nothing(nurse: Nursery) -> None:
    nurse.begin(function=nursery.same)
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
    nurse.begin(function=nursery.raise_if_error)
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
    nurse.begin(function=nursery.raise_it)
    nurse.give([ValueError(numpy.arange(20_000))])
    code, raised, _ = nurse.outcomes(1)[0]
    assert (code, type(raised)) == (RAISED, ValueError)
    assert (raised.args[0] == numpy.arange(20_000)).all()


def test_sys_exit_in_a_task_is_an_exception_of_that_item(nurse: Nursery) -> None:
    nurse.begin(function=nursery.sys_exit)
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
    nurse.begin(function=nursery.misbehave)
    nurse.give(["", name, ""], chunksize=chunksize)
    answers = nurse.outcomes(3)
    assert (answers[0], answers[2]) == ("", "")
    code, _, shown = answers[1]
    assert code == FAULTS[name][0]
    assert FAULTS[name][1] in shown + str(answers[1][1])


@pytest.mark.parametrize("chunksize", [1, 2])
def test_an_item_that_does_not_unpickle(nurse: Nursery, chunksize: int) -> None:
    nurse.begin(function=nursery.same)
    bad = pickle.dumps([nursery.FailsToLoad()] * chunksize if chunksize > 1 else nursery.FailsToLoad())
    good = pickle.dumps([1, 2] if chunksize > 1 else 1)
    nurse.give(range(3 * chunksize), pickles=[good, bad, good], chunksize=chunksize)
    answers = nurse.outcomes(3 * chunksize)
    for item, answer in answers.items():
        if chunksize <= item < 2 * chunksize:
            assert answer[0] == NO_UNPICKLE
            assert "LookupError: it cannot be loaded" in answer[1]
        else:
            assert answer in (1, 2)


@pytest.mark.parametrize("blob", [b"rubbish", pickle.dumps(nursery.FailsToLoadFunction())])
def test_a_function_that_does_not_unpickle(nurse: Nursery, blob: bytes) -> None:
    nurse.begin(function=nursery.same)
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
    nurse.begin(function=nursery.same)
    nurse.define(nursery.third_time, job=2, retries=retries)
    nurse.give(["a", "b"], job=2, chunksize=chunksize)
    answers = nurse.outcomes(2, job=2)
    if retries == 2:
        assert answers == {0: 3, 1: 3}
    else:
        assert [answers[item][1].args[0] for item in (0, 1)] == [retries + 1] * 2


def test_a_signal_in_a_task_is_an_exception_of_that_task(nurse: Nursery) -> None:
    nurse.begin(function=nursery.nap)
    nurse.give([600])
    running(nurse)
    os.kill(nurse.children.pids()[1], signal.SIGINT)
    code, raised, _ = nurse.outcomes(1)[0]
    assert (code, type(raised)) == (RAISED, KeyboardInterrupt)
    nurse.give([0], start=1)
    nurse.outcomes(2)


def test_signal_handlers_that_raise_do_not_mix_up_answers(nurse: Nursery) -> None:
    nurse.begin(function=nursery.ticking)
    nurse.give(range(20_000), chunksize=1)
    nurse.give(range(20_000, 40_000), chunksize=100, start=20_000)
    raised = 0
    for item, answer in nurse.outcomes(40_000).items():
        if isinstance(answer, tuple):
            assert type(answer[1]) is TimeoutError
            raised += 1
        else:
            assert answer == item
    assert raised


# -- set-up ------------------------------------------------------------------------------------------


def test_fields_of_the_setup(nurse: Nursery, tmp_path: Path) -> None:
    (tmp_path / "only_here.py").write_text("value = 'found'\n")
    nurse.begin(
        function=nursery.surroundings,
        sys_path=[str(tmp_path), *sys.path],
        cwd=str(tmp_path),
        environ={"PATH": "/bin", "ONLY": "this"},
        argv=["script.py", "-v"],
        name="PoolWorker-7",
        initializer=pickle.dumps(nursery.remember),
        initargs=pickle.dumps((1, "two")),
    )
    nurse.give(["only_here"])
    assert nurse.outcomes(1)[0] == {
        "cwd": str(tmp_path),
        "environ": {"PATH": "/bin", "ONLY": "this"},
        "argv": ["script.py", "-v"],
        "name": "PoolWorker-7",
        "initialized": (1, "two"),
        "module": "found",
        "stdin": "",
    }


INITIALIZERS = {"raise_it": "ValueError: not today", "sys_exit": "SystemExit", "missing": "cannot be loaded"}


@pytest.mark.parametrize("name", INITIALIZERS)
def test_an_initializer_that_fails(nurse: Nursery, name: str) -> None:
    function: Any = nursery.FailsToLoadFunction() if name == "missing" else getattr(nursery, name)
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


# -- output ------------------------------------------------------------------------------------------


class Heard:
    """What was captured."""

    def __init__(self) -> None:
        self.text = {1: b"", 2: b""}
        self.ended = 0

    def __call__(self, pool: int, pid: int, stream: int, data: bytes) -> None:
        assert pool == 7
        if not data:
            self.ended += 1
            return
        self.text[stream] += data


@pytest.fixture
def heard() -> Heard:
    return Heard()


def test_output_comes_before_the_result(heard: Heard) -> None:
    with nothing_left(), Nursery(capture=heard) as nurse:
        nurse.begin(function=nursery.say)
        for start in range(50):
            nurse.give([(f"out {start}", f"err {start};")], start=start)
            nurse.until(lambda: len(nurse.results()) > start)  # noqa: B023
            assert heard.text[1].endswith(f"out {start}".encode()), "without an end of line too"
            assert heard.text[2].endswith(f"err {start};".encode())
        nurse.stop()
        nurse.death()
        assert heard.ended == 1


def test_output_of_subprocesses_is_captured(heard: Heard) -> None:
    with nothing_left(), Nursery(capture=heard) as nurse:
        nurse.begin(function=nursery.echo)
        nurse.give(["hello"])
        nurse.outcomes(1)
        assert heard.text[1] == b"hello\n"


def test_the_last_words_of_a_child_are_in_its_death(heard: Heard) -> None:
    with nothing_left(), Nursery(capture=heard) as nurse:
        nurse.begin(function=nursery.last_words)
        nurse.give(["a" * 3000 + "the end"])
        died = nurse.death()
        assert died.exitcode == 9
        assert died.text.endswith("the end")
        assert len(died.text) == 2000
        assert heard.text[2].endswith(b"the end")


def test_who_prints_for_ever_stops_nobody() -> None:
    with nothing_left(), Nursery(capture=lambda *_: None) as nurse:
        nurse.begin(1, function=nursery.print_for_ever)
        nurse.begin(2, function=nursery.double)
        nurse.give([1], child=1)
        running(nurse, 1)
        for start in range(20):
            nurse.give([start], child=2, start=start)
            nurse.until(lambda: len(nurse.results(2)) > start)  # noqa: B023


# -- deaths ------------------------------------------------------------------------------------------


def running(nurse: Nursery, child: int = 1) -> Progress:
    """What the child runs, once it runs something."""

    def runs() -> bool:
        nurse.children.do(Inspect(child))
        return nurse.found(Progress, child)[-1].position >= 0

    nurse.until(runs)
    return nurse.found(Progress, child)[-1]


def test_killed_while_idle(nurse: Nursery) -> None:
    nurse.begin(function=nursery.same)
    pid = nurse.children.pids()[1]
    begun = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    died = nurse.death()
    assert time.monotonic() - begun < 0.5
    assert (died.pid, died.signal, died.exitcode, died.position) == (pid, signal.SIGKILL, 0, -1)
    assert died.rss > MIB
    assert not died.oom


@pytest.mark.parametrize("chunksize", [1, 2, 5])
def test_killed_while_running(nurse: Nursery, chunksize: int) -> None:
    nurse.begin(function=nursery.nap)
    position = nurse.give([0, 0, 0, 600, 0], chunksize=chunksize)
    nurse.until(lambda: running(nurse).position == position + 3)
    begun = time.monotonic()
    nurse.kill()
    died = nurse.death()
    assert time.monotonic() - begun < 0.5
    assert (died.signal, died.position) == (signal.SIGKILL, position + 3)
    assert died.pid
    assert nurse.children.pids() == {}


DEATHS = {
    "os_exit": (4, 4, 0),
    "kill_self": (signal.SIGSEGV, 0, signal.SIGSEGV),
    "close_all": (0, None, None),
    "kill_group": (0, 0, signal.SIGKILL),
}


@pytest.mark.parametrize("name", DEATHS)
def test_ways_to_die_in_a_task(nurse: Nursery, name: str) -> None:
    argument, exitcode, signum = DEATHS[name]
    nurse.begin(function=getattr(nursery, name))
    position = nurse.give([argument])
    died = nurse.death()
    assert died.position in ((position, -1) if exitcode is None else (position,))
    if exitcode is not None:
        assert (died.exitcode, died.signal) == (exitcode, signum)


def test_killed_in_the_middle_of_a_large_result(nurse: Nursery) -> None:
    nurse.begin(function=nursery.large_then_die)
    nurse.give([3])
    died = nurse.death()
    assert died.signal == signal.SIGKILL
    assert nurse.results() == []


def test_what_was_sent_before_a_death_is_told_before_it(nurse: Nursery) -> None:
    nurse.begin(function=nursery.same)
    nurse.define(nursery.filled_or_die, at_most_once=True)
    nurse.give([*range(40), -1])
    pid = nurse.children.pids()[1]
    wait_gone([pid], PATIENCE)
    died = nurse.death()
    sent = sum(each.count for each in nurse.found(ChildResult))
    assert sent == died.position == 40
    assert nurse.events[-1] is died


def test_a_stopped_child_ends_in_its_own_time(nurse: Nursery, tmp_path: Path) -> None:
    """It runs what it has, its exit handlers, and waits for its threads, as a program does."""
    nurse.begin(function=nursery.leave_behind)
    nurse.give([str(tmp_path), str(tmp_path)])
    nurse.stop()
    died = nurse.death()
    assert (died.exitcode, died.signal, died.position) == (0, 0, -1)
    assert len(nurse.outcomes(2)) == 2
    assert {each.name for each in tmp_path.iterdir()} == {"thread", "atexit"}


def test_daemon_threads_do_not_keep_a_child(nurse: Nursery) -> None:
    nurse.begin(function=nursery.start_daemon)
    nurse.give([600])
    nurse.outcomes(1)
    nurse.stop()
    assert nurse.death().exitcode == 0


@pytest.mark.parametrize("how", ["kill", "stop", "exit"])
def test_grandchildren_go_with_their_parent(nurse: Nursery, how: str) -> None:
    nurse.begin(function=nursery.spawn_and_tell)
    nurse.give([1])
    grandchild = nurse.outcomes(1)[0]
    assert exists(grandchild)
    if how == "exit":
        nurse.define(nursery.os_exit, job=2)
        nurse.give([0], job=2)
    else:
        getattr(nurse, how)()
    nurse.death()
    wait_gone([grandchild], 1.0)


def test_rubbish_on_the_pipe_costs_only_that_child(nurse: Nursery) -> None:
    nurse.begin(1, function=nursery.scribble)
    nurse.begin(2, function=nursery.same)
    nurse.give([1], child=1)
    died = nurse.death(1)
    assert "could not be read" in died.text
    nurse.give([1], child=2)
    assert nurse.outcomes(1, child=2) == {0: 1}


def test_no_descriptors_for_another_child(nurse: Nursery) -> None:
    import resource

    nurse.begin(1, function=nursery.same)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest, before[1]))
    spare = fill_descriptors()
    try:
        nurse.begin(2)
        died = nurse.found(ChildDied)[0]
    finally:
        for fd in spare:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert (died.child, died.pid) == (2, 0)
    assert "no process could be started: Too many open files" in died.text
    nurse.give([1], child=1)
    assert nurse.outcomes(1, child=1) == {0: 1}


def fill_descriptors() -> list[int]:
    made = []
    while True:
        try:
            made.append(os.dup(0))
        except OSError:
            return made


# -- progress ----------------------------------------------------------------------------------------


def test_progress_tells_since_when_an_item_of_a_timed_job_runs(nurse: Nursery) -> None:
    nurse.begin(function=nursery.same)
    nurse.define(nursery.nap, job=2, timeout=600.0)
    nurse.children.do(Inspect(1))
    assert nurse.found(Progress)[-1].position == -1
    begun = time.monotonic()
    nurse.give([0.2, 600], job=2)
    nurse.until(lambda: running(nurse).position == 1)
    seen = nurse.found(Progress)[-1]
    assert begun + 0.2 <= seen.since <= time.monotonic()
    assert running(nurse).since == seen.since


def test_progress_of_other_jobs_counts_from_the_first_look(nurse: Nursery) -> None:
    nurse.begin(function=nursery.nap)
    nurse.give([600])
    seen = running(nurse)
    assert running(nurse).since == seen.since


def test_memory_is_sampled(nurse: Nursery) -> None:
    from multihost_worker.events import ChildMemory

    nurse.begin(function=nursery.same)
    nurse.children.sample()
    assert MIB < nurse.found(ChildMemory)[-1].rss < 1 << 30


# -- the end -----------------------------------------------------------------------------------------


def test_nothing_is_left_of_twenty_rounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with nothing_left():
        for turn in range(20):
            with Nursery(capture=(lambda *_: None) if turn % 2 else None) as nurse:
                for child in (1, 2):
                    nurse.begin(child, function=nursery.same)
                    nurse.give([b"a" * 100_000], child=child)
                if turn % 3:
                    nurse.outcomes(1, child=1)
                if turn % 5 == 0:
                    nurse.children.close(kill=False)
                    assert len(nurse.found(ChildDied)) == 2
    assert list(tmp_path.iterdir()) == []


def test_closing_twice_and_never_started() -> None:
    with nothing_left(), Nursery() as nurse:
        nurse.children.close()
        nurse.children.close()


def test_a_fork_of_the_agent_holds_nothing(nurse: Nursery) -> None:
    """Else children would not see the agent's end while such a process lives."""
    nurse.begin(function=nursery.same)
    nurse.give([b"a" * 100_000])
    nurse.outcomes(1)
    nurse.events.clear()
    ours = set(nurse.children.watched)
    begin, end = os.pipe()
    pid = os.fork()
    if pid == 0:
        still = [fd for fd in ours if not closed(fd)]
        still += [name for name in nursery.open_files() if "multihost" in name]
        nurse.children.close()
        os.write(end, repr(still).encode())
        os._exit(0)
    os.close(end)
    assert os.read(begin, 1000) == b"[]"
    os.close(begin)
    os.waitpid(pid, 0)
    nurse.give([1], start=1)
    nurse.outcomes(1)


def closed(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return True
    return False


AGENT = """
import sys, nursery, time
with nursery.Nursery() as nurse:
    for child in (1, 2):
        nurse.begin(child, function=nursery.spawn_and_nap)
        nurse.give([600], child=child)
    nurse.children.poll(0.5)
    print(nurse.children._server.pid, *nurse.children.pids().values(), flush=True)
    while True:
        nurse.children.poll(60)
"""


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
def test_children_and_forkserver_end_with_the_agent(signum: int) -> None:
    with nothing_left():
        agent = subprocess.Popen(
            [sys.executable, "-c", AGENT],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        assert agent.stdout is not None
        pids = [int(pid) for pid in agent.stdout.readline().split()]
        deadline = time.monotonic() + PATIENCE
        while len(below := descendants_of(pids)) < 2:
            assert time.monotonic() < deadline
        agent.send_signal(signum)
        agent.wait(10)
        agent.stdout.close()
        assert len(pids) == 3
        assert wait_gone([*pids, *below], 1.0) < 1.0


def descendants_of(pids: list[int]) -> list[int]:
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                parent = Path(f"/proc/{name}/stat").read_text().rsplit(")", 1)[1].split()[1]
            except OSError:
                continue
            if int(parent) in pids[1:]:
                found.append(int(name))
    return found


def test_run_is_for_a_child_that_exists(nurse: Nursery) -> None:
    nurse.children.do(Run(99, 0, 1, 0, 1, 1, 0, [b"", b""]))
    assert nurse.events == []
