"""Load calibrated efficiencies: fitted numbers in files that say what they were fitted on.

A calibration file states its parameters, the rows it was fitted on, the command that refits it, the
cross-validated scores, and the P10 and P90 of measured over predicted time, which are the interval
of everything priced with it. A device that it was fitted on is ``calibrated``. A device of which it
knows ten measured rows gets its own factors and is ``few_shot``. Any other device is priced from
its spec sheet and is ``spec_sheet``.

Files of expert kernels list the cells that were fitted; the interval of any other price is wider by
what it crosses (`moesim.costs.crossings`). Files of exchanges have intervals by level: that of a
spec sheet is the one of a device left out of the fit, and wider if its generation (compute
capability) is not one of those fitted.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

from pydantic import Field, model_validator

from moesim.costs.cells import Cell, crossings, crossings_path
from moesim.costs.crossings import Basis, Target, basis_of
from moesim.errors import ConfigError
from moesim.files import toml
from moesim.files.texts import read_text
from moesim.files.toml import Strict
from moesim.hardware import Profile

#: levels that say how far a price can be trusted, weakest first
LEVELS = ("none", "spec_sheet", "few_shot", "calibrated")
#: calibration of SGLang's Triton stack, which GPU profiles name; its prices stand for the kernels
#: beside the experts of any library
BESIDE = "triton-moe"


def weakest(levels: Iterable[str]) -> str:
    """Return the level of a price that rests on several calibrations: the weakest."""
    return min(levels, key=LEVELS.index)


class Residuals(Strict):
    """The spread of measured / predicted on rows left out of the fit."""

    low: float = Field(gt=0)
    high: float = Field(gt=0)
    kind: str
    rows: int = Field(ge=0)

    @model_validator(mode="after")
    def _ordered(self) -> "Residuals":
        if self.low > self.high:
            raise ValueError(f"@high@a number >= low = {self.low}@{self.high}")
        return self


class CalibrationFile(Strict):
    """A calibration as written in ``hw_profiles/calibration/NAME.toml``."""

    title: str
    created: str
    moesim_version: str
    command: str
    fitted_on: str
    sources: list[str]
    calibrated_profiles: list[str]
    calibrated_generations: list[int] = []
    model: Literal["waves", "tiles", "fused"] = "waves"
    parameters: dict[str, float]
    device_factors: dict[str, dict[str, float]] = {}
    few_shot_factors: dict[str, dict[str, float]] = {}
    residuals: dict[str, Residuals] = {}
    cells: list[Cell] = []
    also_serves: dict[str, list[int]] = {}
    few_shot_spreads: dict[str, float] = {}
    scores: dict[str, dict[str, float]] = {}
    fit_groups: list[str] = []


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Calibration:
    """The parameters of a cost model for one device.

    Attributes:
        name: Name of the file it came from.
        parameters: Fitted numbers, already multiplied by the device's factors.
        residuals: Class of kernel -> (P10, P90) of measured / predicted at this level.
        level: ``calibrated``, ``few_shot`` or ``spec_sheet``.
        model: Which model of a GPU's kernels the parameters are of: ``waves`` of one tile,
            ``tiles``, or ``fused``, a library priced as a whole.
        digest: First 12 hex digits of the SHA-256 of the file, and of the costs of crossings if it
            lists cells.
        cells: What kernels were fitted on, if the file lists it.
        also_serves: Format -> major compute capabilities that its parameters also serve, though no
            row of them was fitted.
        device: Name of the device profile.
        generation: Ten times its compute capability.
        changed: Whether the device is a profile's with other figures.
        few_shot_spread: Half the logarithmic width that ten rows of the device left; None if the
            parameters rest on no such rows.
    """

    name: str
    parameters: dict[str, float]
    residuals: dict[str, tuple[float, float]]
    level: str
    digest: str
    model: str = "waves"
    cells: tuple[Cell, ...] = ()
    also_serves: Mapping[str, Sequence[int]] = field(default_factory=dict)
    device: str = ""
    generation: int = 0
    changed: bool = False
    few_shot_spread: float | None = None

    @property
    def measured(self) -> bool:
        """Whether measured rows stand behind the parameters; otherwise they are assumed."""
        return bool(self.residuals or self.cells)

    def interval(self, kind: str, version: str = "") -> tuple[float, float]:
        """Return the P10 and P90 of measured / predicted for a class of kernel.

        A class of exchanges that was never scored gets the widest known interval. Without any
        residuals the interval is a factor of 1.5 either way (assumed).

        Args:
            kind: Class of an exchange; of expert kernels the format and EP kind, such as
                ``bfloat16-epn``. A format that no row has is one that was crossed.
            version: Version of the library, such as ``sglang/0.5.14``; empty for that of the fit.
        """
        if self.cells:
            fmt, _, ep = kind.rpartition("-")
            found = self.basis(fmt, ep, version)
            return found.low, found.high
        if kind in self.residuals:
            return self.residuals[kind]
        low, high = (
            zip(*self.residuals.values(), strict=True) if self.residuals else ((1 / 1.5,), (1.5,))
        )
        return min(low), max(high)

    def basis(self, fmt: str, ep: str, version: str = "") -> Basis:
        """Return what a price of expert kernels rests on, what it crosses, and its interval.

        Args:
            fmt: Format of the weights and tokens, as cells name it, such as ``fp8_block``.
            ep: ``ep1`` or ``epn`` (EP > 1).
            version: Version of the library; empty for that of the fit.

        Raises:
            ConfigError: The calibration lists no cells.
        """
        if not self.cells:
            raise ConfigError(f"{self.name}: cells: expected at least one, got none")
        target = Target(
            device=self.device,
            generation=self.generation,
            changed=self.changed,
            few_shot=self.few_shot_spread,
            format=fmt,
            ep=ep,
            version=version,
        )
        return basis_of(self.cells, target, crossings())

    def __getitem__(self, parameter: str) -> float:
        try:
            return self.parameters[parameter]
        except KeyError:
            raise ConfigError(
                f"{self.name}: parameters.{parameter}: expected a number, got nothing"
            ) from None


@lru_cache(maxsize=256)
def _load(
    path: str, modified_ns: int, device: str, generation: int, few_shot: bool, changed: bool
) -> Calibration:
    file_path = toml.Path(path)
    text = read_text(file_path)
    file = toml.parse(text, CalibrationFile, file_path.name)
    factors = dict(file.device_factors.get(device, {}))
    level = "calibrated" if device in file.calibrated_profiles else "spec_sheet"
    if few_shot and device in file.few_shot_factors:
        level = "few_shot"
        factors |= file.few_shot_factors[device]
    # the device's factors still describe it best, but nobody measured it with these numbers
    if changed:
        level = "spec_sheet"
    near = level == "calibrated" or generation in file.calibrated_generations
    # ten rows moved the parameters, but they cannot tell the residuals on another generation,
    # unless devices of different generations were fitted and each was predicted from the other and
    # ten rows
    prefix = f"{level}-" if near else "other_generation-"
    if not near and any(k.startswith(f"other_generation_{level}-") for k in file.residuals):
        prefix = f"other_generation_{level}-"
    described = text
    if file.cells:
        described += read_text(crossings_path())
    return Calibration(
        name=file_path.stem,
        parameters={k: v * factors.get(k, 1.0) for k, v in file.parameters.items()},
        residuals={
            k.removeprefix(prefix): (r.low, r.high)
            for k, r in file.residuals.items()
            if k.startswith(prefix)
        },
        level=level,
        digest=hashlib.sha256(described.encode()).hexdigest()[:12],
        model=file.model,
        cells=tuple(file.cells),
        also_serves=file.also_serves,
        device=device,
        generation=generation,
        changed=changed,
        few_shot_spread=file.few_shot_spreads.get(device, 0.0) if level == "few_shot" else None,
    )


def generation_of(profile: Profile) -> int:
    """Return ten times the compute capability (80 for A100, 90 for H100 and H200), or 0 without
    one.
    """
    return round(10 * (profile.compute_capability or 0))


def load_calibration(name: str, profile: Profile, *, few_shot: bool = True) -> Calibration:
    """Load a calibration for a device profile.

    Args:
        name: Name or path of the calibration file.
        profile: The device; it decides the factors, the level and the intervals.
        few_shot: Whether to use factors from a few measured rows of the device, where the file has
            them.

    Raises:
        ConfigError: There is no such file, or it is malformed.
    """
    path = toml.find("calibration", name)
    generation = generation_of(profile)
    return _load(
        str(path), toml.modified_ns(path), profile.name, generation, few_shot, bool(profile.growth)
    )
