"""Code travels: the user's own modules that a function reaches, as one zip.

What counts as the user's own is every module with a source file outside the standard library,
site-packages and multihost itself. Modules are found by following import statements in the source,
without importing anything, from the modules that a function and its pickle name.
"""

from __future__ import annotations

import ast
import io
import os
import sys
import sysconfig
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from multihost_common.errors import ConfigError

#: A bundle of source files larger than this is a mistake: data among the code.
MAX_BYTES = 50 << 20

#: Our own packages are installed wherever the code goes.
OURS = frozenset({"multihost", "multihost_worker", "multihost_broker", "multihost_common"})

#: Third parties are installed on the workers, not shipped.
_INSTALLED = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")

#: Strings longer than this in a pickle are data, not the name of a module.
_LONGEST_NAME = 256


@dataclass(frozen=True, slots=True)
class Source:
    """The source file of one module of the user's."""

    name: str
    path: str
    package: bool

    @property
    def parts(self) -> str:
        """Where it lies in the bundle."""
        base = self.name.replace(".", "/")
        return f"{base}/__init__.py" if self.package else f"{base}.py"


def bundle_for(func: Any, pickled: bytes = b"") -> bytes:
    """The bundle for a callable and its pickle: ``bundle(roots(func, pickled))``."""
    return bundle(roots(func, pickled))


def roots(func: Any, pickled: bytes = b"") -> set[str]:
    """Names of the modules where the search begins: those of ``func`` and those its pickle names.

    And the script: items may be of classes that the function does not mention.
    """
    found = {"__main__", str(getattr(func, "__module__", None) or type(func).__module__)}
    found.update(_named_in(pickled))
    return found


def bundle(roots: Iterable[str]) -> bytes:
    """A zip of the user's modules reached from ``roots``; b"" when there is none.

    The same sources make the same bytes. Raises ConfigError for more than 50 MiB of source.
    """
    sources = _reach(roots)
    stamps = tuple((source, *_stamp(source.path)) for source in sources)
    known = _bundles.get(stamps)
    if known is None:
        known = _bundles[stamps] = _zip(sources) if sources else b""
        while len(_bundles) > 16:
            _bundles.pop(next(iter(_bundles)))
    return known


_bundles: dict[tuple[tuple[Source, int, int], ...], bytes] = {}


def _zip(sources: Iterable[Source]) -> bytes:
    out = io.BytesIO()
    total = 0
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for source in sources:
            with open(source.path, "rb") as file:
                text = file.read(MAX_BYTES + 1)
            total += len(text)
            if total > MAX_BYTES:
                raise ConfigError(
                    f"the modules that the function imports are larger than {MAX_BYTES >> 20} MiB at "
                    f"{source.path}: keep data out of the source files, or install them on the workers"
                )
            # A fixed date, so that the digest tells of the content alone.
            entry = zipfile.ZipInfo(source.parts, (1980, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o600 << 16
            archive.writestr(entry, text)
    return out.getvalue()


# -- what is reached -----------------------------------------------------------------------------------


def _reach(roots: Iterable[str]) -> list[Source]:
    """The user's modules reached from ``roots``, by name."""
    found: dict[str, Source] = {}
    pending = list(_with_parents(roots))
    seen: set[str] = set()
    while pending:
        name = pending.pop()
        if name in seen:
            continue
        seen.add(name)
        if name == "__main__":
            pending.extend(_with_parents(_main_imports()))
            continue
        source = _find(name)
        if source is not None:
            found[name] = source
            pending.extend(_with_parents(_imports(source)))
    return [found[name] for name in sorted(found)]


def _with_parents(names: Iterable[str]) -> Iterator[str]:
    """``a.b.c`` needs ``a`` and ``a.b`` as well; what can only be installed is left out at once."""
    for name in names:
        top, *rest = name.split(".")
        if top in OURS or top in sys.stdlib_module_names:
            continue
        yield top
        for part in rest:
            top = f"{top}.{part}"
            yield top


def _main_imports() -> set[str]:
    """What the script imports, and what has been put into its namespace otherwise (a notebook)."""
    main = sys.modules.get("__main__")
    found = {_module_of(value) for value in list(vars(main).values())} if main is not None else set()
    found -= {"__main__", ""}
    path = getattr(main, "__file__", None)
    spec = getattr(main, "__spec__", None)
    if path and path.endswith(".py") and os.path.isfile(path):
        package = spec.parent if spec is not None else ""
        found.update(_imports(Source("__main__", os.path.abspath(path), False), package or ""))
    return found


def _module_of(value: Any) -> str:
    if isinstance(value, ModuleType):
        return value.__name__
    if not isinstance(value, type) and not callable(value):
        value = type(value)
    name = getattr(value, "__module__", "")
    return name if isinstance(name, str) else ""


def _named_in(pickled: bytes) -> set[str]:
    """Modules of the user's that a pickle refers to, without loading it."""
    import pickletools

    found: set[str] = set()
    if not pickled:
        return found
    for opcode, argument, _ in pickletools.genops(pickled):
        if opcode.name == "GLOBAL":
            found.add(str(argument).split(" ")[0])
        elif type(argument) is str and len(argument) <= _LONGEST_NAME and argument in sys.modules:
            found.add(argument)
    return found


_parsed: dict[str, tuple[int, int, frozenset[str]]] = {}


def _stamp(path: str) -> tuple[int, int]:
    try:
        status = os.stat(path)
    except OSError as error:
        raise ConfigError(f"the source file {path} cannot be read: {error.strerror}") from None
    return status.st_mtime_ns, status.st_size


def _imports(source: Source, package: str | None = None) -> frozenset[str]:
    """Names of the modules that a source file may import (some may be no module at all)."""
    stamp = _stamp(source.path)
    known = _parsed.get(source.path)
    if known is not None and known[:2] == stamp:
        return known[2]
    if package is None:
        package = source.name if source.package else source.name.rpartition(".")[0]
    try:
        with open(source.path, "rb") as file:
            tree = ast.parse(file.read(MAX_BYTES + 1))
        names = frozenset(_imported(tree, package))
    except (SyntaxError, ValueError, RecursionError):
        # It travels all the same; Python itself says what is wrong with it, where it is imported.
        names = frozenset()
    _parsed[source.path] = (*stamp, names)
    return names


def _imported(tree: ast.AST, package: str) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name
        elif isinstance(node, ast.ImportFrom):
            base = _base(node, package)
            if base:
                yield base
                for alias in node.names:
                    yield f"{base}.{alias.name}"


def _base(node: ast.ImportFrom, package: str) -> str:
    """The absolute name of what stands after ``from``."""
    if not node.level:
        return node.module or ""
    parts = package.split(".") if package else []
    kept = parts[: len(parts) - (node.level - 1)]
    return ".".join([*kept, node.module] if node.module else kept)


# -- where modules lie ---------------------------------------------------------------------------------

_found: dict[str, tuple[str, Source | None]] = {}


def _find(name: str) -> Source | None:
    """The source of a module of the user's; None for all others. Imports nothing."""
    search = "\0".join(sys.path)
    known = _found.get(name)
    if known is not None and known[0] == search and (known[1] is None or os.path.exists(known[1].path)):
        return known[1]
    spec = getattr(sys.modules.get(name), "__spec__", None) or _spec(name)
    path = getattr(spec, "origin", None)
    if path is None:
        path = getattr(sys.modules.get(name), "__file__", None)
    source = None
    if path and path.endswith(".py") and _is_users(path):
        package = getattr(spec, "submodule_search_locations", None) is not None
        source = Source(name, os.path.abspath(path), package)
    _found[name] = (search, source)
    return source


def _spec(name: str) -> Any:
    """The spec of a module that is not imported, and whose parents need not be either."""
    parent = name.rpartition(".")[0]
    where: Any = None
    if parent:
        above = getattr(sys.modules.get(parent), "__spec__", None) or _spec(parent)
        where = getattr(above, "submodule_search_locations", None)
        if where is None:
            return None
    for finder in sys.meta_path:
        find = getattr(finder, "find_spec", None)
        try:
            spec = find(name, where) if find is not None else None
        except (ImportError, AttributeError, KeyError, ValueError):
            # A namespace package's path is recomputed from its parent, which need not be imported.
            continue
        if spec is not None:
            return spec
    return None


def _is_users(path: str) -> bool:
    real = os.path.realpath(path)
    if any(folder in place for folder in _INSTALLED for place in (path, real)):
        return False
    return not real.startswith(_STDLIB) and not path.startswith(_STDLIB)


_STDLIB = tuple(
    {
        os.path.join(folder, "")
        for key in ("stdlib", "platstdlib")
        for folder in (sysconfig.get_path(key), os.path.realpath(sysconfig.get_path(key)))
    }
)
