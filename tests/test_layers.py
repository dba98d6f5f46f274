"""Imports go one way, and `import moesim` stays light.

A wing is a folder of moesim/; a room is a folder of Python files, so `moesim.costs.comm` is a room
of the wing `costs`. Between wings the order of `LAYERS` holds, between the folders of kernels/ that
of `KERNEL_LAYERS`; between rooms, and between modules, there is no cycle.

The order is the design's, with three things that imports demand: reports are below searches and
measurements, which print and write through them, and above simulations, whose results they will
show; model comes before hardware, routing and quality, which know gates and number formats;
schedules (design) come after hardware, which owns the exchanges.
"""

import ast
import json
import subprocess
import sys
import tempfile
from functools import cache
from itertools import chain
from pathlib import Path
from statistics import median

import pytest

import moesim

ROOT = Path(moesim.__file__).parent
KERNELS = ROOT.parent / "kernels"
HEAVY = (
    "torch",
    "triton",
    "optuna",
    "pandas",
    "numba",
    "numpy",
    "pydantic",
    "simpy",
    "scipy",
    "plotly",
    "rich",
    "typer",
    "pyarrow",
)
LAYERS = (
    ("compiled", "errors", "limits", "processes", "units", "version"),
    ("files", "program"),
    ("engines", "model"),
    ("hardware", "routing", "quality"),
    ("design", "placement"),
    ("costs",),
    ("lowering",),
    ("simulation",),
    ("report",),
    ("operations", "serving", "advice", "search", "measured"),
    ("page", "timeline"),
    ("cli", "testing"),
)
LEVEL = {wing: level for level, wings in enumerate(LAYERS) for wing in wings}
#: wings that are still to be built
TO_COME: set[str] = set()
#: what a wing may import, where that is less than everything below it
ONLY = {
    "files": {"errors", "units"},
    "program": {"errors", "limits", "units"},
    "engines": {"program", "compiled", "errors", "processes", "units"},
}
KERNEL_LAYERS = (
    ("tiles", "cpu"),
    ("ops",),
    ("compile", "timing", "ranks"),
    ("profile",),
    ("sources",),
)
KERNEL_LEVEL = {folder: level for level, folders in enumerate(KERNEL_LAYERS) for folder in folders}
#: modules that may import others of ours inside a function, since those load simpy
LAZY_OK = {
    "moesim.engines.run": {
        f"moesim.engines.{e}" for e in ("bound", "flow", "event", "event_compiled")
    },
}


def trees(root, top):
    """Dotted name -> syntax tree of every module of a package that lies in a folder."""
    found = {}
    for path in sorted(root.rglob("*.py")):
        parts = (top, *path.relative_to(root).with_suffix("").parts)
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = ast.parse(path.read_text(encoding="utf-8"))
    return found


@cache
def modules():
    """All modules but the entry of ``python -m moesim``, which is one line of the command line."""
    return {n: tree for n, tree in trees(ROOT, "moesim").items() if n != "moesim.__main__"}


@cache
def kernel_modules():
    return trees(KERNELS, "moesim_kernels")


@cache
def rooms():
    """Packages: folders of modules."""
    found = {"moesim": ROOT, "moesim_kernels": KERNELS}
    return {
        ".".join([top, *path.parent.relative_to(root).parts])
        for top, root in found.items()
        for path in root.rglob("__init__.py")
    }


def imports(name, known, *, top_level_only=False):
    """Absolute names a module imports, with the line; also those inside functions."""
    tree = known[name]
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}:{node.lineno}: relative import"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield (full if full in known else node.module), node.lineno


def inner_edges(known):
    """(importer, imported, line) within a package, by module."""
    top = next(iter(known)).split(".")[0]
    return [
        (name, target, line)
        for name in known
        for target, line in imports(name, known)
        if target.split(".")[0] == top
    ]


def wing(name):
    """`moesim.costs.comm.work` -> `costs`; the package itself is the facade over all."""
    return name.split(".")[1] if "." in name else ""


def room(name):
    """`moesim.costs.comm.work` -> `moesim.costs.comm`; a package is a room of its own."""
    return name if name in rooms() else name.rpartition(".")[0]


def cyclic(graph):
    """Nodes that remain when those that depend on nothing are taken away again and again."""
    left = {name: set(targets) - {name} for name, targets in graph.items()}
    while free := [name for name, targets in left.items() if not targets & left.keys()]:
        for name in free:
            del left[name]
    return sorted(left)


def test_the_top_is_short():
    assert sorted(p.name for p in ROOT.glob("*.py")) == [
        "__init__.py",
        "__main__.py",
        "compiled.py",
        "errors.py",
        "limits.py",
        "processes.py",
        "units.py",
        "version.py",
    ]
    assert [p.name for p in KERNELS.glob("*.py")] == ["__init__.py"]


def test_every_wing_has_a_layer():
    assert {wing(name) for name in modules()} - {""} | TO_COME == set(LEVEL)
    assert {wing(name) for name in kernel_modules()} - {""} == set(KERNEL_LEVEL)


def test_imports_go_down():
    upward = [
        f"{name}:{line} imports {target}"
        for known, level in ((modules(), LEVEL), (kernel_modules(), KERNEL_LEVEL))
        for name, target, line in inner_edges(known)
        if wing(name) and wing(target) and level[wing(target)] > level[wing(name)]
    ]
    assert upward == []


def test_nothing_imports_the_facade_or_the_command_line():
    """The packages themselves are for users."""
    assert [
        f"{n}:{line}"
        for n, target, line in inner_edges(modules())
        if target == "moesim" and wing(n) != ""
    ] == []
    assert [
        n for n, target, _ in inner_edges(modules()) if wing(target) == "cli" and wing(n) != "cli"
    ] == []
    assert [n for n, target, _ in inner_edges(kernel_modules()) if target == "moesim_kernels"] == []


@pytest.mark.parametrize("name", ONLY)
def test_some_wings_know_little(name):
    known = {
        wing(target) for importer, target, _ in inner_edges(modules()) if wing(importer) == name
    }
    assert known <= {name} | ONLY[name]


@pytest.mark.parametrize("known", [modules, kernel_modules])
def test_no_cycles_between_modules_nor_between_rooms_nor_between_wings(known):
    by_module = {name: set() for name in known()}
    by_room = {room(name): set() for name in known()}
    by_wing = {wing(name): set() for name in known()}
    for name, target, _ in inner_edges(known()):
        by_module[name].add(target)
        if wing(name) and wing(target):
            by_room[room(name)].add(room(target))
            by_wing[wing(name)].add(wing(target))
    for graph in (by_module, by_room, by_wing):
        assert cyclic(graph) == []


def test_faces_hold_no_code():
    """A package's ``__init__`` re-exports, and hides none of its modules; those of moesim and of
    the kernels load them when asked.
    """
    for name, tree in modules().items():
        if name not in rooms() - {"moesim"}:
            continue
        kinds = {type(node) for node in tree.body} - {ast.Expr, ast.ImportFrom, ast.Assign}
        assert kinds == set(), name
        faces = {
            alias.asname or alias.name
            for node in tree.body
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        }
        assert [face for face in faces if f"{name}.{face}" in modules()] == [], name


@pytest.mark.parametrize("package", ["torch", "triton", "moesim_kernels"])
def test_never_imports_kernels(package):
    """Not at the top and not inside a function: measurement sources come through entry points."""
    found = [
        f"{name}:{line}"
        for name in modules()
        for target, line in imports(name, modules())
        if target.split(".")[0] == package
    ]
    dynamic = [
        name
        for name, tree in modules().items()
        if name != "moesim"  # loads its names, which are checked below
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and ast.unparse(node.func).endswith(("import_module", "__import__"))
    ]
    assert found == dynamic == []


def test_optuna_only_in_search():
    users = {
        wing(name)
        for name in modules()
        for target, _ in imports(name, modules())
        if target.split(".")[0] == "optuna"
    }
    assert users == {"search"}


def test_inner_modules_are_imported_at_the_top():
    """An import inside a function hides a cycle; only heavy or optional packages, and what needs
    them, may.
    """
    for name in modules():
        top = {target for target, _ in imports(name, modules(), top_level_only=True)}
        hidden = (
            {t for t, _ in imports(name, modules()) if t.startswith("moesim")}
            - top
            - LAZY_OK.get(name, set())
        )
        if wing(name) not in ("cli", ""):  # a command loads what it runs, the facade what is asked
            assert hidden == set(), name


COMMAND = "import moesim.cli.root as r; r.app({}, standalone_mode=False)"


@pytest.mark.parametrize(
    ("statement", "heavy"),
    [
        # a stranger's first look: nothing but what prints
        ("import moesim", set(HEAVY)),
        (COMMAND.format(["--help"]), set(HEAVY) - {"typer", "rich"}),
        (COMMAND.format(["simulate", "--help"]), set(HEAVY) - {"typer", "rich", "pydantic"}),
        ("from moesim import *", set(HEAVY) - {"numpy", "pydantic"}),
        # and the first simulation of a node
        (COMMAND.format(["simulate"]), set(HEAVY) - {"numpy", "pydantic", "typer", "rich"}),
    ],
)
def test_nothing_is_loaded_that_is_not_needed(statement, heavy):
    script = f"import sys, json; {statement}; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    loaded = json.loads(done.stdout.splitlines()[-1])
    assert "moesim" in loaded
    assert heavy.intersection(loaded) == set()
    assert done.stderr == ""


def test_public_names_exist():
    for name in moesim.__all__:
        assert getattr(moesim, name) is not None
    # type checkers read the same names from the same modules
    typed = {
        alias.name: node.module.removeprefix("moesim.")
        for node in ast.walk(modules()["moesim"])
        if isinstance(node, ast.ImportFrom) and node.module.startswith("moesim.")
        for alias in node.names
    }
    assert typed == moesim._MODULE_OF
    assert moesim.__all__ == sorted([*typed, "__version__"])
    for module in modules().keys() - {"moesim"}:
        tree = modules()[module]
        listed = [
            ast.literal_eval(n.value)
            for n in tree.body
            if isinstance(n, ast.Assign)
            and any(isinstance(t, ast.Name) and t.id == "__all__" for t in n.targets)
        ]
        defined = {n.name for n in tree.body if isinstance(n, ast.ClassDef | ast.FunctionDef)}
        defined |= {
            alias.asname or alias.name
            for n in tree.body
            if isinstance(n, ast.ImportFrom | ast.Import)
            for alias in n.names
        }
        defined |= {
            t.id
            for n in tree.body
            if isinstance(n, ast.Assign | ast.AnnAssign)
            for t in (n.targets if isinstance(n, ast.Assign) else [n.target])
            if isinstance(t, ast.Name)
        }
        assert set(chain.from_iterable(listed)) <= defined, module


def test_modules_are_small():
    lengths = {
        path: len(path.read_text().splitlines())
        for path in ROOT.rglob("*.py")
        if path.name != "__init__.py"
    }
    assert {str(path): n for path, n in lengths.items() if n > 400} == {}
    assert median(lengths.values()) <= 150


def test_nothing_names_a_machine_of_ours():
    """Neither the checkout, nor a home, nor the folder of temporary files in what is shipped."""
    ours = {f"{folder}/" for folder in (ROOT.parent, Path.home(), tempfile.gettempdir())} | {
        "/home/"
    }
    for path in sorted(ROOT.rglob("*")):
        if path.suffix in (".py", ".toml"):
            text = path.read_text(encoding="utf-8")
            assert not any(word in text for word in ours), path
