"""What a crawler finds on a page: links on one that lists a folder, Python on one that is a module."""

from __future__ import annotations

import ast
import warnings
from html.parser import HTMLParser
from typing import Any
from urllib.parse import urljoin

from served import fetch

SKIPPED = ("__pycache__/", "site-packages/", "dist-packages/", "lib-dynload/")

#: Address, lines, functions and classes.
Facts = tuple[str, int, int]


class Links(HTMLParser):
    """Collects where links lead."""

    def __init__(self) -> None:
        super().__init__()
        self.targets: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """A tag begins."""
        self.targets += [value for name, value in attrs if tag == "a" and name == "href" and value]


def visit(url: str) -> tuple[list[str], list[Facts]]:
    """Where the page leads to, and what is on it."""
    content = fetch(url)
    if not url.endswith("/"):
        return [], [facts(url, content)]
    links = Links()
    links.feed(content.decode())
    return [
        urljoin(url, each) for each in links.targets if each.endswith(("/", ".py")) and each not in SKIPPED
    ], []


def facts(url: str, source: bytes) -> Facts:
    """How much there is in a module; one that does not parse (some are so on purpose) has no functions."""
    found = 0
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
        found = sum(
            isinstance(each, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) for each in ast.walk(tree)
        )
    except (SyntaxError, ValueError, RecursionError):
        pass
    return url, source.count(b"\n"), found


def collect(pages: Any, found: list[Facts]) -> None:
    """Take in results, until the sentinel."""
    found += iter(pages.get, None)


def report(pages: list[Facts]) -> None:
    """Print what was found; a page that was visited twice, since whoever had it was killed, counts once."""
    once = {url.split("/", 3)[3]: (lines, found) for url, lines, found in pages}
    for path, (lines, found) in sorted(once.items(), key=lambda each: (-each[1][0], each[0]))[:10]:
        print(f"{lines:8,} lines {found:6,} definitions  {path}")
    lines, found = (sum(each[at] for each in once.values()) for at in (0, 1))
    print(f"{lines:8,} lines {found:6,} definitions  in {len(once)} modules")
