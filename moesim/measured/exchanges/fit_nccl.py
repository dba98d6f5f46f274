"""Fit NCCL's collectives to measured rows of A100 and H100.

Two generations were measured. Each is predicted from the other, without (``other_generation``) and
with ten rows of its own (``other_generation_few_shot``), which gives the intervals of a device of a
generation that was never fitted.

A device with ten rows gets factors for the start, ceiling and port efficiency of its all-to-all;
the rings follow.
"""

from dataclasses import replace

import numpy as np

from moesim.costs.comm.nccl import COLLECTIVES
from moesim.measured.exchanges.fit import (
    CROSS_VALIDATED,
    TABLES,
    TRANSFER,
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
)
from moesim.measured.exchanges.table import few_shot_rows, systems
from moesim.measured.fitting import Bounds, Fitted, few_shot_fit

#: elements from which a row tells how a device moves bytes, more than how it starts
_LARGE = 1 << 16
_NCCL: Bounds = {
    "start_us": (7.0, 1.0, 40.0),
    "port_efficiency": (0.7, 0.3, 1.0),
    "few_peers": (0.13, 0.001, 2.0),
    "ramp_kb": (5000.0, 1.0, 50000.0),
    "ramp_knee_kb": (2000.0, 10.0, 50000.0),
    "protocol_gb_per_s": (6.0, 0.5, 200.0),
    "ceiling_us": (14.0, 1.0, 60.0),
}
_LEGACY: Bounds = {"legacy_ceiling_us": (9.0, 1.0, 60.0)}
_HOP: Bounds = {"hop_us": (0.8, 0.01, 5.0)}
#: parameters for which an A100 has its own factors, which are also those that ten rows may correct,
#: and the latencies that one factor may correct together
_OWN = ("start_us", "ceiling_us", "port_efficiency")
_LATENCIES = ("alltoall_start_us", "alltoall_ceiling_us", "alltoall_ramp_kb")
#: CTAs of the kernel: 32 point-to-point channels, and the 24 ring channels that NCCL prints on 8
#: H100 (assumed)
_CHANNELS, _RING_CHANNELS = 32.0, 24.0


def _nccl_quantity(rows, collective: str, node: Parameters) -> FitQuantity:
    own = rows[rows["op_name"] == collective].reset_index(drop=True)
    if collective == "alltoall":
        bounds, fixed = _NCCL | _LEGACY, node | {"channels": _CHANNELS, "hop_us": 0.0}
    else:
        bounds, fixed = _NCCL | _HOP, node | {"channels": _RING_CHANNELS}
    return FitQuantity(
        rows=own, kind=collective, bounds=bounds, fixed=fixed, factors={"a100_sxm": _OWN}
    )


def _own_factors(shot: FitQuantity, parameters: Parameters) -> Parameters:
    """Return a device's factors of start, ceiling and port efficiency, from ten all-to-all rows."""
    names = tuple(f"alltoall_{n}" for n in _OWN)
    found = few_shot_fit(lambda p: np.log(shot.predict(p, {}) / shot.measured), parameters, names)
    return {n: found[f"alltoall_{n}"] for n in _OWN}


def _latency_factor(shot: FitQuantity, parameters: Parameters) -> float:
    """Return one factor of all latencies of a device, from the same rows."""

    def log_errors(p: Parameters) -> np.ndarray:
        moved = {n: v * (p["latency"] if n in _LATENCIES else 1.0) for n, v in p.items()}
        return np.log(shot.predict(moved, {}) / shot.measured)

    return few_shot_fit(
        log_errors, parameters | {"latency": 1.0}, ("latency", "alltoall_port_efficiency")
    )["latency"]


def _of_collective(own: Parameters, collective: str) -> Parameters:
    """Derive a collective's factors from the all-to-all's; a ring consists of hops of the short
    protocol and shares its start.
    """
    ceiling = own["ceiling_us"] if collective == "alltoall" else own["start_us"]
    return {f"{collective}_{n}": v for n, v in (own | {"ceiling_us": ceiling}).items()}


def _as_shot(rows, system: str):
    """Return the rows of a fitted device, of one version, that match the ten rows of B200 in GPUs
    and size.
    """
    place = ["num_gpus", "message_size"]
    shots = few_shot_rows()
    wanted = set(shots[shots["system"] == "b200_sxm"][place].itertuples(index=False, name=None))
    part = rows[
        (rows["system"] == system)
        & (rows["op_name"] == "alltoall")
        & (rows["nccl_dtype"] == "half")
    ]
    part = part[part["dataset"] == part["dataset"].max()]
    here = [key in wanted for key in part[place].itertuples(index=False, name=None)]
    return part[here].reset_index(drop=True)


def fit_nccl(network: Parameters) -> tuple[Fitted, Parameters]:
    """Fit NCCL's collectives on A100 and H100, and the few-shot factors of three Blackwell devices.

    Args:
        network: What nodes and NICs cost, from DeepEP's rows; no NCCL row spans nodes.

    Returns:
        The fit, and for each device the one factor of all its latencies.
    """
    rows = fitted_rows("nccl", ("a100_sxm", "h100_sxm"))
    parameters: Parameters = {}
    factors: Factors = {"a100-sxm": {}}
    residuals: Residuals = {}
    scores: Scores = {}
    alone: dict[str, tuple[Parameters, Parameters]] = {}
    for collective in COLLECTIVES:
        quantity = _nccl_quantity(rows, collective, network)
        some, of_a100 = quantity.fit()
        parameters |= some
        factors["a100-sxm"] |= of_a100["a100_sxm"]
        predicted = quantity.cross_validate(folds(quantity.rows["message_size"]))
        ratio = quantity.measured / predicted
        near = residual(spread(ratio), len(ratio), f"{CROSS_VALIDATED} by size")
        residuals |= {f"calibrated-{collective}": near, f"spec_sheet-{collective}": near}
        scores |= {
            f"{k}-{collective}": v
            for k, v in scores_by(
                quantity.rows,
                predicted,
                quantity.measured,
                lambda r: r["system"].str.replace("_", "-"),
            ).items()
        }
        # predict each generation from the other, without and with ten rows of its own
        without, with_ten, large = [], [], []
        for device, other in (("a100_sxm", "h100_sxm"), ("h100_sxm", "a100_sxm")):
            is_other = (quantity.rows["system"] == other).to_numpy()
            here, there = quantity.of(~is_other), quantity.of(is_other)
            guessed, _ = there.fit()
            if collective == "alltoall":
                shot = replace(here, rows=_as_shot(rows, device))
                alone[device] = guessed, _own_factors(shot, guessed)
            shot_factors = {device: _of_collective(alone[device][1], collective)}
            large.append((here.rows["message_size"] >= _LARGE).to_numpy())
            without.append(here.measured / here.predict(guessed, {}))
            with_ten.append(here.measured / here.predict(guessed, shot_factors))
        for level, ratios in (
            ("other_generation", without),
            ("other_generation_few_shot", with_ten),
        ):
            both = np.concatenate(ratios)
            residuals[f"{level}-{collective}"] = residual(
                spread(both), len(both), "A100 from H100 and H100 from A100"
            )
            if collective == "alltoall":
                long = both[np.concatenate(large)]
                residuals[f"{level}-{TRANSFER}"] = residual(
                    spread(long), len(long), "the same, alltoall >= 64 KiB"
                )
    shots = few_shot_rows()
    few_shot: Factors = {}
    latency: Parameters = {}
    for system, ten in shots.groupby("system"):
        shot = replace(
            _nccl_quantity(rows, "alltoall", network), rows=ten.reset_index(drop=True), factors={}
        )
        own = _own_factors(shot, parameters)
        device = systems()[str(system)].profile.name
        latency[device] = _latency_factor(shot, parameters)
        few_shot[device] = {n: v for c in COLLECTIVES for n, v in _of_collective(own, c).items()}
    fitted = Fitted(
        title="NCCL collectives: two protocols, of which the slower decides",
        fitted_on=(
            f"{len(rows)} rows of NCCL on 2, 4 and 8 A100 and H100; few-shot factors on ten rows "
            "per device"
        ),
        sources=[
            f"{TABLES}nccl_perf.parquet",
            "node_us and nic_efficiency: deepep-ll.toml, no NCCL row spans nodes",
            "channels: what NCCL prints on 8 H100 (assumed)",
        ],
        profiles=["a100-sxm", "h100-sxm"],
        generations=generations("a100_sxm", "h100_sxm"),
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
