"""Grade a price of expert kernels by what stands behind it.

A grade says how far the price is from measured rows that its calibration was fitted on:

- **A**: this device, format and EP kind (EP = 1 or EP > 1) were fitted, and its errors were scored
  on shapes that the fit left out.
- **B**: this library, format and EP kind were fitted, but on another device of the same generation,
  on ten rows of this device, in another version of the library, or on one shape only.
- **C**: a generation of devices, a format or an EP kind is crossed: nothing was fitted that has it.
- **D**: assumed; no measured row stands behind the price.

The interval of each grade holds what it says as far as crossings cost what they did where they were
measured (`moesim.costs.crossings`): it is wider for a worse grade, but what is never measured may
surprise.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from moesim.costs.calibration import Calibration
from moesim.costs.crossings import Basis

#: grades, best first
LETTERS = ("A", "B", "C", "D")
#: crossings that leave grade B; any other makes it C
_NEAR = frozenset({"device", "few_shot", "version", "shape"})
_WORDS = {
    "device": "another device of the generation",
    "generation": "generation crossed",
    "few_shot": "ten rows of this device",
    "format": "format crossed",
    "ep1": "EP crossed",
    "epn": "EP crossed",
    "version": "version crossed",
    "shape": "one shape only",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Grade:
    """How a price is grounded.

    Attributes:
        letter: ``A`` to ``D``.
        rests_on: What it rests on, in words: ``fitted on 3,159 rows of h100-sxm fp8_block, EP
            crossed``.
        low: P10 of measured / predicted.
        high: P90 of measured / predicted.
    """

    letter: str
    rests_on: str
    low: float
    high: float


#: grade of what has no measured rows behind it: a factor of 1.5 either way
ASSUMED_GRADE = Grade(letter="D", rests_on="assumed: no measured rows", low=1 / 1.5, high=1.5)


def grade_of(calibration: Calibration, fmt: str, ep: int, version: str = "") -> Grade:
    """Return the grade of a price of expert kernels.

    Args:
        calibration: The calibration that prices it, loaded for its device.
        fmt: Format of the weights and tokens as cells name it, such as ``bfloat16`` or
            ``fp8_block``; one that no cell has crosses the format.
        ep: Number of expert-parallel ranks.
        version: Version of the library; empty for the fitted one.
    """
    kind = "epn" if ep > 1 else "ep1"
    if not calibration.cells:
        low, high = calibration.interval(f"{fmt}-{kind}")
        return Grade(letter="D", rests_on="assumed: no measured rows", low=low, high=high)
    return grade_on(calibration.basis(fmt, kind, version))


def grade_on(basis: Basis) -> Grade:
    """Return the grade of a price that rests on a fitted cell and crosses what it crosses."""
    crossed = frozenset(basis.crossed)
    letter = "A" if not crossed else "B" if crossed <= _NEAR else "C"
    cell = basis.cell
    words = [
        f"fitted on {cell.rows:,} rows of {cell.device} {cell.format}",
        *dict.fromkeys(_WORDS[name] for name in basis.crossed),
    ]
    return Grade(letter=letter, rests_on=", ".join(words), low=basis.low, high=basis.high)


def worst(grades: Iterable[Grade]) -> Grade:
    """Return the grade of what rests on several prices: the worst of them, the widest of equals."""
    return max(grades, key=lambda one: (LETTERS.index(one.letter), one.high / one.low))
