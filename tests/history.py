"""What a client did and was told, line by line in a file, and whether that can be: each item is answered once, rightly.

call 17         item 17 was handed in
answer 17 289   it has this result
end             the client has all it wanted
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path


def right(item: int) -> int:
    """What the function in question makes of an item."""
    return item * item


class Writer:
    """A history under way. What was written is there also if the client is killed next."""

    def __init__(self, path: str | Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def write(self, *words: object) -> None:
        """One line."""
        os.write(self._fd, (" ".join(map(str, words)) + "\n").encode())

    def close(self) -> None:
        """Nothing more happens."""
        os.close(self._fd)


def judge(text: str) -> list[str]:
    """What is wrong with a history; nothing, if it is empty."""
    called: Counter[int] = Counter()
    answers: dict[int, list[int]] = {}
    wrong: list[str] = []
    ended = False
    for line in text.splitlines():
        what, *numbers = line.split()
        if ended:
            wrong.append(f"after the end: {line}")
        elif what == "end":
            ended = True
        elif what == "call":
            called[int(numbers[0])] += 1
        elif what == "answer":
            item, value = map(int, numbers)
            answers.setdefault(item, []).append(value)
            if item not in called:
                wrong.append(f"{item} was answered, and not handed in")
            if value != right(item):
                wrong.append(f"{item} was answered with {value}")
        else:
            wrong.append(line)
    wrong += [f"{item} was answered {len(each)} times" for item, each in answers.items() if len(each) > 1]
    if ended:
        wrong += [f"{item} was never answered" for item in called if item not in answers]
    return wrong


def ended(text: str) -> bool:
    """Did the client come to its end?"""
    return text.endswith("end\n")
