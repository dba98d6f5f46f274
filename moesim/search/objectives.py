"""Objectives that a search may improve, and constraints that it may keep.

All are columns of a trial's row. Columns about the time, energy and cost of the MoE layer alone say
so in their names; ``loss`` and ``peak_memory_gib`` are about the whole model.
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
#: columns that a constraint may bound in addition to the objectives
_BOUNDED = ("loss_high", "layer_time_high_us", "load_imbalance", "dropped_token_fraction")
_SIGNS = {"<=": operator.le, ">=": operator.ge}


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraint:
    """A constraint is a bound on a column.

    Attributes:
        name: The column.
        sign: ``<=`` or ``>=``.
        bound: The number.
    """

    name: str
    sign: str
    bound: float

    @classmethod
    def parse(cls, text: str) -> "Constraint":
        """Read ``layer_time_us <= 500``.

        Raises:
            UnknownNameError: The column cannot be bounded.
            ConfigError: The text has another form.
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
        """Return the amount by which a value violates the bound, as a share of the bound.

        It is <= 0 where the bound holds. NaN violates every bound.
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
        ConfigError: There is no objective, or one comes twice.
        UnknownNameError: A name is unknown; the text lists near matches.
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
    """Return the values of the objectives, signed so that less is better.

    Args:
        objectives: Names of the objectives.
        columns: Column -> number or array.
    """
    return [
        columns[name] if OBJECTIVES[name] == "minimize" else -columns[name] for name in objectives
    ]


def check_priced(names: list[str], economics: Economics, cluster: Cluster) -> None:
    """Refuse objectives or constraints of energy or cost for which the model has no figure.

    Raises:
        ConfigError: A figure is missing; the text names the device and where to write it.
    """
    if {"layer_joules_per_token", "watts_per_device"} & set(names):
        economics.watts(cluster, {})
    if {"layer_usd_per_million_tokens", "usd_per_hour"} & set(names):
        economics.usd_per_hour(cluster)


def layer_columns(layer_time_s: Any, tokens_per_device: int) -> dict[str, Any]:
    """Return the columns of time for one simulated layer or for arrays of layers."""
    return {
        "layer_time_us": layer_time_s / US,
        "layer_tokens_per_s_per_device": tokens_per_device / layer_time_s,
    }
