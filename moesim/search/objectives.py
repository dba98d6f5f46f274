"""Objectives that a search may improve, and constraints that it may keep.

All are columns of a trial's row. A search over MoE layers has `OBJECTIVES`, one over whole models
that are served `WHOLE_OBJECTIVES`, one over training runs `TRAINING_OBJECTIVES`. Of the first,
columns about the time, energy and cost of the layer alone say so in their names; ``loss`` and
``peak_memory_gib`` are about the whole model.
"""

import math
import operator
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from moesim.errors import ConfigError, UnknownNameError
from moesim.hardware import Cluster
from moesim.hardware.economics import Economics
from moesim.units import US

Direction = Literal["minimize", "maximize"]
#: objective of MoE layers -> direction
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
#: objective of whole models -> direction; tokens are those of answers
WHOLE_OBJECTIVES: dict[str, Direction] = {
    "tokens_per_s_per_device": "maximize",
    "tokens_per_s_per_user": "maximize",
    "ttft_ms": "minimize",
    "tpot_ms": "minimize",
    "joules_per_million_tokens": "minimize",
    "usd_per_million_tokens": "minimize",
    "compression_loss_delta": "minimize",
}
#: objective of training runs -> direction; days and price are those of the whole run
TRAINING_OBJECTIVES: dict[str, Direction] = {
    "loss": "minimize",
    "train_days": "minimize",
    "train_usd": "minimize",
    "tokens_per_s_per_device": "maximize",
    "mfu": "maximize",
    "peak_memory_gib": "minimize",
}
#: objective -> how a value of it reads
_READS = {
    "loss": "loss {:.3f}",
    "layer_tokens_per_s_per_device": "{:,.0f} tokens/s per device through a layer",
    "layer_time_us": "{:,.0f} us per layer",
    "layer_joules_per_token": "{:.3g} J per token and layer",
    "layer_usd_per_million_tokens": "USD {:.3g} per million tokens and layer",
    "peak_memory_gib": "{:,.1f} GiB of memory",
    "watts_per_device": "{:,.0f} W per device",
    "usd_per_hour": "USD {:,.2f} per hour",
    "tokens_per_s_per_device": "{:,.0f} tokens/s per device",
    "tokens_per_s_per_user": "{:,.1f} tokens/s per user",
    "ttft_ms": "TTFT {:,.0f} ms",
    "tpot_ms": "TPOT {:,.1f} ms",
    "joules_per_million_tokens": "{:,.0f} J per million tokens",
    "usd_per_million_tokens": "USD {:,.3g} per million tokens",
    "compression_loss_delta": "loss {:+.3g} by compression",
    "train_days": "{:,.1f} days",
    "train_usd": "USD {:,.0f}",
    "mfu": "MFU {:.1%}",
}
#: what is searched -> its objectives
_KINDS: dict[str, Mapping[str, Direction]] = {
    "MoE layers": OBJECTIVES,
    "whole models": WHOLE_OBJECTIVES,
    "training runs": TRAINING_OBJECTIVES,
}
#: every objective -> direction
DIRECTIONS = OBJECTIVES | WHOLE_OBJECTIVES | TRAINING_OBJECTIVES
#: columns that a constraint may bound in addition to the objectives
BOUNDED = ("loss_high", "layer_time_high_us", "load_imbalance", "dropped_token_fraction")
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
    def parse(cls, text: str, known: Iterable[str] = (*OBJECTIVES, *BOUNDED)) -> "Constraint":
        """Read ``layer_time_us <= 500``.

        Args:
            text: The constraint.
            known: Columns that it may bound.

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
        known = tuple(known)
        if match[1] not in known:
            raise UnknownNameError("constraint", match[1], known)
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


def violated(constraints: Iterable[Constraint], row: Mapping[str, Any]) -> dict[str, float]:
    """Return by how much a row violates each constraint; a column without a value violates it."""
    return {
        str(constraint): float(
            constraint.violation(
                math.nan if row[constraint.name] is None else float(row[constraint.name])
            )
        )
        for constraint in constraints
    }


def check_objectives(objectives: list[str], known: Mapping[str, Direction] = OBJECTIVES) -> None:
    """Refuse objectives that a search does not have.

    Args:
        objectives: Their names.
        known: Those that it has.

    Raises:
        ConfigError: There is no objective, one comes twice, or one is of the other kind of search.
        UnknownNameError: A name is unknown; the text lists near matches.
    """
    if not objectives:
        raise ConfigError(f"study: expected at least one objective of {', '.join(known)}, got none")
    for name in objectives:
        if name in known:
            continue
        if name in DIRECTIONS:
            here = next(kind for kind, its in _KINDS.items() if its == known)
            there = next(kind for kind, its in _KINDS.items() if name in its)
            raise ConfigError(
                f"study: expected objectives of {here} ({', '.join(known)}), which is what the "
                f"space holds, got {name!r}, one of {there}"
            )
        raise UnknownNameError("objective", name, known)
    if len(set(objectives)) < len(objectives):
        raise ConfigError(f"study: expected each objective once, got {', '.join(objectives)}")


def costs_of(objectives: list[str], columns: Any) -> list:
    """Return the values of the objectives, signed so that less is better.

    Args:
        objectives: Names of the objectives.
        columns: Column -> number or array.
    """
    return [
        columns[name] if DIRECTIONS[name] == "minimize" else -columns[name] for name in objectives
    ]


def in_words(objectives: Iterable[str], row: Mapping[str, Any]) -> str:
    """Return the objectives of a row with their units, such as ``loss 1.98, 20.0 days``."""
    return ", ".join(_READS[name].format(row[name]) for name in objectives)


def check_priced(names: list[str], economics: Economics, cluster: Cluster) -> None:
    """Refuse objectives or constraints of energy or cost for which the model has no figure.

    Raises:
        ConfigError: A figure is missing; the text names the device and where to write it.
    """
    if {"layer_joules_per_token", "watts_per_device", "joules_per_million_tokens"} & set(names):
        economics.watts(cluster, {})
    if {
        "layer_usd_per_million_tokens",
        "usd_per_hour",
        "usd_per_million_tokens",
        "train_usd",
    } & set(names):
        economics.usd_per_hour(cluster)


def layer_columns(layer_time_s: Any, tokens_per_device: int) -> dict[str, Any]:
    """Return the columns of time for one simulated layer or for arrays of layers."""
    return {
        "layer_time_us": layer_time_s / US,
        "layer_tokens_per_s_per_device": tokens_per_device / layer_time_s,
    }
