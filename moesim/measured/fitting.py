"""Fit positive parameters robustly, and write the calibration file."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from importlib.resources import files
from pathlib import Path

import numpy as np

from moesim.files.output import write_file
from moesim.version import VERSION

#: name -> (first guess, lowest, highest)
Bounds = dict[str, tuple[float, float, float]]
#: log spread of rows around a model with the right parameters, and of a parameter between devices;
#: of the pairs tried, this one predicts an A100 best from an H100 and ten rows, and the other way
#: round
_ROW_SPREAD, _FACTOR_SPREAD = 0.08, 0.2
_CREATED = re.compile(r'^created = ".*"$', re.MULTILINE)


def few_shot_fit(
    log_errors: Callable[[dict[str, float]], np.ndarray],
    parameters: dict[str, float],
    names: tuple[str, ...],
) -> dict[str, float]:
    """Fit factors of a few parameters to a few rows: the most probable factors, given that they are
    near 1.

    The fit minimizes the soft-L1 loss of log errors over `_ROW_SPREAD` plus the squared log factors
    over `_FACTOR_SPREAD`.

    Args:
        log_errors: Function from parameters to log(predicted / measured), ndarray of shape (N,).
        parameters: The parameters that the factors multiply.
        names: Names of the parameters that get a factor.

    Returns:
        Name -> factor.
    """
    from scipy.optimize import least_squares

    def scaled(x: np.ndarray) -> dict[str, float]:
        return parameters | {
            n: parameters[n] * float(np.exp(v)) for n, v in zip(names, x, strict=True)
        }

    def residuals(x: np.ndarray) -> np.ndarray:
        error = np.abs(log_errors(scaled(x))) / _ROW_SPREAD
        return np.concatenate([np.sqrt(2.0 * (np.sqrt(1.0 + error**2) - 1.0)), x / _FACTOR_SPREAD])

    solution = least_squares(residuals, np.full(len(names), 1e-3), diff_step=1e-2)
    return {n: float(np.exp(v)) for n, v in zip(names, solution.x, strict=True)}


def robust_fit(
    log_errors: Callable[[dict[str, float]], np.ndarray], bounds: Bounds, weights: np.ndarray
) -> dict[str, float]:
    """Minimize a soft-L1 loss of weighted log errors, of scale 0.1: beyond 10 % an error counts
    linearly.

    A parameter on which no row depends keeps its first guess: a minimizer would let rounding choose
    it, and another machine would choose otherwise.

    Args:
        log_errors: Function from parameters to log(predicted / measured), ndarray of shape (N,).
        bounds: First guess and limits of each parameter.
        weights: ndarray of shape (N,): weight of each row, mean 1.

    Returns:
        The fitted parameters.
    """
    from scipy.optimize import least_squares

    guess = {name: bound[0] for name, bound in bounds.items()}
    usual = log_errors(guess)
    free = {
        name: bound
        for name, bound in bounds.items()
        if any(not np.array_equal(usual, log_errors(guess | {name: b})) for b in bound[1:])
    }
    scale = np.array([b[0] for b in free.values()])
    root = np.sqrt(weights)
    solution = least_squares(
        lambda x: root * log_errors(guess | dict(zip(free, x * scale, strict=True))),
        np.ones(len(scale)),
        loss="soft_l1",
        f_scale=0.1,
        diff_step=1e-3,
        bounds=(
            np.array([b[1] for b in free.values()]) / scale,
            np.array([b[2] for b in free.values()]) / scale,
        ),
    )
    return guess | dict(zip(free, (solution.x * scale).tolist(), strict=True))


def _number(value: float) -> str:
    return repr(float(f"{value:.5g}"))


def _text(value: str) -> str:
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _value(value: str | int | float) -> str:
    if isinstance(value, str):
        return _text(value)
    return str(value) if isinstance(value, int) else _number(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """The result of a fit, which becomes a calibration file; see
    `moesim.costs.calibration.CalibrationFile` for its keys.

    Attributes:
        title: What is calibrated, in words.
        fitted_on: The rows it was fitted on, in words.
        sources: Tables from which those rows come.
        profiles: Devices that were fitted.
        generations: Generations of those devices, ten times their compute capabilities.
        parameters: Fitted numbers.
        residuals: Class of rows -> P10 and P90 of measured over predicted, on rows left out.
        cells: Cells of expert kernels, see `moesim.costs.cells.Cell`.
        few_shot_spreads: Device of which ten rows are known -> half the logarithmic width of the
            interval that they leave.
        scores: Class of rows -> errors in percent, on rows left out.
        fit_groups: The groups of rows that were fitted, in words.
        device_factors: Device -> factors of its parameters.
        few_shot_factors: Device of which ten rows are known -> factors of its parameters.
        model: Model that the parameters are of, see `moesim.costs.calibration.Calibration`.
        also_serves: Format -> major compute capabilities that its parameters also serve, though no
            row of them was fitted.
    """

    title: str
    fitted_on: str
    sources: list[str]
    profiles: list[str]
    generations: list[int]
    parameters: dict[str, float]
    scores: dict[str, dict[str, float]]
    fit_groups: list[str]
    residuals: dict[str, dict] = field(default_factory=dict)
    cells: list[dict] = field(default_factory=list)
    few_shot_spreads: dict[str, float] = field(default_factory=dict)
    device_factors: dict[str, dict[str, float]] = field(default_factory=dict)
    few_shot_factors: dict[str, dict[str, float]] = field(default_factory=dict)
    model: str = "waves"
    also_serves: Mapping[str, Sequence[int]] = field(default_factory=dict)


def write_calibration(path: Path, found: Fitted, command: str) -> None:
    """Write a calibration file.

    Args:
        path: The file to write.
        found: The result of the fit.
        command: The command that fits it again.
    """
    lines = [
        f"title = {_text(found.title)}",
        f"created = {_text(date.today().isoformat())}",
        f"moesim_version = {_text(VERSION)}",
        f"command = {_text(command)}",
        f"fitted_on = {_text(found.fitted_on)}",
        "sources = [" + ", ".join(_text(s) for s in found.sources) + "]",
        "calibrated_profiles = [" + ", ".join(_text(p) for p in found.profiles) + "]",
        "calibrated_generations = [" + ", ".join(map(str, found.generations)) + "]",
        "fit_groups = [",
        *(f"  {_text(g)}," for g in found.fit_groups),
        "]",
        *([f"model = {_text(found.model)}"] if found.model != "waves" else []),
        *(
            f"also_serves.{name} = [{', '.join(map(str, majors))}]"
            for name, majors in found.also_serves.items()
        ),
        "",
        "[parameters]",
        *(f"{name} = {_number(value)}" for name, value in found.parameters.items()),
    ]
    for table, devices in (
        ("device_factors", found.device_factors),
        ("few_shot_factors", found.few_shot_factors),
    ):
        for device, factors in devices.items():
            lines += [
                "",
                f"[{table}.{device}]",
                *(f"{name} = {_number(v)}" for name, v in factors.items()),
            ]
    if found.few_shot_spreads:
        lines += [
            "",
            "# half the log width of the 80 % interval, on ten rows left out shape by shape",
            "[few_shot_spreads]",
            *(f"{device} = {_number(half)}" for device, half in found.few_shot_spreads.items()),
        ]
    for name, spread in found.residuals.items():
        lines += [
            "",
            f"# P10 and P90 of measured / predicted on rows left out of the fit: {name}",
            f"[residuals.{name}]",
            f"low = {_number(spread['low'])}",
            f"high = {_number(spread['high'])}",
            f"kind = {_text(spread['kind'])}",
            f"rows = {spread['rows']}",
        ]
    for cell in found.cells:
        lines += [
            "",
            "# low and high: P10 and P90 of measured / predicted on rows left out of the fit",
            "[[cells]]",
            *(f"{key} = {_value(value)}" for key, value in cell.items()),
        ]
    for name, values in found.scores.items():
        lines += [
            "",
            "# percent, on rows left out of the fit",
            f"[scores.{name}]",
            *(f"{key} = {_number(value)}" for key, value in values.items()),
        ]
    write_file(path, _dated(path, lines))


def _dated(path: Path, lines: list[str]) -> str:
    """Return the text of the file, with an old date if only the date differs.

    If the file, or the shipped file of that name, differs only in its date, its text is returned,
    so that refits reproduce it.
    """
    text = "\n".join(lines) + "\n"
    for old in (path, Path(str(files("moesim_hw_profiles"))) / "calibration" / path.name):
        if old.is_file():
            known = old.read_text(encoding="utf-8")
            if _CREATED.sub("", known, count=1) == _CREATED.sub("", text, count=1):
                return known
    return text
