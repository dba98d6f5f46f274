"""Ways of selecting experts beside top-k, in torch: what the samplers of `moesim.routing` and the
prices stand for.

Small references with forward semantics; tests hold the samplers to them.
`moesim_kernels.ops.router` has top-k, groups and both scores.

Shape suffixes: T tokens, E experts, K choices of a token, C places of an expert.
"""

import torch

#: multiplier and its like of the hash of words (Knuth's, and odd numbers after it)
_HASH, _HASH_STEP = 2654435761, 40503


def noisy_top_k(
    logits_TE: torch.Tensor,
    top_k: int,
    noise_std_E: torch.Tensor,
    *,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Top-k of logits over a temperature plus normal noise of a learnt scale; weights are of the
    noisy logits.

    Args:
        logits_TE: float32 of shape (T, E).
        top_k: K.
        noise_std_E: Deviation of each expert's noise, shape (E,) or a scalar tensor, >= 0.
        temperature: Learnt scalar > 0.
        generator: Source of noise.

    Returns:
        Weights, float32 of shape (T, K), summing to 1; expert ids, int64.
    """
    noise_TE = torch.randn(logits_TE.shape, generator=generator) * noise_std_E
    best_TK, ids_TK = (logits_TE / temperature + noise_TE).topk(top_k, dim=1)
    return torch.softmax(best_TK, dim=1), ids_TK


def biased_top_k(
    scores_TE: torch.Tensor, top_k: int, bias_E: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Selection by score plus bias, weights by score alone: auxiliary-loss-free balancing (arXiv
    2408.15664).

    Returns:
        Weights, float32 of shape (T, K), summing to 1; expert ids, int64.
    """
    ids_TK = (scores_TE + bias_E).topk(top_k, dim=1).indices
    weights_TK = scores_TE.gather(1, ids_TK)
    return weights_TK / weights_TK.sum(dim=1, keepdim=True), ids_TK


def updated_bias(bias_E: torch.Tensor, counts_E: torch.Tensor, step: float = 1e-3) -> torch.Tensor:
    """The bias after a batch: up for experts below the mean load, down for those above, by a fixed
    step.
    """
    return bias_E + step * torch.sign(counts_E.float().mean() - counts_E)


def expert_choice(logits_TE: torch.Tensor, num_places: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Each expert takes its best tokens by the softmax over experts (Zhou et al. 2022, arXiv
    2202.09368).

    Args:
        logits_TE: float32 of shape (T, E).
        num_places: C, at most T.

    Returns:
        Weights, float32 of shape (E, C); tokens, int64 of shape (E, C), all different for an
        expert.
    """
    return torch.softmax(logits_TE, dim=1).T.topk(num_places, dim=1)


def hash_experts(words_T: torch.Tensor, num_experts: int, top_k: int) -> torch.Tensor:
    """Experts of words by a hash, without a look at the token's vector (Roller et al. 2021, arXiv
    2106.04426).

    Returns:
        Expert ids, int64 of shape (T, K), all different.
    """
    first_T = (words_T.long() * _HASH % 2**32) % num_experts
    step_T = 1 + (words_T.long() * _HASH_STEP % 2**31) % max(num_experts - 1, 1)
    ids = [first_T]
    for _ in range(1, top_k):
        at_T = (ids[-1] + step_T) % num_experts
        # step on where a word's sequence closes before it has K experts
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
    """Top-k of logits after rows and columns are normalised in turn, so that experts are chosen
    about alike.

    As S-BASE (Clark et al. 2022, arXiv 2202.01169) makes of BASE (arXiv 2103.16716); weights are
    the softmax of the chosen logits as they were.

    Returns:
        Weights, float32 of shape (T, K), summing to 1; expert ids, int64.
    """
    plan_TE = logits_TE.double()
    for _ in range(rounds):
        plan_TE = plan_TE - plan_TE.logsumexp(dim=0, keepdim=True)
        plan_TE = plan_TE - plan_TE.logsumexp(dim=1, keepdim=True)
    ids_TK = plan_TE.topk(top_k, dim=1).indices
    return torch.softmax(logits_TE.gather(1, ids_TK), dim=1), ids_TK


def serve(ids_TK: torch.Tensor, num_experts: int, num_places: int) -> torch.Tensor:
    """Which choices find a place, in token order: bool of shape (T, K)."""
    flat = ids_TK.reshape(-1)
    before = (torch.nn.functional.one_hot(flat, num_experts).cumsum(dim=0) - 1).gather(
        1, flat[:, None]
    )[:, 0]
    return (before < num_places).view(ids_TK.shape)


def shared_gate(
    x_TH: torch.Tensor, keys_EH: torch.Tensor, top_k: int, share: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """One top-k decision for each run of ``share`` tokens, that of the first.

    Returns:
        Weights, float32 of shape (T, K); expert ids, int64: equal for the tokens of a run.
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
    """Groups by a coarse router; inside each kept group a router of its own gives an equal share of
    the experts.

    Returns:
        Weights, float32 of shape (T, K): a group's by the coarse softmax, times its experts' by its
        own; expert ids.
    """
    num_groups, per_group = len(coarse_GH), len(fine_EH) // len(coarse_GH)
    share = top_k // num_limited_groups
    coarse, groups_Tg = (x_TH.float() @ coarse_GH.float().T).topk(num_limited_groups, dim=1)
    fine_TGS = (x_TH.float() @ fine_EH.float().T).view(len(x_TH), num_groups, per_group)
    kept_TgS = fine_TGS.gather(1, groups_Tg[:, :, None].expand(-1, -1, per_group))
    best, slots = kept_TgS.topk(share, dim=2)
    weights = torch.softmax(coarse, dim=1)[:, :, None] * torch.softmax(best, dim=2)
    return weights.flatten(1), (groups_Tg[:, :, None] * per_group + slots).flatten(1)
