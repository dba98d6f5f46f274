"""What is shipped works without this repository, and without what it can do without."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
HIDDEN = {"torch", "triton"}
#: nothing of this checkout is found in it
ENVIRONMENT = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "NUMBA"))}
PROBE = """
import pkgutil
from importlib import import_module
import moesim, moesim_kernels, moesim_hw_profiles
from moesim import load_cluster, load_preset, load_profile
from moesim.costs.tiles import tuned_tile
for module in (moesim, moesim_kernels, moesim_hw_profiles):
    assert module.__file__.startswith({place!r}), module.__file__
for found in pkgutil.walk_packages(moesim.__path__, "moesim."):
    if not found.name.endswith("__main__"):
        import_module(found.name)
assert load_profile("h100_sxm").num_sms == 132
assert load_cluster("hgx-a100-8").num_devices == 8
assert load_preset("mixtral-8x7b").layer.num_experts == 8
from moesim.routing.measured import counts_NE
assert counts_NE("olmoe-c4").size
from moesim_kernels.tiles.budgets import Budgets
assert Budgets.load("").rows
assert tuned_tile("h100-sxm", "bfloat16", 8, 1792, 64) is not None
print(moesim.__version__)
"""


def test_version_is_the_installed_one():
    import moesim

    assert moesim.__version__ == "0.1.0"


def test_every_package_is_listed():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {"moesim": "moesim", "moesim_kernels": "kernels", "moesim_hw_profiles": "hw_profiles"}
    found = [
        ".".join([top, *path.parent.relative_to(ROOT / folder).parts])
        for top, folder in folders.items()
        for path in (ROOT / folder).rglob("__init__.py")
    ]
    assert sorted(listed) == sorted(found)


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    """Folder with the source distribution and the wheel that was made from it."""
    # from a copy: building writes into the folder it builds from, which tests that run meanwhile
    # read; with what lies about in a checkout that is used
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("shipped")
    left = shutil.ignore_patterns(".git", ".venv*", "build", "dist", "*.egg-info", "out")
    shutil.copytree(ROOT, source, ignore=left, dirs_exist_ok=True)
    for dirt in ("studies/out/a.csv", "tests/.hypothesis/b", "moesim/__pycache__/c.nbi"):
        (source / dirt).parent.mkdir(parents=True, exist_ok=True)
        (source / dirt).touch()
    words = [sys.executable, str(HERE / "packages.py"), "--source", str(source), "--out", str(out)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "absent from the `packages`" not in done.stderr
    return out


@pytest.mark.full
def test_the_source_distribution_holds_what_it_needs_and_no_more(shipped):
    [path] = shipped.glob("moesim-*.tar.gz")
    with tarfile.open(path) as archive:
        files = {name.partition("/")[2] for name in archive.getnames() if "/" in name}
    needed = "LICENSE NOTICE README.md CHANGELOG.md Makefile constraints.txt mkdocs.yml"
    needed += " tests/conftest.py tests/edges/test_journal.py docs/install.md studies/placement.py"
    assert set(needed.split()) <= files
    made = {"PKG-INFO", "setup.cfg"}
    tops = {name.partition("/")[0] for name in files} - {"moesim.egg-info"}
    assert tops <= {p.name for p in ROOT.iterdir()} | made
    odd = r"__pycache__|\.py[co]$|\.nb[ci]$|(^|/)\.[a-z]|^studies/out|^(build|dist)/"
    assert [name for name in files if re.search(odd, name)] == []


def required(name, found):
    """Add a distribution, and what it requires here, except for what is hidden."""
    if name not in HIDDEN | found.keys():
        found[name] = distribution(name)
        for needed in map(Requirement, found[name].requires or ()):
            if needed.marker is None or needed.marker.evaluate({"extra": ""}):
                required(canonicalize_name(needed.name), found)
    return found


@pytest.fixture(scope="module")
def alone(shipped, tmp_path_factory):
    """Interpreter of a fresh environment: the wheel, and of what it requires all but torch and
    triton, which are this environment's own, linked.
    """
    folder = tmp_path_factory.mktemp("alone")
    venv.create(folder, symlinks=True)
    [site] = folder.glob("lib/python*/site-packages")
    others = required("moesim", {})
    del others["moesim"]
    for one in others.values():
        for top in {file.parts[0] for file in one.files} - {"..", "__pycache__"}:
            (site / top).symlink_to(one.locate_file(top))
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python")]
    [wheel] = shipped.glob("*.whl")
    subprocess.run([*pip, "install", "--quiet", "--no-deps", str(wheel)], check=True)
    return folder / "bin" / "python"


@pytest.mark.full
def test_the_wheel_holds_every_module_and_its_data(alone, tmp_path):
    probe = PROBE.format(place=str(alone.parent.parent))
    done = subprocess.run(
        [alone, "-c", probe], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "0.1.0"


@pytest.mark.full
def test_moesim_alone_simulates_recommends_and_searches(alone, tmp_path):
    words = [alone, HERE / "smoke.py", ROOT / "studies" / "small_study.toml"]
    done = subprocess.run(words, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.search("torch none triton none$", done.stdout.strip())
    # what is not there has been asked for
    assert done.stdout.count("pip install") == 8
