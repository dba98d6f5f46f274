"""Build the source distribution and the wheel made from it, and try them with any interpreters:
``python packages.py python3.12 python3.13``.

Each interpreter gets a fresh environment with the wheel and what it requires, without torch and
triton unless ``--torch`` is given (gigabytes), and runs smoke.py there.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from importlib.metadata import PathDistribution
from pathlib import Path
from shutil import which
from zipfile import Path as ZipPath

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
LARGE = ("torch", "triton")


def build(source, out):
    """The wheel, built from the source distribution alone, as `build` does; both lie in ``out``."""
    subprocess.run([sys.executable, "-m", "build", "--outdir", str(out), str(source)], check=True)
    [wheel] = out.glob("moesim-*.whl")
    return wheel


def required(wheel):
    """What the wheel requires without extras."""
    [metadata] = [p for p in ZipPath(wheel).iterdir() if p.name.endswith(".dist-info")]
    return [line for line in PathDistribution(metadata).requires or () if "extra ==" not in line]


def name_of(requirement):
    """The package of a requirement."""
    return re.match(r"[\w.-]+", requirement)[0]


def smoke(python, folder):
    """The exit code of smoke.py, which runs in an empty folder."""
    # a cache of its own: what others compiled must not help
    env = os.environ | {"NUMBA_CACHE_DIR": str(folder / "numba"), "COLUMNS": "80"}
    (folder / "run").mkdir()
    words = [str(python), str(HERE / "smoke.py"), str(ROOT / "studies" / "small_study.toml")]
    return subprocess.run(words, cwd=folder / "run", env=env).returncode


def tried(python, wheel, folder, torch):
    """Whether the wheel works in a fresh environment of an interpreter."""
    subprocess.run([python, "-m", "venv", str(folder / "venv")], check=True)
    own = folder / "venv" / "bin" / "python"
    wanted = [r for r in required(wheel) if torch or name_of(r) not in LARGE]
    pip = [str(own), "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, *wanted], check=True)
    subprocess.run([*pip, "--no-deps", str(wheel)], check=True)
    return smoke(own, folder) == 0


def main():
    """Build, and try every interpreter that is named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pythons", nargs="*")
    parser.add_argument("--torch", action="store_true")
    parser.add_argument("--source", type=Path, default=ROOT)
    parser.add_argument("--out", type=Path, default=ROOT / "dist")
    given = parser.parse_args()
    if unknown := [python for python in given.pythons if which(python) is None]:
        parser.error(f"no such interpreter: {', '.join(unknown)}")
    for old in given.out.glob("moesim-*"):
        old.unlink()
    wheel = build(given.source, given.out)
    failed = []
    for python in given.pythons:
        with tempfile.TemporaryDirectory() as folder:
            if not tried(python, wheel, Path(folder), given.torch):
                failed.append(python)
    print("; ".join([f"built {wheel}", *(f"FAILED with {python}" for python in failed)]))
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
