"""Fit NCCL's collectives to measured rows of A100 and H100.

Two generations were measured. Each is predicted from the other, without (``other_generation``) and
with ten rows of its own (``other_generation_few_shot``), which gives the intervals of a device of a
generation that was never fitted.

Short and long exchanges have intervals of their own. `moesim.measured.exchanges.shot_nccl` says
what ten rows of a device tell.
"""

from dataclasses import replace

import numpy as np

from moesim.costs.comm.nccl import COLLECTIVES
from moesim.measured.exchanges.batches import LONG, SHORT, is_short
from moesim.measured.exchanges.fit import (
    CROSS_VALIDATED,
    TABLES,
    Factors,
    FitQuantity,
    Parameters,
    Residuals,
    Scores,
    fitted_rows,
    folds,
    generations,
    residual,
    scores_by,
    spread,
    symmetric_spread,
)
from moesim.measured.exchanges.shot_nccl import as_shot, latency_factor, shot_factors
from moesim.measured.exchanges.table import few_shot_rows, systems
from moesim.measured.fitting import Bounds, Fitted

#: system -> the one of another generation that predicts it
_PAIR = {"a100_sxm": "h100_sxm", "h100_sxm": "a100_sxm"}
_PORT: Bounds = {
    "port_efficiency": (0.75, 0.3, 1.0),
    "few_peers": (0.2, 0.001, 2.0),
}
_ALLTOALL: Bounds = {
    "start_us": (6.0, 1.0, 40.0),
    "hop_us": (0.6, 0.01, 5.0),
    "legacy_hop_us": (1.5, 0.01, 10.0),
    "protocol_gb_per_s": (6.0, 0.5, 200.0),
    "ceiling_us": (14.0, 1.0, 60.0),
    "legacy_ceiling_us": (9.0, 1.0, 60.0),
    "ramp_kb": (5000.0, 1.0, 50000.0),
    "ramp_knee_kb": (2000.0, 10.0, 50000.0),
}
_RING: Bounds = {
    "start_us": (4.7, 1.0, 40.0),
    "hop_us": (0.9, 0.01, 5.0),
    "protocol_gb_per_s": (5.0, 0.5, 200.0),
    "middle_start_us": (5.2, 1.0, 60.0),
    "middle_hop_us": (1.0, 0.01, 5.0),
    "middle_efficiency": (0.4, 0.05, 1.0),
    "bulk_start_us": (18.0, 1.0, 90.0),
    "bulk_hop_us": (1.0, 0.01, 9.0),
    "ramp_kb": (20000.0, 1.0, 100000.0),
    "ramp_knee_kb": (80000.0, 10.0, 400000.0),
}
_RING_LEGACY: Bounds = {"legacy_factor": (1.15, 0.5, 3.0)}
#: parameters for which an A100 has its own factors
_OF_A100 = {
    "alltoall": ("start_us", "hop_us", "ceiling_us", "port_efficiency"),
    "ring": (
        "start_us",
        "hop_us",
        "middle_start_us",
        "middle_hop_us",
        "middle_efficiency",
        "bulk_start_us",
        "port_efficiency",
    ),
}
#: standard deviation of a third sample around the mean of two, in standard deviations of a sample
_THIRD = float(np.sqrt(1.0 + 1.0 / 2.0))
#: CTAs of the kernel: 32 point-to-point channels, and the 24 ring channels that NCCL prints on 8
#: H100 (assumed)
_CHANNELS, _RING_CHANNELS = 32.0, 24.0


def _nccl_quantity(rows, collective: str, network: Parameters) -> FitQuantity:
    own = rows[rows["op_name"] == collective].reset_index(drop=True)
    ring = collective != "alltoall"
    bounds = _PORT | (_RING if ring else _ALLTOALL)
    fixed = network | {"channels": _RING_CHANNELS if ring else _CHANNELS}
    if ring and own["version"].isna().any():
        bounds = bounds | _RING_LEGACY
    elif ring:  # no row of this collective is of an old NCCL
        fixed["legacy_factor"] = 1.0
    return FitQuantity(
        rows=own,
        kind=collective,
        bounds=bounds,
        fixed=fixed,
        factors={"a100_sxm": _OF_A100["ring" if ring else "alltoall"]},
    )


def _of_two(ratios: np.ndarray) -> tuple[float, float]:
    """Return an interval for a third generation that ten rows have moved, from how two predict each
    other: what is left then is the device's own, of which two devices tell little.
    """
    low, high = symmetric_spread(ratios)
    return low**_THIRD, high**_THIRD


def _label(rows) -> np.ndarray:
    short = np.where(is_short(rows), "short", "long")
    return (rows["system"].str.replace("_", "-") + "-" + short).to_numpy(dtype=str)


def _by_size(
    levels: tuple[str, ...], rows, ratios: np.ndarray, collective: str, kind: str, width
) -> Residuals:
    """Return the residuals of a collective: of all rows, of the short ones and of the long ones.

    Args:
        levels: The levels of calibration that they hold for.
        rows: DataFrame of the rows.
        ratios: ndarray of shape (rows,): measured / predicted.
        collective: The collective.
        kind: How the rows were predicted.
        width: Function from ratios to (P10, P90).
    """
    short = is_short(rows)
    found: Residuals = {}
    for chosen, suffix, what in (
        (np.ones(len(rows), dtype=bool), "", ""),
        (short, SHORT, ", < 64 KiB"),
        (~short, LONG, ", >= 64 KiB"),
    ):
        entry = residual(width(ratios[chosen]), int(chosen.sum()), kind + what)
        found |= {f"{level}-{collective}{suffix}": entry for level in levels}
    return found


def fit_nccl(network: Parameters) -> tuple[Fitted, Parameters]:
    """Fit NCCL's collectives on A100 and H100, and the few-shot factors of three Blackwell devices.

    Args:
        network: What nodes and NICs cost, from DeepEP's rows; no NCCL row spans nodes.

    Returns:
        The fit, and for each device the one factor of all its latencies.
    """
    import pandas as pd

    rows = fitted_rows("nccl", tuple(_PAIR))
    parameters: Parameters = {}
    factors: Factors = {"a100-sxm": {}}
    residuals: Residuals = {}
    scores: Scores = {}
    shot: Factors = {}
    for collective in COLLECTIVES:
        quantity = _nccl_quantity(rows, collective, network)
        some, of_a100 = quantity.fit()
        parameters |= some
        factors["a100-sxm"] |= of_a100["a100_sxm"]
        predicted = quantity.cross_validate(folds(quantity.rows["message_size"]))
        ratio = quantity.measured / predicted
        kind = f"{CROSS_VALIDATED} by size"
        residuals |= _by_size(
            ("calibrated", "spec_sheet"), quantity.rows, ratio, collective, kind, spread
        )
        named = scores_by(quantity.rows, predicted, quantity.measured, _label)
        scores |= {f"{k}-{collective}": v for k, v in named.items()}
        # predict each generation from the other, without and with ten rows of its own
        without, with_ten, seen = [], [], []
        for device, other in _PAIR.items():
            is_other = (quantity.rows["system"] == other).to_numpy()
            here, there = quantity.of(~is_other), quantity.of(is_other)
            guessed, _ = there.fit()
            if collective == "alltoall":
                ten = replace(here, rows=as_shot(rows, device))
                shot[device] = shot_factors(ten, guessed, COLLECTIVES)
            seen.append(here.rows)
            without.append(here.measured / here.predict(guessed, {}))
            with_ten.append(here.measured / here.predict(guessed, shot))
        both = pd.concat(seen, ignore_index=True)
        how = "A100 from H100 and H100 from A100, both ways"
        for level, ratios, by, width in (
            ("other_generation", without, how, symmetric_spread),
            ("other_generation_few_shot", with_ten, f"{how}, widened for only two", _of_two),
        ):
            residuals |= _by_size((level,), both, np.concatenate(ratios), collective, by, width)
    few_shot: Factors = {}
    latency: Parameters = {}
    for system, ten_rows in few_shot_rows().groupby("system"):
        ten = replace(
            _nccl_quantity(rows, "alltoall", network),
            rows=ten_rows.reset_index(drop=True),
            factors={},
        )
        device = systems()[str(system)].profile.name
        latency[device] = latency_factor(ten, parameters)
        few_shot[device] = shot_factors(ten, parameters, COLLECTIVES)
    fitted = Fitted(
        title="NCCL collectives: short protocols for small ones, the port's rate for large ones",
        fitted_on=(
            f"{len(rows)} rows of NCCL on 2, 4 and 8 A100 and H100; few-shot factors on ten rows "
            "per device"
        ),
        sources=[
            f"{TABLES}nccl_perf.parquet",
            "node_us and nic_efficiency: those of dispatch in deepep-ll.toml, no NCCL row spans "
            "nodes",
            "channels: what NCCL prints on 8 H100 (assumed)",
        ],
        profiles=["a100-sxm", "h100-sxm"],
        generations=generations(*_PAIR),
        parameters=parameters,
        device_factors=factors,
        few_shot_factors=few_shot,
        residuals=residuals,
        scores=scores,
        fit_groups=sorted(
            {f"{s} {d}" for s, d in zip(rows["system"], rows["dataset"], strict=True)}
        ),
    )
    return fitted, latency
