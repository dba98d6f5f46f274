"""Rules that keep the code readable, counted: parameters, lines, words, facts with one owner."""

import ast
import re
from collections import defaultdict
from pathlib import Path

import moesim

ROOT = Path(moesim.__file__).parent
CHECKOUT = ROOT.parent
STUDIES, KERNELS = CHECKOUT / "studies", CHECKOUT / "kernels"
#: an entry of a docstring that says nothing but a relation
FRAGMENT = re.compile(r"^ +\w+: (Of|Whose|Where|For what|As|Likewise)\b", re.MULTILINE)
#: classes of one name in two modules, each private to a family of its own
TWICE = {"Case"}


def sources(*folders):
    return [
        (path, path.read_text(encoding="utf-8"))
        for folder in folders
        for path in sorted(folder.rglob("*.py"))
    ]


def functions(folder):
    """(module, function, number of parameters) of every function of a folder."""
    for path, text in sources(folder):
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                a = node.args
                names = [p.arg for p in (*a.posonlyargs, *a.args, *a.kwonlyargs)]
                count = len(names) + (a.vararg is not None) + (a.kwarg is not None)
                yield path.stem, node.name, count - (names[:1] in (["self"], ["cls"]))


def test_signatures_are_short():
    long = [found for found in functions(ROOT) if found[2] > 10]
    assert len(long) <= 3, long
    assert [found for found in functions(ROOT / "simulation") if found[2] > 5] == []


def test_studies_are_short():
    lengths = {path.name: len(text.splitlines()) for path, text in sources(STUDIES)}
    allowed = {path.name for path in (STUDIES / "quality_probe").glob("*.py")}
    assert {name: n for name, n in lengths.items() if n > 80 and name not in allowed} == {}


def test_docstrings_are_no_fragments():
    found = [
        f"{path.name}: {match[0].strip()}"
        for path, text in sources(ROOT, KERNELS)
        for match in FRAGMENT.finditer(text)
    ]
    assert found == []


def test_facts_have_one_owner():
    """The file of a cluster is read where clusters are made, the capacity of an expert is counted
    once.
    """
    files = [
        p for p, text in sources(ROOT) if "cluster.file" in text and p.parent.name != "hardware"
    ]
    assert files == []
    counted = [p.name for p, text in sources(ROOT) if "ceil(capacity_factor" in text]
    assert counted == ["capacity.py"]


def test_a_public_class_has_a_name_of_its_own():
    where = defaultdict(list)
    for path, text in sources(ROOT):
        for node in ast.parse(text).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                where[node.name].append(str(path.relative_to(ROOT)))
    assert {name: paths for name, paths in where.items() if len(paths) > 1} == {}
