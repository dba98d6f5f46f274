"""Select experts in ways other than plain top-k, in torch: references for the samplers of
`moesim.routing` and the prices.

These are small references with forward semantics only; tests compare the samplers with them.
`moesim_kernels.ops.router` has top-k, groups, and both scores.

Shape suffixes: T tokens, E experts, K choices of a token, C slots of an expert.
"""

import torch

#: multipliers of the two hashes of a word: Knuth's for the first expert, another for the step
_HASH, _HASH_STEP = 2654435761, 40503


def noisy_top_k(
    logits_TE: torch.Tensor,
    top_k: int,
    noise_std_E: torch.Tensor,
    *,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose the top-k of logits over a temperature plus normal noise of a learned scale; weights
    follow the noisy logits.

    Args:
        logits_TE: Logits, float32 of shape (T, E).
        top_k: Number of experts K that each token uses.
        noise_std_E: Standard deviation of each expert's noise, shape (E,) or a scalar tensor, >= 0.
        temperature: Learned scalar > 0 by which logits are divided.
        generator: Random generator of the noise.

    Returns:
        Weights, float32 of shape (T, K), summing to 1; expert ids, int64.
    """
    noise_TE = torch.randn(logits_TE.shape, generator=generator) * noise_std_E
    best_TK, ids_TK = (logits_TE / temperature + noise_TE).topk(top_k, dim=1)
    return torch.softmax(best_TK, dim=1), ids_TK


def biased_top_k(
    scores_TE: torch.Tensor, top_k: int, bias_E: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Select by score plus bias and weigh by score alone: auxiliary-loss-free balancing (arXiv
    2408.15664).

    Returns:
        Weights, float32 of shape (T, K), summing to 1; expert ids, int64.
    """
    ids_TK = (scores_TE + bias_E).topk(top_k, dim=1).indices
    weights_TK = scores_TE.gather(1, ids_TK)
    return weights_TK / weights_TK.sum(dim=1, keepdim=True), ids_TK


def updated_bias(bias_E: torch.Tensor, counts_E: torch.Tensor, step: float = 1e-3) -> torch.Tensor:
    """Return the bias after a batch: raised by a fixed step for experts below the mean load,
    lowered for experts above it.
    """
    return bias_E + step * torch.sign(counts_E.float().mean() - counts_E)


def expert_choice(logits_TE: torch.Tensor, num_places: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Let each expert take its best tokens by the softmax over experts (Zhou et al. 2022, arXiv
    2202.09368).

    Args:
        logits_TE: Logits, float32 of shape (T, E).
        num_places: Number of slots C of each expert, at most T.

    Returns:
        Weights, float32 of shape (E, C); tokens, int64 of shape (E, C), all different for each
        expert.
    """
    return torch.softmax(logits_TE, dim=1).T.topk(num_places, dim=1)


def hash_experts(words_T: torch.Tensor, num_experts: int, top_k: int) -> torch.Tensor:
    """Choose experts of words by a hash, without looking at the token's vector (Roller et al. 2021,
    arXiv 2106.04426).

    Returns:
        Expert ids, int64 of shape (T, K), all different.
    """
    # A hashed start and a hashed step, as in open addressing, give every word its own sequence.
    first_T = (words_T.long() * _HASH % 2**32) % num_experts
    step_T = 1 + (words_T.long() * _HASH_STEP % 2**31) % max(num_experts - 1, 1)
    ids = [first_T]
    for _ in range(1, top_k):
        at_T = (ids[-1] + step_T) % num_experts
        # step on where a word's sequence of experts repeats before it has K of them
        for earlier in range(num_experts):
            taken_T = torch.stack([at_T == other_T for other_T in ids]).any(dim=0)
            if earlier == num_experts - 1 or not taken_T.any():
                break
            at_T = torch.where(taken_T, (at_T + 1) % num_experts, at_T)
        ids.append(at_T)
    return torch.stack(ids, dim=1)


def sinkhorn(
    logits_TE: torch.Tensor, top_k: int, rounds: int = 8
) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose the top-k of logits after rows and columns are normalized in turn, so that experts are
    chosen about equally often.

    This follows S-BASE (Clark et al. 2022, arXiv 2202.01169), which is derived from BASE (arXiv
    2103.16716). Weights are the softmax of the original logits of the chosen experts.

    Returns:
        Weights, float32 of shape (T, K), summing to 1; expert ids, int64.
    """
    # In the log domain and in double precision, so that many rounds neither overflow nor drift.
    plan_TE = logits_TE.double()
    for _ in range(rounds):
        plan_TE = plan_TE - plan_TE.logsumexp(dim=0, keepdim=True)
        plan_TE = plan_TE - plan_TE.logsumexp(dim=1, keepdim=True)
    ids_TK = plan_TE.topk(top_k, dim=1).indices
    return torch.softmax(logits_TE.gather(1, ids_TK), dim=1), ids_TK


def serve(ids_TK: torch.Tensor, num_experts: int, num_places: int) -> torch.Tensor:
    """Return which choices find a slot, in token order: bool of shape (T, K)."""
    flat = ids_TK.reshape(-1)
    # The number of earlier choices of the same expert is the choice's position in its queue.
    before = (torch.nn.functional.one_hot(flat, num_experts).cumsum(dim=0) - 1).gather(
        1, flat[:, None]
    )[:, 0]
    return (before < num_places).view(ids_TK.shape)


def shared_gate(
    x_TH: torch.Tensor, keys_EH: torch.Tensor, top_k: int, share: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Make one top-k decision for each run of ``share`` tokens, based on the first token of the
    run.

    Returns:
        Weights, float32 of shape (T, K); expert ids, int64. Both are equal for the tokens of a run.
    """
    run_T = torch.arange(len(x_TH)) // share
    best, ids = (x_TH[::share].float() @ keys_EH.float().T).topk(top_k, dim=1)
    return torch.softmax(best, dim=1)[run_T], ids[run_T]


def local_two_level(
    x_TH: torch.Tensor,
    coarse_GH: torch.Tensor,
    fine_EH: torch.Tensor,
    top_k: int,
    num_limited_groups: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose groups with a coarse router; inside each kept group, the group's own router chooses an
    equal share of the experts.

    Returns:
        Weights, float32 of shape (T, K): the coarse softmax of the group times the group's own
        softmax of the expert; expert ids.
    """
    num_groups, per_group = len(coarse_GH), len(fine_EH) // len(coarse_GH)
    share = top_k // num_limited_groups
    coarse, groups_Tg = (x_TH.float() @ coarse_GH.float().T).topk(num_limited_groups, dim=1)
    fine_TGS = (x_TH.float() @ fine_EH.float().T).view(len(x_TH), num_groups, per_group)
    kept_TgS = fine_TGS.gather(1, groups_Tg[:, :, None].expand(-1, -1, per_group))
    best, slots = kept_TgS.topk(share, dim=2)
    # The product of two softmaxes sums to 1 over a token's choices.
    weights = torch.softmax(coarse, dim=1)[:, :, None] * torch.softmax(best, dim=2)
    return weights.flatten(1), (groups_Tg[:, :, None] * per_group + slots).flatten(1)
