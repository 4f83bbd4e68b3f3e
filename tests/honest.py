"""Honest producers and workers as the protocol has them, not as they are written: each may do at any time whatever
the protocol allows it to do, and each requires of the broker what the protocol promises."""

from __future__ import annotations

from dataclasses import dataclass, field

from stage import FUNCTION, SETUP, Client, Stage, content

from multihost_common import messages as m
from multihost_common.blocks import pack_lengths, unpack_lengths
from multihost_common.tables import pack_rows

#: An item that took so many children along fails.
MAX_DEATHS = 3

#: Seconds that a worker takes to drain at most.
DRAIN = 25.0

#: Bytes of an item: who fed it, in which job, and its number there; a result is that with a letter before it.
ITEM = 16


def key_of(producer: str, job: int, item: int) -> bytes:
    """What an item is."""
    return f"P{producer}/{job}/{item}".ljust(ITEM).encode()


@dataclass
class MadeJob:
    """A job as its producer knows it."""

    number: int
    pool: int
    once: bool
    #: (start, count, chunksize) of each Feed.
    blocks: list[tuple[int, int, int]] = field(default_factory=list)
    fed: int = 0
    ended: bool = False
    over: bool = False
    answered: set[int] = field(default_factory=set)
    cancels: list[m.Cancel] = field(default_factory=list)
    #: It was stated anew, so answers may come twice.
    resumed: bool = False


@dataclass
class MadePool:
    """A pool as its producer knows it."""

    opened: m.OpenPool
    closing: bool = False
    kill: bool = False
    closed: bool = False
    broken: bool = False

    @property
    def usable(self) -> bool:
        """Jobs may be opened in it."""
        return not (self.closing or self.broken)


class Producer(Client):
    """Keeps what has no answer, and takes the first answer of each item."""

    def __init__(self, stage: Stage, name: str) -> None:
        super().__init__(stage, name, m.PRODUCER)
        self.pools: dict[int, MadePool] = {}
        self.jobs: dict[int, MadeJob] = {}
        self._numbers = 0

    # -- what it does --------------------------------------------------------------------------------

    def open_pool(self, limit: int, eager: bool) -> int:
        """A new pool; its number."""
        self._numbers += 1
        number = self._numbers
        opened = m.OpenPool(number, limit, SETUP, b"", 0, eager, "pool")
        self.pools[number] = MadePool(opened)
        self._say(m.Blob(SETUP, (content(SETUP),)), opened)
        return number

    def _say(self, *messages: m.Message) -> None:
        # What is said while there is no session is stated anew in the next one.
        if self.ready:
            for message in messages:
                self.say(m.decode(m.encode(message)))

    def open_job(self, pool: int, once: bool) -> int:
        """A new job; its number."""
        self._numbers += 1
        job = self.jobs[self._numbers] = MadeJob(self._numbers, pool, once)
        self._say(m.Blob(FUNCTION, (content(FUNCTION),)), self._opened(job))
        return job.number

    def _opened(self, job: MadeJob) -> m.OpenJob:
        return m.OpenJob(job.number, job.pool, FUNCTION, at_most_once=job.once, resumed=job.resumed)

    def feed(self, job: MadeJob, count: int, chunksize: int) -> None:
        """A block of input."""
        job.blocks.append((job.fed, count, chunksize))
        self._say(self._block(job, *job.blocks[-1]))
        job.fed += count

    def _block(self, job: MadeJob, start: int, count: int, chunksize: int) -> m.Feed:
        items = [key_of(self.name, job.number, item) for item in range(start, start + count)]
        chunks = [b"".join(items[at : at + chunksize]) for at in range(0, count, chunksize)]
        return m.Feed(
            job.number, start, count, chunksize, (pack_lengths([*map(len, chunks)]), b"".join(chunks))
        )

    def end(self, job: MadeJob) -> None:
        """No more input."""
        job.ended = True
        self._say(m.EndJob(job.number, job.fed))

    def cancel(self, job: MadeJob, start: int, count: int, kill: bool) -> None:
        """These items are not wanted any more; count 0: the job is not."""
        cancel = m.Cancel(job.number, start, count, kill)
        self._say(cancel)
        if count:
            job.cancels.append(cancel)
        else:
            job.over = True

    def close_pool(self, pool: MadePool, kill: bool) -> None:
        """No more jobs."""
        pool.closing, pool.kill = True, pool.kill or kill
        self._say(m.ClosePool(pool.opened.pool, kill))
        if kill:
            self._abort(pool)

    def _abort(self, pool: MadePool) -> None:
        for job in self.jobs.values():
            if job.pool == pool.opened.pool:
                job.over = True

    def on_welcome(self, again: bool) -> None:
        for message in self._restated() if again else ():
            self.say(m.decode(m.encode(message)))

    def _restated(self) -> list[m.Message]:
        pools = [pool for pool in self.pools.values() if not pool.closed]
        messages: list[m.Message] = [pool.opened for pool in pools if not pool.kill]
        for job in self.jobs.values():
            if not job.over:
                job.resumed = True
                messages += self._job_anew(job)
        messages += [m.ClosePool(pool.opened.pool, pool.kill) for pool in pools if pool.closing]
        return [*messages, m.Restated()]

    def _job_anew(self, job: MadeJob) -> list[m.Message]:
        messages: list[m.Message] = [self._opened(job)]
        known: list[tuple[int, int]] = []
        for start, count, chunksize in job.blocks:
            answered = job.answered.intersection(range(start, start + count))
            if len(answered) < count:
                messages.append(self._block(job, start, count, chunksize))
                known += [(item, 1) for item in sorted(answered)]
        if known:
            messages.append(m.Known(job.number, (pack_rows(known),)))
        if job.ended:
            messages.append(m.EndJob(job.number, job.fed))
        return [*messages, *job.cancels]

    # -- what it hears -------------------------------------------------------------------------------

    def on_need(self, need: m.Need) -> None:
        """Content that the broker does not have."""
        self._say(m.Blob(need.digest, (content(need.digest),)))

    def on_capacity(self, capacity: m.Capacity) -> None:
        """How many workers there are."""
        self.workers = capacity.workers

    def _about(self, answer: m.Result | m.Failed) -> tuple[MadeJob, range] | None:
        """The job, and the items that an answer is about; None: it has crossed what makes it void."""
        assert answer.job in self.jobs, f"{self.name} was told of {answer}"
        job = self.jobs[answer.job]
        items = range(answer.start, answer.start + answer.count)
        assert items.stop <= job.fed, f"items {items} of {job.fed} have an answer"
        if job.over:
            return None
        if job.answered.issuperset(items):
            assert job.resumed, f"{self.name} has heard all of {answer} before"
        return job, items

    def on_result(self, result: m.Result) -> None:
        """Results, of which some are new."""
        found = self._about(result)
        if found is None:
            return
        job, items = found
        expected = [b"R" + key_of(self.name, job.number, item) for item in items]
        assert bytes(result.frames[1]) == b"".join(expected) or self.stage.infiltrated, f"wrong: {result}"
        job.answered.update(items)

    def on_failed(self, failed: m.Failed) -> None:
        """Items without a result, for a reason that there is."""
        found = self._about(failed)
        if found is None:
            return
        job, items = found
        assert job.resumed or not job.answered.intersection(items), f"some of {failed} have an answer"
        for item in items:
            reason, deaths = failed.reason, self.stage.deaths[key_of(self.name, job.number, item)]
            if reason == m.CANCELLED:
                assert any(each.start <= item < each.start + each.count for each in job.cancels), failed
            elif reason == m.LOST:
                assert job.once, f"only what runs at most once is lost: {failed}"
            elif not self.stage.infiltrated:
                assert deaths >= failed.deaths >= 1, f"{failed}, and it has seen {deaths}"
                assert job.once or reason == m.TIMED_OUT or failed.deaths == MAX_DEATHS, failed
        job.answered.update(items)

    def on_endresults(self, end: m.EndResults) -> None:
        """Everything has an answer."""
        job = self.jobs[end.job]
        if not job.over:
            assert job.ended and end.count == job.fed == len(job.answered), (
                f"{end}, and not all have an answer"
            )
            job.over = True

    def on_poolbroken(self, broken: m.PoolBroken) -> None:
        """An initializer has failed."""
        pool = self.pools[broken.pool]
        known = self.session << 32 | broken.pool in self.stage.broken
        assert known or pool.broken or self.stage.infiltrated, f"nobody has said {broken}"
        pool.broken = True
        self._abort(pool)

    def on_poolclosed(self, closed: m.PoolClosed) -> None:
        """All children of the pool have ended."""
        pool = self.pools[closed.pool]
        assert pool.closing, f"nobody has closed pool {closed.pool}"
        left = [job.number for job in self.jobs.values() if job.pool == closed.pool and not job.over]
        assert not left, f"pool {closed.pool} has closed before jobs {left}"
        pool.closed = True


@dataclass
class Piece:
    """Items that a worker was leased and has not answered; ``begun`` of them run."""

    job: int
    start: int
    stop: int
    attempt: int
    #: What the items are, of an honest producer's job.
    keys: list[bytes] | None
    begun: int = 0

    def part(self, start: int, stop: int) -> Piece:
        """Some of these items."""
        keys = None if self.keys is None else self.keys[start - self.start : stop - self.start]
        begun = max(0, min(self.start + self.begun, stop) - start)
        return Piece(self.job, start, stop, self.attempt, keys, begun)

    def without(self, start: int, stop: int) -> list[Piece]:
        """What is left of it."""
        parts = [(self.start, min(start, self.stop)), (max(stop, self.start), self.stop)]
        return [self.part(low, high) for low, high in parts if low < high]


@dataclass
class WorkedPool:
    """A pool as a worker knows it."""

    slots: int = 0
    closing: bool = False


class Worker(Client):
    """Has what it was leased, runs it in any order, and answers in any order."""

    def __init__(self, stage: Stage, name: str, slots: int) -> None:
        super().__init__(stage, name, m.WORKER)
        self.slots = slots
        self.pools: dict[int, WorkedPool] = {}
        self.opened: dict[int, m.OpenJob] = {}
        #: Jobs that the present broker has told of.
        self.confirmed: set[int] = set()
        self.pieces: list[Piece] = []
        #: Answers that cannot be sent yet.
        self.kept: list[m.Result | m.Died] = []
        self.draining = self.heard_out = False
        #: When it hands back what it has, if it drains.
        self.drain_by = 0.0
        self.contents: set[bytes] = set()

    # -- what it does --------------------------------------------------------------------------------

    def idle(self) -> list[Piece]:
        """What has items that can begin."""
        return [each for each in self.pieces if each.start + each.begun < each.stop]

    def busy(self) -> list[Piece]:
        """What has items that run."""
        return [each for each in self.pieces if each.begun]

    def begin(self, piece: Piece, count: int) -> None:
        """So many items more begin."""
        pool = self.pools.get(self.opened[piece.job].pool)
        if pool is None or not pool.slots:
            return
        count = min(count, piece.stop - piece.start - piece.begun)
        if piece.keys is not None:
            for key in piece.keys[piece.begun : piece.begun + count]:
                self.stage.begun[key] += 1
                once = self.opened[piece.job].at_most_once
                assert not once or self.stage.begun[key] == 1, f"{key!r} runs a second time"
        piece.begun += count

    def finish(self, piece: Piece, count: int) -> None:
        """So many of those that run are done."""
        count = min(count, piece.begun)
        done = [b"R" + key for key in piece.keys[:count]] if piece.keys is not None else [b"R"]
        frames = (pack_lengths([*map(len, done)]), b"".join(done))
        self._answer(m.Result(piece.job, piece.start, count, piece.attempt, 1000 * count, m.VALUES, frames))
        self._drop(piece, count)

    def _drop(self, piece: Piece, count: int) -> None:
        self.pieces.remove(piece)
        self.pieces += piece.without(piece.start, piece.start + count)

    def die(self, piece: Piece, reason: str) -> None:
        """The child that runs the first item ends."""
        if piece.keys is not None:
            self.stage.deaths[piece.keys[0]] += 1
        self._answer(
            m.Died(piece.job, piece.start, piece.attempt, reason, self.name, signal=9, text="killed")
        )
        self._drop(piece, 1)

    def _answer(self, answer: m.Result | m.Died) -> None:
        if self.ready and answer.job in self.confirmed:
            self.say(answer)
        else:
            self.kept.append(answer)

    def give_back(self, piece: Piece, count: int) -> None:
        """The last items, that have not begun, are not held any more."""
        count = min(count, piece.stop - piece.start - piece.begun, m.COUNT[1])
        if count > 0 and self.ready:
            self.say(m.Returned(piece.job, piece.stop - count, count, piece.attempt))
            self.pieces.remove(piece)
            self.pieces += piece.without(piece.stop - count, piece.stop)

    def _give_all_back(self, pool: int) -> None:
        for piece in [each for each in self.idle() if self.opened[each.job].pool == pool]:
            self.give_back(piece, piece.stop - piece.start)

    def _held(self) -> list[tuple[int, int, int, int]]:
        held = [(each.job, each.start, each.stop - each.start, each.attempt) for each in self.pieces]
        for each in self.kept:
            if isinstance(each, m.Result):
                held.append((each.job, each.start, each.count, each.attempt))
            else:
                held.append((each.job, each.item, 1, each.attempt))
        return held

    def beat(self) -> None:
        if not self.ready:
            return
        self.say(m.Beat((pack_rows(self._held()),)))
        if self.draining and not self.heard_out:
            self.say(m.Drain())
        for digest in sorted({SETUP, FUNCTION} - self.contents):
            if self.opened:
                self.say(m.Need(digest))

    def drain(self) -> None:
        """The operator wants it to end."""
        self.draining, self.drain_by = True, self.stage.now + DRAIN
        self.say(m.Drain())
        for pool in self.pools:
            self._give_all_back(pool)

    def rest(self) -> None:
        """It has no work: children of closed pools have ended, and if it drains, that was all."""
        if not self.ready:
            return
        used = {self.opened[each.job].pool for each in self.pieces}
        for number, pool in list(self.pools.items()):
            if pool.closing and number not in used:
                del self.pools[number]
                self.say(m.PoolClosed(number))
        done = self.heard_out and not self.pieces and not self.kept
        if self.draining and (done or self.stage.now >= self.drain_by):
            self.leave()

    def break_pool(self, pool: int) -> None:
        """An initializer fails."""
        self.stage.broken.add(pool)
        self.say(m.PoolBroken(pool, "it raised"))

    # -- what it hears -------------------------------------------------------------------------------

    def on_welcome(self, again: bool) -> None:
        self.confirmed.clear()
        pools = pack_rows((number, min(pool.slots, self.slots)) for number, pool in self.pools.items())
        self.say(m.Held((pools, pack_rows(self._held()))))
        if self.draining:
            self.say(m.Drain())

    def on_blob(self, blob: m.Blob) -> None:
        """Content."""
        self.contents.add(blob.digest)

    def on_openpool(self, opened: m.OpenPool) -> None:
        """A pool that it may work for."""
        self.pools.setdefault(opened.pool, WorkedPool()).closing = False

    def on_grant(self, grant: m.Grant) -> None:
        """So many children."""
        pool = self.pools.get(grant.pool)
        if pool is not None:
            assert grant.slots <= self.slots, f"{self.name} has {self.slots} slots: {grant}"
            pool.slots = grant.slots
            if not grant.slots:
                self._give_all_back(grant.pool)

    def on_closepool(self, close: m.ClosePool) -> None:
        """Its children end when they are idle, or now."""
        if close.pool not in self.pools:
            self.say(m.PoolClosed(close.pool))
            return
        self.pools[close.pool].closing = True
        if close.kill:
            self.pieces = [each for each in self.pieces if self.opened[each.job].pool != close.pool]

    def on_openjob(self, opened: m.OpenJob) -> None:
        """A job; now its answers can be sent."""
        if opened.pool not in self.pools:
            return
        self.opened[opened.job] = opened
        self.confirmed.add(opened.job)
        for answer in [each for each in self.kept if each.job == opened.job]:
            self.kept.remove(answer)
            self.say(answer)

    def on_closejob(self, close: m.CloseJob) -> None:
        """Nobody waits for it any more."""
        self.pieces = [each for each in self.pieces if each.job != close.job]
        self.kept = [each for each in self.kept if each.job != close.job]
        self.confirmed.discard(close.job)
        self.opened.pop(close.job, None)

    def on_lease(self, lease: m.Lease) -> None:
        """Work, whose frames are what the numbers say."""
        opened = self.opened.get(lease.job)
        pool = self.pools.get(opened.pool) if opened else None
        if opened is None or pool is None:
            # It is missing in the next beats.
            return
        if self.draining:
            # The broker has not heard it.
            self.say(m.Drain())
        piece = Piece(lease.job, lease.start, lease.start + lease.count, lease.attempt, _keys(lease))
        if self.draining or pool.closing or not pool.slots:
            self.say(m.Returned(lease.job, lease.start, lease.count, lease.attempt))
        else:
            self.pieces.append(piece)

    def on_revoke(self, revoke: m.Revoke) -> None:
        """Give back what has not begun, if that suits."""
        for piece in [each for each in self.idle() if self.opened[each.job].pool == revoke.pool][-1:]:
            self.give_back(piece, revoke.count)

    def on_cancel(self, cancel: m.Cancel) -> None:
        """Nobody wants these items; those that run may go on unless ``kill``."""
        start, stop = (cancel.start, cancel.start + cancel.count) if cancel.count else (0, 1 << 65)
        left: list[Piece] = []
        for piece in self.pieces:
            if piece.job != cancel.job:
                left.append(piece)
                continue
            running = piece.start + piece.begun
            low = start if cancel.kill else max(start, running)
            left += piece.without(low, stop) if low < stop else [piece]
        self.pieces = left

    def on_drain(self, drain: m.Drain) -> None:
        """No lease comes after this."""
        self.heard_out = True


def _keys(lease: m.Lease) -> list[bytes] | None:
    """What the items are, if an honest producer has fed them: those that the numbers say."""
    data = bytes(lease.frames[1])
    if not data.startswith(b"P"):
        return None
    assert sum(unpack_lengths(lease.frames[0])) == len(data), f"a block that does not add up: {lease}"
    keys = [data[at : at + ITEM] for at in range(0, len(data), ITEM)][lease.skip : lease.skip + lease.count]
    producer, job, _ = keys[0][1:].split(b"/")
    assert keys == [
        key_of(producer.decode(), int(job), item) for item in range(lease.start, lease.start + lease.count)
    ], f"{lease} has {keys}"
    return keys
