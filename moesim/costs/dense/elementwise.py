"""Count the bytes of kernels that only move them: norms, rotary embeddings, activations, embedding
and sampler.

Such a kernel takes its launch and its bytes over the bandwidth that the profile's streaming curve
has for working sets far beyond the cache. The launch is the one fitted to small dependent kernels
in a graph (calibration ``triton-moe``), which holds what a kernel needs to start and to drain.
aiconfigurator 0.12 prices the same kernels alike: bytes over .8 of the bandwidth, and 3 us. No
measured row stands behind the sum. Elements have two bytes, logits four.

The bytes are those of the fused kernels of serving engines (vLLM, csrc/layernorm_kernels.cu,
pos_encoding_kernels.cu, activation_kernels.cu). The output head is a GEMM of the vocabulary.
"""

import numpy as np

from moesim.costs.calibration import BESIDE, load_calibration
from moesim.hardware import Profile

Amount = int | float | np.ndarray
_ELEMENT_BYTES, _LOGIT_BYTES = 2.0, 4.0
#: reads of the logits by a sampler without a sort: softmax, and a rejection round of top-k and
#: top-p (FlashInfer's sampling kernels; one round assumed); the most probable token takes one
SAMPLER_PASSES, GREEDY_PASSES = 3, 1


def stream_seconds(profile: Profile, num_bytes: Amount, kernels: Amount = 1) -> np.ndarray:
    """Return the seconds of kernels that move bytes in order, one after the other.

    Args:
        profile: The device.
        num_bytes: Bytes that all of them read and write, a number or an ndarray.
        kernels: Number of kernels, of a shape that broadcasts.

    Raises:
        ConfigError: The calibration of the launch is missing or malformed.
    """
    launch_s = load_calibration(BESIDE, profile)["kernel_launch_cycles"] / profile.clock_hz
    if profile.eager and profile.host_launch_s is not None:
        launch_s = max(launch_s, profile.host_launch_s)
    share = profile.streaming_efficiency[-1] if profile.streaming_efficiency else 1.0
    bytes_per_s = profile.hbm_bandwidth_bytes_per_s * share
    return np.asarray(kernels) * launch_s + np.asarray(num_bytes, dtype=np.float64) / bytes_per_s


def norm_bytes(tokens: Amount, width: Amount, *, residual: bool = True) -> Amount:
    """Return the bytes of a norm: each row read and written, and with a fused residual, its sum
    with the residual, too.
    """
    return tokens * width * _ELEMENT_BYTES * (4 if residual else 2)


def sum_bytes(tokens: Amount, width: Amount) -> Amount:
    """Return the bytes of adding a row to another: both read, one written."""
    return tokens * width * _ELEMENT_BYTES * 3


def rotary_bytes(tokens: Amount, num_heads: Amount, rotary_size: Amount) -> Amount:
    """Return the bytes of rotary embeddings in place.

    Args:
        tokens: Tokens.
        num_heads: Heads of queries and of keys together.
        rotary_size: Elements of a head that are rotated.
    """
    return 2 * tokens * num_heads * rotary_size * _ELEMENT_BYTES


def activation_bytes(tokens: Amount, width: Amount, *, gated: bool = True) -> Amount:
    """Return the bytes of an activation of ``width`` results: one operand read, or gate and up."""
    return tokens * width * _ELEMENT_BYTES * (3 if gated else 2)


def embedding_bytes(tokens: Amount, hidden_size: Amount) -> Amount:
    """Return the bytes of an embedding: a row of the table read and written for each token."""
    return 2 * tokens * hidden_size * _ELEMENT_BYTES


def sampler_bytes(sequences: Amount, vocab_size: Amount, passes: Amount = SAMPLER_PASSES) -> Amount:
    """Return the bytes of a sampler that reads float32 logits ``passes`` times."""
    return sequences * vocab_size * _LOGIT_BYTES * passes
