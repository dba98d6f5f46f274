"""The named skews W0-W7 follow the token-imbalance benchmark of NVIDIA/Megatron-LM pull
request 7488.

Each skew isolates one effect: W0 none (balanced), W1 a hot set of experts, W2 a hot rank, W3 the
same heat spread over ranks, W4 sources with different numbers of tokens, W5 experts and ranks
without load, W6 a hot spot that moves every three steps, W7 a burst in every fourth step. As in the
benchmark, the hot set is a quarter of the experts (at least top_k), and three of four tokens choose
within it; in the burst of W7 every other token does; the hot set of W3 is every other expert.
Unlike in the benchmark, the seed draws the hot experts of W1, so that those of W2, the first
quarter, differ only by position. The unevenness of W4 is our choice: source s of S has a share in
proportion to s + 1.

Weights are expected choices per token; the sampler cuts shares above one choice per token.

Shape legend: E experts, S sources.
"""

import numpy as np

WORKLOADS = ("w0", "w1", "w2", "w3", "w4", "w5", "w6", "w7")
#: out of this many tokens, all but one choose within the hot set
_HOT_OF = 4
_STEPS_PER_SPOT, _BURST_EVERY = 3, 4


def workload_weights(
    name: str, num_experts: int, top_k: int, step: int, rng: np.random.Generator
) -> np.ndarray:
    """Return the expected number of choices of each expert per token.

    Args:
        name: A name in `WORKLOADS`.
        num_experts: Number of experts E.
        top_k: Number of experts that a token uses.
        step: Index of the step of the workload, from 0; W6 and W7 depend on it.
        rng: Source of randomness, which draws the hot set of W1.

    Returns:
        ndarray of shape (E,): weights that sum to top_k.
    """
    width = min(max(top_k, num_experts // 4), num_experts)
    everyone = np.arange(num_experts)
    chosen, share = everyone, 0.0
    if name == "w1":
        chosen, share = rng.permutation(num_experts)[:width], 1 - 1 / _HOT_OF
    elif name == "w2":
        chosen, share = everyone[:width], 1 - 1 / _HOT_OF
    elif name == "w3":
        spread = everyone[::2]
        chosen, share = (spread if len(spread) >= top_k else everyone), 1 - 1 / _HOT_OF
    elif name == "w5":
        live = everyone[num_experts // 2 :]
        chosen, share = (live if len(live) >= top_k else everyone), 1.0
    elif name == "w6":
        chosen = (step // _STEPS_PER_SPOT * width + np.arange(width)) % num_experts
        share = 1 - 1 / _HOT_OF
    elif name == "w7" and step % _BURST_EVERY == _BURST_EVERY - 1:
        chosen, share = everyone[:width], 0.5
    weight = np.full(num_experts, (1.0 - share) * top_k / num_experts)
    weight[chosen] += share * top_k / len(chosen)
    return weight


def source_weights(name: str, num_sources: int) -> np.ndarray:
    """Return the relative number of tokens of each source, equal except for W4: ndarray of shape
    (S,).
    """
    return np.arange(1.0, num_sources + 1) if name == "w4" else np.ones(num_sources)
