"""Price what happens to tokens around the experts: packing before they leave, adding up when
results return.

Shape legend: D devices.
"""

import numpy as np

from moesim.costs.devices.primitives import Kernels
from moesim.costs.phase import PhaseCost, sequence
from moesim.model import MoELayer

Array = np.ndarray
_TOKEN_BYTES = 2.0


def price_permute(
    kernels: Kernels, layer: MoELayer, num_tokens_D: Array, copies_D: Array
) -> PhaseCost:
    """Price ordering a device's tokens by destination and writing the send buffer in the dispatch
    format.

    The kernels sort the choices, gather each token's row once per copy that leaves or stays, and
    write it.

    Args:
        kernels: Primitives of the device.
        layer: The layer, for its sizes and formats.
        num_tokens_D: ndarray of shape (D,): tokens of each device.
        copies_D: ndarray of shape (D,): copies of those tokens, one for each device that a token
            goes to.
    """
    row = layer.hidden_size * _TOKEN_BYTES
    return sequence(
        kernels.align(np.asarray(num_tokens_D) * layer.top_k, layer.num_experts),
        kernels.gather(np.asarray(copies_D) * row, row),
        kernels.stream(
            np.asarray(copies_D) * layer.precision.token_bytes("dispatch", layer.hidden_size)
        ),
        kernels.launches(3.0 * (np.asarray(copies_D) > 0)),
    )


def price_reduce(
    kernels: Kernels, layer: MoELayer, num_tokens_D: Array, copies_D: Array
) -> PhaseCost:
    """Price adding up what returned for each token: every copy is read where it landed, and the
    token written.

    Args:
        kernels: Primitives of the device.
        layer: The layer, for its sizes and formats.
        num_tokens_D: ndarray of shape (D,): tokens of each device.
        copies_D: ndarray of shape (D,): partial results that return.
    """
    row = layer.precision.token_bytes("combine", layer.hidden_size)
    return sequence(
        kernels.gather(np.asarray(copies_D) * row, row),
        kernels.stream(np.asarray(num_tokens_D) * layer.hidden_size * _TOKEN_BYTES),
        kernels.launches(1.0 * (np.asarray(copies_D) > 0)),
    )
