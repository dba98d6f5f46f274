"""Look at what this machine and this installation have, and say how to get the rest.

Nothing heavy is imported: versions are read from the packages' metadata.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Literal

from moesim.compiled import cache_folder

Status = Literal["ok", "missing", "hint"]
#: without these nothing is simulated
_CORE = (
    "numpy",
    "numba",
    "scipy",
    "pydantic",
    "simpy",
    "optuna",
    "pandas",
    "typer",
    "rich",
    "plotly",
)
_PYTHON = ((3, 11), (3, 15))
#: seconds that a driver's tool may take to answer
_PATIENCE_S = 2.0
#: Triton 3.6 interprets with NumPy below this
_NUMPY_OF_TRITON_3_6 = (2, 4)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked for.

    Attributes:
        name: What it is.
        status: ``ok``; ``missing``, with what does not work without it; or ``hint``, where
            something works less well than it could.
        says: What was found, or what does not work.
        fix: How to get it; empty if it is there.
        needed: Whether nothing works without it.
    """

    name: str
    status: Status
    says: str
    fix: str = ""
    needed: bool = False

    def row(self) -> dict[str, object]:
        """Return it as a flat row."""
        return asdict(self)


def look_around() -> list[Finding]:
    """Return everything that is looked for, in order of importance."""
    return [
        _python(),
        *_core(),
        _cache(),
        _package("torch", "kernels, and measuring this machine", "pip install torch"),
        _package("triton", "GPU kernels and their compile check", "pip install triton"),
        _interpreter(),
        _compiler(),
        _gpu(),
        _package(
            "aiconfigurator-core",
            "moesim validate kernels, comm, dense, models: NVIDIA's measured rows",
            "pip install 'moesim[silicon]' (Python below 3.14)",
        ),
        _package("pyarrow", "traces and rows as .parquet", "pip install pyarrow"),
        _package("distributed", "searches on a Dask cluster", "pip install 'moesim[dask]'"),
        _package(
            "psycopg", "studies in PostgreSQL that machines share", "pip install 'moesim[postgres]'"
        ),
        _package("optuna-dashboard", "a study in the browser", "pip install optuna-dashboard"),
        _package("matplotlib", "figures as SVG and PDF", "pip install 'moesim[figures]'"),
    ]


def works(findings: list[Finding]) -> bool:
    """Return whether the core can run."""
    return not any(one.needed and one.status == "missing" for one in findings)


def installed(name: str) -> str | None:
    """Return the version of a package; None if it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def lacking(*names: str) -> str | None:
    """Say which packages cannot be imported, and how to get them; None if all can.

    Args:
        names: Packages that pip knows by the names they are imported by.
    """
    missing = [name for name in names if find_spec(name) is None]
    if not missing:
        return None
    return f"{' and '.join(missing)} not installed: pip install {' '.join(missing)}"


def _python() -> Finding:
    (low, high), mine = _PYTHON, sys.version_info[:2]
    here = ".".join(map(str, sys.version_info[:3]))
    if low <= mine < high:
        return Finding(name="Python", status="ok", says=here, needed=True)
    rule = f"{low[0]}.{low[1]} to {high[0]}.{high[1] - 1}"
    return Finding(
        name="Python", status="missing", says=here, fix=f"use Python {rule}", needed=True
    )


def _core() -> Iterator[Finding]:
    there = {name: installed(name) for name in _CORE}
    absent = [name for name, found in there.items() if found is None]
    if not absent:
        says = ", ".join(f"{name} {found}" for name, found in there.items())
        yield Finding(name="core", status="ok", says=says, needed=True)
    for name in absent:
        fix = f"pip install {name}"
        yield Finding(name=name, status="missing", says="moesim itself", fix=fix, needed=True)


def _package(name: str, used_for: str, fix: str) -> Finding:
    found = installed(name)
    if found is None:
        return Finding(name=name, status="missing", says=used_for, fix=fix)
    return Finding(name=name, status="ok", says=f"{found}: {used_for}")


def _cache() -> Finding:
    name = "numba cache"
    if installed("numba") is None:
        return Finding(name=name, status="missing", says="fast starts", fix="pip install numba")
    folder = cache_folder()
    if folder is None:
        says = "no folder can be written: each process compiles anew, some seconds"
        fix = "set NUMBA_CACHE_DIR to a folder that can be written"
        return Finding(name=name, status="hint", says=says, fix=fix)
    return Finding(name=name, status="ok", says=folder)


def _interpreter() -> Finding:
    """Return whether Triton's interpreter runs kernels here without a GPU."""
    name, used_for = "Triton interpreter", "kernels checked without a GPU"
    triton, numpy = installed("triton"), installed("numpy")
    if triton is None or installed("torch") is None:
        fix = "pip install torch triton"
        return Finding(name=name, status="missing", says=used_for, fix=fix)
    recent = tuple(int(part) for part in (numpy or "0.0").split(".")[:2]) >= _NUMPY_OF_TRITON_3_6
    if triton.startswith("3.6.") and recent:
        says = f"Triton {triton} fails with NumPy {numpy}"
        return Finding(name=name, status="hint", says=says, fix="pip install 'numpy<2.4'")
    return Finding(name=name, status="ok", says=f"{used_for} (TRITON_INTERPRET=1)")


def _compiler() -> Finding:
    name = "C compiler"
    wanted = os.environ.get("CC")
    found = next(
        (path for one in (wanted, "cc", "gcc", "clang") if one and (path := shutil.which(one))),
        None,
    )
    if found is None:
        says = "Triton builds its launcher with it, on a GPU"
        return Finding(name=name, status="missing", says=says, fix="apt-get install gcc")
    return Finding(name=name, status="ok", says=found)


def _gpu() -> Finding:
    """Return the GPUs that a driver's own tool lists."""
    for tool, arguments in (
        ("nvidia-smi", ["--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]),
        ("rocm-smi", ["--showproductname", "--showdriverversion", "--csv"]),
    ):
        path = shutil.which(tool)
        if path is None:
            continue
        try:
            done = subprocess.run(
                [path, *arguments],
                capture_output=True,
                text=True,
                timeout=_PATIENCE_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return _no_gpu(f"{tool} does not answer: {type(error).__name__}")
        lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
        if done.returncode or not lines:
            told = (done.stderr or done.stdout).strip().splitlines() or ["nothing"]
            return _no_gpu(f"{tool} says: {told[0]}")
        more = f" and {len(lines) - 1} more" if len(lines) > 1 else ""
        return Finding(name="GPU and driver", status="ok", says=f"{lines[0]}{more}")
    return _no_gpu("no GPU is needed to simulate; kernels are timed on one")


def _no_gpu(says: str) -> Finding:
    fix = "on a machine with a GPU, install its driver (nvidia-smi or rocm-smi)"
    return Finding(name="GPU and driver", status="missing", says=says, fix=fix)
