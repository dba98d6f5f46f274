"""Price the collectives between devices that share an attention rank or the width of experts.

Dense parts that are divided by tensor parallelism end in an all-reduce of the tokens; where
attention ranks have tokens of their own, the all-reduce of a rank becomes a reduce-scatter before
the exchange and an all-gather after it.
"""

from dataclasses import replace
from typing import Literal

import numpy as np

from moesim.costs.comm.choose import ports_of
from moesim.costs.comm.kernels import comm_kernel
from moesim.costs.comm.nccl import Nccl
from moesim.costs.dense.prices import DensePrices
from moesim.costs.phase import PhaseCost
from moesim.hardware import Cluster

Joint = Literal["all_reduce", "reduce_scatter", "all_gather"]
_ELEMENT_BYTES = 2.0


def price_collective(
    prices: DensePrices, cluster: Cluster, kind: Joint, size: int, tokens: float, hidden_size: int
) -> PhaseCost:
    """Price a collective of ``size`` consecutive devices over bf16 tokens.

    Args:
        prices: Prices of the device with the serving engine's kernels.
        cluster: The hardware.
        kind: Which collective.
        size: Number of devices that take part.
        tokens: Tokens of the whole group.
        hidden_size: Elements of a token.

    Returns:
        The price of one device: PhaseCost of shape (1,), all of it latency, since a collective
        blocks its devices.
    """
    ports, buffer = (
        replace(ports_of(cluster), num_ranks=size),
        tokens * hidden_size * _ELEMENT_BYTES,
    )
    if kind == "all_reduce":
        return _blocking(prices.all_reduce_s(buffer, ports))
    kernel = comm_kernel(f"nccl_{kind}", ports, cluster.profile)
    assert isinstance(kernel, Nccl)
    near = min(size, ports.ranks_per_domain) - 1.0
    return _blocking(kernel.time_s(buffer * near / size, buffer * (size - 1.0 - near) / size))


def _blocking(seconds: np.ndarray) -> PhaseCost:
    """Return a time in which a device computes nothing."""
    whole = np.atleast_1d(seconds)
    none = np.zeros_like(whole)
    return PhaseCost(compute_s_D=none, memory_s_D=none, latency_s_D=whole)
