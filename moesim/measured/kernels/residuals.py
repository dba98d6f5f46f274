"""Compute the intervals of kernel prices from rows that a fit left out."""

import numpy as np

from moesim.measured.kernels.groups import Predictions

_RESIDUAL_KINDS = {
    "calibrated": "cross-validated by shape",
    "spec_sheet": "device left out of the fit",
    "few_shot": "device left out of the fit but for ten rows",
    "other_generation": "device left out of the fit, and a bias like theirs",
}


def all_residuals(
    held_out: Predictions, elsewhere: Predictions, with_ten: Predictions
) -> dict[str, dict]:
    """Return the intervals of the levels ``calibrated``, ``spec_sheet`` and ``few_shot``.

    Only one device has fp8 rows that may be fitted, so it cannot be left out. The fp8 interval on
    other devices is the cross-validated one, widened as much as bf16's is.

    Args:
        held_out: Predictions by fits that saw none of the rows' shape.
        elsewhere: Predictions by fits that saw none of the rows' device.
        with_ten: Predictions by such fits with ten rows of the device.
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
    """Return the intervals on a device of another generation than those fitted.

    Its bias is assumed to have the same distribution as theirs. Each device left out has its own
    median log error; their root mean square is the spread s of biases, and the 80 % interval of the
    next device's bias is t s sqrt(1 + 1 / n), with t from Student's distribution with n - 1 degrees
    of freedom (wide for n = 2 devices, as it must be). It is added in quadrature to the spread of
    rows within a device.

    Args:
        elsewhere: Predictions by fits that saw none of the rows' device.
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
    """Return the P10 and P90 of measured / predicted by class: ``LEVEL-PRECISION-ep1`` and
    ``-epn``.
    """
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
