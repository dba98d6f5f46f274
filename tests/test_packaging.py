"""The wheel, installed outside the repository, works as the editable install does."""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
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


@pytest.mark.full
def test_wheel_works_outside_the_repository(tmp_path):
    # from a copy: building writes into the folder it builds from, which tests that run meanwhile
    # read
    source = tmp_path / "source"
    for folder in ("moesim", "kernels", "hw_profiles"):
        shutil.copytree(
            ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__")
        )
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run(
        [*pip, "wheel", str(source), "--no-deps", "--wheel-dir", str(tmp_path)], check=True
    )
    [wheel] = tmp_path.glob("moesim-*.whl")
    place = tmp_path / "installed"
    subprocess.run([*pip, "install", str(wheel), "--no-deps", "--target", str(place)], check=True)
    done = subprocess.run(
        [sys.executable, "-c", PROBE.format(place=str(place))],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(place)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "0.1.0"
