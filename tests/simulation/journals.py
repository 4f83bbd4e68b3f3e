"""A journal in virtual time: what was written is durable once it is synced, and lost if the broker crashes before."""

from __future__ import annotations

from multihost_broker import events as be
from multihost_broker.journal.records import Change, Erase, Forget, Record, size_of


class VirtualJournal:
    """The disk outlives brokers; what is on its way to it does not."""

    def __init__(self) -> None:
        self.records: dict[int, Record] = {}
        #: The highest number ever in use.
        self.last = 0
        self.pending: list[be.Write] = []
        #: New work is refused.
        self.full = False

    def write(self, action: be.Write) -> None:
        """Take in a change."""
        after = self.pending[-1].ticket if self.pending else self.last
        assert action.ticket == after + 1, f"ticket {action.ticket} follows {after}"
        self.pending.append(action)

    def sync(self, most: int | None = None) -> be.Synced:
        """Make the first ``most`` of what is pending durable, in one group."""
        group = self.pending[:most]
        del self.pending[: len(group)]
        refused = []
        for each in group:
            if self.full and not each.essential and isinstance(each.change, Record):
                refused.append(each.ticket)
            else:
                self._carry_out(each.ticket, each.change)
            self.last = each.ticket
        return be.Synced(self.last, tuple(refused), self.full)

    def _carry_out(self, number: int, change: Change) -> None:
        if isinstance(change, Record):
            self.records[number] = change
        elif isinstance(change, Erase):
            for each in change.numbers:
                self.records.pop(each, None)
        elif isinstance(change, Forget):
            for each in [each for each, record in self.records.items() if record.job == change.job]:
                del self.records[each]

    def read(self, action: be.Read) -> be.Records:
        """As if all that was written before were there: the shell's journal reads in turn."""
        found = {number: self.records[number] for number in action.numbers if number in self.records}
        return be.Records(action.token, found)

    def crash(self) -> None:
        """The broker is gone, and with it what was not durable."""
        self.pending.clear()

    def load(self) -> list[tuple[int, Record]]:
        """What the next broker finds."""
        return sorted(self.records.items())

    def size(self) -> int:
        """Bytes, about."""
        return sum(size_of(record) for record in self.records.values())
