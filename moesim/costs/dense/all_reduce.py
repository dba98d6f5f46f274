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

All five are fitted. Rows: aiconfigurator-core 0.12, custom_allreduce_perf, calls in a CUDA graph;
``message_size`` counts elements of two bytes.
"""

from collections.abc import Mapping

import numpy as np

from moesim.costs.comm.nccl import Nccl
from moesim.costs.comm.work import Ports
from moesim.units import US

Array = np.ndarray
#: ranks that the engines' kernels take
_MOST_RANKS = 8


def all_reduce_seconds(
    values: Mapping[str, float], nccl: Nccl, num_bytes: Array, ranks: Array
) -> Array:
    """Return the seconds of an all-reduce.

    Args:
        values: Fitted parameters.
        nccl: NCCL's all-reduce on the same ports.
        num_bytes: Bytes S of the buffer of one rank, ndarray of any shape.
        ranks: Number of ranks R, of a shape that broadcasts; that of ``nccl.ports``.
    """
    ports = nccl.ports
    near_peers = np.minimum(ranks, ports.ranks_per_domain) - 1.0
    theirs = nccl.time_s(
        num_bytes * near_peers / ranks, num_bytes * (ranks - 1.0 - near_peers) / ranks
    )
    reads = num_bytes * (ranks - 1.0) / ports.near_bytes_per_s
    start = (values["launch_us"] + values["peer_us"] * (ranks - 2.0)) * US
    once = start + reads / values["once_efficiency"]
    twice = start + values["sync_us"] * US + 2.0 * reads / (ranks * values["twice_efficiency"])
    served = (ranks <= min(_MOST_RANKS, ports.ranks_per_domain)) & (not ports.bridge_bytes_per_s)
    own = np.where(served, np.minimum(once, twice), np.inf)
    return np.where(ranks > 1, np.minimum(own, theirs), 0.0)


def all_reduce_roofline_s(ports: Ports, num_bytes: Array, ranks: Array) -> Array:
    """Return the bytes that a ring sends over the rate of a port, in seconds; the arguments are
    those of `all_reduce_seconds`.
    """
    return 2.0 * num_bytes * (ranks - 1.0) / (ranks * ports.near_bytes_per_s)
