"""The router: scores, group limits and top-k of all tokens in one kernel.

The rules, the same to the letter in the kernel and in `route_reference`:

1. NaN logits are -inf; -0.0 equals 0.0.
2. Experts are chosen by logit: both scores grow with it, and logits still differ where scores saturate. Ties go to the
   lowest expert id, so a row of -inf alone chooses experts 0..K-1. Chosen experts are listed best first.
3. With more than one group, only experts of a token's best ``num_limited_groups`` groups are eligible. A group's score
   is the sum of its two best experts' scores (its only expert's score in groups of one), ties to the lowest group id:
   node-limited routing of DeepSeek-V3 (arXiv 2412.19437, section 2.1.2). The scores summed here are exp(logit - row
   maximum) for softmax, which orders groups as the softmax itself does, and sigmoid(logit). They are float32: groups
   whose scores underflow tie at 0.
4. Weights are the chosen experts' scores, divided by their sum. For softmax that is the softmax over the chosen logits.
   Where a logit equals the row's maximum, exp(logit - maximum) is 1, even at infinity: +inf logits share the weight
   equally and leave finite ones 0, and a row of -inf alone has equal weights. For sigmoid, +inf scores 1 and -inf
   scores 0; weights are equal if all chosen scores are 0.
"""

import torch
from moesim_kernels.runtime import jit, require_triton, tile_rows, tl, triton

#: Lanes of one row that a program takes without spilling.
MAX_ROW = 2**14


@jit
def order_key(logits):
    """float32 -> int32 keys in the same order; no float's key is as low as INT_MIN, and NaN's is -inf's."""
    logits = tl.where(logits != logits, float("-inf"), logits)
    bits = tl.where(logits == 0.0, 0.0, logits).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@jit
def key_logit(keys):
    """The float32 whose `order_key` this is."""
    return (keys ^ ((keys >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@jit
def _score(logits, row_max, SIGMOID: tl.constexpr):
    if SIGMOID:
        return 1.0 / (1.0 + tl.exp(-logits))
    return tl.where(logits == row_max, 1.0, tl.exp(logits - row_max))


@jit
def _route_kernel(logits_ptr, weights_ptr, ids_ptr, num_tokens, num_experts, num_groups, num_limited_groups, top_k,
                  SIGMOID: tl.constexpr, GROUPED: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_G: tl.constexpr,
                  BLOCK_S: tl.constexpr, BLOCK_K: tl.constexpr):
    int_min: tl.constexpr = -2147483648
    per_group = num_experts // num_groups
    t = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    # Every group starts a row of BLOCK_S lanes, so lanes keep the order of expert ids and a group is an axis.
    lane = tl.arange(0, BLOCK_G * BLOCK_S)
    group = lane // BLOCK_S
    member = lane % BLOCK_S
    expert = group * per_group + member
    exists = (t[:, None] < num_tokens) & ((group < num_groups) & (member < per_group))[None, :]
    logits = tl.load(logits_ptr + t[:, None] * num_experts + expert[None, :], mask=exists, other=0.0)
    keys = tl.where(exists, order_key(logits), int_min)

    if GROUPED:
        row_max = key_logit(tl.max(keys, axis=1))[:, None]
        keys_TGS = tl.reshape(keys, (BLOCK_T, BLOCK_G, BLOCK_S))
        best, best_at = tl.max(keys_TGS, axis=2, return_indices=True, return_indices_tie_break_left=True)
        s = tl.arange(0, BLOCK_S)[None, None, :]
        second = tl.max(tl.where(s == best_at[:, :, None], int_min, keys_TGS), axis=2)
        group_score = _score(key_logit(best), row_max, SIGMOID)
        group_score += tl.where(second == int_min, 0.0, _score(key_logit(second), row_max, SIGMOID))
        g = tl.arange(0, BLOCK_G)[None, :]
        # Scores are never negative, and such floats order as their bits do.
        open_groups = tl.where((g < num_groups) & (best != int_min), group_score.to(tl.int32, bitcast=True), -1)
        kept = tl.zeros((BLOCK_T, BLOCK_G), tl.int1)
        for _ in range(num_limited_groups):
            group_at = tl.argmax(open_groups, axis=1, tie_break_left=True)[:, None]
            kept = kept | (g == group_at)
            open_groups = tl.where(g == group_at, -1, open_groups)
        keys = tl.reshape(tl.where(kept[:, :, None], keys_TGS, int_min), (BLOCK_T, BLOCK_G * BLOCK_S))

    slot = tl.arange(0, BLOCK_K)[None, :]
    chosen_key = tl.full((BLOCK_T, BLOCK_K), int_min, tl.int32)
    chosen_id = tl.zeros((BLOCK_T, BLOCK_K), tl.int32)
    for k in range(top_k):
        top, lane_at = tl.max(keys, axis=1, return_indices=True, return_indices_tie_break_left=True)
        expert_at = (lane_at // BLOCK_S) * per_group + lane_at % BLOCK_S
        chosen_key = tl.where(slot == k, top[:, None], chosen_key)
        chosen_id = tl.where(slot == k, expert_at[:, None], chosen_id)
        keys = tl.where(lane[None, :] == lane_at[:, None], int_min, keys)

    best_logit = key_logit(tl.max(chosen_key, axis=1))[:, None]
    score = tl.where(slot < top_k, _score(key_logit(chosen_key), best_logit, SIGMOID), 0.0)
    total = tl.sum(score, axis=1)[:, None]
    weights = tl.where(total > 0.0, score / total, 1.0 / top_k)
    out = t[:, None] * top_k + slot
    writes = (t[:, None] < num_tokens) & (slot < top_k)
    tl.store(weights_ptr + out, weights, mask=writes)
    tl.store(ids_ptr + out, chosen_id, mask=writes)


def route_warps(row_elements: int) -> int:
    """Warps of a router program whose rows have this many lanes, a power of two: 4 to 16, 1,024 lanes each."""
    return min(max(row_elements // 1024, 4), 16)


def _check(logits_TE: torch.Tensor, top_k: int, score: str, num_expert_groups: int, num_limited_groups: int) -> None:
    if logits_TE.ndim != 2 or logits_TE.dtype != torch.float32 or logits_TE.shape[1] < 1:
        raise ValueError(f"logits_TE: expected float32 of shape (T, E >= 1), got {logits_TE.dtype} of shape "
                         f"{tuple(logits_TE.shape)}")
    num_experts = logits_TE.shape[1]
    if score not in ("softmax", "sigmoid"):
        raise ValueError(f"score: expected 'softmax' or 'sigmoid', got {score!r}")
    if num_expert_groups < 1 or num_experts % num_expert_groups:
        raise ValueError(f"num_expert_groups: expected a divisor of {num_experts} experts, got {num_expert_groups}")
    if not 1 <= num_limited_groups <= num_expert_groups:
        raise ValueError(f"num_limited_groups: expected 1 to {num_expert_groups}, got {num_limited_groups}")
    eligible = num_limited_groups * (num_experts // num_expert_groups)
    if not 1 <= top_k <= eligible:
        raise ValueError(f"top_k: expected 1 to the {eligible} experts of the kept groups, got {top_k}")


def route(logits_TE: torch.Tensor, top_k: int, score: str = "softmax", num_expert_groups: int = 1,
          num_limited_groups: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose experts and their weights by the rules of this module.

    Args:
        logits_TE: float32 of shape (T, E), contiguous; at most 16,384 lanes after rounding the number of groups and the
            experts per group up to powers of two.
        top_k: Experts a token uses.
        score: "softmax" or "sigmoid".
        num_expert_groups: Groups of consecutive experts; 1 for a flat gate.
        num_limited_groups: Groups a token may use.

    Returns:
        Weights, float32 of shape (T, K), each row summing to 1; expert ids, int32 of shape (T, K).

    Raises:
        ValueError: Shapes, numbers or a score outside these bounds.
        RuntimeError: No Triton to launch with.
    """
    _check(logits_TE, top_k, score, num_expert_groups, num_limited_groups)
    require_triton(logits_TE)
    num_tokens, num_experts = logits_TE.shape
    block_g = triton.next_power_of_2(num_expert_groups)
    block_s = triton.next_power_of_2(num_experts // num_expert_groups)
    if block_g * block_s > MAX_ROW:
        raise ValueError(f"logits_TE: expected at most {MAX_ROW} padded experts in one row, got {block_g * block_s}; "
                         "use the two-level gate")
    weights_TK = torch.empty(num_tokens, top_k, dtype=torch.float32, device=logits_TE.device)
    ids_TK = torch.empty(num_tokens, top_k, dtype=torch.int32, device=logits_TE.device)
    if num_tokens:
        block_t = tile_rows(num_tokens, block_g * block_s)
        _route_kernel[(triton.cdiv(num_tokens, block_t),)](
            logits_TE, weights_TK, ids_TK, num_tokens, num_experts, num_expert_groups, num_limited_groups, top_k,
            SIGMOID=score == "sigmoid", GROUPED=num_limited_groups < num_expert_groups, BLOCK_T=block_t,
            BLOCK_G=block_g, BLOCK_S=block_s, BLOCK_K=triton.next_power_of_2(top_k),
            num_warps=route_warps(block_g * block_s))
    return weights_TK, ids_TK


def route_reference(logits_TE: torch.Tensor, top_k: int, score: str = "softmax", num_expert_groups: int = 1,
                    num_limited_groups: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """`route` in torch: same rules, arguments, results and ValueErrors; any number of experts."""
    _check(logits_TE, top_k, score, num_expert_groups, num_limited_groups)
    num_tokens, num_experts = logits_TE.shape
    logits_TE = torch.where(logits_TE.isnan(), -torch.inf, logits_TE)

    def scores(logits: torch.Tensor, row_max: torch.Tensor) -> torch.Tensor:
        if score == "sigmoid":
            return torch.sigmoid(logits)
        return torch.where(logits == row_max, 1.0, torch.exp(logits - row_max))

    eligible_TE = torch.ones_like(logits_TE, dtype=torch.bool)
    if num_limited_groups < num_expert_groups:
        scores_TGS = scores(logits_TE, logits_TE.amax(1, keepdim=True)).view(num_tokens, num_expert_groups, -1)
        group_score_TG = scores_TGS.topk(min(2, scores_TGS.shape[2]), dim=2).values.sum(2)
        kept_TG = group_score_TG.sort(dim=1, descending=True, stable=True).indices[:, :num_limited_groups]
        eligible_TG = torch.zeros_like(group_score_TG, dtype=torch.bool).scatter_(1, kept_TG, True)
        eligible_TE = eligible_TG.repeat_interleave(num_experts // num_expert_groups, dim=1)
    # Two stable sorts: by logit, then eligible before the rest, which -inf logits would otherwise tie with.
    by_logit_TE = logits_TE.sort(dim=1, descending=True, stable=True).indices
    eligible_by_logit_TE = eligible_TE.gather(1, by_logit_TE).to(torch.int8)
    eligible_first_TE = eligible_by_logit_TE.sort(dim=1, descending=True, stable=True).indices
    ids_TK = by_logit_TE.gather(1, eligible_first_TE)[:, :top_k]
    chosen_TK = logits_TE.gather(1, ids_TK)
    score_TK = scores(chosen_TK, chosen_TK[:, :1])
    total_T1 = score_TK.sum(1, keepdim=True)
    weights_TK = torch.where(total_T1 > 0, score_TK / total_T1, 1.0 / top_k)
    return weights_TK, ids_TK.to(torch.int32)
