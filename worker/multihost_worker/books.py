"""What the parts of the agent's core share: pools, jobs, children, and where actions go."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from multihost_common import messages as m
from multihost_common.blobs import Blobs
from multihost_worker import events as e
from multihost_worker.backlog import Backlog
from multihost_worker.slots import Child, ChildPool
from multihost_worker.work import AgentJob, Work


@dataclass(slots=True)
class CoreConfig:
    """What the shell tells the core once."""

    #: Child processes at once; 0: as many as the pools ask for.
    slots: int = 0
    host: str = ""
    #: Resident bytes a child may have; 0: no limit.
    max_memory: int = 0
    #: Seconds a drain may take before everything is handed back.
    drain_timeout: float = 25.0
    #: Seconds between beats; 0.0: none (the broker is in the same process).
    heartbeat: float = 1.0
    #: Seconds without a broker after which everything is dropped.
    orphan_timeout: float = 300.0
    #: Bytes of results on the disk at most, while they cannot be sent; 0: none.
    spool_bytes: int = 0


@dataclass(slots=True)
class Books:
    """The agent's state."""

    config: CoreConfig
    now: float = 0.0
    connected: bool = False
    draining: bool = False
    blobs: Blobs = field(default_factory=Blobs)
    pools: dict[int, ChildPool] = field(default_factory=dict)
    jobs: dict[int, AgentJob] = field(default_factory=dict)
    children: dict[int, Child] = field(default_factory=dict)
    out: list[e.Action] = field(default_factory=list)
    #: Answers that cannot be sent yet.
    backlog: Backlog = field(init=False)

    def __post_init__(self) -> None:
        self.backlog = Backlog(self.emit, self.config.spool_bytes)

    def emit(self, action: e.Action) -> None:
        """Have this done."""
        self.out.append(action)

    def send(self, message: m.Message) -> None:
        """Tell the broker."""
        self.out.append(e.Send(message))

    def confirm(self, job: AgentJob) -> None:
        """The broker knows the job: send what was kept for it."""
        job.confirmed = True
        self.backlog.pour(job)

    def give_back(self, work: Work) -> None:
        """These items have not begun and go back to the broker."""
        self.send(m.Returned(work.job, work.span.start, len(work.span), work.attempt))

    def forget(self, job: AgentJob) -> None:
        """The job is over here."""
        del self.jobs[job.opened.job]
        self.backlog.forget(job)
        self.blobs.release(job.opened.function)
        self.blobs.release(job.opened.code)

    def works(self) -> Iterator[Work]:
        """All leased work there is here."""
        for pool in self.pools.values():
            yield from pool.queue
            for child in pool.children.values():
                for given in child.given:
                    yield given.work
        for job in self.jobs.values():
            yield from job.parked

    def held(self) -> Iterator[tuple[int, int, int, int]]:
        """(job, start, count, attempt) of all that the broker may wait for."""
        for work in self.works():
            yield work.job, work.span.start, len(work.span), work.attempt
        for job in self.jobs.values():
            yield from self.backlog.held(job)

    def missing(self, *digests: bytes) -> bool:
        """Is one of these contents not here?"""
        for digest in digests:  # noqa: SIM110 - on the path of every message
            if digest and digest not in self.blobs:
                return True
        return False

    def ask_for(self, *digests: bytes) -> None:
        """Ask the broker for those of these contents that are not here."""
        for digest in digests:
            if digest and digest not in self.blobs:
                self.send(m.Need(digest))
