"""Fit the kernel cost model's parameters to measured rows: ``moesim calibrate kernels``.

One file per framework, since sglang's and vLLM's kernels differ in more than their tiles (and
vLLM's benchmark includes the router's top-k): the simulator prices with sglang's, ``triton-moe``;
``triton-moe-vllm`` predicts vLLM's rows. Only rows of the groups in
``hw_profiles/silicon/fit_groups.csv`` (A100 and H100) are used, none under 50 us; every other row
of the package stays for scoring. The fit is robust; the scores and the P10 and P90 that become
intervals come from cross validation that leaves out whole shapes. Refitting draws the same rows
again and gives the same file.
"""

import csv
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from moesim.costs.calibration import Calibration, generation_of
from moesim.costs.devices.gpu import WaveKernels
from moesim.errors import UnknownNameError
from moesim.hardware import load_profile
from moesim.measured.fitting import Bounds, Fitted, few_shot_fit, robust_fit, write_calibration
from moesim.measured.kernels import table as silicon
from moesim.measured.kernels.draws import RowDraws, draw_rows
from moesim.measured.scores import error_scores

#: what they mean is in `moesim.costs.devices.gpu`
BOUNDS: Bounds = {
    "mma_efficiency": (0.9, 0.5, 1.0),
    "iteration_overhead_cycles": (146.0, 1.0, 600.0),
    "block_scale_iteration_cycles": (300.0, 1.0, 1200.0),
    "tile_overhead_cycles": (250.0, 1.0, 5000.0),
    "load_latency_cycles": (1300.0, 200.0, 4000.0),
    "warm_latency_saving": (0.5, 0.01, 0.9),
    "weight_bandwidth_efficiency": (0.95, 0.4, 1.0),
    "short_row_efficiency": (0.75, 0.3, 1.0),
    "activation_bandwidth_efficiency": (0.63, 0.2, 1.0),
    "overlap_loss": (0.25, 0.01, 1.0),
    "idle_block_cycles": (300.0, 1.0, 3000.0),
    "masked_block_cycles": (100.0, 1.0, 10000.0),
    "kernel_launch_cycles": (5000.0, 500.0, 20000.0),
    "misaligned_factor": (2.0, 1.0, 6.0),
    "a100_launch": (1.1, 0.5, 3.0),
}
#: parameter of the fit -> device profile and the parameter it multiplies there: what clocks do not
#: explain
_DEVICE_FACTORS = {"a100_launch": ("a100-sxm", "kernel_launch_cycles")}
FLOOR_MS = 0.05
FRAMEWORKS = ("sglang", "vllm")
SHAPE = ("hidden_size", "inter_size", "topk", "num_experts")
_GROUP = ("system", "dataset", "kernel_source", "moe_dtype", *SHAPE)
#: what ten rows of a device may correct: what differs between chips beyond their spec sheets
FEW_SHOT = (
    "iteration_overhead_cycles",
    "weight_bandwidth_efficiency",
    "activation_bandwidth_efficiency",
    "kernel_launch_cycles",
)
_FOLDS, _ROWS_PER_GROUP, _FEW, _SEED = 5, 200, 10, 0
_RESIDUAL_KINDS = {
    "calibrated": "cross-validated by shape",
    "spec_sheet": "device left out of the fit",
    "few_shot": "device left out of the fit but for ten rows",
    "other_generation": "device left out of the fit, and a bias like theirs",
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FitGroup:
    """Measured rows of one shape on one system, drawn and ready to be priced.

    Attributes:
        system: Such as ``h100_sxm``.
        precision: ``bfloat16`` or ``fp8_block``.
        shape: (hidden, width, top_k, experts).
        draws: Their histograms.
        spread: ndarray of shape (rows,), bool: whether the row has EP > 1.
        measured_s: ndarray of shape (rows,).
    """

    system: str
    precision: str
    shape: tuple[int, ...]
    draws: RowDraws
    spread: np.ndarray
    measured_s: np.ndarray

    def few(self, seed: int) -> "FitGroup":
        """One row of the group, drawn."""
        chosen = int(np.random.default_rng(seed).integers(len(self.measured_s)))
        return replace(
            self,
            draws=self.draws.only(chosen),
            spread=self.spread[[chosen]],
            measured_s=self.measured_s[[chosen]],
        )


#: groups with the predicted seconds of their rows
Predictions = list[tuple[FitGroup, np.ndarray]]


@cache
def fit_groups() -> dict[tuple, str]:
    """(system, dataset, kernel, precision, *shape) -> which moe_ep_size may be fitted: ``any`` or a
    number.
    """
    with (files("moesim_hw_profiles") / "silicon" / "fit_groups.csv").open(
        encoding="utf-8"
    ) as handle:
        return {
            tuple(int(row[c]) if c in SHAPE else row[c] for c in _GROUP): row["ep"]
            for row in csv.DictReader(handle)
        }


def may_fit(row: dict) -> bool:
    """Whether a measured row belongs to the groups that may be fitted, or is one of the few-shot
    rows.
    """
    ep = fit_groups().get(tuple(row[c] for c in _GROUP))
    if ep is not None and (ep == "any" or int(ep) == row["moe_ep_size"]):
        return True
    return tuple(row[c] for c in silicon.COLUMNS) in _few_shot_keys()


@cache
def _few_shot_keys() -> set[tuple]:
    return {tuple(row[c] for c in silicon.COLUMNS) for row in few_shot_rows()}


def few_shot_rows() -> list[dict[str, Any]]:
    """The rows of ``few_shot_rows.csv``: ten measured rows of each device that has factors of its
    own.
    """
    with (files("moesim_hw_profiles") / "silicon" / "few_shot_rows.csv").open(
        encoding="utf-8"
    ) as handle:
        return [
            {k: int(v) if v.isdigit() else v for k, v in row.items()}
            for row in csv.DictReader(handle)
        ]


def collect(framework: str) -> list[FitGroup]:
    """Read and draw up to 200 rows of each group of a framework that may be fitted, none under 50
    us.

    Raises:
        MeasurementError: The extra ``silicon`` is not installed.
    """
    groups = []
    for key, ep in fit_groups().items():
        item = dict(zip(_GROUP, key, strict=True))
        if not item["dataset"].startswith(framework):
            continue
        table = silicon.load_rows(item["system"], item["dataset"])
        table = table[table["latency_ms"] >= FLOOR_MS]
        for column in ("kernel_source", "moe_dtype", *SHAPE):
            table = table[table[column] == item[column]]
        if ep != "any":
            table = table[table["moe_ep_size"] == int(ep)]
        table = table.sample(min(_ROWS_PER_GROUP, len(table)), random_state=_SEED)
        groups.append(_group(table.to_dict("records")))
    return groups


def _group(rows: list[dict]) -> FitGroup:
    first = rows[0]
    return FitGroup(
        system=first["system"],
        precision=first["moe_dtype"],
        shape=tuple(first[c] for c in SHAPE),
        draws=draw_rows(rows, load_profile(first["system"])),
        spread=np.array([r["moe_ep_size"] > 1 for r in rows]),
        measured_s=np.array([float(r["latency_ms"]) for r in rows]) * 1e-3,
    )


def predict(group: FitGroup, parameters: dict[str, float]) -> np.ndarray:
    """Predicted seconds of a group's rows: ndarray of shape (rows,)."""
    profile = load_profile(group.system)
    own = dict(parameters)
    for name, (device, scaled) in _DEVICE_FACTORS.items():
        if device == profile.name:
            own[scaled] *= own[name]
    calibration = Calibration(name="", parameters=own, residuals={}, level="calibrated", digest="")
    return group.draws.price(WaveKernels(profile=profile, calibration=calibration))


def fit(groups: list[FitGroup]) -> dict[str, float]:
    """Fit all parameters; every class of system, precision and EP = 1 or more weighs alike."""
    labels = np.concatenate([[f"{g.system} {g.precision} {s}" for s in g.spread] for g in groups])
    _, of_row, count = np.unique(labels, return_inverse=True, return_counts=True)
    weights = (len(labels) / len(count) / count)[of_row]
    return robust_fit(lambda p: _log_errors(groups, p), BOUNDS, weights)


def _log_errors(groups: list[FitGroup], parameters: dict[str, float]) -> np.ndarray:
    return np.concatenate([np.log(predict(g, parameters) / g.measured_s) for g in groups])


def cross_validate(groups: list[FitGroup]) -> Predictions:
    """Each group by a fit that saw none of its shape (five folds over whole shapes)."""
    shapes = sorted({g.shape for g in groups})
    out: Predictions = []
    for fold in range(_FOLDS):
        held = set(shapes[fold::_FOLDS])
        parameters = fit([g for g in groups if g.shape not in held])
        out += [(g, predict(g, parameters)) for g in groups if g.shape in held]
    return out


def few_shot_factors(rows: list[FitGroup], parameters: dict[str, float]) -> dict[str, float]:
    """Factors of one device from a few rows of it."""
    return few_shot_fit(lambda p: _log_errors(rows, p), parameters, FEW_SHOT)


def leave_device_out(groups: list[FitGroup]) -> tuple[Predictions, Predictions]:
    """Each device by a fit that saw none of its rows: as it is, and with ten rows of it (bf16, as
    in few-shot mode).

    One device only leaves nothing to fit on: both are empty.
    """
    by_spec_sheet: Predictions = []
    by_ten_rows: Predictions = []
    for system in sorted({g.system for g in groups}):
        others, own = (
            [g for g in groups if g.system != system],
            [g for g in groups if g.system == system],
        )
        if not others:
            continue
        parameters = fit(others)
        by_spec_sheet += [(g, predict(g, parameters)) for g in own]
        known = [g.few(_SEED + i) for i, g in enumerate(own) if g.precision == "bfloat16"]
        factors = few_shot_factors(known[:_FEW], parameters)
        scaled = parameters | {n: parameters[n] * f for n, f in factors.items()}
        by_ten_rows += [(g, predict(g, scaled)) for g in own]
    return by_spec_sheet, by_ten_rows


def few_shot_groups() -> dict[str, FitGroup]:
    """The few-shot rows by system, ready to be priced."""
    rows = few_shot_rows()
    return {
        system: _group([r for r in rows if r["system"] == system])
        for system in sorted({r["system"] for r in rows})
    }


def all_residuals(
    held_out: Predictions, elsewhere: Predictions, with_ten: Predictions
) -> dict[str, dict]:
    """Intervals of all three levels.

    Only one device has fp8 rows that may be fitted, so none can be left out: its interval away from
    home is the cross-validated one, widened as much as bf16's is.
    """
    out = residual_classes("calibrated", held_out)
    for level, predictions in (("spec_sheet", elsewhere), ("few_shot", with_ten)):
        away = residual_classes(
            level, [(g, p) for g, p in predictions if g.precision == "bfloat16"]
        )
        home = residual_classes(
            "calibrated", [(g, p) for g, p in held_out if g.precision == "bfloat16"]
        )
        out |= away
        for name, cls in residual_classes("calibrated", held_out).items():
            if "fp8" not in name:
                continue
            twin = name.replace("fp8_block", "bfloat16")
            reference = away.get(twin.replace("calibrated", level)), home.get(twin)
            if reference[0] and reference[1]:
                wider = {
                    end: cls[end] * reference[0][end] / reference[1][end] for end in ("low", "high")
                }
                out[name.replace("calibrated", level)] = (
                    cls
                    | wider
                    | {
                        "kind": (
                            "cross-validated by shape, widened as bfloat16 is from device to device"
                        )
                    }
                )
    return out


def other_generation(elsewhere: Predictions) -> dict[str, dict]:
    """Intervals on a device of another generation than those fitted: its bias is drawn like theirs.

    Each device left out has a median log error of its own; their root mean square is the spread s
    of biases, and the 80 % interval of the next device's bias is t s sqrt(1 + 1 / n), t from
    Student's distribution with n - 1 degrees of freedom (n = 2 devices: wide, as it must be). Added
    in quadrature to the spread of rows within a device.
    """
    from scipy.stats import t

    rows = [(g, p) for g, p in elsewhere if g.precision == "bfloat16"]
    systems = sorted({g.system for g, _ in rows})
    medians = [
        np.median(np.concatenate([np.log(g.measured_s / p) for g, p in rows if g.system == s]))
        for s in systems
    ]
    count = len(systems)
    bias = t.ppf(0.9, max(count - 1, 1)) * float(
        np.sqrt(np.mean(np.square(medians)) * (1 + 1 / count))
    )
    out = {}
    for name, cls in residual_classes("other_generation", rows).items():
        low, high = np.log(cls["low"]), np.log(cls["high"])
        middle = (low + high) / 2
        half = float(np.hypot((high - low) / 2, bias))
        for precision in ("bfloat16", "fp8_block"):
            out[name.replace("bfloat16", precision)] = cls | {
                "low": float(np.exp(middle - half)),
                "high": float(np.exp(middle + half)),
            }
    return out


def residual_classes(level: str, predictions: Predictions) -> dict[str, dict]:
    """P10 and P90 of measured / predicted by class: ``LEVEL-PRECISION-ep1`` and ``-epn``."""
    out = {}
    for precision in sorted({g.precision for g, _ in predictions}):
        for spread, name in ((False, "ep1"), (True, "epn")):
            ratio = np.concatenate(
                [
                    (g.measured_s / p)[g.spread == spread]
                    for g, p in predictions
                    if g.precision == precision
                ]
            )
            if len(ratio):
                low, high = np.percentile(ratio, [10, 90])
                out[f"{level}-{precision}-{name}"] = {
                    "low": low,
                    "high": high,
                    "rows": len(ratio),
                    "kind": _RESIDUAL_KINDS[level],
                }
    return out


def calibrate(path: Path, framework: str = "sglang") -> dict[str, dict[str, float]]:
    """Fit, cross-validate and write a framework's calibration file; returns the cross-validated
    scores by class.

    Raises:
        UnknownNameError: A framework other than sglang and vllm.
        MeasurementError: The extra ``silicon`` is not installed.
    """
    if framework not in FRAMEWORKS:
        raise UnknownNameError("framework", framework, FRAMEWORKS)
    groups = collect(framework)
    held_out = cross_validate(groups)
    # one device alone cannot say how it transfers: the other framework's devices do
    elsewhere, with_ten = leave_device_out(collect(FRAMEWORKS[0]))
    fitted = fit(groups)
    profiles = sorted({g.system.replace("_", "-") for g in groups})
    parameters = {name: value for name, value in fitted.items() if name not in _DEVICE_FACTORS}
    few = (
        {}
        if framework != FRAMEWORKS[0]
        else {
            system.replace("_", "-"): few_shot_factors([g], fitted)
            for system, g in few_shot_groups().items()
        }
    )
    scores = {}
    for system, precision in sorted({(g.system, g.precision) for g in groups}):
        chosen = [(g, p) for g, p in held_out if (g.system, g.precision) == (system, precision)]
        scores[f"{system.replace('_', '-')}-{precision}"] = error_scores(
            np.concatenate([p for _, p in chosen]),
            np.concatenate([g.measured_s for g, _ in chosen]),
        )
    own = {key: ep for key, ep in fit_groups().items() if key[1].startswith(framework)}
    found = Fitted(
        title=(
            f"{framework}'s Triton fused MoE kernels: waves of tiles, weight and activation streams"
        ),
        fitted_on=f"{sum(len(g.measured_s) for g in groups)} rows of {len(groups)} shape groups, "
        f"at most {_ROWS_PER_GROUP} of each, none under 50 us; few-shot factors: ten rows of "
        "the device each",
        sources=[
            (
                "aiconfigurator-core 0.12, moe_perf.parquet: "
                f"{', '.join(sorted({key[2] for key in own}))}"
            )
        ],
        profiles=profiles,
        generations=sorted({generation_of(load_profile(p)) for p in profiles}),
        parameters=parameters,
        device_factors={
            device: {scaled: fitted[name]}
            for name, (device, scaled) in _DEVICE_FACTORS.items()
            if device in profiles
        },
        few_shot_factors=few,
        residuals=all_residuals(held_out, elsewhere, with_ten) | other_generation(elsewhere),
        scores=scores,
        fit_groups=[" ".join(str(part) for part in key) + f" ep {ep}" for key, ep in own.items()],
    )
    write_calibration(path, found, f"moesim calibrate kernels --framework {framework}")
    return scores
