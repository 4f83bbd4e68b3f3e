"""What the three stages of the pipeline do. They know queues, and not whose."""

from __future__ import annotations

import io
import keyword
import tokenize
from collections import Counter
from typing import Any

from served import fetch


def get_pages(urls: Any, sources: Any) -> None:
    """Stage 1: from an address to its content. Ends with the sentinel, and passes it on."""
    while (url := urls.get()) is not None:
        sources.put((url, fetch(url)))
    sources.put(None)


def count_names(sources: Any, counts: Any) -> None:
    """Stage 2: from a source to how often each name stands in it."""
    while (page := sources.get()) is not None:
        counts.put(names(page[1]))
    counts.put(None)


def names(source: bytes) -> Counter[str]:
    """How often each name stands in a source; none where it is no Python."""
    found: Counter[str] = Counter()
    try:
        for token in tokenize.tokenize(io.BytesIO(source).readline):
            if token.type == tokenize.NAME and not keyword.iskeyword(token.string):
                found[token.string] += 1
    except (SyntaxError, tokenize.TokenError, ValueError):
        return Counter()
    return found


def add_up(counts: Any, answer: Any, sentinels: int) -> None:
    """Stage 3: all of it together, once every process of the stage before has ended."""
    total: Counter[str] = Counter()
    while sentinels:
        found = counts.get()
        if found is None:
            sentinels -= 1
        else:
            total += found
    answer.put(sorted(total.items(), key=lambda each: (-each[1], each[0]))[:20])
