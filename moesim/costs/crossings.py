"""Say how far a price is from the rows it was fitted on, and what that costs its interval.

A calibration of expert kernels lists the cells it was fitted on. A cell is a device, a version of
the library, a format, and EP = 1 or more; it has the P10 and P90 of measured / predicted on rows of
shapes that the fit left out. A price of another cell crosses something: a device, a generation of
devices, a format, an EP kind, a version. What crossing costs was measured where it was crossed, on
rows that may be fitted (`moesim.measured.kernels.crossing_costs`), and is added in quadrature:

    half = sqrt(half of the cell's interval ** 2 + sum of the squared costs of what is crossed),

all in logarithms, around the middle of the cell's interval. Of a calibration's cells that one
counts from which the price crosses the least.

Ten rows of a device correct its mean error. Two devices are too few to say that they also tell how
its rows scatter, so that on another generation the interval is no narrower than without them.

A generation was crossed by few rows, of one format and EP kind. A cell of another format or EP kind
does not tell, after a generation is crossed, what belongs to the device and what to the format or
to EP, so that it crosses both.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from math import exp, hypot, log

from moesim.costs.cells import ONE_SHAPE, Cell, CrossingFile

#: first generation of which those of one major compute capability run the same code: 10.0 and 10.3
#: are one family, 8.0 and 8.9 are not (CUDA C++ Programming Guide, "Family-Specific Architecture
#: Features")
_FAMILIES_FROM = 100


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
        spent = dict(costs)
        if not same_generation(cell.generation, target.generation):
            spent["few_shot"] = max(spent["few_shot"], spent["generation"])
        cost = hypot(*(spent[name] for name in crossed))
        half = hypot((high - low) / 2, cost)
        found.append((cost, -cell.rows, half, (low + high) / 2, cell, crossed))
    _, _, half, middle, cell, crossed = min(found, key=lambda one: one[:2])
    return Basis(cell=cell, crossed=crossed, low=exp(middle - half), high=exp(middle + half))
