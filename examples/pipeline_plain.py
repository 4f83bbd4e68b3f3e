"""`pipeline.py` with the standard library's multiprocessing: one import differs."""

from __future__ import annotations

import argparse
import multiprocessing as mp
from typing import Any

from served import LIBRARY, served
from stages import add_up, count_names, get_pages

#: Processes of the first stage, and of the second: each of the second gets its sentinel from one of the first.
WIDTH = 2


def main() -> None:
    """Run the stages, and print what comes out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("packages", nargs="*", default=["email", "json", "logging"])
    parser.add_argument(
        "--serve", default="127.0.0.1", metavar="HOST", help="this machine, as the processes reach it"
    )
    args = parser.parse_args()
    urls: Any = mp.Queue()
    sources: Any = mp.Queue(maxsize=32)
    counts: Any = mp.Queue()
    answer: Any = mp.SimpleQueue()
    processes = [mp.Process(target=get_pages, args=(urls, sources)) for _ in range(WIDTH)]
    processes += [mp.Process(target=count_names, args=(sources, counts)) for _ in range(WIDTH)]
    processes.append(mp.Process(target=add_up, args=(counts, answer, WIDTH)))
    for process in processes:
        process.start()
    with served(args.serve) as base:
        for package in args.packages:
            for path in sorted((LIBRARY / package).rglob("*.py")):
                urls.put(base + path.relative_to(LIBRARY).as_posix())
        for _ in range(WIDTH):
            urls.put(None)
        for name, count in answer.get():
            print(f"{count:8,}  {name}")
        for process in processes:
            process.join()


if __name__ == "__main__":
    main()
