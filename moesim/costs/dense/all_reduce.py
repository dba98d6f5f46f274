"""Price the all-reduce of serving engines after tensor-parallel layers.

Engines bring a kernel of their own for up to eight GPUs of one NVLink domain, which reads the
peers' buffers directly, and leave long messages to NCCL (vLLM, csrc/custom_all_reduce.cuh; SGLang's
follows it). For S bytes on R ranks with v bytes/s one way,

    start = launch + peer (R - 2)
    once  = start + S (R - 1) / (v once_efficiency)
    twice = start + sync + 2 S (R - 1) / (R v twice_efficiency)

Once, every rank reads all of every peer; twice, it reduces a share of its own and gathers the
others. The price is the least of both and of NCCL's (`moesim.costs.comm.nccl`), as engines switch
near where the curves cross. Beyond eight ranks or a domain, and behind PCIe switches, only NCCL's
is left.

All five are fitted. A device of which ten NCCL rows are known starts as much slower as NCCL's ring
does there. Rows: aiconfigurator-core 0.12, custom_allreduce_perf, calls in a CUDA graph;
``message_size`` counts elements of two bytes.
"""

from collections.abc import Mapping

import numpy as np

from moesim.costs.calibration import load_calibration
from moesim.costs.comm.nccl import Nccl
from moesim.costs.comm.work import Ports
from moesim.hardware import Profile
from moesim.units import US

Array = np.ndarray
#: ranks that the engines' kernels take
_MOST_RANKS = 8
_NCCL, _NCCL_START = "nccl", "all_reduce_start_us"


def all_reduce_seconds(
    values: Mapping[str, float], profile: Profile, ports: Ports, num_bytes: Array
) -> Array:
    """Return the seconds of an all-reduce.

    Args:
        values: Fitted parameters.
        profile: The device.
        ports: Its side of the fabric; its ``num_ranks`` R take part, a number or an ndarray.
        num_bytes: Bytes S of the buffer of one rank, ndarray of a shape that broadcasts with R.

    Raises:
        ConfigError: The calibration of NCCL is missing or malformed.
    """
    calibration = load_calibration(_NCCL, profile)
    nccl = Nccl(ports=ports, calibration=calibration, collective="all_reduce")
    ranks = np.asarray(ports.num_ranks, dtype=np.float64)
    near_peers = np.minimum(ranks, ports.ranks_per_domain) - 1.0
    theirs = nccl.time_s(
        num_bytes * near_peers / ranks, num_bytes * (ranks - 1.0 - near_peers) / ranks
    )
    slower = (
        calibration[_NCCL_START] / load_calibration(_NCCL, profile, few_shot=False)[_NCCL_START]
    )
    reads = num_bytes * (ranks - 1.0) / ports.near_bytes_per_s
    start = slower * (values["launch_us"] + values["peer_us"] * (ranks - 2.0)) * US
    once = start + reads / values["once_efficiency"]
    sync = slower * values["sync_us"] * US
    twice = start + sync + 2.0 * reads / (ranks * values["twice_efficiency"])
    served = (ranks <= min(_MOST_RANKS, ports.ranks_per_domain)) & (not ports.bridge_bytes_per_s)
    own = np.where(served, np.minimum(once, twice), np.inf)
    return np.where(ranks > 1, np.minimum(own, theirs), 0.0)


def all_reduce_roofline_s(ports: Ports, num_bytes: Array) -> Array:
    """Return the bytes that a ring sends over the rate of a port, in seconds; the arguments are
    those of `all_reduce_seconds`.
    """
    ranks = np.asarray(ports.num_ranks, dtype=np.float64)
    return 2.0 * num_bytes * (ranks - 1.0) / (ranks * ports.near_bytes_per_s)
