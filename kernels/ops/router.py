"""Route tokens: the rules, the options, and the reference of `moesim_kernels.ops.router_kernel`.

    logits = logits_TE / temperature + noise
    by     = logits, or score(logits) + bias
    eligible experts: those of the best num_limited_groups groups
    ids    = top_k(by, ties to the lowest id);  weights = score(logits[ids]) / their sum

The kernel and `route_reference` follow exactly the same rules:

1. NaN logits are refused where that is checked, otherwise they count as -inf; -0.0 equals 0.0.
2. Experts are chosen by logit: both scores grow with it, and logits still differ where scores
   saturate. Ties go to the lowest expert id, so a row of -inf alone chooses experts 0..K-1. Chosen
   experts are listed best first.
3. With more than one group, only experts of a token's best ``num_limited_groups`` groups are
   eligible. The score of a group is the sum of its two best experts' scores (the score of its only
   expert in groups of one); ties go to the lowest group id. This is the node-limited routing of
   DeepSeek-V3 (arXiv 2412.19437, section 2.1.2). The scores summed here are exp(logit - row
   maximum) for softmax, which orders groups as the softmax itself does, and sigmoid(logit). They
   are float32: groups whose scores underflow tie at 0.
4. Weights are the chosen experts' scores, divided by their sum. For softmax this is the softmax
   over the chosen logits. Where a logit equals the row's maximum, exp(logit - maximum) is 1, even
   at infinity: +inf logits share the weight equally and leave 0 to finite ones, and a row of -inf
   alone has equal weights. For sigmoid, +inf scores 1 and -inf scores 0; weights are equal if all
   chosen scores are 0.
5. With a bias, experts and groups are chosen by score + bias (sigmoid(logit), or exp(logit - row
   maximum) over the row's sum); the weights do not include the bias (auxiliary-loss-free balancing,
   arXiv 2408.15664; DeepSeek-V3). A logit of -inf ranks below every other logit, whatever its bias.
6. Logits are first multiplied by 1 / temperature, then noise of a given deviation is added (noisy
   top-k, Shazeer et al. 2017, arXiv 1701.06538). The noise of a logit follows from seed, token, and
   expert alone: it is the sum of twelve uniform numbers minus 6, nearly normal and cut off at 6
   deviations. A hash (MurmurHash3's finalizer) makes it from integers, so that it is the same
   number everywhere.
7. A missing expert is as if it were not there: it enters no sum, no maximum and no group, and gets
   no token. A token for which fewer than K experts are left lists expert 0 with weight 0 in the
   places behind them.
"""

import torch
from moesim_kernels.ops.counting_sort import Segments
from moesim_kernels.ops.launches import launch
from moesim_kernels.ops.router_kernel import (
    MAX_OPTIONS_ROW,
    MAX_ROW,
    _route_kernel,
    route_warps,
)
from moesim_kernels.ops.router_options import PLAIN, Options
from moesim_kernels.ops.runtime import cdiv, next_power_of_2, require_triton, tile_rows


def _check(
    logits_TE: torch.Tensor,
    top_k: int,
    score: str,
    num_expert_groups: int,
    num_limited_groups: int,
    options: Options,
) -> None:
    if logits_TE.ndim != 2 or logits_TE.dtype != torch.float32 or logits_TE.shape[1] < 1:
        raise ValueError(
            f"logits_TE: expected float32 of shape (T, E >= 1), got {logits_TE.dtype} of shape "
            f"{tuple(logits_TE.shape)}"
        )
    num_experts = logits_TE.shape[1]
    if score not in ("softmax", "sigmoid"):
        raise ValueError(f"score: expected 'softmax' or 'sigmoid', got {score!r}")
    if num_expert_groups < 1 or num_experts % num_expert_groups:
        raise ValueError(
            f"num_expert_groups: expected a divisor of {num_experts} experts, got "
            f"{num_expert_groups}"
        )
    if not 1 <= num_limited_groups <= num_expert_groups:
        raise ValueError(
            f"num_limited_groups: expected 1 to {num_expert_groups}, got {num_limited_groups}"
        )
    # A token can only use experts of the groups it keeps.
    eligible = num_limited_groups * (num_experts // num_expert_groups)
    if not 1 <= top_k <= eligible:
        raise ValueError(
            f"top_k: expected 1 to the {eligible} experts of the kept groups, got {top_k}"
        )
    options.check(logits_TE)


def route(
    logits_TE: torch.Tensor,
    top_k: int,
    score: str = "softmax",
    num_expert_groups: int = 1,
    num_limited_groups: int = 1,
    options: Options = PLAIN,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose experts and their weights by the rules of this module.

    Args:
        logits_TE: Logits, float32 of shape (T, E), contiguous. A row has at most 16,384 lanes after
            the number of groups and the experts per group are rounded up to powers of two; 8,192
            with bias or noise.
        top_k: Number of experts each token uses.
        score: Score function, "softmax" or "sigmoid".
        num_expert_groups: Number of groups of consecutive experts; 1 for a flat gate.
        num_limited_groups: Number of groups a token may use.
        options: Bias, noise, temperature, histogram, and whether NaN is looked for.

    Returns:
        Weights, float32 of shape (T, K), each row summing to 1; expert ids, int32 of shape (T, K).

    Raises:
        ValueError: A shape, number, or score is outside these bounds, or a logit is NaN.
        RuntimeError: Triton cannot launch kernels here.
    """
    _check(logits_TE, top_k, score, num_expert_groups, num_limited_groups, options)
    return _routed(logits_TE[None], top_k, score, num_expert_groups, num_limited_groups, options)


def route_parts(
    parts_STE: torch.Tensor,
    top_k: int,
    score: str = "softmax",
    num_expert_groups: int = 1,
    num_limited_groups: int = 1,
    options: Options = PLAIN,
    *,
    ascending: bool = False,
    kept_Tg: torch.Tensor | None = None,
    segments: Segments | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Route as `route` does, from logits that come in parts, which are added in their order.

    Args:
        parts_STE: Parts of the logits, float32 of shape (S, T, E), contiguous.
        top_k: Number of experts each token uses.
        score: Score function, "softmax" or "sigmoid".
        num_expert_groups: Number of groups of consecutive experts; 1 for a flat gate.
        num_limited_groups: Number of groups a token may use.
        options: Bias, noise, temperature, histogram, and whether NaN is looked for.
        ascending: Whether experts are listed by id instead of best first.
        kept_Tg: Groups kept before, int32 of shape (T, g), if the columns are the experts of these
            groups side by side; ids then count the experts of all groups.
        segments: Memory in which the choices are counted for a plan
            (`moesim_kernels.ops.counting_sort.new_segments`); None for no counts.

    Returns:
        Weights, float32 of shape (T, K); expert ids, int32 of shape (T, K).

    Raises:
        ValueError: A shape, number, or score is outside the bounds of `route`, or a logit is NaN.
        RuntimeError: Triton cannot launch kernels here.
    """
    # NaN is looked for in the sum, since that is what the kernel sees.
    whole = parts_STE.sum(0) if options.checked and len(parts_STE) > 1 else parts_STE[0]
    _check(whole, top_k, score, num_expert_groups, num_limited_groups, options)
    return _routed(
        parts_STE,
        top_k,
        score,
        num_expert_groups,
        num_limited_groups,
        options,
        ascending,
        kept_Tg,
        segments,
    )


def _routed(
    parts_STE: torch.Tensor,
    top_k: int,
    score: str,
    num_expert_groups: int,
    num_limited_groups: int,
    options: Options,
    ascending: bool = False,
    kept_Tg: torch.Tensor | None = None,
    segments: Segments | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    require_triton(*(x for x in (parts_STE, *options.tensors, kept_Tg) if x is not None))
    parts, num_tokens, num_experts = parts_STE.shape
    # Groups and their experts are padded separately, so that a group is an axis of the block.
    block_g = next_power_of_2(num_expert_groups)
    block_s = next_power_of_2(num_experts // num_expert_groups)
    most = MAX_OPTIONS_ROW if options.bias_E is not None or options.noise_std else MAX_ROW
    if block_g * block_s > most:
        raise ValueError(
            f"logits_TE: expected at most {most} padded experts in one row, got "
            f"{block_g * block_s}; use the two-level gate"
        )
    weights_TK = torch.empty(num_tokens, top_k, dtype=torch.float32, device=parts_STE.device)
    ids_TK = torch.empty(num_tokens, top_k, dtype=torch.int32, device=parts_STE.device)
    if num_tokens:
        kept_size = 1 if kept_Tg is None else num_experts // kept_Tg.shape[1]
        biased, noisy = options.bias_E is not None, options.noise_std > 0
        # Noise keeps a second block alive and gets half as many rows, a bias a quarter.
        lanes = block_g * block_s
        block_t = tile_rows(num_tokens, lanes * (4 if biased else 2 if noisy else 1))
        if segments is not None:
            # A program counts a segment.
            block_t = segments.tokens
        # A product fused with a sum would be rounded once where the reference rounds twice.
        fusion = {"enable_fp_fusion": False} if noisy else {}
        launch(
            _route_kernel,
            (cdiv(num_tokens, block_t),),
            parts_STE,
            options.bias_E,
            options.missing_E,
            weights_TK,
            ids_TK,
            options.counts_E,
            None if segments is None else segments.counts_SE,
            options.watch,
            kept_Tg,
            num_tokens,
            num_experts,
            num_expert_groups,
            num_limited_groups,
            top_k,
            kept_size,
            options.seed,
            1.0 / options.temperature,
            options.noise_std,
            SIGMOID=score == "sigmoid",
            GROUPED=num_limited_groups < num_expert_groups,
            ASCENDING=ascending,
            MAPPED=kept_Tg is not None,
            BIASED=biased,
            MASKED=options.missing_E is not None,
            WATCHED=options.watch is not None,
            NOISY=noisy,
            COUNTED=options.counts_E is not None,
            BINS=0 if segments is None else segments.counts_SE.shape[1],
            BLOCK_T=block_t,
            BLOCK_G=block_g,
            BLOCK_S=block_s,
            BLOCK_K=next_power_of_2(top_k),
            PARTS=parts,
            num_warps=route_warps(lanes if segments is None else 2 * block_t * lanes),
            **fusion,
        )
    return weights_TK, ids_TK


def _first(by: torch.Tensor, eligible: torch.Tensor) -> torch.Tensor:
    """Return the order along the last axis: eligible ones first, each by the number, best first,
    ties in their order.
    """
    # Two stable sorts, since a number of -inf would otherwise tie with what is not eligible.
    by_number = by.sort(dim=-1, descending=True, stable=True).indices
    eligible = eligible.gather(-1, by_number).to(torch.int8)
    return by_number.gather(-1, eligible.sort(dim=-1, descending=True, stable=True).indices)


def route_reference(
    logits_TE: torch.Tensor,
    top_k: int,
    score: str = "softmax",
    num_expert_groups: int = 1,
    num_limited_groups: int = 1,
    options: Options = PLAIN,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Route in torch: same rules, arguments, results, and ValueErrors as `route`; any number of
    experts.
    """
    _check(logits_TE, top_k, score, num_expert_groups, num_limited_groups, options)
    num_tokens, num_experts = logits_TE.shape
    logits_TE = options.logits(logits_TE)
    there_TE = torch.ones_like(logits_TE, dtype=torch.bool)
    if options.missing_E is not None:
        there_TE &= ~options.missing_E
    logits_TE = torch.where(logits_TE.isnan() | ~there_TE, -torch.inf, logits_TE)

    def scores(logits: torch.Tensor, row_max: torch.Tensor) -> torch.Tensor:
        if score == "sigmoid":
            return torch.sigmoid(logits)
        # Without the comparison, infinity minus infinity would be NaN.
        return torch.where(logits == row_max, 1.0, torch.exp(logits - row_max))

    # Without a bias, experts are chosen by logit, which still differs where scores saturate.
    scores_TE, by_TE = scores(logits_TE, logits_TE.amax(1, keepdim=True)), logits_TE
    if options.bias_E is not None:
        there_scores_TE = torch.where(there_TE, scores_TE, 0.0)
        total_T1 = there_scores_TE.sum(1, keepdim=True)
        share_TE = scores_TE if score == "sigmoid" else scores_TE / total_T1
        scores_TE = torch.where(logits_TE == -torch.inf, logits_TE, share_TE + options.bias_E)
        by_TE = scores_TE
    eligible_TE = there_TE
    if num_limited_groups < num_expert_groups:
        there_TGS = there_TE.view(num_tokens, num_expert_groups, -1)
        scores_TGS = scores_TE.view(there_TGS.shape)
        best_TG2 = _first(scores_TGS, there_TGS)[:, :, :2]
        group_score_TG = torch.where(
            there_TGS.gather(2, best_TG2), scores_TGS.gather(2, best_TG2), 0.0
        ).sum(2)
        kept_TG = _first(group_score_TG, there_TGS.any(2))[:, :num_limited_groups]
        eligible_TG = torch.zeros_like(group_score_TG, dtype=torch.bool).scatter_(1, kept_TG, True)
        eligible_TE = there_TE & eligible_TG.repeat_interleave(
            num_experts // num_expert_groups, dim=1
        )
    ids_TK = _first(by_TE, eligible_TE)[:, :top_k]
    left_TK = eligible_TE.gather(1, ids_TK)
    chosen_TK = torch.where(left_TK, logits_TE.gather(1, ids_TK), -torch.inf)
    score_TK = scores(chosen_TK, chosen_TK.amax(1, keepdim=True))
    # Slots for which no expert is left list expert 0 and weigh nothing.
    ids_TK, score_TK = torch.where(left_TK, ids_TK, 0), torch.where(left_TK, score_TK, 0.0)
    total_T1 = score_TK.sum(1, keepdim=True)
    weights_TK = torch.where(total_T1 > 0, score_TK / total_T1, 1.0 / top_k)
    if options.counts_E is not None:
        options.counts_E.add_(torch.bincount(ids_TK.flatten(), minlength=num_experts).int())
    return weights_TK, ids_TK.to(torch.int32)
