"""How processes speak of what they share: what the garbage collector may do meanwhile."""

from __future__ import annotations

import gc

import pytest

import multihost as mp
from multihost.engines.choosing import get_sharing


@pytest.fixture(autouse=True)
def here(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MULTIHOST_BROKER", address)


def test_dropping_an_object_does_not_wait_for_what_its_thread_is_in_the_middle_of() -> None:
    """The garbage collector may drop it while that thread says what it has taken, and holds the lock for it."""
    sharing = get_sharing()
    before, said = sharing.before, list[int]()
    sharing.before = lambda: said.append(1)
    try:
        lock = mp.Lock()
        said.clear()
        del lock
        gc.collect()
        assert not said
    finally:
        sharing.before = before
