"""What of moesim works on this machine, and how to get the rest."""

import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from moesim.engines import flow
from moesim.errors import MoesimError
from moesim.measured.sources import GROUP, installed_sources
from moesim.version import VERSION

State = Literal["ok", "missing"]
#: versions of Python that moesim is tested with
_PYTHONS = ((3, 11), (3, 14))
#: what each extra brings: module, package, what it is for, how to get it
_EXTRAS = (
    ("dask", "distributed", "distributed", "searches on a Dask cluster", "moesim[dask]"),
    ("postgresql", "psycopg", "psycopg", "studies in PostgreSQL", "moesim[postgres]"),
    ("figures", "matplotlib", "matplotlib", "figures as SVG and PDF", "moesim[figures]"),
    ("dashboard", "optuna_dashboard", "optuna-dashboard", "a live look at studies", ""),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkplacePart:
    """One thing that works here, or does not.

    Attributes:
        name: Its name.
        state: ``ok`` or ``missing``.
        detail: What is there, or what is lost without it.
        remedy: How to get it; empty where nothing is missing.
        needed: Whether nothing works without it.
    """

    name: str
    state: State
    detail: str
    remedy: str = ""
    needed: bool = False

    def row(self) -> dict[str, object]:
        """Return it as a row of a table."""
        return asdict(self)


def workplace_parts() -> Iterator[WorkplacePart]:
    """Look at this machine: yield what there is, what the core needs first."""
    yield _python()
    yield WorkplacePart(
        name="moesim",
        state="ok",
        detail=f"{VERSION} on {os.cpu_count()} cores, {platform.machine()}",
    )
    yield _compiled_code()
    for package in ("torch", "triton"):
        yield _package(package, package, "kernels and checks by them", f"pip install {package}")
    yield _compiler()
    yield from _sources()
    for name, module, package, purpose, extra in _EXTRAS:
        found = _package(module, package, purpose, f"pip install '{extra or package}'")
        yield WorkplacePart(**asdict(found) | {"name": name})


def _python() -> WorkplacePart:
    here, (least, most) = sys.version_info[:2], _PYTHONS
    fits = least <= here <= most
    known = " to ".join(".".join(map(str, one)) for one in _PYTHONS)
    return WorkplacePart(
        name="python",
        state="ok" if fits else "missing",
        detail=f"{platform.python_version()} ({sys.executable})",
        remedy="" if fits else f"use Python {known}",
        needed=True,
    )


def _compiled_code() -> WorkplacePart:
    """Say where numba keeps compiled code."""
    make = partial(WorkplacePart, name="compiled code")
    if not flow._solve.is_kept():
        return make(
            state="missing",
            detail="not kept: each command compiles anew, which takes seconds",
            remedy="set NUMBA_CACHE_DIR to a folder that is writable",
        )
    folder = Path(flow._solve.cache_folder)
    return make(state="ok", detail=f"kept in {folder}")


def _package(module: str, package: str, purpose: str, remedy: str) -> WorkplacePart:
    try:
        found = version(package) if find_spec(module) else ""
    except PackageNotFoundError:
        found = "of unknown version"
    return WorkplacePart(
        name=package,
        state="ok" if found else "missing",
        detail=f"{package} {found}" if found else f"for {purpose}",
        remedy="" if found else remedy,
    )


def _compiler() -> WorkplacePart:
    found = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    return WorkplacePart(
        name="C compiler",
        state="ok" if found else "missing",
        detail=found or "Triton launches kernels through a module that it compiles",
        remedy="" if found else "apt install gcc",
    )


#: source of measurements -> what it is, and how to get it
_REMEDIES = {
    "silicon": ("NVIDIA's measured kernels", "pip install 'moesim[silicon]' (Python up to 3.13)"),
    "triton": ("this machine's GPU", "run it on a machine with a GPU and its driver"),
    "interpret": ("Triton's interpreter", "pip install triton"),
    "torch-cpu": ("this CPU", "pip install torch"),
    "gloo": ("processes on this CPU", "pip install torch"),
}


def _sources() -> Iterator[WorkplacePart]:
    """Yield the sources of measurements, which `moesim check` asks."""
    try:
        sources = installed_sources()
    except (ImportError, MoesimError) as error:
        yield WorkplacePart(
            name="measurements",
            state="missing",
            detail=f"{GROUP}: {error}",
            remedy="pip install --force-reinstall moesim",
        )
        return
    for name, source in sources.items():
        yield _source(name, source.unavailable_because)


def _source(name: str, unavailable_because: Callable[[], str | None]) -> WorkplacePart:
    reason = unavailable_because()
    what, remedy = _REMEDIES.get(name, ("a source of measurements", "see its documentation"))
    return WorkplacePart(
        name=f"check: {name}",
        state="missing" if reason else "ok",
        detail=reason or what,
        remedy=remedy if reason else "",
    )


__all__ = ["WorkplacePart", "workplace_parts"]
