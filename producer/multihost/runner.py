"""Run a script in this process as ``python`` does. What its names of multiprocessing mean: see :mod:`multihost.patching`."""

from __future__ import annotations

import importlib.util
import io
import os
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import CodeType, ModuleType, TracebackType
from typing import Any, NoReturn

#: How a shell reports a program that ended by Ctrl-C.
EXIT_INTERRUPTED = 130

#: As Python itself exits when there is no such script.
EXIT_NO_SCRIPT = 2


def run_script(path: str, args: Sequence[str]) -> NoReturn:
    """What ``python path args`` does, in this process. Always ends by SystemExit."""
    sys.argv[:] = [path, *args]
    if os.path.isdir(path) or (os.path.isfile(path) and _is_archive(path)):
        _set_first_path(path)
        spec = PathFinder.find_spec("__main__", [path])
        if spec is None:
            _fail(f"can't find '__main__' module in {path!r}")
        _run_spec(spec, spec.name)
    try:
        with io.open_code(os.path.abspath(path)) as file:
            source = file.read()
    except OSError as error:
        _fail(f"can't open file {os.path.abspath(path)!r}: [Errno {error.errno}] {error.strerror}")
    _set_first_path(os.path.dirname(os.path.abspath(path)))
    main = _new_main(None, path)
    main.__loader__ = SourceFileLoader("__main__", path)
    _execute(lambda: compile(source, path, "exec", dont_inherit=True), main)


def run_module(name: str, args: Sequence[str]) -> NoReturn:
    """What ``python -m name args`` does, in this process. Always ends by SystemExit."""
    sys.argv[:] = ["-m", *args]
    _set_first_path(os.getcwd())
    try:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.submodule_search_locations is not None:
            name = f"{name}.__main__"
            spec = importlib.util.find_spec(name)
    except (ImportError, ValueError) as error:
        _fail(f"Error while finding module specification for {name!r} ({error})", 1)
    if spec is None:
        _fail(f"No module named {name}", 1)
    sys.argv[0] = spec.origin or name
    _run_spec(spec, name)


def _run_spec(spec: ModuleSpec, name: str) -> NoReturn:
    loader: Any = spec.loader
    main = _new_main(spec, spec.origin)
    main.__loader__ = loader
    main.__dict__["__cached__"] = spec.cached
    main.__package__ = spec.parent
    _execute(lambda: loader.get_code(name), main)


def _new_main(spec: ModuleSpec | None, path: str | None) -> ModuleType:
    """A fresh ``__main__``, so that the script meets none of our names and pickles as a script does."""
    main = ModuleType("__main__")
    main.__doc__ = None
    main.__spec__ = spec
    main.__dict__.update({"__builtins__": sys.modules["builtins"], "__annotations__": {}})
    if path is not None:
        main.__file__ = path
    _replaced.append(sys.modules.get("__main__"))
    sys.modules["__main__"] = main
    return main


#: Kept alive: the module that was ``__main__`` still has frames on the stack.
_replaced: list[ModuleType | None] = []


def _execute(load: Callable[[], CodeType | None], main: ModuleType) -> NoReturn:
    try:
        code = load()
        if code is None:
            _fail(f"No code object available for {sys.argv[0]}", 1)
        exec(code, main.__dict__)  # noqa: S102 - it is what the user asked for
    except SystemExit:
        raise
    except KeyboardInterrupt as error:
        _report(error)
        raise SystemExit(EXIT_INTERRUPTED) from None
    except BaseException as error:  # noqa: BLE001
        _report(error)
        raise SystemExit(1) from None
    raise SystemExit(0)


def _report(error: BaseException) -> None:
    """Show the error as the interpreter would, without the frames of this file."""
    below: TracebackType | None = error.__traceback__
    while below is not None and below.tb_frame.f_code.co_filename == __file__:
        below = below.tb_next
    if isinstance(error, SyntaxError) and below is not None and _is_import_system(below):
        below = None
    # As the interpreter has them: what ends with the script looks whether that was by Ctrl-C.
    sys.last_type, sys.last_value, sys.last_traceback = type(error), error, below
    if sys.version_info >= (3, 12):
        sys.last_exc = error
    sys.excepthook(type(error), error.with_traceback(below), below)


def _is_import_system(below: TracebackType) -> bool:
    return below.tb_frame.f_code.co_filename.startswith("<frozen importlib")


def _set_first_path(path: str) -> None:
    # sys.path[0] is the folder of the `multihost` command, or the current one for `python -m`.
    if sys.path and not sys.flags.safe_path:
        sys.path[0] = path
    else:
        sys.path.insert(0, path)


def _is_archive(path: str) -> bool:
    import zipfile

    return zipfile.is_zipfile(path)


def _fail(text: str, code: int = EXIT_NO_SCRIPT) -> NoReturn:
    print(f"multihost run: {text}", file=sys.stderr)
    raise SystemExit(code)
