"""A crawler: processes take addresses from a frontier, visit them, and put what they lead to in there.

    python examples/crawl.py email                                    # on the processes of this machine

With a broker the frontier can have a name. Then any script is welcome to help for a while, from any host, and nothing is
lost if one of them is killed: what it had goes to another.

    export MULTIHOST_BROKER=tcp://host:5555
    python examples/crawl.py --frontier library email
    python examples/crawl.py --frontier library --help-out           # as many as one likes; Ctrl-C leaves

The pages come from a server in this script. `crawl_plain.py` is the same with multiprocessing.
"""

from __future__ import annotations

import argparse
import threading
from typing import Any

import multihost as mp
from pages import Facts, collect, report, visit
from served import served


def work(frontier: Any, pages: Any) -> None:
    """Visit what is in the frontier, until the sentinel."""
    while (url := frontier.get()) is not None:
        links, found = visit(url)
        for each in found:
            pages.put(each)
        for link in links:
            frontier.put(link)
        # What it led to is safe before it is done with itself.
        for queue in (pages, frontier):
            if isinstance(queue, mp.NamedQueue):
                queue.flush()
        frontier.task_done()
    frontier.task_done()


def queues(name: str) -> tuple[Any, Any]:
    """The frontier, and where the results go."""
    if name:
        return mp.Queue(name=name, ack="manual"), mp.Queue(name=f"{name}.pages")
    # A SimpleQueue: what was put is there before the page is done with.
    return mp.JoinableQueue(), mp.SimpleQueue()


def main() -> None:
    """Crawl, or help somebody who does."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", default="json", help="of the standard library")
    parser.add_argument("--frontier", default="", metavar="NAME", help="so that others can help")
    parser.add_argument(
        "--help-out", action="store_true", help="visit pages of a frontier that is there already"
    )
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument(
        "--serve", default="127.0.0.1", metavar="HOST", help="this machine, as the processes reach it"
    )
    args = parser.parse_args()
    frontier, pages = queues(args.frontier)
    processes = [mp.Process(target=work, args=(frontier, pages)) for _ in range(args.processes)]
    for process in processes:
        process.start()
    if args.help_out:
        print("helping; Ctrl-C leaves", flush=True)
    else:
        found: list[Facts] = []
        collector = threading.Thread(target=collect, args=(pages, found))
        collector.start()
        with served(args.serve) as base:
            frontier.put(f"{base}{args.folder}/")
            frontier.join()
        pages.put(None)
        collector.join()
        for process in processes:
            process.terminate()
        report(found)
        for queue in (frontier, pages):
            if args.frontier:
                queue.delete()
    for process in processes:
        process.join()


if __name__ == "__main__":
    main()
