"""What a broker says and hears of shared objects and processes, step by step, and what must hold of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from multihost_broker.core import Core
from multihost_broker.sessions import Session
from multihost_common import messages as m
from multihost_common.stream import STREAMED

from .ledgers import Ledger, books_of
from .objects import audit_objects, audit_processes
from .scene import Era, same

if TYPE_CHECKING:
    from .scene import Scene
    from .world import World

#: What arrives once, and in order.
HEARD = (m.Act, m.Launch, m.Signal, m.Via, m.Launched, m.Exited)


class Witness:
    """Looks over the shoulder of one broker's core."""

    def __init__(self, world: World, scene: Scene, core: Core) -> None:
        self.world = world
        self.scene = scene
        self.core = core
        self._eras: dict[Session, Era] = {}
        #: Requests without an answer.
        self.open: dict[tuple[int, int], m.Act] = {}
        #: What each object has been asked and has answered, where there is a book of that.
        self.books: dict[bytes, Ledger] = {}
        self._exited: set[tuple[Session, int]] = set()
        self._attend()

    def _attend(self) -> None:
        core: Any = self.core
        sessions, ledger, reactions = core.sessions, core.ledger, core._reactions
        open_, close, tell = sessions.open, sessions.close, ledger.tell

        def opened(*args: Any) -> Session:
            session: Session = open_(*args)
            self._begins(session)
            return session

        def closed(session: Session) -> None:
            self._ends(session)
            close(session)

        def told(session: Session, message: m.Message) -> None:
            self._says(session, message)
            tell(session, message)

        sessions.open, sessions.close, ledger.tell = opened, closed, told
        for kind in HEARD:
            reactions[kind] = self._heard(reactions[kind])

    def _heard(self, reaction: Callable[[Session, Any], None]) -> Callable[[Session, Any], None]:
        def hear(session: Session, message: Any) -> None:
            self._hears(session, message)
            reaction(session, message)

        return hear

    # -- sessions ------------------------------------------------------------------------------------

    def _begins(self, session: Session) -> None:
        era = self._eras[session] = Era(session)
        self.scene.eras[self.core.config.epoch, session.number] = era

    def _ends(self, session: Session) -> None:
        era = self._eras.pop(session, None)
        if era is not None:
            era.live = False
        for key in [key for key in self.open if key[0] == session.number]:
            del self.open[key]
        for book in self.books.values():
            book.parts(session.number)

    def crashed(self) -> None:
        """The broker is no more."""
        for era in self._eras.values():
            era.live = False

    # -- messages ------------------------------------------------------------------------------------

    def _hears(self, session: Session, message: m.Message) -> None:
        era = self._eras[session]
        said = self.scene.said_by(session.client)
        at, era.heard = era.heard, era.heard + 1
        assert at < len(said) and same(said[at], message), (
            f"{session.name} has said {said[at : at + 1]}, not {message}"
        )
        if isinstance(message, m.Act):
            self._asked(session.number, message)

    def _asked(self, party: int, act: m.Act) -> None:
        if act.number and act.op != m.WITHDRAW:
            assert (party, act.number) not in self.open, f"{act} is asked twice"
            self.open[party, act.number] = act
        if act.op == m.MAKE:
            self.books[act.object] = books_of(act)
        book = self.books.get(act.object)
        if book is not None and act.op not in (m.MAKE, m.WITHDRAW):
            book.asked(party, act)

    def _says(self, session: Session, message: m.Message) -> None:
        if type(message) not in STREAMED:
            return
        self._eras[session].told.append(message)
        if isinstance(message, m.Acted):
            act = self.open.pop((session.number, message.number), None)
            assert act is not None, f"{session.name} has asked no such thing, or was answered: {message}"
            book = self.books.get(act.object)
            if book is not None:
                book.answered(session.number, act, message)

    # -- after each step -----------------------------------------------------------------------------

    def audit(self) -> None:
        """All books agree."""
        objects = self.core.objects
        waiting = set(objects._waiting)
        assert waiting == set(self.open), f"requests {waiting ^ set(self.open)} have an answer, or wait"
        for name in [name for name in self.books if name not in objects.machines]:
            del self.books[name]
        audit_objects(self.core)
        for name, book in self.books.items():
            book.audit(objects.machines[name])
        audit_processes(self.core)


__all__ = ["Witness"]
