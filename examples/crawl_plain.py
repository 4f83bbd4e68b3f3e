"""`crawl.py` with the standard library's multiprocessing: on one machine, and nobody can help."""

from __future__ import annotations

import argparse
import multiprocessing as mp
import threading
from typing import Any

from pages import Facts, collect, report, visit
from served import served


def work(frontier: Any, pages: Any) -> None:
    """Visit what is in the frontier."""
    while True:
        links, found = visit(frontier.get())
        for each in found:
            pages.put(each)
        for link in links:
            frontier.put(link)
        frontier.task_done()


def main() -> None:
    """Crawl."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", default="json", help="of the standard library")
    parser.add_argument("--processes", type=int, default=4)
    args = parser.parse_args()
    # A SimpleQueue: what was put is there before the page is done with.
    frontier: Any = mp.JoinableQueue()
    pages: Any = mp.SimpleQueue()
    processes = [mp.Process(target=work, args=(frontier, pages)) for _ in range(args.processes)]
    for process in processes:
        process.start()
    found: list[Facts] = []
    collector = threading.Thread(target=collect, args=(pages, found))
    collector.start()
    with served() as base:
        frontier.put(f"{base}{args.folder}/")
        frontier.join()
    pages.put(None)
    collector.join()
    for process in processes:
        process.terminate()
        process.join()
    report(found)


if __name__ == "__main__":
    main()
