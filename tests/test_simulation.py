"""Schedules of faults against the real cores: nothing is lost, doubled, blamed on the innocent, or waited for in vain."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import simulation
from simulation.__main__ import main
from simulation.detached import ELSEWHERE, DetachedSchedule
from simulation.house import PLANTED_IN_THE_HOUSE
from simulation.known import KNOWN, known
from simulation.planted import PLANTED, planted
from simulation.planted_shared import PLANTED_IN_WHAT_IS_SHARED
from simulation.schedule import Schedule, Verdict
from simulation.shared import TROUBLES, SharedSchedule
from simulation.strikes import GENTLE, JOURNALED, PARTINGS, VIOLENT

#: Schedules of each run of the tests; ``python -m tests.simulation --seeds 0:100000`` runs more.
SEEDS = range(1600)
PARTING_SEEDS = range(500)
DETACHED_SEEDS = range(1000)
SHARED_SEEDS = range(400)

#: Within so many schedules a planted fault is found.
FOUND_WITHIN = 2000

#: States in which rules contradict each other most easily: a run that never sees one of them proves nothing of it.
STATES = (
    "agent dials anew: silence",
    "agent has drained",
    "agent registers anew: unknown",
    "all slots of a pool are taken",
    "answer: CancelledError",
    "answer: MultihostError",
    "answer: RemoteError",
    "answer: TimeoutError",
    "answer: WorkerLostError",
    "dropped Beat",
    "dropped Died",
    "dropped Lease",
    "dropped Result",
    "dropped Returned",
    "failed: cancelled",
    "failed: died",
    "failed: lost",
    "failed: timeout",
    "lease from within a chunk",
    "lease of a suspect",
    "lease was not named",
    "input is stated anew",
    "lost on the way",
    "producer goes on",
    "producer has come again",
    "producer waits",
    "result after a death",
    "result that nobody needed",
    "run given to a dead child",
    "said twice",
    "silent peer is heard again",
    "PoolBroken",
    "Revoke",
)

#: The same for detached jobs.
DETACHED_STATES = (
    "answer: CancelledError",
    "answer: RemoteError",
    "answer: TimeoutError",
    "answer: WorkerLostError",
    "denied: E_FULL",
    "denied: E_STATE",
    "failed: died",
    "failed: timeout",
    "lease of a suspect",
    "lost on the way",
    "result after a death",
    "result that nobody needed",
)

#: The same for what is shared.
SHARED_STATES = (
    "barrier is broken",
    "child is an orphan",
    "child is refused: E_HELLO",
    "items are called back",
    "lock of a dead holder",
    "process ended by -9",
    "producer has come again",
    "queue is joined",
    "request is withdrawn",
    "said again",
    "thread lost what it used",
)

FOLDER = Path(simulation.__path__[0])


def failing_seeds() -> list[tuple[int, str]]:
    """(seed, kind of schedule) of schedules that showed a fault once."""
    lines = [line.partition("#")[0].split() for line in (FOLDER / "seeds.txt").read_text().splitlines()]
    return [(int(words[0]), " ".join(words[1:])) for words in lines if words]


def occurred(verdicts: list[Verdict]) -> Counter[str]:
    """How often each fault and each state occurred."""
    counts: Counter[str] = Counter()
    for each in verdicts:
        counts.update(each.counts)
    return counts


@pytest.fixture(scope="module")
def verdicts() -> list[Verdict]:
    return [Schedule(seed).run() for seed in SEEDS]


def test_whoever_comes_back_nothing_is_lost() -> None:
    """Where nothing else goes wrong, lost connections and broker starts meet one another."""
    violations = [Schedule(seed, faults=PARTINGS).run().violation for seed in PARTING_SEEDS]
    assert [each for each in violations if each] == []


def test_whatever_happens_nothing_is_lost_and_nobody_waits_for_ever(verdicts: list[Verdict]) -> None:
    violations = [(each.seed, each.violation) for each in verdicts if each.violation]
    assert [each for each in violations if not known(each[1])] == []


def test_every_fault_and_every_state_that_matters_occurred(verdicts: list[Verdict]) -> None:
    counts = occurred(verdicts)
    wanted = [*STATES, *(f"fault: {name}" for name in (*VIOLENT, *GENTLE))]
    assert [name for name in wanted if not counts[name]] == []


@pytest.mark.parametrize(("seed", "kind"), failing_seeds())
def test_schedules_that_once_failed(seed: int, kind: str) -> None:
    careless = kind == "careless"
    kinds = {"detached": DetachedSchedule, "shared": SharedSchedule}
    violation = kinds.get(kind, Schedule)(seed, careless=careless).run().violation
    assert not violation or known(violation, careless), violation


@pytest.fixture(scope="module")
def detached_verdicts() -> list[Verdict]:
    return [DetachedSchedule(seed).run() for seed in DETACHED_SEEDS]


def test_what_is_stored_is_never_lost(detached_verdicts: list[Verdict]) -> None:
    violations = [(each.seed, each.violation) for each in detached_verdicts if each.violation]
    assert [each for each in violations if not known(each[1])] == []


def test_every_fault_and_every_state_that_matters_to_detached_jobs_occurred(
    detached_verdicts: list[Verdict],
) -> None:
    counts = occurred(detached_verdicts)
    wanted = [*DETACHED_STATES, *(f"fault: {name}" for name in (*JOURNALED, *ELSEWHERE))]
    assert [name for name in wanted if not counts[name]] == []


@pytest.fixture(scope="module")
def shared_verdicts() -> list[Verdict]:
    return [SharedSchedule(seed).run() for seed in SHARED_SEEDS]


def test_what_is_shared_is_in_one_place_and_nobody_waits_on_the_dead(shared_verdicts: list[Verdict]) -> None:
    violations = [(each.seed, each.violation) for each in shared_verdicts if each.violation]
    assert violations == []


def test_every_fault_and_every_state_that_matters_to_what_is_shared_occurred(
    shared_verdicts: list[Verdict],
) -> None:
    counts = occurred(shared_verdicts)
    wanted = [*SHARED_STATES, *(f"fault: {name}" for name in sorted(TROUBLES))]
    assert [name for name in wanted if not counts[name]] == []


def test_a_known_fault_is_there_still() -> None:
    """Once it is mended its entry goes."""
    for name, each in KNOWN.items():
        assert known(Schedule(each.seed, careless=each.careless).run().violation, each.careless) == name


@pytest.mark.long
@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_fault_is_found(name: str) -> None:
    for seed in range(FOUND_WITHIN):
        for faults in (None, PARTINGS, ("connection_of_a_producer_ends",)):
            with planted(name):
                violation = Schedule(seed, faults=faults).run().violation
            if violation and Schedule(seed, faults=faults).run().violation != violation:
                return
    pytest.fail(f"{FOUND_WITHIN} schedules did not find it")


@pytest.mark.long
@pytest.mark.parametrize("name", PLANTED_IN_THE_HOUSE)
def test_a_fault_planted_in_the_house_is_found(name: str) -> None:
    for seed in range(FOUND_WITHIN):
        with planted(name):
            violation = DetachedSchedule(seed).run().violation
        if violation and DetachedSchedule(seed).run().violation != violation:
            return
    pytest.fail(f"{FOUND_WITHIN} schedules did not find it")


@pytest.mark.long
@pytest.mark.parametrize("name", PLANTED_IN_WHAT_IS_SHARED)
def test_a_fault_planted_in_what_is_shared_is_found(name: str) -> None:
    for seed in range(FOUND_WITHIN):
        with planted(name):
            violation = SharedSchedule(seed).run().violation
        if violation and SharedSchedule(seed).run().violation != violation:
            return
    pytest.fail(f"{FOUND_WITHIN} schedules did not find it")


@pytest.mark.parametrize("kind", [[], ["--detached"], ["--shared"]])
def test_a_seed_is_one_schedule_in_every_process(kind: list[str]) -> None:
    """Whatever the hashes of strings are."""
    folders = [str(FOLDER.parent), *sys.path]
    outputs = []
    for hashes in ("1", "2"):
        run = subprocess.run(
            [sys.executable, "-m", "simulation", "--seeds", "0:40", "--trace", *kind],
            env={**os.environ, "PYTHONHASHSEED": hashes, "PYTHONPATH": os.pathsep.join(folders)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert "40 schedules" in run.stdout, run.stderr
        outputs.append([line for line in run.stdout.splitlines() if "schedules/s" not in line])
    assert outputs[0] == outputs[1]
    assert len(outputs[0]) > 1000


def test_the_command_shows_the_trace_of_a_violation_and_fails(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seeds", "0:30"]) == 0
    assert "0 violations" in capsys.readouterr().out
    assert main(["--seeds", "0:30", "--planted", "results_leave_the_lease", "--most", "1"]) == 1
    shown = capsys.readouterr().out
    assert "== seed" in shown and "is in one place" in shown and "-> broker  Result(" in shown
