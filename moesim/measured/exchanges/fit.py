"""Fit one measured quantity of a communication kernel: its parameters, factors of devices,
cross-validation.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from moesim.costs.calibration import Calibration, generation_of
from moesim.measured.exchanges.batches import Batch, batches
from moesim.measured.exchanges.table import (
    COLUMNS,
    MEASURED,
    load_family,
    may_fit,
    quantities,
    systems,
)
from moesim.measured.fitting import Bounds, robust_fit
from moesim.measured.scores import error_scores
from moesim.units import US

Parameters = dict[str, float]
#: system -> factors on parameters of that system
Factors = dict[str, dict[str, float]]
Residuals = dict[str, dict[str, Any]]
Scores = dict[str, dict[str, float]]
_FOLDS = 5
#: how residuals say that they come from rows left out of the fit
CROSS_VALIDATED = "cross-validated"
#: the package that measured rows come from, before the name of a table
TABLES = "aiconfigurator-core 0.12, "
#: P90 of a normal distribution over the median of its absolute values
_NORMAL_P90 = 1.9


@dataclass(frozen=True, kw_only=True, eq=False)
class FitQuantity:
    """One measured quantity of one class of rows, ready to be fitted.

    Attributes:
        rows: DataFrame of one family.
        kind: Its class: a collective, a direction or a phase; also the prefix of its parameters.
        bounds: First guess and limits of the parameters, without the prefix.
        fixed: Parameters that are not fitted, without the prefix.
        factors: System -> parameters, without the prefix, for which that system has its own factor.
    """

    rows: Any
    kind: str
    bounds: Bounds
    fixed: Parameters
    factors: dict[str, tuple[str, ...]]

    @cached_property
    def measured(self) -> np.ndarray:
        """The measured seconds: ndarray of shape (rows,)."""
        family = self.rows["family"].iloc[0]
        index = quantities(family).index(self.kind) if self.kind in quantities(family) else 0
        column, us = list(MEASURED[family].items())[index]
        return self.rows[column].to_numpy(dtype=np.float64) * us * US

    def of(self, chosen: np.ndarray) -> "FitQuantity":
        """Return the quantity with only some of its rows; systems without rows lose
        their factors.
        """
        rows = self.rows[chosen].reset_index(drop=True)
        left = set(rows["system"])
        return FitQuantity(
            rows=rows,
            kind=self.kind,
            bounds=self.bounds,
            fixed=self.fixed,
            factors={s: n for s, n in self.factors.items() if s in left and len(left) > 1},
        )

    @cached_property
    def _batches(self) -> list[Batch]:
        return [b for b in batches(self.rows) if b.kind == self.kind]

    def predict(self, parameters: Parameters, factors: Factors) -> np.ndarray:
        """Return the predicted seconds: ndarray of shape (rows,)."""
        out = np.full(len(self.rows), np.nan)
        for batch in self._batches:
            own = {n: v * factors.get(batch.system, {}).get(n, 1.0) for n, v in parameters.items()}
            out[batch.at] = batch.seconds(calibration(own))
        return out

    def fit(self) -> tuple[Parameters, Factors]:
        """Fit parameters and factors; names carry the prefix."""
        extra = {
            f"{system}:{name}": (1.0, 0.3, 4.0)
            for system, names in self.factors.items()
            for name in names
        }
        found = robust_fit(
            lambda p: np.log(self.predict(*self._split(p)) / self.measured),
            self.bounds | extra,
            np.ones(len(self.rows)),
        )
        return self._split(found)

    def _split(self, found: Parameters) -> tuple[Parameters, Factors]:
        parameters = {
            f"{self.kind}_{n}": v for n, v in (found | self.fixed).items() if ":" not in n
        }
        factors: Factors = {}
        for name, value in found.items():
            system, colon, parameter = name.partition(":")
            if colon:
                factors.setdefault(system, {})[f"{self.kind}_{parameter}"] = value
        return parameters, factors

    def cross_validate(self, groups: Sequence | np.ndarray) -> np.ndarray:
        """Return the predicted seconds of each row by a fit to all groups but its own: ndarray of
        shape (rows,).
        """
        groups = np.asarray(groups)
        out = np.empty(len(self.rows))
        for group in np.unique(groups):
            held = groups == group
            out[held] = self.of(held).predict(*self.of(~held).fit())
        return out


def calibration(parameters: Parameters) -> Calibration:
    """Return a calibration that holds only these parameters."""
    return Calibration(name="", parameters=parameters, residuals={}, level="calibrated", digest="")


def fitted_rows(family: str, names: tuple[str, ...] | None = None):
    """Return the rows of a family that may be fitted, with index 0 to N - 1."""
    rows = load_family(family, names)
    return rows[may_fit(rows)].reset_index(drop=True)


def spread(ratios: np.ndarray) -> tuple[float, float]:
    """Return the P10 and P90 of measured / predicted."""
    low, high = np.percentile(ratios, [10, 90])
    return float(low), float(high)


def symmetric_spread(ratios: np.ndarray) -> tuple[float, float]:
    """Return an interval around 1 with 80 % of measured / predicted, for predictions that are too
    low for some rows and too high for others.
    """
    width = float(np.percentile(np.abs(np.log(ratios)), 80))
    return float(np.exp(-width)), float(np.exp(width))


def residual(low_high: tuple[float, float], rows: int, kind: str) -> dict:
    """Return an entry of ``residuals`` for `write_calibration`; its interval always includes 1."""
    return {"low": min(low_high[0], 1.0), "high": max(low_high[1], 1.0), "rows": rows, "kind": kind}


def in_quadrature(one: tuple[float, float], two: tuple[float, float]) -> tuple[float, float]:
    """Combine two independent spreads: their log widths are added in quadrature."""
    low, high = (np.hypot(np.log(a), np.log(b)) for a, b in zip(one, two, strict=True))
    return float(np.exp(-low)), float(np.exp(high))


def release_spread(rows, quantity: FitQuantity) -> tuple[float, float]:
    """Return how far releases of a kernel differ on one device, P10 to P90, from rows that two
    releases have measured.

    Two devices of one generation differ by at least as much. The interval follows from the median
    of the absolute log ratios, assuming that they are normal and that each release has half of
    their variance.
    """
    keys = list(COLUMNS[rows["family"].iloc[0]])
    timed = rows.assign(_seconds=quantity.measured).groupby(keys)["_seconds"]
    twice = timed.agg(["min", "max", "size"])
    twice = twice[twice["size"] > 1]
    width = _NORMAL_P90 / np.sqrt(2.0) * float(np.median(np.log(twice["max"] / twice["min"])))
    return float(np.exp(-width)), float(np.exp(width))


def scores_by(rows, predicted: np.ndarray, measured: np.ndarray, label: Callable) -> Scores:
    """Return scores by class of rows.

    Args:
        rows: DataFrame of the rows.
        predicted: ndarray of shape (rows,): predicted seconds.
        measured: ndarray of shape (rows,): measured seconds.
        label: Function from the DataFrame to the class of each row.
    """
    names = np.asarray(label(rows))
    return {
        str(n): error_scores(predicted[names == n], measured[names == n]) for n in np.unique(names)
    }


def folds(values) -> np.ndarray:
    """Number the distinct values from 0 to 4 in turn: ndarray of int."""
    return np.unique(np.asarray(values), return_inverse=True)[1] % _FOLDS


def generations(*names: str) -> list[int]:
    """Return the generations of systems, ten times their compute capabilities, ascending."""
    return sorted({generation_of(systems()[n].profile) for n in names})
