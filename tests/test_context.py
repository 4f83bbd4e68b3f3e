"""Contexts, and multihost as a start method of multiprocessing."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest
from scripts import script

import multihost as mp
from multihost.context import Context, DefaultContext, ForkProcess, SpawnProcess
from multihost.process import Process

#: Names of the standard library's contexts.
NAMES = [name for name in multiprocessing.__all__ if name != "reducer"]


def test_a_context_has_every_name_of_multiprocessing() -> None:
    for method in (None, "multihost", "fork", "spawn", "forkserver"):
        context = mp.get_context(method)
        assert not [name for name in NAMES if not hasattr(context, name)]
        assert context.get_start_method() == (method or "multihost")
        assert issubclass(context.Process, Process)
        assert context.get_context() is context


def test_multihost_has_every_name_of_multiprocessing() -> None:
    assert set(multiprocessing.__all__) < set(mp.__all__)
    assert not [name for name in mp.__all__ if not hasattr(mp, name)]


def test_contexts_make_what_is_ours() -> None:
    context = mp.get_context("spawn")
    assert isinstance(context.Lock(), mp.Lock)
    assert isinstance(context.Event(), mp.Event)
    assert isinstance(context.Value("i", 3), mp.Value("i").__class__)
    with context.Pool(1) as pool:
        assert isinstance(pool, mp.Pool)


def test_processes_are_named_after_their_context() -> None:
    for method, cls in (("fork", ForkProcess), ("spawn", SpawnProcess), (None, Process)):
        process = mp.get_context(method).Process()
        assert isinstance(process, cls)
        assert process.name.startswith(f"{cls.__name__}-")


def test_a_start_method_is_chosen_once() -> None:
    context = DefaultContext()
    assert context.get_start_method(allow_none=True) is None
    context.set_start_method("spawn")
    assert context.get_start_method() == "spawn"
    with pytest.raises(RuntimeError, match="context has already been set"):
        context.set_start_method("fork")
    context.set_start_method("fork", force=True)
    assert context.get_context() is context.get_context("fork")
    with pytest.raises(ValueError, match="cannot set start method of concrete context"):
        context.get_context().set_start_method("spawn")
    with pytest.raises(ValueError, match="cannot find context for 'none'"):
        context.get_context("none")


def test_multiprocessing_knows_our_context() -> None:
    context: object = multiprocessing.get_context("multihost")
    assert isinstance(context, Context)
    with pytest.raises(ValueError, match="cannot find context for 'none'"):
        multiprocessing.get_context("none")
    assert isinstance(multiprocessing.Lock(), type(multiprocessing.get_context("fork").Lock()))


@pytest.mark.parametrize("first", ["multihost", "multiprocessing"])
def test_multihost_is_a_start_method(first: str, tmp_path: Path) -> None:
    text = f"""
        import sys
        import {first}
        import multihost
        assert ("multiprocessing" in sys.modules) == ({first!r} == "multiprocessing")
        import multiprocessing
        from multiprocessing.connection import wait

        def f(x):
            import multiprocessing, multihost
            return multiprocessing.get_start_method(), isinstance(multiprocessing.Lock(), multihost.Lock), x

        class Leaver(multiprocessing.Process):
            def run(self):
                with lock_of(self): sys.exit(3)

        def lock_of(process): return process.lock

        if __name__ == "__main__":
            multiprocessing.set_start_method("multihost")
            with multiprocessing.Pool(1) as pool:
                print(pool.map(f, [1]), isinstance(pool, multihost.Pool))
            process = Leaver()
            process.lock = multiprocessing.Lock()
            process.start()
            print(process.name, wait([process.sentinel], 30) == [process.sentinel], process.exitcode)
            process.join()
    """
    assert script(tmp_path, text) == "[('multihost', True, 1)] True\nLeaver-1 True 3\n"
