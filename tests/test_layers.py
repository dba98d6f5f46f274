"""Imports go one way, and `import moesim` stays light.

Layers as the design has them, with what the build added: number formats below the model, presets and candidates beside
topology and routing; the program next to lowering, so that engines know programs and nothing of MoE.
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
HEAVY = ("torch", "triton", "optuna", "pandas", "numba", "simpy", "scipy", "plotly", "rich", "typer", "pyarrow")
LAYERS = (
    ("errors", "units", "version"),
    ("configfile", "profilefile", "precision", "gate", "widths"),
    ("model", "hardware"),
    ("what_if",),
    ("topology", "routing", "placement", "candidate", "schedule", "presets", "hfconfig"),
    ("costs", "quality", "economics"),
    ("program", "factored", "builder", "lowering"),
    ("engines",),
    ("trust", "ranks", "effects", "simulate", "result", "exchange_bench", "rebalance", "refine", "elasticity",
     "screening", "exchange_scaling", "granularity"),
    ("recommend",),
    ("search", "measured", "report"),
    ("cli", "cli_script", "cli_comm", "cli_bench", "cli_kernels", "cli_check", "cli_placement", "cli_study",
     "cli_quality", "cli_trace", "cli_recommend", "testing"),
)
LEVEL = {unit: level for level, units in enumerate(LAYERS) for unit in units}


@cache
def modules():
    """Dotted name -> syntax tree of every module."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = ast.parse(path.read_text(encoding="utf-8"))
    return found


def imports(name, *, top_level_only=False):
    """Absolute names a module imports, with the line; also those inside functions."""
    tree = modules()[name]
    nodes = tree.body if top_level_only else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}:{node.lineno}: relative import"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield (full if full in modules() else node.module), node.lineno


def inner_edges():
    """(importer, imported, line) within moesim, by module."""
    return [(name, target, line) for name in modules() for target, line in imports(name)
            if target == "moesim" or target.startswith("moesim.")]


def unit(name):
    """`moesim.costs.gpu` -> `costs`; the package itself is the facade over all."""
    return name.split(".")[1] if "." in name else ""


def test_every_module_has_a_layer():
    assert {unit(name) for name in modules()} - {""} == set(LEVEL)


def test_imports_go_down():
    upward = [f"{name}:{line} imports {target}" for name, target, line in inner_edges()
              if unit(name) and unit(target) and LEVEL[unit(target)] > LEVEL[unit(name)]]
    assert upward == []


def test_nothing_imports_the_facade_or_the_command_line():
    """`from moesim import configfile` names a module and is resolved to it; the package itself is for users."""
    assert [f"{n}:{line}" for n, target, line in inner_edges() if target == "moesim"
            and unit(n) not in ("", "cli")] == []
    assert [n for n, target, _ in inner_edges() if unit(target) == "cli"] == []


def test_engines_know_programs_and_errors_only():
    known = {target for name, target, _ in inner_edges() if unit(name) == "engines"}
    assert {unit(target) for target in known} <= {"engines", "program", "errors", "units"}


def test_no_cycles_between_modules_nor_between_packages():
    graph, by_unit = {name: set() for name in modules()}, {unit(name): set() for name in modules()}
    for name, target, _ in inner_edges():
        graph[name] |= {target} - {name}
        if unit(name) and unit(target):
            by_unit[unit(name)] |= {unit(target)} - {unit(name)}
    for edges in (graph, by_unit):
        left = {name: set(targets) for name, targets in edges.items()}
        while free := [name for name, targets in left.items() if not targets & left.keys()]:
            for name in free:
                del left[name]
        assert sorted(left) == []


@pytest.mark.parametrize("package", ["torch", "triton", "moesim_kernels"])
def test_never_imports_kernels(package):
    """Not at the top and not inside a function: measurement sources come through entry points."""
    found = [f"{name}:{line}" for name in modules() for target, line in imports(name)
             if target.split(".")[0] == package]
    dynamic = [name for name, tree in modules().items() for node in ast.walk(tree) if isinstance(node, ast.Call)
               and ast.unparse(node.func).endswith(("import_module", "__import__"))]
    assert found == dynamic == []


def test_optuna_only_in_search():
    users = {unit(name) for name in modules() for target, _ in imports(name) if target.split(".")[0] == "optuna"}
    assert users == {"search"}


def test_inner_modules_are_imported_at_the_top():
    """An import inside a function hides a cycle; only heavy or optional packages, and what needs them, may."""
    lazy_ok = {"moesim.engines": {f"moesim.engines.{e}" for e in ("bound", "flow", "event", "event_compiled")},
               "moesim.simulate": {f"moesim.lowering.{m}" for m in ("exchange", "layer", "traffic")},
               "moesim.effects": {"moesim.lowering.traffic"},
                   "moesim.placement.slots": {"moesim.placement.turns"},
               "moesim.routing.systematic": {"moesim.routing.swaps"},
               "moesim.routing.capacity": {"moesim.routing.places"}}
    for name in modules():
        top = {target for target, _ in imports(name, top_level_only=True)}
        hidden = {t for t, _ in imports(name) if t.startswith("moesim")} - top - lazy_ok.get(name, set())
        if not unit(name).startswith("cli"):  # a command loads what it runs
            assert hidden == set(), name


def test_import_moesim_is_light():
    script = "import sys, json, moesim; print(json.dumps(sorted({m.split('.')[0] for m in sys.modules})))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = json.loads(done.stdout)
    assert "moesim" in loaded
    assert [name for name in HEAVY if name in loaded] == []
    assert done.stderr == ""


def test_public_names_exist():
    for name in moesim.__all__:
        assert getattr(moesim, name) is not None
    for module in modules():
        tree = modules()[module]
        listed = [ast.literal_eval(n.value) for n in tree.body if isinstance(n, ast.Assign)
                  and any(isinstance(t, ast.Name) and t.id == "__all__" for t in n.targets)]
        defined = {n.name for n in tree.body if isinstance(n, ast.ClassDef | ast.FunctionDef)}
        defined |= {alias.asname or alias.name for n in tree.body if isinstance(n, ast.ImportFrom | ast.Import)
                    for alias in n.names}
        defined |= {t.id for n in tree.body if isinstance(n, ast.Assign | ast.AnnAssign)
                    for t in (n.targets if isinstance(n, ast.Assign) else [n.target]) if isinstance(t, ast.Name)}
        assert set(chain.from_iterable(listed)) <= defined, module


def test_modules_are_small():
    lengths = {name: len((ROOT.parent / Path(*name.split("."))).with_suffix(".py").read_text().splitlines())
               for name in modules() if (ROOT.parent / Path(*name.split("."))).with_suffix(".py").exists()}
    assert {name: n for name, n in lengths.items() if n > 400} == {}
    assert median(lengths.values()) <= 150


def test_nothing_names_a_machine_of_ours():
    """Neither the checkout, nor a home, nor the folder of temporary files in what is shipped."""
    ours = {f"{folder}/" for folder in (ROOT.parent, Path.home(), tempfile.gettempdir())} | {"/home/"}
    for path in sorted(ROOT.rglob("*")):
        if path.suffix in (".py", ".toml"):
            text = path.read_text(encoding="utf-8")
            assert not any(word in text for word in ours), path
