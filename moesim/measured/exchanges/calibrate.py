"""Fit the communication kernels to the rows that may be fitted: ``moesim calibrate comm`` (about
half a minute).

There is one file per kernel. Fits minimize robust log errors
(`moesim.measured.fitting.robust_fit`). Scores and intervals come from rows that a fit left out:
every fifth size of NCCL, a shape of DeepEP, an EP size of NVL72. A device of a generation that was
never fitted gets wider intervals. `fit_nccl`, `fit_deepep` and `fit_nvl72` say how each kernel does
so, and which factors a device with ten measured rows gets.
"""

from pathlib import Path

from moesim.measured.exchanges.fit import Scores
from moesim.measured.exchanges.fit_deepep import (
    LOW_LATENCY_LATENCIES,
    NORMAL_LATENCIES,
    fit_low_latency,
    fit_network,
    fit_normal,
    widened,
)
from moesim.measured.exchanges.fit_nccl import fit_nccl
from moesim.measured.exchanges.fit_nvl72 import fit_nvl72
from moesim.measured.fitting import write_calibration

#: names of the files that `calibrate` writes
NAMES = ("nccl", "deepep-normal", "deepep-ll", "nvl72")


def calibrate(folder: Path) -> dict[str, dict[str, float]]:
    """Fit all kernels, write their files into a folder, and return the cross-validated scores by
    class.

    Raises:
        MeasurementError: The extra ``silicon`` is not installed.
    """
    network = fit_network()
    normal = fit_normal(network)
    low_latency = fit_low_latency(normal.parameters)
    nccl, latency = fit_nccl(network)
    files = {
        "nccl": nccl,
        "deepep-normal": widened(normal, nccl, latency, NORMAL_LATENCIES),
        "deepep-ll": widened(low_latency, nccl, latency, LOW_LATENCY_LATENCIES),
        "nvl72": fit_nvl72(),
    }
    scores: Scores = {}
    for name, fitted in files.items():
        write_calibration(folder / f"{name}.toml", fitted, "moesim calibrate comm")
        scores |= {f"{name} {k}": v for k, v in fitted.scores.items()}
    return scores
