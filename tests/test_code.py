"""Modules of the user's own travel to workers that do not have them."""

from __future__ import annotations

import io
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from scripts import PYTHON, RUN, run, script, write

from multihost import code
from multihost.bench.cluster import Cluster
from multihost_common.errors import ConfigError


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A broker and a worker with two slots, that were started elsewhere than in the scripts' folders."""
    with Cluster(2) as made:
        yield made


class Project:
    """A folder of the user's, whose script runs on the cluster."""

    def __init__(self, folder: Path, cluster: Cluster) -> None:
        self.folder = folder
        self.env = {name: cluster.environment[name] for name in ("MULTIHOST_BROKER", "MULTIHOST_KEYS")}

    def write(self, **files: str) -> None:
        """``package__module="text"`` is package/module.py."""
        write(self.folder, {name.replace("__", "/") + ".py": text for name, text in files.items()})

    def answers(self, body: str, launcher: tuple[str, ...] = PYTHON) -> str:
        """What a script prints: imports, definitions, and a ``main(pool)``."""
        text = f"""{body}
if __name__ == "__main__":
    from multihost.pool import Pool
    with Pool() as pool:
        main(pool)
"""
        return script(self.folder, text, launcher=launcher, env=self.env).strip()


@pytest.fixture
def project(tmp_path: Path, cluster: Cluster) -> Project:
    return Project(tmp_path, cluster)


def test_a_module_beside_the_script_and_what_it_imports(project: Project) -> None:
    project.write(
        helpers="import deeper\n\ndef double(x):\n    return deeper.times(x, 2)\n",
        deeper="def times(x, y):\n    return x * y\n",
        unused="raise RuntimeError('nobody imports this')\n",
    )
    assert (
        project.answers("""
import helpers

def work(x):
    return helpers.double(x) + 1

def main(pool):
    print(pool.map(helpers.double, [1, 2]), pool.map(work, [3]))
""")
        == "[2, 4] [7]"
    )


def test_packages_relative_imports_and_namespaces(project: Project) -> None:
    write(
        project.folder,
        {
            "pack/__init__.py": "from .inner import base\nVERSION = 3\n",
            "pack/inner/__init__.py": "from . import part\nfrom ..other import TEN\nbase = part.value + TEN\n",
            "pack/inner/part.py": "value = 1\n",
            "pack/other.py": "TEN = 10\n",
            "space/name/leaf.py": "def answer(x):\n    from pack import base\n    return base + x\n",
        },
    )
    assert (
        project.answers("""
import space.name.leaf
import pack

def main(pool):
    print(pool.map(space.name.leaf.answer, [1]), pool.map(lambda x: pack.VERSION, [0]))
""")
        == "[12] [3]"
    )


def test_instances_of_classes_that_only_items_are_of(project: Project) -> None:
    project.write(shapes="class Square:\n    def __init__(self, a):\n        self.a = a\n")
    assert (
        project.answers("""
from shapes import Square

def main(pool):
    back = pool.map(copy.copy, [Square(3)])[0]
    print(type(back) is Square, back.a)

import copy
""")
        == "True 3"
    )


def test_an_import_inside_a_function(project: Project) -> None:
    project.write(late="def f(x):\n    return -x\n")
    assert (
        project.answers("""
def work(x):
    from late import f
    return f(x)

def main(pool):
    print(pool.map(work, [1]))
""")
        == "[-1]"
    )


def test_modules_changed_between_runs(project: Project) -> None:
    body = """
import changing

def main(pool):
    print(pool.map(changing.f, [1]))
"""
    for number in (1, 2, 3):
        project.write(changing=f"def f(x):\n    return x + {number}\n")
        assert project.answers(body) == f"[{1 + number}]"


def test_a_module_with_the_name_of_an_installed_one(project: Project) -> None:
    project.write(numpy="def mine(x):\n    return ['mine', x]\n")
    assert (
        project.answers("""
import numpy

def main(pool):
    print(pool.map(numpy.mine, [1]))
""")
        == "[['mine', 1]]"
    )


def test_an_initializer_of_a_module(project: Project) -> None:
    project.write(
        setting="value = 0\n\ndef begin(x):\n    global value\n    value = x\n\ndef get(_):\n    return value\n"
    )
    text = """
import setting
from multihost.pool import Pool

if __name__ == "__main__":
    with Pool(2, setting.begin, (5,)) as pool:
        print(pool.map(setting.get, range(4)))
"""
    assert script(project.folder, text, env=project.env) == "[5, 5, 5, 5]\n"


def test_a_package_run_with_m(project: Project) -> None:
    write(
        project.folder,
        {
            "tool/__init__.py": "",
            "tool/parts.py": "def triple(x):\n    return 3 * x\n",
            "tool/__main__.py": """
                from multiprocessing import Pool
                from .parts import triple

                def work(x):
                    from . import parts
                    return parts.triple(x) + triple(x)

                if __name__ == "__main__":
                    with Pool() as pool:
                        print(pool.map(work, [1]), pool.map(triple, [1]))
            """,
        },
    )
    done = run(*RUN, "-m", "tool", cwd=project.folder, env=project.env)
    assert (done.stdout, done.returncode) == ("[6] [3]\n", 0), done.stderr


def test_a_syntax_error_in_a_module_is_told_by_python(project: Project) -> None:
    project.write(broken="def f(:\n")
    assert (
        project.answers("""
def work(x):
    import broken

def main(pool):
    try:
        pool.map(work, [1])
    except SyntaxError as error:
        print(error.filename.rsplit("/", 1)[1])
""")
        == "broken.py"
    )


# -- the bundle ----------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def names(bundle: bytes) -> list[str]:
    with zipfile.ZipFile(io.BytesIO(bundle)) as archive:
        return archive.namelist()


def test_the_same_sources_make_the_same_bytes(folder: Path) -> None:
    write(folder, {"mh_a.py": "import mh_b\n", "mh_b.py": "x = 1\n"})
    first = code.bundle({"mh_a"})
    assert names(first) == ["mh_a.py", "mh_b.py"]
    code._bundles.clear()
    assert code.bundle({"mh_a"}) == first
    (folder / "mh_b.py").write_text("x = 22\n")
    assert code.bundle({"mh_a"}) != first


def test_what_is_installed_or_pythons_own_does_not_travel(folder: Path) -> None:
    write(folder, {"mh_c.py": "import json, zmq, multihost, numpy, no_such_module\n"})
    assert names(code.bundle({"mh_c", "json", "multihost"})) == ["mh_c.py"]
    assert code.bundle({"json", "zmq"}) == b""


def test_nothing_is_imported_to_find_out(folder: Path) -> None:
    write(folder, {"mh_d.py": "import mh_loud\n", "mh_loud.py": "raise SystemExit('imported')\n"})
    assert names(code.bundle({"mh_d"})) == ["mh_d.py", "mh_loud.py"]
    assert "mh_loud" not in sys.modules


def test_data_among_the_code_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code, "MAX_BYTES", 1000)
    write(folder, {"mh_fat.py": "x = '" + "a" * 2000 + "'\n"})
    with pytest.raises(ConfigError, match=r"mh_fat\.py: keep data out of the source files"):
        code.bundle({"mh_fat"})
