"""One side of the comparison: a process with one pool, that does what a line of JSON on its input says.

    python -m multihost.bench.side mp|L|T PROCESSES

Each answer is one line of JSON on the standard output it was started with. It ends with its input.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import sys
from typing import Any

MP, LOCAL, TCP = "mp", "L", "T"


def make_pool(side: str, processes: int) -> Any:
    """The pool of a side. ``T`` takes its broker from MULTIHOST_BROKER."""
    if side == MP:
        import multiprocessing

        return multiprocessing.get_context("fork").Pool(processes)
    from multihost.pool import Pool

    return Pool(processes, address="" if side == LOCAL else None)


def make_api(side: str, method: str) -> Any:
    """A module with multiprocessing's names; ``method``: how multiprocessing starts processes."""
    if side == MP:
        import multiprocessing

        return multiprocessing.get_context(method)
    import multihost

    return multihost


def serve(side: str, processes: int) -> None:
    """Answer until the input ends."""
    # What a library prints must not get between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    # Both kinds of pools find it loaded: forked processes inherit it, others import it in a warm-up.
    with contextlib.suppress(ImportError):
        import numpy  # noqa: F401
    from multihost.bench import loads, shared

    pool = make_pool(side, processes)
    try:
        for line in sys.stdin:
            name, keywords = json.loads(line)
            gc.collect()
            if name in shared.LOADS:
                api = make_api(side, keywords.pop("method", "fork"))
                answer = shared.LOADS[name](api, **keywords)
            else:
                answer = loads.LOADS[name](pool, **keywords)
            gc.collect()
            answers.write(json.dumps(answer) + "\n")
            answers.flush()
    finally:
        pool.terminate()
        pool.join()


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]))
