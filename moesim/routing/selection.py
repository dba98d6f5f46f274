"""Apply the selection rule and the balancing of a gate to a distribution of load.

These rules are assumptions and none is fitted: real gates learn, and the result depends on the
data.

- ``noisy_top_k``: noise of standard deviation s on logits over temperature t flattens weights w to
  w ** (1 / sqrt(1 + (s t)^2)). Without noise, a temperature changes the weights of experts but not
  the choices.
- ``expert_choice`` and ``sinkhorn``: every expert gets the same number of tokens. (With expert
  choice, any number of experts may choose a token; here every token has top_k, the mean.)
- ``hash``: load follows the frequency of words for any distribution: 32,768 words with Zipf
  frequencies (exponent 1), each hashed to its experts.
- ``aux_loss`` and ``bias`` balancing: deviations from the mean shrink until the hottest expert
  exceeds the mean by at most a fixed share of it: 0.6 with an auxiliary loss, 0.04 with a bias
  (about the values that Wang et al. 2024, arXiv 2408.15664, report over a large batch).

Shape legend: E experts, N domains.
"""

import numpy as np

from moesim.model.gate import Gate

_WORDS = 1 << 15
#: largest excess of the hottest expert over the mean, as a share of the mean
VIOLATION = {"aux_loss": 0.6, "bias": 0.04}


def selected_weights(weight_NE: np.ndarray, gate: Gate, rng: np.random.Generator) -> np.ndarray:
    """Return the weights of experts after the selection and balancing of a gate.

    Args:
        weight_NE: ndarray of shape (N, E): weights of the distribution, by domain.
        gate: The gate, of which selection and balancing are used.
        rng: Source of randomness, which assigns words to experts.

    Returns:
        ndarray of shape (N, E): the new weights.
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
    # balancing sees all domains together: each domain keeps its own profile, and all deviations
    # shrink by the same factor
    share_NE = weight_NE / weight_NE.mean(axis=1, keepdims=True)
    over = share_NE.mean(axis=0).max() - 1.0
    keep = min(1.0, VIOLATION[gate.balancing] / over) if over > 0 else 1.0
    return 1.0 + keep * (share_NE - 1.0)
