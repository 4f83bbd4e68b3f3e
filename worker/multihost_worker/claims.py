"""Which of the items it was given a child has begun: a page, and record locks on it.

The page (shared, one file without a name per child) holds 64-bit words: the position of the item
that runs plus 1 (0: none), when it began (monotonic, ns; jobs with a timeout only), the position plus
1 that this time belongs to, the end of the latest claim, and of how many items one runs (0: of one;
very short items are noted in groups). Byte ``BASE + position`` of the same file
is the lock of that position. A child locks positions before it begins them; the agent takes back what
has not begun by locking it instead, without the child's help, and a dead child's locks are void.

A process's record locks vanish with the first descriptor of the file that it closes, so neither end
closes one before it is done. mmap holds a duplicate.
"""

from __future__ import annotations

import os
from fcntl import LOCK_EX, LOCK_NB, LOCK_UN, lockf
from mmap import mmap

from multihost_worker.segments import anonymous_file

PAGE = 4096
BASE = 1 << 20

RUNNING, SINCE, SINCE_OF, CLAIMED, COVERS = 0, 1, 2, 3, 4


class Claims:
    """The child's end."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.page = memoryview(mmap(fd, PAGE)).cast("Q")

    def claim(self, start: int, stop: int) -> bool:
        """Make ``start .. stop`` this child's own. False: the agent has taken them back, and all
        that had been given at that time."""
        # Told before it is done: so a claim always ends where the agent begins to take, never across.
        self.page[CLAIMED] = stop
        try:
            lockf(self.fd, LOCK_EX | LOCK_NB, stop - start, BASE + start)
        except OSError:
            # All before is done; without these the list of locks stays short.
            lockf(self.fd, LOCK_UN, start, BASE)
            return False
        return True


class ClaimBook:
    """The agent's end: makes the file, takes back, reads what runs."""

    def __init__(self) -> None:
        self.fd = anonymous_file(PAGE)
        try:
            self._mapping = mmap(self.fd, PAGE)
        except (OSError, ValueError):
            os.close(self.fd)
            raise
        self._page = memoryview(self._mapping).cast("Q")
        #: Positions below this were given to the child.
        self.given = 0
        #: It will answer up to here, and has answered up to there.
        self.expected = 0
        self.answered = 0
        self._looked = 0
        self._prompted = 0
        self._taken: list[tuple[int, int]] = []
        self._seen = (0, 0.0)

    def position(self) -> int:
        """Position of the item that runs, or -1."""
        return self._page[RUNNING] - 1

    def covers(self) -> int:
        """How many items there are, from that position on, of which one runs."""
        return max(1, self._page[COVERS])

    def progress(self, now: float) -> tuple[int, float, int]:
        """(position, since, covers) of the item that runs; where the child noted no time, since first
        seen."""
        running = 0
        for _ in range(3):
            running, since = self._page[RUNNING], self._page[SINCE]
            timed = self._page[SINCE_OF] == running
            if self._page[RUNNING] == running:
                if not running:
                    return -1, now, 1
                if timed:
                    return running - 1, since / 1e9, 1
                break
        if self._seen[0] != running:
            self._seen = (running, now)
        return running - 1, self._seen[1], self.covers()

    def give(self, stop: int) -> None:
        """The child is given positions up to ``stop``."""
        self.given = self.expected = stop

    def withholds(self) -> bool:
        """Has it done items that it has not sent, while one takes long? Says so once for each such
        item, the second time that it is seen to run."""
        running = self._page[RUNNING]
        again, self._looked = running == self._looked, running
        if not again or running + self.covers() - 2 <= self.answered or running == self._prompted:
            return False
        self._prompted = running
        return True

    def reclaim(self) -> int:
        """Take back all that the child has not claimed; from the answer on it is the agent's."""
        self.expected = self._reclaim()
        return self.expected

    def _reclaim(self) -> int:
        while True:
            claimed = self._page[CLAIMED]
            if self._taken:
                claimed = max(claimed, self._taken[-1][1])
            if claimed >= self.given:
                return self.given
            try:
                lockf(self.fd, LOCK_EX | LOCK_NB, self.given - claimed, BASE + claimed)
            except OSError:
                # The child went on meanwhile: it has told a later end by now, or the lock is
                # the one before what it told. Each turn means that it has begun something.
                if self._page[CLAIMED] == claimed:
                    return self.given
                continue
            self._taken.append((claimed, self.given))
            return claimed

    def passed(self, position: int) -> None:
        """The child has got past ``position``: what was taken before need not stay locked."""
        self.answered = position
        # A position within what was taken, its beginning included, does not say that the child knows.
        while self._taken and self._taken[0][1] <= position:
            start, stop = self._taken[0]
            lockf(self.fd, LOCK_UN, stop - start, BASE + start)
            del self._taken[0]

    def close(self) -> None:
        """Unmap and close."""
        self._page.release()
        self._mapping.close()
        os.close(self.fd)
