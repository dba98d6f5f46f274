"""What a search may ask for: objectives to improve, and constraints to keep.

All are columns of a trial's row. Those of the MoE layer say so in their names: what the layer
takes, draws and costs, not the whole model; ``loss`` and ``peak_memory_gib`` are the whole model's.
"""

import math
import operator
import re
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from moesim.errors import ConfigError, UnknownNameError
from moesim.hardware import Cluster
from moesim.hardware.economics import Economics
from moesim.units import US

Direction = Literal["minimize", "maximize"]
#: objective -> direction
OBJECTIVES: dict[str, Direction] = {
    "loss": "minimize",
    "layer_tokens_per_s_per_device": "maximize",
    "layer_time_us": "minimize",
    "layer_joules_per_token": "minimize",
    "layer_usd_per_million_tokens": "minimize",
    "peak_memory_gib": "minimize",
    "watts_per_device": "minimize",
    "usd_per_hour": "minimize",
}
#: what a constraint may bound beside objectives
_BOUNDED = ("loss_high", "layer_time_high_us", "load_imbalance", "dropped_token_fraction")
_SIGNS = {"<=": operator.le, ">=": operator.ge}


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraint:
    """A bound on a column.

    Attributes:
        name: Column.
        sign: ``<=`` or ``>=``.
        bound: Number.
    """

    name: str
    sign: str
    bound: float

    @classmethod
    def parse(cls, text: str) -> "Constraint":
        """Read ``layer_time_us <= 500``.

        Raises:
            UnknownNameError: A column that cannot be bounded.
            ConfigError: Another form.
        """
        match = re.fullmatch(r"\s*(\w+)\s*(<=|>=)\s*(\S+)\s*", text)
        try:
            bound = float(match[3]) if match else math.nan
        except ValueError:
            bound = math.nan
        if match is None or not math.isfinite(bound):
            raise ConfigError(
                f"constraint: expected 'NAME <= NUMBER' or 'NAME >= NUMBER', got {text!r}"
            )
        if match[1] not in (*OBJECTIVES, *_BOUNDED):
            raise UnknownNameError("constraint", match[1], (*OBJECTIVES, *_BOUNDED))
        return cls(name=match[1], sign=match[2], bound=bound)

    def violation(self, value: float | np.ndarray) -> float | np.ndarray:
        """By how much of the bound a value breaks it; <= 0 where it is kept. NaN breaks every
        bound.
        """
        over = (value - self.bound if self.sign == "<=" else self.bound - value) / max(
            abs(self.bound), 1e-12
        )
        return (
            np.where(np.isnan(over), np.inf, over)
            if isinstance(over, np.ndarray)
            else (math.inf if math.isnan(over) else over)
        )

    def __str__(self) -> str:
        return f"{self.name} {self.sign} {self.bound:g}"


def check_objectives(objectives: list[str]) -> None:
    """Refuse unknown objectives.

    Raises:
        ConfigError: None at all, or one twice.
        UnknownNameError: With the near matches.
    """
    if not objectives:
        raise ConfigError(
            f"study: expected at least one objective of {', '.join(OBJECTIVES)}, got none"
        )
    for name in objectives:
        if name not in OBJECTIVES:
            raise UnknownNameError("objective", name, OBJECTIVES)
    if len(set(objectives)) < len(objectives):
        raise ConfigError(f"study: expected each objective once, got {', '.join(objectives)}")


def costs_of(objectives: list[str], columns: Any) -> list:
    """Values of the objectives, signed so that less is better.

    Args:
        objectives: Names.
        columns: Mapping of columns, numbers or arrays.
    """
    return [
        columns[name] if OBJECTIVES[name] == "minimize" else -columns[name] for name in objectives
    ]


def check_priced(names: list[str], economics: Economics, cluster: Cluster) -> None:
    """Refuse objectives or constraints of energy or cost for which the model has no figure.

    Raises:
        ConfigError: Which device, and where to write its figure.
    """
    if {"layer_joules_per_token", "watts_per_device"} & set(names):
        economics.watts(cluster, {})
    if {"layer_usd_per_million_tokens", "usd_per_hour"} & set(names):
        economics.usd_per_hour(cluster)


def layer_columns(layer_time_s: Any, tokens_per_device: int) -> dict[str, Any]:
    """Columns of time, of one simulated layer or of arrays of them."""
    return {
        "layer_time_us": layer_time_s / US,
        "layer_tokens_per_s_per_device": tokens_per_device / layer_time_s,
    }
