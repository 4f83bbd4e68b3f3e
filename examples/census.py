"""Census of the standard library: parse every module of it and count what is in there.

    python examples/census.py                         # on the processes of this machine
    MULTIHOST_BROKER=tcp://host:5555 python examples/census.py --check       # on a cluster

The sources are read here and sent one by one, so hosts need not have the same files.
"""

from __future__ import annotations

import argparse
import ast
import os
import platform
import sys
import sysconfig
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import multihost as mp
from progress import watch

Source = tuple[str, str, bytes]  # package, path within the library, content
#: package, path, parsed, lines, functions, classes, documented, complexity of each function
Counts = tuple[str, str, bool, int, int, int, int, list[int]]
Report = tuple[Counts, float, str]  # counts, seconds it took, who did it

SKIPPED_FOLDERS = {"__pycache__", "site-packages", "dist-packages", "lib-dynload"}
LOOPS = (ast.For, ast.AsyncFor, ast.While)
BRANCHES = (*LOOPS, ast.If, ast.IfExp, ast.ExceptHandler, ast.Assert, ast.match_case)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
TITLES = ("package", "files", "lines", "functions", "classes", "docstrings", "complexity", "worst")
COLUMNS = "{:<16}{:>6}{:>9}{:>10}{:>9}{:>11}{:>12}{:>8}"


# -- what the workers do ---------------------------------------------------------------------------


def survey(source: Source) -> Report:
    """Parse one file and count."""
    began = time.perf_counter()
    counts = count(*source)
    return counts, time.perf_counter() - began, f"{platform.node()} {os.getpid()}"


def count(package: str, path: str, content: bytes) -> Counts:
    """What stands in one file. One that does not parse (there are some, on purpose) is counted."""
    lines = content.count(b"\n")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(content, path)
    except (SyntaxError, ValueError, RecursionError):
        return package, path, False, lines, 0, 0, 0, []
    complexities = []
    classes = documented = 0
    for node in ast.walk(tree):
        if isinstance(node, FUNCTIONS):
            complexities.append(complexity(node))
        elif isinstance(node, ast.ClassDef):
            classes += 1
        else:
            continue
        documented += ast.get_docstring(node, clean=False) is not None
    return package, path, True, lines, len(complexities), classes, documented, complexities


def complexity(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """McCabe's number: one more than the branches of the function, inner functions left out."""
    total = 1
    todo: list[ast.AST] = list(function.body)
    while todo:
        node = todo.pop()
        if isinstance(node, (*FUNCTIONS, ast.ClassDef, ast.Lambda)):
            continue
        if isinstance(node, BRANCHES):
            total += 1
        elif isinstance(node, ast.BoolOp):
            total += len(node.values) - 1
        elif isinstance(node, ast.comprehension):
            total += 1 + len(node.ifs)
        todo.extend(ast.iter_child_nodes(node))
    return total


# -- what goes in ----------------------------------------------------------------------------------


def library(packages: list[str]) -> list[tuple[str, Path]]:
    """(package, file) of the standard library of the running interpreter, in a fixed order."""
    root = Path(sysconfig.get_path("stdlib"))
    found = []
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(set(folders) - SKIPPED_FOLDERS)
        for name in sorted(files):
            if name.endswith(".py"):
                path = Path(folder, name).relative_to(root)
                found.append((path.parts[0].removesuffix(".py"), path))
    if packages:
        found = [entry for entry in found if entry[0] in packages]
    return found


def sources(files: list[tuple[str, Path]]) -> Iterator[Source]:
    """Each file with its content, read when it is asked for."""
    root = Path(sysconfig.get_path("stdlib"))
    for package, path in files:
        yield package, path.as_posix(), (root / path).read_bytes()


# -- what comes out --------------------------------------------------------------------------------


class Row(NamedTuple):
    """A line of the report."""

    package: str
    files: int
    lines: int
    functions: int
    classes: int
    documented: float
    complexity: float
    worst: int


def summary(package: str, group: list[Counts]) -> Row:
    """One line for all files in ``group``."""
    lines, functions = sum(c[3] for c in group), sum(c[4] for c in group)
    classes, documented = sum(c[5] for c in group), sum(c[6] for c in group)
    complexities = [number for counts in group for number in counts[7]]
    share = 100 * documented / max(1, functions + classes)
    mean = sum(complexities) / max(1, len(complexities))
    return Row(package, len(group), lines, functions, classes, share, mean, max(complexities, default=0))


def show(reports: list[Report], top: int) -> None:
    """Print the census."""
    everything = [counts for counts, _, _ in reports]
    groups: dict[str, list[Counts]] = {}
    for counts in everything:
        groups.setdefault(counts[0], []).append(counts)
    order = sorted(groups, key=lambda name: (-sum(c[4] for c in groups[name]), name))
    rest = [counts for name in order[top:] for counts in groups[name]]
    print(COLUMNS.format(*TITLES))
    for name in order[:top]:
        show_row(summary(name, groups[name]))
    if rest:
        show_row(summary(f"{len(order) - top} others", rest))
    show_row(summary("all", everything))
    unparsed = sum(not counts[2] for counts in everything)
    print(f"\n{unparsed} of {len(everything)} files do not parse. The slowest:")
    for counts, seconds, _ in sorted(reports, key=lambda report: -report[1])[:5]:
        print(f"  {seconds * 1000:7.1f} ms  {counts[1]}")
    print(crew(reports))


def show_row(row: Row) -> None:
    """Print one line of the table."""
    share, mean = f"{row.documented:.0f} %", f"{row.complexity:.2f}"
    print(COLUMNS.format(row.package, *row[1:5], share, mean, row.worst))


def crew(reports: list[Report]) -> str:
    """Who did the work, in one sentence."""
    processes = {who for _, _, who in reports}
    hosts = sorted({who.rsplit(" ", 1)[0] for who in processes})
    seconds = sum(seconds for _, seconds, _ in reports)
    return f"{seconds:.1f} s of work, {len(processes)} processes, hosts: {', '.join(hosts)}"


def differences(reports: list[Report], files: list[tuple[str, Path]]) -> list[str]:
    """Where a plain loop in this process finds something else (time and place apart)."""
    expected = {source[1]: count(*source) for source in sources(files)}
    wrong = [counts[1] for counts, _, _ in reports if counts != expected[counts[1]]]
    surplus = Counter(counts[1] for counts, _, _ in reports)
    surplus.subtract(path.as_posix() for _, path in files)
    return wrong + [path for path, times in surplus.items() if times]


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Census of Python's standard library.")
    parser.add_argument("packages", nargs="*", help="only these top packages (default: all)")
    parser.add_argument("--processes", type=int, help="at most so many processes (default: all there are)")
    parser.add_argument("--rounds", type=int, default=1, help="go over it so many times, for a longer run")
    parser.add_argument("--top", type=int, default=20, metavar="N", help="show the N largest packages")
    parser.add_argument("--check", action="store_true", help="compare with a plain loop, exit 1 if not equal")
    return parser.parse_args()


def main() -> int:
    """Run the census."""
    options = arguments()
    files = library(options.packages) * options.rounds
    if not files:
        print(f"no such package in {sysconfig.get_path('stdlib')}", file=sys.stderr)
        return 64
    with mp.Pool(options.processes) as pool:
        reports = list(watch(pool.imap_unordered(survey, sources(files)), len(files), "files"))
    show(reports, options.top)
    if options.check:
        wrong = differences(reports, files)
        print(f"check: {', '.join(wrong[:5])} differ" if wrong else "check: equal to a plain loop")
        return 1 if wrong else 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
