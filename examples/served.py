"""The standard library's sources, served over HTTP on this machine: real pages for the examples to fetch."""

from __future__ import annotations

import sysconfig
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

LIBRARY = Path(sysconfig.get_path("stdlib"))


class Quiet(SimpleHTTPRequestHandler):
    """Does not tell of each request."""

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


class Server(ThreadingHTTPServer):
    """Takes many connections at once."""

    daemon_threads = True
    request_queue_size = 128


@contextmanager
def served(host: str = "127.0.0.1") -> Iterator[str]:
    """Serve while the ``with`` lasts; answers the address. ``host``: an address of this machine, which other hosts
    reach."""
    with Server((host, 0), partial(Quiet, directory=str(LIBRARY))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://{host}:{server.server_address[1]}/"
        finally:
            server.shutdown()
            thread.join()


def fetch(url: str) -> bytes:
    """What is there."""
    with urllib.request.urlopen(url, timeout=30) as answer:
        content: bytes = answer.read()
    return content
