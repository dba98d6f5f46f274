"""Learn about a device from ten all-to-all rows of NCCL.

The rows are of 64 KiB and more and of one collective. They tell the all-to-all's start (with its
hops), ceiling and port efficiency, each by a factor of its own, and one factor of all latencies
together, which the rings' starts and hops take: an A100 is predicted best that way from an H100 and
ten rows, and the other way round.
"""

import numpy as np

from moesim.measured.exchanges.fit import FitQuantity, Parameters
from moesim.measured.exchanges.table import few_shot_rows
from moesim.measured.fitting import few_shot_fit

_STARTS = ("alltoall_start_us", "alltoall_hop_us")
_LATENCIES = (*_STARTS, "alltoall_ceiling_us", "alltoall_ramp_kb")
_CEILING, _PORT = "alltoall_ceiling_us", "alltoall_port_efficiency"


def _fit_together(
    shot: FitQuantity, parameters: Parameters, together: tuple[str, ...], alone: tuple[str, ...]
) -> tuple[float, Parameters]:
    """Return one factor of the parameters ``together``, and one of each of ``alone``."""

    def log_errors(p: Parameters) -> np.ndarray:
        moved = {n: v * (p["together"] if n in together else 1.0) for n, v in p.items()}
        return np.log(shot.predict(moved, {}) / shot.measured)

    found = few_shot_fit(log_errors, parameters | {"together": 1.0}, ("together", *alone))
    return found.pop("together"), found


def latency_factor(shot: FitQuantity, parameters: Parameters) -> float:
    """Return one factor of all latencies of a device."""
    return _fit_together(shot, parameters, _LATENCIES, (_PORT,))[0]


def shot_factors(
    shot: FitQuantity, parameters: Parameters, collectives: tuple[str, ...]
) -> Parameters:
    """Return a device's factors of the parameters of all collectives.

    Args:
        shot: Its ten all-to-all rows.
        parameters: The all-to-all's parameters that the factors multiply.
        collectives: The collectives that get factors; the all-to-all is one of them.
    """
    start, own = _fit_together(shot, parameters, _STARTS, (_CEILING, _PORT))
    latency, port = latency_factor(shot, parameters), own[_PORT]
    factors = own | dict.fromkeys(_STARTS, start)
    for ring in (c for c in collectives if c != "alltoall"):
        starts = [f"{p}{n}" for p in ("", "middle_", "bulk_") for n in ("start_us", "hop_us")]
        factors |= {f"{ring}_{n}": latency for n in starts}
        factors |= {f"{ring}_{n}": port for n in ("port_efficiency", "middle_efficiency")}
    return factors


def as_shot(rows, system: str):
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
