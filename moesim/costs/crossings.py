"""Say how far a price is from the rows it was fitted on, and what that costs its interval.

A calibration of expert kernels lists the cells it was fitted on. A cell is a device, a version of
the library, a format, and EP = 1 or more; it has the P10 and P90 of measured / predicted on rows of
shapes that the fit left out. A price of another cell crosses something: a device, a generation of
devices, a format, an EP kind, a version. What crossing costs was measured where it was crossed, on
rows that may be fitted (`moesim.measured.kernels.crossing_costs`), and is added in quadrature:

    half = sqrt(half of the cell's interval ** 2 + sum of the squared costs of what is crossed),

all in logarithms, around the middle of the cell's interval. Of a calibration's cells that one
counts from which the price crosses the least.

A generation was crossed by few rows, of one format and EP kind. A cell of another format or EP kind
does not tell, after a generation is crossed, what belongs to the device and what to the format or
to EP, so that it crosses both.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from math import exp, hypot, log
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from moesim.files import toml
from moesim.files.toml import Strict

#: first generation of which those of one major compute capability run the same code: 10.0 and 10.3
#: are one family, 8.0 and 8.9 are not (CUDA C++ Programming Guide, "Family-Specific Architecture
#: Features")
_FAMILIES_FROM = 100
#: how a cell of a single shape was scored: on rows of that shape
ONE_SHAPE = "one shape"


class Cell(Strict):
    """One class of rows that a calibration was fitted on.

    Attributes:
        device: Name of the device profile.
        generation: Ten times its compute capability.
        version: Version of the library, such as ``sglang/0.5.14``.
        format: Format of the rows, such as ``bfloat16``.
        ep: ``ep1`` or ``epn`` (EP > 1).
        low: P10 of measured / predicted on rows left out of the fit.
        high: P90 of the same.
        kind: How rows were left out.
        rows: Number of rows.
    """

    device: str
    generation: int
    version: str
    format: str
    ep: Literal["ep1", "epn"]
    low: float = Field(gt=0)
    high: float = Field(gt=0)
    kind: str
    rows: int = Field(gt=0)

    @model_validator(mode="after")
    def _ordered(self) -> "Cell":
        if self.low > self.high:
            raise ValueError(f"@high@a number >= low = {self.low}@{self.high}")
        return self


class Costs(Strict):
    """What crossings cost: half the logarithmic width of the 80 % interval that each adds in
    quadrature.

    Attributes:
        device: Another device of a generation that was fitted.
        generation: A device of another generation.
        few_shot: A device of which only ten rows were fitted.
        format: A format that was not fitted.
        ep1: EP = 1, if only EP > 1 was fitted.
        epn: EP > 1, if only EP = 1 was fitted.
        version: Another version of the library.
        shape: Other shapes, if only one was fitted.
    """

    device: float = Field(ge=0)
    generation: float = Field(ge=0)
    few_shot: float = Field(ge=0)
    format: float = Field(ge=0)
    ep1: float = Field(ge=0)
    epn: float = Field(ge=0)
    version: float = Field(ge=0)
    shape: float = Field(ge=0)


class CrossingFile(Strict):
    """``hw_profiles/silicon/crossings.toml``, which ``moesim calibrate crossings`` writes.

    Attributes:
        generation_known_in: Formats and EP kinds, such as ``bfloat16-ep1``, that crossed a
            generation alone.
        costs: What each crossing costs.
        groups: Number of pairs of a library and a device on which each cost rests.
    """

    title: str
    command: str
    fitted_on: str
    generation_known_in: list[str]
    costs: Costs
    groups: dict[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Basis:
    """What a price rests on.

    Attributes:
        cell: The fitted cell from which the price crosses the least.
        crossed: Names of what it crosses, fields of `Costs`.
        low: P10 of measured / predicted.
        high: P90 of measured / predicted.
    """

    cell: Cell
    crossed: tuple[str, ...]
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What is priced.

    Attributes:
        device: Name of the device profile.
        generation: Ten times its compute capability.
        changed: Whether the device is a profile's with other figures.
        few_shot: Cost that ten rows of the device left, or None without such rows.
        format: Format of the weights and tokens, as cells name it.
        ep: ``ep1`` or ``epn``.
        version: Version of the library; empty for that of the cell.
    """

    device: str
    generation: int
    changed: bool = False
    few_shot: float | None = None
    format: str
    ep: str
    version: str = ""


def crossings_path() -> Path:
    """Return the path of the shipped costs of crossings."""
    return Path(str(files("moesim_hw_profiles"))) / "silicon" / "crossings.toml"


@lru_cache(maxsize=1)
def crossings() -> CrossingFile:
    """Return the shipped costs of crossings.

    Raises:
        ConfigError: The file is missing or malformed.
    """
    path = crossings_path()
    return toml.parse(toml.read_text(path), CrossingFile, path.name)


def same_generation(one: int, other: int) -> bool:
    """Return whether devices of these generations (ten times the compute capability) are of one
    family.
    """
    if min(one, other) >= _FAMILIES_FROM:
        return one // 10 == other // 10
    return one == other


def crossed_between(cell: Cell, target: Target, known_in: Iterable[str]) -> tuple[str, ...]:
    """Return what a price of the target crosses if it rests on the cell.

    Args:
        cell: A fitted cell.
        target: What is priced.
        known_in: Formats and EP kinds that crossed a generation alone.
    """
    found = []
    away = target.changed or cell.device != target.device
    kin = same_generation(cell.generation, target.generation)
    if away and target.few_shot is not None and not target.changed:
        found.append("few_shot")
    elif away:
        found.append("device" if kin else "generation")
    alone = kin or f"{target.format}-{target.ep}" in known_in
    formats, eps = ({kind.rsplit("-", 1)[i] for kind in known_in} for i in (0, 1))
    if cell.format != target.format or (not alone and target.format not in formats):
        found.append("format")
    if cell.ep != target.ep or (not alone and target.ep not in eps):
        found.append(target.ep)
    if target.version not in ("", cell.version):
        found.append("version")
    if cell.kind == ONE_SHAPE:
        found.append("shape")
    return tuple(found)


def basis_of(cells: Iterable[Cell], target: Target, known: CrossingFile) -> Basis:
    """Return what the price of a target rests on, with its interval.

    Args:
        cells: The cells of a calibration, at least one.
        target: What is priced.
        known: The costs of crossings.
    """

    costs = known.costs.model_dump()
    if target.few_shot is not None:
        # its ten rows may say that this device is harder to predict than others were
        costs["few_shot"] = max(costs["few_shot"], target.few_shot)
    found = []
    for cell in cells:
        crossed = crossed_between(cell, target, known.generation_known_in)
        low, high = log(cell.low), log(cell.high)
        cost = hypot(*(costs[name] for name in crossed))
        half = hypot((high - low) / 2, cost)
        found.append((cost, -cell.rows, half, (low + high) / 2, cell, crossed))
    _, _, half, middle, cell, crossed = min(found, key=lambda one: one[:2])
    return Basis(cell=cell, crossed=crossed, low=exp(middle - half), high=exp(middle + half))
