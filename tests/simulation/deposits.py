"""Detached jobs as people use them: somebody submits one and is killed or not, others fetch its answers, retry its dead
letters, cancel or collect it. What was promised to any of them is held against what becomes of it."""

from __future__ import annotations

from concurrent.futures import CancelledError
from functools import partial
from typing import TYPE_CHECKING, Any

from multihost.detached.exchange import Order
from multihost.detached.fetching import Fetching
from multihost.detached.storing import Storing
from multihost.failures import Raised
from multihost.packing import pack
from multihost.sources import Calls
from multihost_common import messages as m
from multihost_common.blobs import digest_of
from multihost_common.errors import JobError, WorkerLostError

from .answers import Answers
from .callers import Caller, must
from .plans import BROKEN, FINE

if TYPE_CHECKING:
    from .plans import Plan
    from .world import World

#: Seconds: a job that is kept no longer may be forgotten in the course of a schedule.
BRIEF = 70.0


class View(Answers):
    """The answers that one client has fetched: a sink."""

    def __init__(self, deposit: Deposit) -> None:
        super().__init__(deposit.world, deposit.plan)
        self.deposit = deposit
        self.broken = deposit.broken
        self.count = -1

    def consumed(self) -> int:
        """Nothing waits for it to be taken out."""
        return 0

    def put(self, start: int, values: list[Any], failed: bool, calls: Calls) -> None:
        """Answers from ``start`` on."""
        for item, value in enumerate(values, start):
            deposit = self.deposit
            if item >= len(self.plan):
                # Of an input whose end nobody has told there is an error more than there are items.
                must(deposit.cancelled or deposit.broken, f"item {item} of {deposit} was never put")
                continue
            self.give(item, value)
            deposit.hears(item, value)

    def finish(self, total: int, calls: Calls) -> None:
        """These are all."""
        self.count = total

    def _wrong(self, item: int, error: BaseException) -> str:
        deposit = self.deposit
        if type(error) is CancelledError and deposit.cancelled:
            return ""
        if type(error) is JobError:
            return f"it has no answer: {error}"
        if type(error) is WorkerLostError and "did not fit" in str(error):
            return "" if self.world.journal.was_full else f"there was room: {error}"
        if item in deposit.dropped or (item in deposit.retried and "damaged" not in str(error)):
            return ""
        return super()._wrong(item, error)


class Deposit:
    """One detached job, from its submission until nobody remembers it."""

    def __init__(self, world: World, plan: Plan, *, broken: bool, retention: float, limit: int) -> None:
        self.world = world
        self.plan = plan
        self.broken = broken
        self.retention = retention
        self.key = b"k%d" % plan.number
        self.key = self.key.ljust(m.KEY, b".")
        setup, function = BROKEN if broken else FINE, b"function %d" % plan.number
        self.submit = m.Submit(
            self.key, limit, digest_of(setup), b"", 0, digest_of(function), 0, plan.timeout, 0, retention, "f",
            (setup, function),
        )  # fmt: skip
        random = world.random
        #: Items of each block, and of each chunk; seconds between two of them.
        self.step = random.choice((1, 2, 3, 6, 20))
        self.chunksize = random.choice((1, 1, 1, 3))
        self.pause = random.choice((0.0, 0.0, random.uniform(0.0, 0.3)))
        #: What somebody has been told is stored, and whether that was all.
        self.promised, self.sealed = 0, False
        self.submitter: Caller | None = None
        self.fetchers: list[Caller] = []
        #: Orders that were given, and those whose answer was heard.
        self.cancelled = self.surely_cancelled = self.collected = False
        self.retried: set[int] = set()
        self.dropped: set[int] = set()
        #: Items that were retried when nothing of the job ran any more.
        self.healed: set[int] = set()
        #: Item -> what the first client to hear of it was told.
        self.official: dict[int, str] = {}
        #: What the last of those who fetched it all has got.
        self.view: View | None = None
        self.wanted = random.choice((1, 1, 2, 3))
        self.submitting = True
        self.over = self.known = False
        self._calls = 0
        world.unfinished += 1
        world.deposits.append(self)

    def __str__(self) -> str:
        return f"detached job {self.plan.number}"

    def _call(
        self, exchange: Any, done: Any, hears: Any = lambda message: None, delay: float = 0.0
    ) -> Caller:
        self._calls += 1
        latency = self.world.random.choice((0.0002, 0.002, 0.03))
        caller = Caller(self.world, f"c{self.plan.number}.{self._calls}", latency, exchange, done, hears)
        caller.begin(delay)
        return caller

    # -- submitting ----------------------------------------------------------------------------------

    def begin(self, delay: float) -> None:
        """Somebody submits it, or goes on with that."""
        storing = Storing(m.decode(m.encode(self.submit)))  # type: ignore[arg-type]
        self.submitter = self._call(storing, self._submitted, self._stored, delay)
        self._put(self.submitter, storing)

    def _put(self, caller: Caller, storing: Storing) -> None:
        """Another block, and another one."""
        if not caller.alive or storing.over or self.world.aftermath:
            return
        if caller.up and storing.known and not storing.full:
            items = [self.plan.value(item) for item in range(storing._next, len(self.plan))]
            if items:
                caller.say(storing.put(pack(items[: self.step * self.chunksize], self.chunksize)))
            else:
                caller.say(storing.seal())
                return
        self.world.after(max(self.pause, 0.001 if caller.up else 0.05), self._put, caller, storing)

    def _stored(self, message: m.Message) -> None:
        """The broker promises something."""
        if type(message) is m.Denied:
            self.world.counts[f"denied: {message.reason}"] += 1
        if type(message) is not m.Stored:
            return
        if not self.known:
            self.known = True
            for _ in range(self.wanted):
                self._fetch(self.world.random.uniform(0.0, 1.5))
        if not (self.collected or self.cancelled or self.broken or self.retention <= BRIEF):
            # Of a job that has ended, or was forgotten, the input is not kept.
            must(
                message.fed >= self.promised,
                f"{self}: {self.promised} items were stored, now {message.fed} are",
            )
            must(message.sealed >= self.sealed, f"{self} was sealed and is not")
        self.promised = max(self.promised, message.fed)
        self.sealed = self.sealed or message.sealed

    def _submitted(self, caller: Caller, why: str) -> None:
        self.submitting = False
        over = "has ended" in why or "is not here" in why or "no such job" in why
        ended = over and (self.cancelled or self.broken or self.collected)
        # While everything stood still, perhaps.
        forgotten = "was forgotten" in why and self.retention <= BRIEF
        must(not why or ended or forgotten, f"{self} is denied: {why}")
        if not self.over and not self.fetchers and self.view is not None:
            self._go_on(self.view)

    # -- fetching ------------------------------------------------------------------------------------

    def _fetch(self, delay: float) -> None:
        view = View(self)
        fetching = Fetching(self.key, view, self.plan.timeout)
        fetching.pause_bytes = self.world.random.choice((0, 0, 1, 100))
        caller = self._call(fetching, partial(self._fetched, view), delay=delay)
        self.fetchers.append(caller)
        self._look(caller, fetching)

    def _look(self, caller: Caller, fetching: Fetching) -> None:
        """It asks again when it has made room."""
        if caller.alive and not self.world.aftermath:
            if caller.up and fetching.paused and not fetching.over:
                caller.say(fetching.begin())
            self.world.after(0.05, self._look, caller, fetching)

    def hears(self, item: int, value: Any) -> None:
        """A client hears of this answer: all hear the same, but for what was run again."""
        told = type(value.error).__name__ if type(value) is Raised else repr(value)
        before = self.official.setdefault(item, told)
        again = item in self.retried or item in self.dropped
        late = self.cancelled and "CancelledError" in (before, told)
        must(before == told or again or late, f"item {item} of {self} has answers {before} and {told}")

    def _fetched(self, view: View, caller: Caller, why: str) -> None:
        if why:
            gone = "no such job" in why or "collected" in why or "is not here" in why
            # One that is kept for a minute may have been forgotten while everything stood still.
            forgotten = self.collected or self.retention <= BRIEF
            must(gone and forgotten, f"{self}: nothing is fetched: {why}")
        else:
            self._judge(view, caller.exchange)
        self.fetchers.remove(caller)
        self.view = view
        if not self.fetchers and not self.over:
            self._go_on(view)

    def _judge(self, view: View, fetching: Any) -> None:
        """All that this client will hear of the job has been heard."""
        must(
            not view.missing() or view.count < len(self.plan),
            f"{self} is over: {view.missing()} have no answer",
        )
        if not (self.cancelled or self.broken):
            must(
                view.count == len(self.plan),
                f"{self} has {len(self.plan)} items, and {view.count} are fetched",
            )
        if self.surely_cancelled:
            must(fetching.state == m.STOPPED, f"{self} was cancelled, and is {fetching.state}")

    # -- orders --------------------------------------------------------------------------------------

    def order(self, what: str, about: str, done: Any) -> None:
        """An operator wants this."""
        self._call(Order(what, about), done)

    def cancel(self) -> None:
        """Its answers are not wanted any more."""
        self.cancelled = True
        self.order("cancel", self.key.hex(), self._was_cancelled)

    def _was_cancelled(self, caller: Caller, why: str) -> None:
        must(not why or self.collected, f"{self} is not cancelled: {why}")
        if not why and caller.exchange.answer["count"]:  # type: ignore[attr-defined]
            self.surely_cancelled = True

    def collect(self) -> None:
        """Nobody wants to know of it any more."""
        self.collected = True
        self.order("collect", self.key.hex()[: self.world.random.choice((12, 32))], self._was_collected)

    def _was_collected(self, caller: Caller, why: str) -> None:
        must(not why or "no detached job" in why, f"{self} is not collected: {why}")
        self._finish()

    def _finish(self) -> None:
        self.world.unfinished -= not self.over
        self.over = True

    def _go_on(self, view: View) -> None:
        """Everybody has fetched it: dead letters are looked at, then it is collected, or forgotten by itself."""
        if self.collected or self.submitting:
            # Who submits a job that was collected begins it anew.
            return
        letters = {
            item for item, value in view.values.items()
            if type(value) is Raised and type(value.error).__name__ in ("WorkerLostError", "TimeoutError")
        }  # fmt: skip
        alive = not (self.broken or self.cancelled)
        if letters and alive and not (self.retried or self.dropped):
            retried = self.world.random.random() < 0.6
            self.healed = letters if retried else set()
            self._order_letters(letters, retried, self._was_retried)
            return
        if self.retried and alive:
            bad = letters & self.healed
            # A worker that was given up may come back with what it had begun before.
            given_up = bool(self.world.counts["session ended"])
            excused = self.world.jumped or self.world.hurt or self.world.journal.was_full or given_up
            must(not bad or excused, f"items {bad} of {self} were healed, and fail")
        if self.retention > 100.0:
            self.collect()
        else:
            self.collected = True
            self._finish()

    def _order_letters(self, letters: set[int], retried: bool, done: Any) -> None:
        if not retried:
            self.dropped |= letters
            self.order("drop", self.key.hex(), done)
            return
        self.retried |= letters
        self.world.violent = True
        # Somebody has found the cause.
        plan = self.plan
        plan.poison, plan.flaky = plan.poison - letters, {}
        for item in letters:
            plan.seconds[item] = min(plan.seconds[item], 0.01)
        self.order("retry", self.key.hex(), done)

    def look_at_letters(self, retried: bool) -> bool:
        """An operator retries or drops those there are, as soon as there are some, whoever fetches meanwhile."""
        job = self.world.broker.core.archive.jobs.get(self.key)
        if self.cancelled or self.collected or self.retried or self.dropped or self.world.calm:
            return False
        if job is None or not job.dead:
            self.world.after(self.world.random.uniform(0.0, 0.1), self._look_at_letters, retried)
            return True
        # Others may be added before the order is heard.
        self._order_letters(set(range(len(self.plan))), retried, self._was_looked_at)
        return True

    def _look_at_letters(self, retried: bool) -> None:
        self.look_at_letters(retried)

    def _was_looked_at(self, caller: Caller, why: str) -> None:
        gone = self.cancelled or self.collected or self.broken
        must(not why or gone, f"{self}: dead letters are not retried or dropped: {why}")

    def _was_retried(self, caller: Caller, why: str) -> None:
        must(not why, f"{self}: dead letters are not retried or dropped: {why}")
        self._fetch(0.0)

    # -- what goes wrong -----------------------------------------------------------------------------

    def lose_submitter(self, delay: float) -> bool:
        """Who submits it is killed; somebody else does it later."""
        caller = self.submitter
        if caller is None or not caller.alive:
            return False
        caller.crash(power=self.world.random.random() < 0.2)
        self.world.after(delay, self.begin, 0.0)
        return True

    def lose_fetcher(self, delay: float) -> bool:
        """Who fetches it is killed; somebody else does it later, from the beginning."""
        if not self.fetchers:
            return False
        caller = self.world.random.choice(self.fetchers)
        caller.crash(power=self.world.random.random() < 0.2)
        self.fetchers.remove(caller)
        self._fetch(delay)
        return True
