"""Pick the fitted parameters of a dense price, and say what they rest on.

A calibration of dense prices holds parameters ``LIBRARY_FORMAT_smGENERATION_NAME``: one set for
each serving engine, format and generation (ten times the compute capability) that was fitted, and
one cell for each set. A device takes those of the nearest generation; its own spec sheet says the
rest. A format that was not fitted takes those of one that computes alike, and crosses the format.

Engines run different kernels. One that was not fitted is priced as another, and its interval is
wider by what that costs between engines that were fitted: ``engine_half_width``, half the
logarithmic width of the 80 % interval of one engine's rows priced by another's parameters. Where
only one engine was fitted it is a factor of 1.5 (assumed).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from math import exp, hypot, log

from moesim.costs.calibration import Calibration
from moesim.costs.cells import Cell, crossings
from moesim.costs.crossings import Target, basis_of, same_generation
from moesim.costs.grades import LETTERS, Grade, grade_on
from moesim.errors import ConfigError

#: a dense part knows no expert parallelism: its cells are those of one rank
ONE_RANK = "ep1"
#: what the format of a cell of windowed attention ends with
WINDOW = "_window"
#: parameter of a calibration: what crossing the engine costs
ENGINE_HALF_WIDTH = "engine_half_width"
_ASSUMED_HALF_WIDTH = log(1.5)


@dataclass(frozen=True, slots=True, kw_only=True)
class FittedSet:
    """Parameters of one price.

    Attributes:
        values: Name -> number.
        grade: What they rest on, with the P10 and P90 of measured / predicted.
        generation: Ten times the compute capability of the device that was measured.
    """

    values: Mapping[str, float]
    grade: Grade
    generation: int

    def __getitem__(self, name: str) -> float:
        return self.values[name]


def prefix(version: str, fmt: str, generation: int) -> str:
    """Return what the names of a set's parameters begin with.

    Args:
        version: Version of the serving engine, such as ``sglang/0.5.14``.
        fmt: Format, as cells name it.
        generation: Ten times the compute capability.
    """
    return f"{version.partition('/')[0]}_{fmt}_sm{generation}_"


# a step asks for the same few sets with every layer
@lru_cache(maxsize=512)
def fitted_set(
    calibration: Calibration, fmt: str, *, like: str = "", library: str = ""
) -> FittedSet:
    """Return the parameters of a format on the calibration's device.

    Args:
        calibration: A calibration of dense prices, loaded for the device.
        fmt: Format that is priced.
        like: Format whose parameters serve where ``fmt`` was not fitted.
        library: Serving engine whose kernels run, such as ``vllm`` or ``vllm/0.24.0``; empty for
            any. A version that was not fitted crosses the version, an engine the engine.

    Raises:
        ConfigError: Neither format was fitted.
    """
    cells = _of_format(calibration.cells, fmt) or _of_format(calibration.cells, like)
    if not cells:
        known = ", ".join(dict.fromkeys(cell.format for cell in calibration.cells))
        raise ConfigError(f"{calibration.name}: format: expected one of {known}, got {fmt!r}")
    own = calibration.generation
    near = min(
        (cell.generation for cell in cells),
        key=lambda one: (not same_generation(one, own), abs(one - own), one),
    )
    cells = [cell for cell in cells if cell.generation == near]
    version = _version(cells, library)
    target = Target(
        device=calibration.device,
        generation=own,
        changed=calibration.changed,
        format=fmt,
        ep=ONE_RANK,
        version=version,
    )
    basis = basis_of(cells, target, crossings())
    start = prefix(basis.cell.version, basis.cell.format, near)
    return FittedSet(
        values={
            name.removeprefix(start): value
            for name, value in calibration.parameters.items()
            if name.startswith(start)
        },
        grade=_graded(calibration, grade_on(basis), crossed=bool(library) and not version),
        generation=near,
    )


def _of_format(cells: tuple[Cell, ...], fmt: str) -> list[Cell]:
    return [cell for cell in cells if cell.format == fmt]


def _version(cells: list[Cell], library: str) -> str:
    """Return the version of a serving engine that is priced: the given one, otherwise the fitted
    one; empty if the engine was not fitted.
    """
    engine, _, version = library.partition("/")
    fitted = [c.version for c in cells if c.version.partition("/")[0] == engine]
    if not fitted:
        return ""
    return library if version else fitted[0]


def _graded(calibration: Calibration, grade: Grade, *, crossed: bool) -> Grade:
    """Return a grade, lower and wider if the engine is crossed."""
    if not crossed:
        return grade
    cost = calibration.parameters.get(ENGINE_HALF_WIDTH, _ASSUMED_HALF_WIDTH)
    middle = (log(grade.low) + log(grade.high)) / 2.0
    half = hypot((log(grade.high) - log(grade.low)) / 2.0, cost)
    return replace(
        grade,
        letter=max(grade.letter, "C", key=LETTERS.index),
        rests_on=f"{grade.rests_on}, engine crossed",
        low=exp(middle - half),
        high=exp(middle + half),
    )
