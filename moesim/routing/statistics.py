"""Describe a distribution of load in a few numbers.

Shape legend: E experts, T tokens, K choices.
"""

import numpy as np


def gini(count_E: np.ndarray) -> float:
    """Return the Gini coefficient: 0 if all loads are equal, near 1 if one expert has
    everything.
    """
    ordered = np.sort(np.asarray(count_E, dtype=np.float64))
    rank = np.arange(1, len(ordered) + 1)
    return float((2 * rank - len(ordered) - 1) @ ordered / (len(ordered) * ordered.sum()))


def contiguous_imbalance(count_E: np.ndarray, num_ranks: int = 8) -> float:
    """Return the load of the busiest rank over the mean, with experts placed on ranks in order. It
    uses as many experts as divide evenly.
    """
    ranks = min(num_ranks, len(count_E))
    load_W = [part.sum() for part in np.array_split(np.asarray(count_E, dtype=np.float64), ranks)]
    return float(max(load_W) / np.mean(load_W))


def zipf_exponent(count_E: np.ndarray) -> float:
    """Return the exponent of the Zipf law with the same max/mean, found by bisection: 0 for equal
    loads, at most 4.
    """
    count = np.asarray(count_E, dtype=np.float64)
    target, ranks = count.max() / count.mean(), np.arange(1.0, len(count) + 1)
    low, high = 0.0, 4.0
    for _ in range(50):
        middle = (low + high) / 2
        weight = ranks**-middle
        low, high = (middle, high) if weight[0] / weight.mean() < target else (low, middle)
    return (low + high) / 2


def load_statistics(count_E: np.ndarray) -> dict[str, float]:
    """Return max/mean, coefficient of variation (population), Gini, contiguous EP8 max/mean, Zipf
    exponent, and share of unused experts.

    Args:
        count_E: ndarray of shape (E,): counts >= 0, not all 0.
    """
    count = np.asarray(count_E, dtype=np.float64)
    return {
        "max_over_mean": float(count.max() / count.mean()),
        "cv": float(count.std() / count.mean()),
        "gini": gini(count),
        "contiguous_ep8_imbalance": contiguous_imbalance(count),
        "zipf_exponent": zipf_exponent(count),
        "unused_fraction": float((count == 0).mean()),
    }


def shared_information(first_TK: np.ndarray, second_TK: np.ndarray, num_experts: int) -> float:
    """Return the mutual information, in bits, between an expert of a token in one layer and an
    expert of the same token in another layer.

    All pairs of choices count. The bias of finite samples, (E - 1)^2 / (2 T ln 2) for top-1, is not
    removed.

    Args:
        first_TK: ndarray of shape (T, K): experts of the tokens in one layer.
        second_TK: ndarray of shape (T, K): experts of the same tokens in the other layer.
        num_experts: Number of experts E of each layer.
    """
    joint = np.zeros(num_experts**2)
    for k in range(first_TK.shape[1]):
        key = first_TK[:, [k]].astype(np.int64) * num_experts + second_TK
        joint += np.bincount(key.ravel(), minlength=num_experts**2)
    share = joint.reshape(num_experts, num_experts) / joint.sum()
    alone = share.sum(axis=1, keepdims=True) * share.sum(axis=0, keepdims=True)
    there = share > 0
    return float((share[there] * np.log2(share[there] / alone[there])).sum())
