"""The named skews W0-W7, after the token-imbalance benchmark of NVIDIA/Megatron-LM pull
request 7488.

Each isolates one thing: W0 nothing (balanced), W1 a hot set of experts, W2 a hot rank, W3 the same
heat spread over ranks, W4 sources with different numbers of tokens, W5 experts and ranks without
load, W6 a hot spot that moves every three steps, W7 a burst in every fourth step. As there, the hot
set is a quarter of the experts (at least top_k), and of four tokens three choose within it; in W7's
burst every other token does; W3's hot set is every other expert. Unlike there, W1's hot experts are
drawn by the seed, so that W2's, the first quarter, differ from them by place alone. How uneven W4's
sources are is ours: source s of S has a share in proportion to s + 1.

Weights here are expected choices per token; shares above one choice a token are cut by the sampler.

Shape legend: E experts, S sources.
"""

import numpy as np

WORKLOADS = ("w0", "w1", "w2", "w3", "w4", "w5", "w6", "w7")
#: of so many tokens, all but one choose within the hot set
_HOT_OF = 4
_STEPS_PER_SPOT, _BURST_EVERY = 3, 4


def workload_weights(
    name: str, num_experts: int, top_k: int, step: int, rng: np.random.Generator
) -> np.ndarray:
    """Expected choices of each expert, per token.

    Args:
        name: One of `WORKLOADS`.
        num_experts: E.
        top_k: Experts a token uses.
        step: Which step of the workload, from 0: W6 and W7 change with it.
        rng: Which experts are W1's hot set.

    Returns:
        ndarray of shape (E,): sums to top_k.
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
    """Tokens of each source, in proportion: all alike but for W4. ndarray of shape (S,)."""
    return np.arange(1.0, num_sources + 1) if name == "w4" else np.ones(num_sources)
