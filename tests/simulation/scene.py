"""What the processes of a schedule share: who they are, which processes there will be, and what must hold between them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any

from multihost_common import messages as m

from .world import ViolationError

if TYPE_CHECKING:
    from multihost_broker.sessions import Session

    from .partners import Partner, Program
    from .world import World


@dataclass(slots=True)
class ProcessPlan:
    """What a process will do: run these programs, and be there for so many seconds at least."""

    number: int
    seconds: float
    exitcode: int
    #: It is a producer itself.
    shares: bool
    #: What it is set up with, if anything.
    content: bytes
    programs: Sequence[Callable[[Any], Program]]
    #: A broker that was started anew was asked for it by who did not know that it ran.
    doubtful: bool = False

    @property
    def payload(self) -> bytes:
        """What it is launched with."""
        return b"process %d" % self.number


class Era:
    """One session at a broker. ``live`` until that ends it, or is killed."""

    def __init__(self, session: Session | None = None) -> None:
        self.session = session
        self.live = session is not None
        #: What is numbered and was said to it.
        self.told: list[m.Message] = []
        #: How many such messages of its own were heard.
        self.heard = 0


class Scene:
    """See the module."""

    def __init__(self, world: World, random: Random) -> None:
        self.world = world
        self.random = random
        self.partners: list[Partner] = []
        #: By name.
        self.voices: dict[str, Partner] = {}
        self.plans: dict[bytes, ProcessPlan] = {}
        #: How often each process was begun.
        self.begun: Counter[bytes] = Counter()
        #: The last session of each number, by the start of the broker.
        self.eras: dict[tuple[int, int], Era] = {}

    def plan(self, **what: Any) -> ProcessPlan:
        """A process that will be."""
        plan = ProcessPlan(len(self.plans) + 1, **what)
        self.plans[plan.payload] = plan
        return plan

    def begins(self, frames: Sequence[Any]) -> ProcessPlan:
        """An agent begins a process."""
        payload = b"".join(map(bytes, frames))
        plan = self.plans.get(payload)
        if plan is None:
            raise ViolationError(f"a process begins that nobody has launched so: {payload!r}")
        self.begun[payload] += 1
        if self.begun[payload] > 1 and not plan.doubtful:
            raise ViolationError(f"{payload!r} is run a second time")
        return plan

    def hears(self, partner: Partner, message: m.Message) -> None:
        """What the broker has said to it comes once, and in order."""
        told = partner.era.told
        if partner.heard >= len(told) or not same(told[partner.heard], message):
            wanted = told[partner.heard] if partner.heard < len(told) else "nothing"
            raise ViolationError(f"{partner.name} hears {message}, and was told {wanted}")

    def era_of(self, welcome: m.Welcome) -> Era:
        """The session that this Welcome is of."""
        return self.eras[welcome.epoch, welcome.session]

    def said_by(self, client: bytes) -> list[m.Message]:
        """What this process, or agent, has said that is numbered, since the broker knows it."""
        name = client.decode().rstrip()
        agent = self.world.agents.get(name)
        return self.voices[name].spoken if agent is None else agent.spoken

    def crowd(self) -> list[Partner]:
        """Who may be asked to do something."""
        return [each for each in self.partners if each.era.live and each.usable and each.threads]


def same(one: m.Message, other: m.Message) -> bool:
    """The same message, whatever its number."""
    if type(one) is not type(other):
        return False
    names = [name for name, _, _ in m.schema(type(one)) if name != "seq"]
    frames = [[bytes(frame) for frame in getattr(each, "frames", ())] for each in (one, other)]
    return frames[0] == frames[1] and all(getattr(one, name) == getattr(other, name) for name in names)
