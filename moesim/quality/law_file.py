"""Read and write a fitted law as a TOML file, which can be shared without the points."""

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from moesim.files.output import write_file
from moesim.files.texts import read_text
from moesim.files.toml import Strict, parse
from moesim.quality.loss_law import VARIABLES, LossLaw


class _Variable(Strict):
    slope: float
    centre: float = Field(gt=0)
    low: float = Field(gt=0)
    high: float = Field(gt=0)

    @model_validator(mode="after")
    def _ordered(self) -> "_Variable":
        if self.low > self.high:
            raise ValueError(f"@high@a number >= low = {self.low:g}@{self.high:g}")
        return self


class _File(Strict):
    name: str = Field(min_length=1)
    corrects: Literal["joint"]
    digest: str
    num_points: int = Field(ge=1)
    offset: float
    base_nats: float = Field(gt=0)
    E_eff: _Variable
    active_params: _Variable
    train_tokens: _Variable
    granularity: _Variable


def read_law(path: str | Path) -> LossLaw:
    """Read a fitted law.

    Raises:
        ConfigError: The file breaks a rule.
    """
    found = parse(read_text(Path(path)), _File, Path(path).name)
    each = [getattr(found, name) for name in VARIABLES]
    return LossLaw(
        name=found.name,
        offset=found.offset,
        slopes=tuple(v.slope for v in each),
        centre=tuple(v.centre for v in each),
        base_nats=found.base_nats,
        num_points=found.num_points,
        ranges=tuple((name, v.low, v.high) for name, v in zip(VARIABLES, each, strict=True)),
        digest=found.digest,
    )


def save_law(path: str | Path, law: LossLaw) -> Path:
    """Write a fitted law atomically; numbers keep all their digits.

    Raises:
        ConfigError: The file cannot be written.
    """
    path = Path(path)
    lines = [
        (
            "# Added to ln L of the joint law and its step of granularity: offset + sum of slope "
            "x ln(x / centre)."
        ),
        f'name = "{_escaped(law.name)}"',
        'corrects = "joint"',
        f'digest = "{law.digest}"',
        f"num_points = {law.num_points}",
        f"offset = {law.offset!r}",
        f"base_nats = {law.base_nats!r}",
    ]
    for (name, low, high), slope, centre in zip(law.ranges, law.slopes, law.centre, strict=True):
        lines += [
            "",
            f"[{name}]",
            f"slope = {slope!r}",
            f"centre = {centre!r}",
            f"low = {low!r}",
            f"high = {high!r}",
        ]
    return write_file(path, "\n".join(lines) + "\n")


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')
