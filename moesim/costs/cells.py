"""Read the cells of rows that a calibration was fitted on, and what crossing from one to another
costs; `moesim.costs.crossings` says how prices use them.
"""

from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from moesim.files import toml
from moesim.files.texts import read_text
from moesim.files.toml import Strict

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
    return toml.parse(read_text(path), CrossingFile, path.name)
