"""Let replicas take turns, in one pass over the choices."""

import numpy as np

from moesim.compiled import compiled


@compiled(plain_s=lambda expert_ids_N, *_: 5e-7 * len(expert_ids_N))
def slots_in_turn(expert_ids_N, order_P, first_E, copies_E):
    """Return the slot of every choice; the replicas of an expert take turns in token order.

    Args:
        expert_ids_N: ndarray of shape (N,): expert of every choice.
        order_P: The slots, with those of one expert next to each other.
        first_E: Index in ``order_P`` of the first slot of each expert.
        copies_E: Number of slots of each expert.

    Returns:
        ndarray of shape (N,), int64: slot of every choice.
    """
    slot_N = np.empty(len(expert_ids_N), np.int64)
    turn_E = np.zeros(len(copies_E), np.int64)
    for i in range(len(expert_ids_N)):
        expert = expert_ids_N[i]
        slot_N[i] = order_P[first_E[expert] + turn_E[expert]]
        turn_E[expert] += 1
        if turn_E[expert] == copies_E[expert]:
            turn_E[expert] = 0
    return slot_N


@compiled(plain_s=lambda expert_ids_N, _: 5e-7 * len(expert_ids_N))
def turns(expert_ids_N, num_experts):
    """Return how many choices of the same expert precede each choice: ndarray of shape (N,),
    int64.
    """
    turn_N = np.empty(len(expert_ids_N), np.int64)
    count_E = np.zeros(num_experts, np.int64)
    for i in range(len(expert_ids_N)):
        turn_N[i] = count_E[expert_ids_N[i]]
        count_E[expert_ids_N[i]] += 1
    return turn_N
