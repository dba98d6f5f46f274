"""Fit the all-to-all's parameters to NCCL measurements on A100 and H100: ``moesim calibrate transfers``.

One row is the latency of NCCL alltoall on 2, 4 or 8 GPUs of one node: ``message_size`` elements of the send buffer,
the own chunk included. Fitted on half-precision rows of all NCCL versions in the package; the interval comes from
cross validation that leaves out every fifth size.
"""

from pathlib import Path

import numpy as np

from moesim.costs.calibration import Calibration, generation_of
from moesim.costs.transfer import Transfers
from moesim.measured import silicon
from moesim.measured.fitting import Bounds, robust_fit, write_calibration
from moesim.measured.scores import error_scores
from moesim.topology import load_cluster

#: what they mean is in `moesim.costs.transfer`; a100_start: how much longer an A100 takes to start
BOUNDS: Bounds = {
    "start_us": (7.3, 1.0, 30.0),
    "port_efficiency": (0.7, 0.3, 1.0),
    "few_peers": (0.13, 0.001, 2.0),
    "ramp_kb": (6500.0, 1.0, 50000.0),
    "ramp_knee_kb": (4300.0, 10.0, 50000.0),
    "protocol_gb_per_s": (6.8, 0.5, 100.0),
    "protocol_ceiling_us": (13.8, 1.0, 60.0),
    "a100_start": (1.95, 0.5, 5.0),
}
_CLUSTERS = {"a100_sxm": "hgx-a100-8", "h100_sxm": "hgx-h100-8"}
_HALF_BYTES = 2.0
_FOLDS = 5


def _predict(rows, parameters: dict[str, float]) -> np.ndarray:
    """Predicted seconds of NCCL rows: ndarray of shape (rows,)."""
    out = np.empty(len(rows))
    for (system, gpus), part in rows.groupby(["system", "num_gpus"]):
        device = dict(parameters)
        factor = device.pop("a100_start")
        if system == "a100_sxm":
            device["start_us"] *= factor
        calibration = Calibration(name="", parameters=device, residuals={}, level="calibrated", digest="")
        transfers = Transfers(
            link_bytes_per_s=load_cluster(_CLUSTERS[system]).link_bytes_per_s,
            num_devices=int(gpus),
            calibration=calibration,
        )
        remote = part["message_size"].to_numpy() * _HALF_BYTES * (gpus - 1) / gpus
        out[rows.index.get_indexer(part.index)] = transfers.exchange_s(remote)
    return out


def calibrate(path: Path) -> dict[str, dict[str, float]]:
    """Fit, cross-validate and write the calibration file; returns the cross-validated scores by system.

    Raises:
        MeasurementError: The extra ``silicon`` is not installed.
    """
    rows = silicon.load_alltoall(tuple(_CLUSTERS))
    measured = rows["latency_ms"].to_numpy() * 1e-3
    sizes = np.searchsorted(np.unique(rows["message_size"]), rows["message_size"])

    def fit(chosen: np.ndarray) -> dict[str, float]:
        part = rows[chosen]
        return robust_fit(lambda p: np.log(_predict(part, p) / measured[chosen]), BOUNDS, np.ones(len(part)))

    predicted = np.empty(len(rows))
    for fold in range(_FOLDS):
        held = sizes % _FOLDS == fold
        predicted[held] = _predict(rows[held], fit(~held))
    low, high = np.percentile(measured / predicted, [10, 90])
    scores = {
        system.replace("_", "-"): error_scores(
            predicted[(rows["system"] == system).to_numpy()], measured[(rows["system"] == system).to_numpy()]
        )
        for system in _CLUSTERS
    }
    parameters = fit(np.ones(len(rows), dtype=bool))
    factor = parameters.pop("a100_start")
    versions = sorted({f"{s} {d}" for s, d in zip(rows["system"], rows["dataset"], strict=True)})
    write_calibration(
        path,
        title="NCCL alltoall inside one NVSwitch node: port and protocol regimes",
        command="moesim calibrate transfers",
        fitted_on=f"{len(rows)} rows of NCCL alltoall (half precision) on 2, 4 and 8 A100 and H100",
        sources=["aiconfigurator-core 0.12, nccl_perf.parquet, op alltoall"],
        profiles=[system.replace("_", "-") for system in _CLUSTERS],
        generations=sorted({generation_of(load_cluster(c).profile) for c in _CLUSTERS.values()}),
        parameters=parameters,
        device_factors={"a100-sxm": {"start_us": factor}},
        residuals={
            "calibrated-alltoall": {"low": low, "high": high, "rows": len(rows), "kind": "cross-validated by size"}
        },
        scores=scores,
        fit_groups=versions,
    )
    return scores
