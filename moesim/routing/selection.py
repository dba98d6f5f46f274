"""What a gate's way of selecting makes of a distribution of load.

Assumed, each stated here and none fitted: real gates learn, and what they learn depends on the
data.

- ``noisy_top_k``: noise of deviation s on logits over temperature t flattens weights w to w ** (1 /
  sqrt(1 + (s t)^2)). Without noise a temperature changes weights of experts, not which are chosen.
- ``expert_choice`` and ``sinkhorn``: every expert gets the same number of tokens. (With expert
  choice a token is chosen by any number of experts; here each has top_k, the mean.)
- ``hash``: load follows how often words occur, whatever the distribution: 32,768 words of Zipf
  frequencies (exponent 1), each hashed to its experts.
- ``aux_loss`` and ``bias`` balancing: deviations from the mean shrink until the hottest expert has
  at most so much more than the mean: 0.6 with an auxiliary loss, 0.04 with a bias (about what Wang
  et al. 2024, arXiv 2408.15664, report over a large batch).

Shape legend: E experts, N domains.
"""

import numpy as np

from moesim.model.gate import Gate

_WORDS = 1 << 15
#: most that the hottest expert has beyond the mean, as a share of it
VIOLATION = {"aux_loss": 0.6, "bias": 0.04}


def selected_weights(weight_NE: np.ndarray, gate: Gate, rng: np.random.Generator) -> np.ndarray:
    """Weights of experts after a gate's selection and balancing.

    Args:
        weight_NE: ndarray of shape (N, E): of the distribution, by domain.
        gate: Its selection and balancing.
        rng: Which words hash to which expert.

    Returns:
        ndarray of shape (N, E).
    """
    if gate.selection in ("expert_choice", "sinkhorn"):
        return np.ones_like(weight_NE)
    if gate.selection == "hash":
        words = 1.0 / np.arange(1, _WORDS + 1)
        experts = weight_NE.shape[1]
        weight = np.bincount(rng.integers(experts, size=_WORDS), weights=words, minlength=experts)
        return np.broadcast_to(weight + 1e-12, weight_NE.shape)
    if gate.selection == "noisy_top_k":
        power = 1.0 / np.sqrt(1.0 + (gate.noise_std * gate.temperature) ** 2)
        weight_NE = (weight_NE / weight_NE.max(axis=1, keepdims=True)) ** power
    if gate.balancing == "none":
        return weight_NE
    # balancing sees all domains together: each keeps its own profile, with all deviations shrunk
    # alike
    share_NE = weight_NE / weight_NE.mean(axis=1, keepdims=True)
    over = share_NE.mean(axis=0).max() - 1.0
    keep = min(1.0, VIOLATION[gate.balancing] / over) if over > 0 else 1.0
    return 1.0 + keep * (share_NE - 1.0)
