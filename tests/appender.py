"""A process that appends to a journal and says what is confirmed, to be killed: ``appender.py DIRECTORY [LIMIT]``.

Every tenth change erases the record five before it. With a LIMIT no file may grow beyond so many bytes: to write
more is an I/O error, and the process ends as a broker does.
"""

from __future__ import annotations

import resource
import sys
import threading
from pathlib import Path

from multihost_broker.journal.errors import StoreError
from multihost_broker.journal.records import Change, Erase, Record
from multihost_broker.journal.sqlitestore import SqliteStore
from multihost_broker.journal.thread import Journal

#: Tickets that may be without an answer.
AHEAD = 2000


def change(number: int) -> Change:
    """What is appended as number ``number``; whoever reads it afterwards knows it, too."""
    if number % 10 == 0:
        return Erase((number - 5,))
    large = number % 50 == 1
    payload = (b"%d" % number, bytes([number % 251]) * (300_000 if large else 100))
    return Record(number % 5, b"job %d" % (number // 100), b"header %d" % number, payload)


def main(directory: Path, limit: int) -> None:
    """Append for ever."""
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    store = SqliteStore(directory, ballast=0)
    print("begins", store.last, flush=True)
    news = threading.Event()
    journal = Journal(store, news.set)
    ticket = confirmed = store.last
    while True:
        while ticket - confirmed < AHEAD:
            # What was appended before a crash and not confirmed may be there or not: numbers go on behind it.
            ticket = journal.append(change(ticket + 1))
        news.wait(10)
        news.clear()
        confirmed = journal.take_synced().synced
        print("confirmed", confirmed, flush=True)


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
    except StoreError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
