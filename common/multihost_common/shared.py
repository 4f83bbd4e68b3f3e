"""What may be asked of each kind of shared object: the numbers that :class:`~multihost_common.messages.Act` carries."""

from __future__ import annotations

#: Kinds, and from 16 on the operations of each.
SEMAPHORE, CONDITION, EVENT, BARRIER, QUEUE, PIPE, CELL = 1, 2, 3, 4, 5, 6, 7


class Semaphores:
    """ACQUIRE one permit; it is answered with 1 instead of 0 if its holder has died. RELEASE one. VALUE: how many are free.

    Made with what it begins with, the most there may be (0: any number), and what it is: COUNTING, a RECURSIVE lock, which
    nobody but its holder releases, or a PLAIN one.
    """

    ACQUIRE, RELEASE, VALUE = 16, 17, 18
    COUNTING, RECURSIVE, PLAIN = 0, 1, 2


class Queues:
    """What may be asked of a queue. Items that one process is handed are numbered from 0; what it says of them, it says by
    these numbers.

    ========= =============================================================================================
    PUT       frames: one item or more (see :mod:`multihost_broker.objects.runs`). Waits for room, with those that there
              is none for. Answered with SHUT if the queue is shut down, else, if it is bounded, with ROOM times
              for how many more items this process may count on room for a moment.
    GET       ``amount``: at most so many items, ``| taken << WINDOW_BITS``. Waits for an item. Answered with the number
              of the first item and the frames of some; without frames if the queue is shut down and empty.
    SIZE      how many items there are; ``amount``: taken
    TASK_DONE one more of the items that were put is done with; ``amount``: taken
    JOIN      waits until all are
    SHUTDOWN  nothing is put any more; ``amount`` 1: and nothing is left to get
    GIVE_BACK items ``amount >> WINDOW_BITS`` and those after it, as many as the low bits say, go back in front
    LISTEN    waits until what this process has got early is to be given back
    TAKEN     ``amount``: all items below this number are with their user
    ========= =============================================================================================
    """

    PUT, GET, SIZE, TASK_DONE, JOIN, SHUTDOWN, GIVE_BACK, LISTEN, TAKEN = range(16, 25)

    WINDOW_BITS = 16
    SHUT, ROOM = 1, 2


class NamedQueues:
    """What may be asked of a queue that has a name. Items are named by numbers that they keep for as long as they are
    there, in tables of (first, count), see :mod:`multihost_common.named`. ``kept``: how many items of the sender are
    with their users.

    ========= =============================================================================================
    OPEN      frames: the queue's name, 16 bytes that tell this end from all others, ``maxsize`` and the number of the
              queue that it had open before (or 0) as a table, a table of items that were accepted, one of those that
              are with their users. ``amount`` 1: it gets items. Answered with the queue's number, and ``maxsize``
              as a frame of 8 bytes
    PUT       as of :class:`Queues`, ``amount``: how many PUTs of this end there were, this one included. Answered when
              it is durable, or with REFUSED if there is no room on the disk: open it anew, and go on from there
    GET       ``amount``: at most so many items, ``| kept << WINDOW_BITS``. Answered with the frames of some, and behind
              them a table of their numbers
    TAKEN     frames: a table of items that were accepted; ``amount``: kept. Answered when that is durable
    GIVE_BACK frames: a table of items that go back in front; ``amount``: kept
    LISTEN    waits until what this process has got early is to be given back
    SIZE      how many items there are that no user has; ``amount``: kept
    JOIN      waits until all items were accepted
    WATCH     waits until the queue is no more
    PURGE     items that nobody has are no more; answered with their number when that is durable
    DELETE    (as of every object that has a name) is answered when it is durable
    ========= =============================================================================================
    """

    PUT, GET, TAKEN, GIVE_BACK, LISTEN, SIZE, JOIN, WATCH, PURGE = range(16, 25)

    WINDOW_BITS = 16
    REFUSED = 1


class Conditions:
    """WAIT for a notification. NOTIFY as many as ``amount``. Who was notified says what became of it, ``amount`` is the
    number of its request: it has WOKEN, or the next one is to have it (PASS). COUNT: how many wait."""

    WAIT, NOTIFY, WOKEN, PASS, COUNT = 16, 17, 18, 19, 20


class Events:
    """SET and CLEAR the flag, WAIT until it is set. IS_SET is answered with 1 or 0."""

    SET, CLEAR, WAIT, IS_SET = 16, 17, 18, 19


class Barriers:
    """WAIT for the others: answered with how many came before, or with BROKEN. With an action the last one is answered
    alone; it runs the action, and sends RELEASE (``amount``: the number of its request), which is answered likewise.
    ABORT breaks the barrier, RESET mends it. STATE: how many wait, plus BROKEN if it is. JOIN: the sender has it, and may
    wait later."""

    WAIT, RELEASE, ABORT, RESET, STATE, JOIN = 16, 17, 18, 19, 20, 21
    #: More than any number of parties.
    BROKEN = 1 << 32


class Cells:
    """READ a range, ``amount`` is its offset plus its length times SPAN. WRITE the frames at offset ``amount``. ADD to the
    number at offset ``amount`` what the second frame, as bytes of that number, has more than the first; a third frame says
    that it is a floating point number.
    """

    READ, WRITE, ADD = 16, 17, 18
    SPAN = 1 << 32


class Pipes:
    """What may be asked of a pipe. It has two sides, 0 and 1, one of which ``amount`` names; where it goes one way, 0
    receives. Who makes it has a handle of each.

    ==== ==================================================================================================
    SEND one message, the frame. Waits for room. Answered with 1 instead of 0 if nobody can receive it
    RECV ``| most << 1``: so many messages at most. Waits for one. Answered with as many frames, none if nobody can
         send any more; several come only to the one handle that there is. Their number ``| MORE``: if the next
         RECV need not wait
    POLL waits until a RECV need not wait
    OPEN this process has one more handle; the frame is the ticket by which it was shipped, if it was
    SHUT one less
    SHIP a handle is on its way to another process by a ticket drawn at random, the first frame (empty: none is);
         the other frames had been received too early and go back in front
    CALL SEND without waiting for room, then RECV one; BUSY once other processes receive here, too
    VOID the handle of this ticket, the frame, will not arrive, unless it has
    ==== ==================================================================================================
    """

    SEND, RECV, POLL, OPEN, SHUT, SHIP, VOID, CALL = range(16, 24)

    MORE = 1 << 32


__all__ = [
    "BARRIER",
    "CELL",
    "CONDITION",
    "EVENT",
    "PIPE",
    "QUEUE",
    "SEMAPHORE",
    "Barriers",
    "Cells",
    "Conditions",
    "Events",
    "NamedQueues",
    "Pipes",
    "Queues",
    "Semaphores",
]
