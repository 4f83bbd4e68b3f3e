"""Messages that no honest peer sends: drawn from the table of messages, with any values that their fields may have."""

from __future__ import annotations

from hashlib import blake2b
from typing import Any

from hypothesis import strategies as st
from stage import Peer, Stage

from multihost_broker.core import Core
from multihost_common import messages as m
from multihost_common.blocks import pack_lengths
from multihost_common.tables import pack_rows


class Rude(Peer):
    """Sends anything. It reads its leases, so that what it says of them is nearly right."""

    def __init__(self, stage: Stage, name: str, role: str) -> None:
        super().__init__(stage, name, role)
        self.leases: list[m.Lease] = []

    def hear(self, message: m.Message) -> None:
        if type(message) is m.Lease:
            self.leases = [*self.leases, message][-4:]
        elif type(message) is m.Welcome and self.role == m.WORKER:
            self.stage.infiltrated = True


#: Every message that a peer may try to send, whatever its role.
KINDS = sorted(m.TABLE.values(), key=lambda cls: cls.opcode)

SMALL = st.integers(0, 9)
FEW = st.integers(0, 2)

TEXTS = (
    "",
    "3.11",
    "status",
    "health",
    "jobs",
    "dead",
    "cancel",
    "collect",
    "retry",
    "drop",
    "6b6b6b6b",
    "6b6b6b6b:0",
    m.PRODUCER,
    m.WORKER,
    m.ADMIN,
    *sorted(m.REASONS),
    "x" * 300,
)

#: Clients that rude peers say they are, several of them the same.
CLIENTS = (b"", b"a" * 16, b"b" * 16)

#: Keys of detached jobs.
KEYS = (b"", b"k" * m.KEY, b"l" * m.KEY, b"kk")

#: Digests that they name, of which the first is never sent: honest contents are safe from them only as long as
#: nobody can find two contents of one digest.
DIGESTS = (b"", b"x" * m.DIGEST, b"y" * m.DIGEST, b"s" * m.DIGEST, b"f" * m.DIGEST)
SENT = DIGESTS[1:3]


def numbers_of(core: Core) -> list[int]:
    """Numbers that mean something now: of sessions, pools and jobs, and of attempts."""
    numbers = [0, 1, 2]
    for session in core.sessions.by_number.values():
        numbers.append(session.number)
    for number, pool in core.pools.items():
        numbers += (number, number & 0xFFFF_FFFF)
        for job in pool.jobs.values():
            numbers += (job.number, job.number & 0xFFFF_FFFF, job.fed, job.attempts)
    return list(dict.fromkeys(numbers))


def _integer(draw: Any, bounds: tuple[int, int], numbers: list[int]) -> int:
    low, high = bounds
    kind = draw(st.integers(0, 7))
    if kind < 4:
        value = draw(SMALL)
    elif kind < 7:
        value = draw(st.sampled_from(numbers)) + draw(st.sampled_from((0, 0, 0, 1, -1)))
    else:
        value = draw(st.sampled_from((low, high, high - 1, high >> 1)))
    return min(max(int(value), low), high)


def _value(draw: Any, cls: type, name: str, kind: type, bounds: Any, numbers: list[int]) -> Any:
    if kind is int:
        return _integer(draw, bounds, numbers)
    if kind is float:
        return draw(st.sampled_from((0.0, 0.5, 31_557_600.0)))
    if kind is bool:
        return draw(st.booleans())
    if kind is str:
        return draw(st.sampled_from(TEXTS))[: bounds[1]]
    if name == "client":
        return draw(st.sampled_from(CLIENTS))
    if name == "key":
        return draw(st.sampled_from(KEYS))
    return draw(st.sampled_from(SENT if cls is m.Blob else DIGESTS))[: bounds[1]]


def _table(draw: Any, numbers: list[int], width: int) -> bytes:
    row = st.lists(st.sampled_from([*numbers, 1 << 63, m.U64[1]]), min_size=width, max_size=width)
    return pack_rows(draw(st.lists(row, max_size=3)))


def _block(draw: Any, made: Any) -> list[bytes]:
    """A block that adds up, as far as it is small."""
    size = max(1, getattr(made, "chunksize", 1))
    chunks = -(-(made.count + getattr(made, "skip", 0)) // size)
    chunks = min(chunks, 50) + draw(st.sampled_from((0, 0, 0, 1)))
    return [pack_lengths([2] * chunks), b"ab" * chunks]


def _frames(draw: Any, cls: type[m.Message], made: Any, numbers: list[int]) -> list[bytes]:
    if cls is m.Held:
        return [_table(draw, numbers, 2), _table(draw, numbers, 4)]
    if cls is m.Beat:
        return [_table(draw, numbers, 4)] if draw(st.booleans()) else []
    if cls is m.Known:
        return [_table(draw, [0, 1, 3, 9], 2)]
    low, high = cls.carries
    if low == 2:
        return _block(draw, made)
    return [draw(st.binary(max_size=9)) for _ in range(draw(st.integers(low, min(high, 3))))]


def any_message(draw: Any, kinds: list[type[m.Message]], numbers: list[int]) -> m.Message:
    """A message of one of these kinds, well-formed and without any sense."""
    cls = draw(st.sampled_from(kinds))
    made: Any = cls()
    for name, kind, bounds in m.schema(cls):
        setattr(made, name, _value(draw, cls, name, kind, bounds, numbers))
    if cls.carries[1]:
        made.frames = _frames(draw, cls, made, numbers)
    return m.decode(m.encode(made))


def hello(draw: Any, role: str, numbers: list[int]) -> m.Hello:
    """A Hello that is not refused, of whoever it may be."""
    return m.Hello(
        role,
        m.PROTOCOL_VERSION,
        "3.11",
        5,
        "rude",
        1,
        draw(st.sampled_from((0, 1, 2, 3, m.U32[1]))) if role == m.WORKER else 0,
        "rude",
        draw(st.sampled_from(CLIENTS)),
        min(draw(st.sampled_from([0, *numbers])), m.U32[1]),
        draw(st.integers(0, 3)),
    )


def answer(draw: Any, core: Core, leases: list[m.Lease]) -> m.Message | None:
    """What a worker could say of a lease, its own or another's, though not of this one, not now, or not twice."""
    targets = [(each.job, each.start, each.count, each.attempt) for each in leases]
    for number, pool in core.owners.items():
        job = pool.jobs[number]
        if job.fed:
            targets.append((number, 0, min(job.fed, m.COUNT[1]), job.attempts))
    if not targets:
        return None
    number, start, count, attempt = draw(st.sampled_from(targets))
    start = max(0, start + draw(st.integers(-1, 2)))
    count = max(1, min(count + draw(st.integers(-2, 1)), m.COUNT[1]))
    attempt = max(0, attempt + draw(st.sampled_from((0, 0, 0, -1, 1))))
    block = (pack_lengths([1]), b"?")
    said: m.Message = draw(
        st.sampled_from(
            (
                m.Result(number, start, count, attempt, 5, m.VALUES, block),
                m.Result(number, start, count, attempt, m.U64[1], m.OUTCOMES, block),
                m.Returned(number, start, count, attempt),
                m.Died(number, start, attempt, m.DIED, text="?"),
                m.Died(number, start, attempt, m.TIMED_OUT, text="?"),
                m.Beat((pack_rows([(number, start, count, attempt)]),)),
                m.Held((pack_rows([(core.owners[number].number if number in core.owners else 1, count)]),
                        pack_rows([(number, start, count, attempt)]))),
            )
        )
    )  # fmt: skip
    return said


def work(draw: Any, core: Core, address: str) -> m.Message:
    """What a producer could say, though not of this pool or job, not now, not in this order, or not so much."""
    session = core.sessions.by_peer.get(address)
    own = [job for pool in session.pools for job in core.pools[pool].jobs.values()] if session else []
    numbers = [1, 2, *(job.number & m.U32[1] for job in own)]
    kind = draw(
        st.sampled_from((m.OpenPool, m.OpenJob, m.Feed, m.Feed, m.Cancel, m.EndJob, m.Known, m.ClosePool))
    )
    if kind is m.OpenPool:
        return m.OpenPool(draw(FEW), draw(FEW), max_tasks=1, eager=draw(st.booleans()))
    if kind is m.ClosePool:
        return m.ClosePool(draw(FEW), draw(st.booleans()))
    number = draw(st.sampled_from(numbers))
    if kind is m.OpenJob:
        once, resumed = draw(st.booleans()), draw(st.booleans())
        return m.OpenJob(number, draw(FEW), at_most_once=once, resumed=resumed)
    start = draw(st.sampled_from([0, 1, *(job.fed for job in own), m.U64[1]]))
    if kind is m.EndJob:
        return m.EndJob(number, start)
    size, most = draw(st.sampled_from(((1, 3), (2, 5), (m.COUNT[1], m.COUNT[1]))))
    if kind is m.Feed:
        chunks = -(-most // size)
        return m.Feed(number, start, most, size, (pack_lengths([2] * chunks), b"ab" * chunks))
    if kind is m.Known:
        return m.Known(number, (pack_rows([(start, most)]),))
    return m.Cancel(number, 0, draw(st.sampled_from((0, 1, most, m.U64[1]))), draw(st.booleans()))


def deposit(draw: Any, core: Core) -> m.Message:
    """What somebody could say of a detached job, though not of this one, not now, or not in this order."""
    kinds = (m.Submit, m.Put, m.Put, m.Put, m.Seal, m.Fetch, m.Ask)
    kind = draw(st.sampled_from(kinds))
    key = draw(st.sampled_from((b"k" * m.KEY, b"k" * m.KEY, b"l" * m.KEY, b"k" * 3)))
    job = core.archive.jobs.get(key)
    fed = job.fed if job is not None else 0
    if kind is m.Submit:
        digest = blake2b(b"f", digest_size=m.DIGEST).digest()
        frames = draw(st.sampled_from(((b"f",), (b"f",), (b"f",), (), (b"g",))))
        return m.Submit(key, limit=draw(FEW), function=digest, retention=1e6, frames=frames)
    if kind is m.Put:
        size, most = draw(st.sampled_from(((1, 3), (2, 5), (m.COUNT[1], m.COUNT[1]))))
        chunks = -(-most // size)
        start = draw(st.sampled_from((fed, fed, fed, 0, 1, m.U64[1])))
        return m.Put(key, start, most, size, (pack_lengths([2] * chunks), b"ab" * chunks))
    if kind is m.Seal:
        return m.Seal(key, draw(st.sampled_from((fed, fed, 0, m.U64[1]))))
    if kind is m.Fetch:
        return m.Fetch(key, draw(st.sampled_from((0, 1, m.U64[1]))), draw(st.booleans()))
    about = draw(st.sampled_from(("6b6b6b6b", "6b" * m.KEY, "6c6c", "6b6b6b6b:0", "6b6b6b6b:1", "x", "")))
    return m.Ask(
        draw(st.sampled_from(("jobs", "dead", "cancel", "collect", "retry", "drop", "drain"))), about
    )
