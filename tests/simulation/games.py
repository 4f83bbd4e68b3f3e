"""What processes do with shared objects, and what each of them may expect of it: locks and values, events, conditions,
barriers, and processes. Whoever makes an object is its master, and sees to it that nobody waits without reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING, Any

from multihost_common import messages as m
from multihost_common.shared import (
    BARRIER,
    CELL,
    CONDITION,
    EVENT,
    SEMAPHORE,
    Barriers,
    Cells,
    Conditions,
    Events,
    Semaphores,
)

from .partners import GoneError, Partner, Program, Thread
from .world import ViolationError

if TYPE_CHECKING:
    from .scene import Era, Scene


def number(value: int) -> bytes:
    """As objects are made with."""
    return value.to_bytes(8, "little")


class Game:
    """One object, or a few that belong together, and who uses them."""

    def __init__(self, scene: Scene, random: Random) -> None:
        self.scene = scene
        self.random = random
        self.players: list[Thread] = []

    def master(self, partner: Partner) -> Program:
        """Makes it all, has others play, and ends it."""
        raise NotImplementedError

    def make(self, partner: Partner, kind: int, *frames: bytes) -> Any:
        """To be yielded from: a new object; its name."""
        name = self.random.getrandbits(128).to_bytes(m.OBJECT, "little")
        yield partner.ask(name, m.MAKE, kind, frames)
        return name

    def have(self, partner: Partner, *programs: Callable[[Partner], Program]) -> list[Thread]:
        """Others, or this one, do this from now on, or soon."""
        crowd = self.scene.crowd()
        threads = []
        for program in programs:
            player = self.random.choice(crowd) if crowd and self.random.random() < 0.8 else partner
            delay = self.random.choice((0.0, self.random.uniform(0.0, 0.3)))
            threads.append(player.start(program(player), delay))
        self.players += threads
        return threads

    def until(self, threads: list[Thread]) -> Program:
        """To be yielded from: wait until these are over."""
        delay = 0.02
        while any(not each.over for each in threads):
            yield delay
            delay = min(1.0, delay * 1.5)

    def pause(self) -> float:
        """Next to nothing, or some milliseconds."""
        return self.random.choice((0.0, 0.0, 0.001, self.random.uniform(0.0, 0.05)))

    def patience(self) -> dict[str, Any]:
        """How long a request waits: as long as it takes, or not at all, or for a moment."""
        kind = self.random.randrange(6)
        return {"now": True} if kind == 0 else {"timeout": self.random.uniform(0.0, 0.3)} if kind == 1 else {}


class LockGame(Game):
    """Permits that few have at a time; and a number that who has a lock counts up."""

    def __init__(self, scene: Scene, random: Random) -> None:
        super().__init__(scene, random)
        self.permits = random.choice((1, 1, 1, 2))
        self.lock = self.cell = b""
        self.holders: list[Era] = []
        self.counted = self.tried = 0

    def master(self, partner: Partner) -> Program:
        owned = int(self.permits == 1)
        self.lock = yield from self.make(
            partner, SEMAPHORE, number(self.permits), number(self.permits), number(owned)
        )
        self.cell = yield from self.make(partner, CELL, number(8))
        rounds = self.random.randint(1, 4)
        players = [lambda player: self.player(player, rounds)] * self.random.randint(2, 5)
        yield from self.until(self.have(partner, *players))
        if self.permits == 1:
            answer = yield partner.ask(self.cell, Cells.READ, 8 * Cells.SPAN)
            found = int.from_bytes(answer.frames[0], "little")
            assert self.counted <= found <= self.tried, (
                f"counted to {found}, not {self.counted} to {self.tried}"
            )
        partner.tell(self.lock, m.CLOSE)

    def player(self, partner: Partner, rounds: int) -> Program:
        """Takes the lock now and then."""
        for _ in range(rounds):
            yield self.pause()
            # Who ends in good order with a permit of a semaphore keeps it.
            patience = self.patience() if self.permits == 1 else {"timeout": self.random.uniform(0.0, 0.3)}
            answer = yield partner.ask(self.lock, Semaphores.ACQUIRE, **patience)
            if not answer.granted:
                continue
            self.scene.world.counts["lock of a dead holder"] += answer.amount
            self.enter(partner.era)
            era = partner.era
            try:
                yield from self.hold(partner)
            except GoneError:
                # The end of a with block. In another session it would release what somebody else holds.
                if partner.era is era:
                    partner.tell(self.lock, Semaphores.RELEASE)
                raise
            finally:
                self.holders.remove(era)
            if self.random.random() < 0.5:
                yield partner.ask(self.lock, Semaphores.RELEASE)
            else:
                partner.tell(self.lock, Semaphores.RELEASE)

    def enter(self, era: Era) -> None:
        """One more has it, as far as it knows."""
        self.holders.append(era)
        live = [each for each in self.holders if each.live]
        if len(live) > self.permits:
            raise ViolationError(f"{len(live)} have one of {self.permits} permits")

    def hold(self, partner: Partner) -> Program:
        """What is done under the lock."""
        yield self.pause()
        if self.permits == 1 and self.random.random() < 0.7:
            answer = yield partner.ask(self.cell, Cells.READ, 8 * Cells.SPAN)
            value = int.from_bytes(answer.frames[0], "little")
            yield self.pause()
            self.tried += 1
            yield partner.ask(self.cell, Cells.WRITE, 0, (number(value + 1),))
            self.counted += 1


class EventGame(Game):
    """Some wait until others set it."""

    def __init__(self, scene: Scene, random: Random) -> None:
        super().__init__(scene, random)
        self.event = b""
        self.set = False

    def master(self, partner: Partner) -> Program:
        self.event = yield from self.make(partner, EVENT)
        waiters = self.have(partner, *[self.waiter] * self.random.randint(1, 4), self.setter)
        yield self.random.uniform(0.0, 0.5)
        self.set = True
        yield partner.ask(self.event, Events.SET)
        yield from self.until(waiters)
        partner.tell(self.event, m.CLOSE)

    def waiter(self, partner: Partner) -> Program:
        """Waits."""
        for _ in range(self.random.randint(1, 3)):
            yield self.pause()
            answer = yield partner.ask(self.event, Events.WAIT, **self.patience())
            if answer.granted and not self.set:
                raise ViolationError("an event is set that nobody has set")

    def setter(self, partner: Partner) -> Program:
        """Sets it, and looks."""
        yield self.random.uniform(0.0, 0.5)
        self.set = True
        yield partner.ask(self.event, Events.SET)
        answer = yield partner.ask(self.event, Events.IS_SET)
        if answer.amount != 1:
            raise ViolationError("an event is not set that was")


class ConditionGame(LockGame):
    """Some wait, with a lock, until others notify them."""

    def __init__(self, scene: Scene, random: Random) -> None:
        super().__init__(scene, random)
        self.permits = 1
        self.condition = b""
        self.notified = 0
        self.woken: list[Era] = []

    def master(self, partner: Partner) -> Program:
        self.lock = yield from self.make(partner, SEMAPHORE, number(1), number(1), number(1))
        self.condition = yield from self.make(partner, CONDITION)
        waiters = self.have(partner, *[self.waiter] * self.random.randint(1, 4))
        self.have(partner, self.notifier)
        delay = 0.05
        while any(not each.over for each in waiters):
            yield delay
            delay = min(1.0, delay * 1.5)
            yield from self.notify(partner, self.random.choice((1, 1, 100)))
        yield from self.until(self.players)
        partner.tell(self.condition, m.CLOSE)
        partner.tell(self.lock, m.CLOSE)

    def acquire(self, partner: Partner) -> Program:
        """To be yielded from."""
        yield partner.ask(self.lock, Semaphores.ACQUIRE)
        self.enter(partner.era)

    def release(self, partner: Partner) -> None:
        """The other way."""
        self.holders.remove(partner.era)
        partner.tell(self.lock, Semaphores.RELEASE)

    def notify(self, partner: Partner, count: int) -> Program:
        """To be yielded from."""
        yield from self.acquire(partner)
        self.notified += count
        era = partner.era
        try:
            yield partner.ask(self.condition, Conditions.NOTIFY, count)
        except BaseException:
            self.holders.remove(era)
            raise
        self.release(partner)

    def wake(self, era: Era) -> None:
        """One more goes on. What the dead were notified of has passed to others."""
        self.woken.append(era)
        woken = sum(each.live for each in self.woken)
        if woken > self.notified:
            raise ViolationError(f"{woken} were woken by {self.notified} notifications")

    def notifier(self, partner: Partner) -> Program:
        """Notifies some."""
        for _ in range(self.random.randint(1, 3)):
            yield self.pause()
            yield from self.notify(partner, self.random.choice((1, 2)))

    def waiter(self, partner: Partner) -> Program:
        """Waits as a Condition does: it enlists, and then lets go of the lock."""
        for _ in range(self.random.randint(1, 2)):
            yield self.pause()
            yield from self.acquire(partner)
            timeout = self.random.choice((None, self.random.uniform(0.0, 0.3)))
            wait = partner.ask(self.condition, Conditions.WAIT, timeout=timeout)
            self.release(partner)
            yield wait
            if wait.granted:
                yield self.pause()
                passes = self.random.random() < 0.2
                if not passes:
                    self.wake(partner.era)
                partner.tell(self.condition, Conditions.PASS if passes else Conditions.WOKEN, wait.number)
            yield from self.acquire(partner)
            yield self.pause()
            self.release(partner)


class BarrierGame(Game):
    """All come, and go on together; or it breaks."""

    def __init__(self, scene: Scene, random: Random) -> None:
        super().__init__(scene, random)
        self.parties = random.randint(1, 4)
        self.action = random.random() < 0.4
        self.rounds = random.randint(1, 3)
        self.barrier = b""
        self.came: Counter[int] = Counter()
        self.acted: Counter[int] = Counter()
        self.passed: dict[int, set[int]] = {}

    def master(self, partner: Partner) -> Program:
        self.barrier = yield from self.make(partner, BARRIER, number(self.parties), number(self.action))
        players = self.have(partner, *[self.player] * self.parties)
        delay = 0.02
        while any(not each.over for each in players):
            yield delay
            delay = min(1.0, delay * 1.5)
            if any(each.over for each in players):
                # Nobody knows of those who have not come yet.
                yield self.random.uniform(0.0, 0.2)
                yield partner.ask(self.barrier, Barriers.ABORT)
        partner.tell(self.barrier, m.CLOSE)

    def player(self, partner: Partner) -> Program:
        """Comes as often as the others."""
        for turn in range(self.rounds):
            yield self.pause()
            self.came[turn] += 1
            timeout = self.random.uniform(0.0, 2.0) if self.random.random() < 0.1 else None
            wait = yield partner.ask(self.barrier, Barriers.WAIT, timeout=timeout)
            if not wait.granted or wait.amount >= Barriers.BROKEN:
                self.scene.world.counts["barrier is broken"] += 1
                return
            self._passes(turn, wait.amount)
            if self.action and wait.amount == self.parties - 1:
                yield self.pause()
                self.acted[turn] += 1
                release = yield partner.ask(self.barrier, Barriers.RELEASE, wait.number)
                if release.amount >= Barriers.BROKEN:
                    return

    def _passes(self, turn: int, index: int) -> None:
        passed = self.passed.setdefault(turn, set())
        if index in passed or not 0 <= index < self.parties:
            raise ViolationError(f"somebody passes a barrier as number {index}, as somebody did")
        if self.came[turn] < self.parties:
            raise ViolationError(f"somebody passes, and {self.came[turn]} of {self.parties} have come")
        if self.action and index < self.parties - 1 and not self.acted[turn]:
            raise ViolationError("somebody passes before the action is done")
        passed.add(index)


class ProcessGame(Game):
    """Processes are launched, and perhaps killed, until all have ended."""

    def __init__(self, scene: Scene, random: Random, nested: bool = True) -> None:
        super().__init__(scene, random)
        self.nested = nested

    def master(self, partner: Partner) -> Program:
        random = self.random
        launched = []
        for _ in range(random.choice((1, 2, 3, 5))):
            programs = []
            if self.nested and random.random() < 0.2:
                inner = ProcessGame(self.scene, Random(random.getrandbits(32)), nested=False)
                programs.append(inner.master)
            plan = self.scene.plan(
                seconds=random.choice((0.0, 0.1, random.uniform(0.0, 2.0))),
                exitcode=random.choice((0, 0, 0, 7)),
                shares=bool(programs) or random.random() < 0.85,
                content=b"content %d" % random.getrandbits(32) if random.random() < 0.4 else b"",
                programs=programs,
            )
            launched.append(partner.launch(plan))
            yield self.pause()
        delay, signals = 0.05, random.choice((0, 0, 1, 2))
        while any(each.exitcode is None for each in launched):
            yield delay
            delay = min(1.0, delay * 1.5)
            if signals and random.random() < 0.2:
                # A few early ones: they would end what waits for ever, too.
                signals -= 1
                partner.signal(random.choice(launched), random.choice((9, 15)))
        for each in launched:
            assert each.exitcode is not None
            self.scene.world.counts[f"process ended by {each.exitcode}"] += 1
            if each.exitcode not in (each.plan.exitcode, -9, -15, -11, 3):
                raise ViolationError(f"a process has ended by {each.exitcode}: {each.text}")
