"""The router: scores, group limits and top-k of all tokens in one kernel.

    for every token:   logits = sum of their parts / temperature + noise;   keys = integers in the order of the logits
        with a bias:   keys = those of score + bias;   with groups: keys of groups that are not kept are dropped
        K times:       take the largest key (of equals the lowest id) and strike it out
        weights = scores of what was taken, divided by their sum

The rules, the same to the letter in the kernel and in `route_reference`:

1. NaN logits are refused where that is checked, else they are -inf; -0.0 equals 0.0.
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
5. Given a bias, experts and groups are chosen by score + bias (sigmoid(logit), or exp(logit - row maximum) over the
   row's sum), weights know nothing of it (auxiliary-loss-free balancing, arXiv 2408.15664; DeepSeek-V3). A logit of
   -inf stays behind every other, whatever its bias.
6. Logits are first multiplied with 1 / temperature, then noise of a given deviation is added (noisy top-k, Shazeer et
   al. 2017, arXiv 1701.06538). A logit's noise follows from seed, token and expert alone: the sum of twelve uniform
   numbers less 6, nearly normal and cut off at 6 deviations, made of integers by a hash (MurmurHash3's finaliser), so
   that it is the same number everywhere.
"""

import math
from dataclasses import dataclass

import torch
from moesim_kernels.launches import launch
from moesim_kernels.runtime import jit, require_triton, tile_rows, tl, triton

#: Lanes of one row that a program takes without spilling; with bias or noise.
MAX_ROW, MAX_OPTIONS_ROW = 2**14, 2**13


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
def score_of(logits, row_max, SIGMOID: tl.constexpr):
    """The score that rule 4 of this module divides by the sum, from a logit and the row's largest."""
    if SIGMOID:
        return 1.0 / (1.0 + tl.exp(-logits))
    return tl.where(logits == row_max, 1.0, tl.exp(logits - row_max))


@jit
def _hashed(h):
    h = h.to(tl.uint32)
    h = (h ^ (h >> 16)) * 0x85EBCA6B
    h = (h ^ (h >> 13)) * 0xC2B2AE35
    return h ^ (h >> 16)


@jit
def _load_logits(logits_ptr, t, expert, mask, num_tokens, num_experts, inverse_temperature, noise_std, seed,
                 NOISY: tl.constexpr, PARTS: tl.constexpr):
    # Logits may come in parts, added up in their order.
    at = logits_ptr + t * num_experts + expert
    logits = tl.load(at, mask=mask, other=0.0)
    for _ in tl.static_range(1, PARTS):
        at += (tl.zeros_like(t) + num_tokens) * num_experts
        logits += tl.load(at, mask=mask, other=0.0)
    logits *= inverse_temperature
    if NOISY:
        state = _hashed(_hashed(t.to(tl.uint32) + _hashed(seed)) ^ (expert.to(tl.uint32) * 0x9E3779B9))
        total = tl.zeros_like(logits).to(tl.int32)
        for i in tl.static_range(6):
            word = _hashed(state + (i * 0x2545F491 + 1))
            total += ((word & 0xFFFF) + (word >> 16)).to(tl.int32)
        logits += (total - 6 * 65535).to(tl.float32) * (1.0 / 65536) * noise_std
    return logits


@jit
def _route_kernel(logits_ptr, bias_ptr, weights_ptr, ids_ptr, counts_ptr, kept_ptr, num_tokens, num_experts, num_groups,
                  num_limited_groups, top_k, kept_size, seed, inverse_temperature, noise_std, ASCENDING: tl.constexpr,
                  MAPPED: tl.constexpr, SIGMOID: tl.constexpr,
                  GROUPED: tl.constexpr, BIASED: tl.constexpr, NOISY: tl.constexpr, COUNTED: tl.constexpr,
                  PARTS: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_S: tl.constexpr,
                  BLOCK_K: tl.constexpr):
    int_min: tl.constexpr = -2147483648
    per_group = num_experts // num_groups
    t = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    # Every group starts a row of BLOCK_S lanes, so lanes keep the order of expert ids and a group is an axis.
    lane = tl.arange(0, BLOCK_G * BLOCK_S)
    group = lane // BLOCK_S
    member = lane % BLOCK_S
    expert = group * per_group + member
    is_expert = (group < num_groups) & (member < per_group)
    exists = (t[:, None] < num_tokens) & is_expert[None, :]
    logits = _load_logits(logits_ptr, t[:, None], expert[None, :], exists, num_tokens, num_experts,
                          inverse_temperature, noise_std, seed, NOISY, PARTS)
    keys = tl.where(exists, order_key(logits), int_min)
    row_max = key_logit(tl.max(keys, axis=1))[:, None]
    if BIASED:
        logits = key_logit(keys)
        score = score_of(logits, row_max, SIGMOID)
        if not SIGMOID:
            score = score / tl.sum(tl.where(exists, score, 0.0), axis=1)[:, None]
        bias = tl.load(bias_ptr + expert, mask=is_expert, other=0.0)[None, :]
        keys = tl.where(exists, order_key(tl.where(logits == float("-inf"), logits, score + bias)), int_min)

    if GROUPED:
        keys_TGS = tl.reshape(keys, (BLOCK_T, BLOCK_G, BLOCK_S))
        best, best_at = tl.max(keys_TGS, axis=2, return_indices=True, return_indices_tie_break_left=True)
        s = tl.arange(0, BLOCK_S)[None, None, :]
        second = tl.max(tl.where(s == best_at[:, :, None], int_min, keys_TGS), axis=2)
        if BIASED:
            group_score = key_logit(best) + tl.where(second == int_min, 0.0, key_logit(second))
        else:
            group_score = score_of(key_logit(best), row_max, SIGMOID)
            group_score += tl.where(second == int_min, 0.0, score_of(key_logit(second), row_max, SIGMOID))
        g = tl.arange(0, BLOCK_G)[None, :]
        open_groups = tl.where((g < num_groups) & (best != int_min), order_key(group_score), int_min)
        kept = tl.zeros((BLOCK_T, BLOCK_G), tl.int1)
        for _ in range(num_limited_groups):
            group_at = tl.argmax(open_groups, axis=1, tie_break_left=True)[:, None]
            kept = kept | (g == group_at)
            open_groups = tl.where(g == group_at, int_min, open_groups)
        keys = tl.reshape(tl.where(kept[:, :, None], keys_TGS, int_min), (BLOCK_T, BLOCK_G * BLOCK_S))

    slot = tl.arange(0, BLOCK_K)[None, :]
    chosen_key = tl.full((BLOCK_T, BLOCK_K), int_min, tl.int32)
    chosen_id = tl.zeros((BLOCK_T, BLOCK_K), tl.int32)
    for k in range(top_k):
        # The largest key, then the lowest lane that has it: two plain reductions are faster than one of pairs.
        top = tl.max(keys, axis=1)
        lane_at = tl.min(tl.where(keys == top[:, None], lane[None, :], BLOCK_G * BLOCK_S), axis=1)
        expert_at = (lane_at // BLOCK_S) * per_group + lane_at % BLOCK_S
        chosen_key = tl.where(slot == k, top[:, None], chosen_key)
        chosen_id = tl.where(slot == k, expert_at[:, None], chosen_id)
        keys = tl.where(lane[None, :] == lane_at[:, None], int_min, keys)

    writes = (t[:, None] < num_tokens) & (slot < top_k)
    if BIASED:
        logits = _load_logits(logits_ptr, t[:, None], chosen_id, writes, num_tokens, num_experts, inverse_temperature,
                              noise_std, seed, NOISY, PARTS)
        chosen_key = tl.where(writes, order_key(logits), int_min)
    best_logit = key_logit(tl.max(chosen_key, axis=1))[:, None]
    score = tl.where(slot < top_k, score_of(key_logit(chosen_key), best_logit, SIGMOID), 0.0)
    total = tl.sum(score, axis=1)[:, None]
    weights = tl.where(total > 0.0, score / total, 1.0 / top_k)
    place = slot
    if ASCENDING:
        # Listed by id instead: how many of the others have a lower one.
        lower = (chosen_id[:, None, :] < chosen_id[:, :, None]) & (slot < top_k)[:, None, :]
        place = tl.sum(lower.to(tl.int32), axis=2)
    if MAPPED:
        # Columns are the experts of groups kept before, side by side.
        kept_at = kept_ptr + t[:, None] * (num_experts // kept_size) + chosen_id // kept_size
        chosen_id = tl.load(kept_at, mask=writes, other=0) * kept_size + chosen_id % kept_size
    out = t[:, None] * top_k + place
    tl.store(weights_ptr + out, weights, mask=writes)
    tl.store(ids_ptr + out, chosen_id, mask=writes)
    if COUNTED:
        tl.atomic_add(counts_ptr + chosen_id, 1, mask=writes, sem="relaxed")


def route_warps(row_elements: int) -> int:
    """Warps of a router program whose rows have this many lanes, a power of two: 4 to 16, 1,024 lanes each."""
    return min(max(row_elements // 1024, 4), 16)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a router does beside top-k.

    Attributes:
        bias_E: Added to scores where experts are chosen, float32 of shape (E,), contiguous; None without.
        noise_std: Deviation of the noise on logits, 0 for none.
        seed: Of the noise.
        temperature: Logits are divided by it.
        counts_E: int32 of shape (E,), contiguous: the number of tokens that chose each expert is added to it.
        checked: Refuse NaN logits; on a GPU that is a wait.

    Raises:
        ValueError: A number outside its range.
    """

    bias_E: torch.Tensor | None = None
    noise_std: float = 0.0
    seed: int = 0
    temperature: float = 1.0
    counts_E: torch.Tensor | None = None
    checked: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.noise_std < math.inf:
            raise ValueError(f"noise_std: expected a number >= 0, got {self.noise_std}")
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature: expected a number > 0, got {self.temperature}")
        if not 0 <= self.seed < 2**31:
            raise ValueError(f"seed: expected an integer from 0 to 2**31 - 1, got {self.seed}")

    def check(self, logits_TE: torch.Tensor) -> None:
        """Refuse tensors that do not fit the logits, and NaN among those.

        Raises:
            ValueError: A shape, format, or NaN.
        """
        for name, dtype in (("bias_E", torch.float32), ("counts_E", torch.int32)):
            tensor = getattr(self, name)
            if tensor is not None and (tensor.shape != logits_TE.shape[1:] or tensor.dtype != dtype):
                raise ValueError(f"{name}: expected {dtype} of shape ({logits_TE.shape[1]},), got {tensor.dtype} of "
                                 f"shape {tuple(tensor.shape)}")
        if self.checked and bool(logits_TE.isnan().any()):
            raise ValueError("logits_TE: expected numbers, got NaN")
        if self.checked and self.bias_E is not None and not bool(self.bias_E.isfinite().all()):
            raise ValueError("bias_E: expected finite numbers, got NaN or infinity")

    def logits(self, logits_TE: torch.Tensor) -> torch.Tensor:
        """Logits over the temperature, with noise: in torch."""
        logits_TE = logits_TE * (torch.ones((), device=logits_TE.device) / self.temperature)
        return logits_TE + noise(*logits_TE.shape, self.seed, logits_TE.device) * self.noise_std if self.noise_std \
            else logits_TE


PLAIN = Options()
#: for logits of a gate whose caller decides what to look for
UNCHECKED = Options(checked=False)


def noise(num_tokens: int, num_experts: int, seed: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """The noise of a deviation of 1 on every logit, by the rules of this module: float32 of shape (T, E)."""
    mask = 2**32 - 1

    def hashed(h: torch.Tensor) -> torch.Tensor:
        h = (h ^ (h >> 16)) * 0x85EBCA6B & mask
        h = (h ^ (h >> 13)) * 0xC2B2AE35 & mask
        return h ^ (h >> 16)

    t_T1 = torch.arange(num_tokens, device=device)[:, None]
    expert_E = torch.arange(num_experts, device=device) * 0x9E3779B9 & mask
    state_TE = hashed(hashed((t_T1 + hashed(torch.tensor(seed, device=device))) & mask) ^ expert_E)
    words = [hashed((state_TE + (i * 0x2545F491 + 1)) & mask) for i in range(6)]
    total_TE = sum((word & 0xFFFF) + (word >> 16) for word in words)
    return (total_TE - 6 * 65535).float() * (1.0 / 65536)


def _check(logits_TE: torch.Tensor, top_k: int, score: str, num_expert_groups: int, num_limited_groups: int,
           options: Options) -> None:
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
    options.check(logits_TE)


def route(logits_TE: torch.Tensor, top_k: int, score: str = "softmax", num_expert_groups: int = 1,
          num_limited_groups: int = 1, options: Options = PLAIN) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose experts and their weights by the rules of this module.

    Args:
        logits_TE: float32 of shape (T, E), contiguous; at most 16,384 lanes after rounding the number of groups and the
            experts per group up to powers of two; 8,192 with bias or noise.
        top_k: Experts a token uses.
        score: "softmax" or "sigmoid".
        num_expert_groups: Groups of consecutive experts; 1 for a flat gate.
        num_limited_groups: Groups a token may use.
        options: Bias, noise, temperature, histogram, and whether NaN is looked for.

    Returns:
        Weights, float32 of shape (T, K), each row summing to 1; expert ids, int32 of shape (T, K).

    Raises:
        ValueError: Shapes, numbers or a score outside these bounds; NaN among the logits.
        RuntimeError: No Triton to launch with.
    """
    _check(logits_TE, top_k, score, num_expert_groups, num_limited_groups, options)
    return _routed(logits_TE[None], top_k, score, num_expert_groups, num_limited_groups, options)


def route_parts(parts_STE: torch.Tensor, top_k: int, score: str = "softmax", num_expert_groups: int = 1,
                num_limited_groups: int = 1, options: Options = PLAIN, *, ascending: bool = False,
                kept_Tg: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """`route` of logits that come in parts, float32 of shape (S, T, E), which are added in their order.

    Args:
        parts_STE: The parts of the logits.
        top_k: Experts a token uses.
        score: "softmax" or "sigmoid".
        num_expert_groups: Groups of consecutive experts; 1 for a flat gate.
        num_limited_groups: Groups a token may use.
        options: Bias, noise, temperature, histogram, and whether NaN is looked for.
        ascending: Experts are listed by id instead of best first.
        kept_Tg: Where columns are the experts of groups kept before, side by side: those groups, int32 of shape (T, g).
            Ids are then those of the experts among all groups'.

    Returns:
        Weights, float32 of shape (T, K); expert ids, int32 of shape (T, K).

    Raises:
        ValueError: Shapes, numbers or a score outside the bounds of `route`; NaN among the logits.
        RuntimeError: There is no Triton to launch with.
    """
    whole = parts_STE.sum(0) if options.checked and len(parts_STE) > 1 else parts_STE[0]
    _check(whole, top_k, score, num_expert_groups, num_limited_groups, options)
    return _routed(parts_STE, top_k, score, num_expert_groups, num_limited_groups, options, ascending, kept_Tg)


def _routed(parts_STE: torch.Tensor, top_k: int, score: str, num_expert_groups: int, num_limited_groups: int,
            options: Options, ascending: bool = False,
            kept_Tg: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    require_triton(*(x for x in (parts_STE, options.bias_E, options.counts_E, kept_Tg) if x is not None))
    parts, num_tokens, num_experts = parts_STE.shape
    block_g = triton.next_power_of_2(num_expert_groups)
    block_s = triton.next_power_of_2(num_experts // num_expert_groups)
    most = MAX_OPTIONS_ROW if options.bias_E is not None or options.noise_std else MAX_ROW
    if block_g * block_s > most:
        raise ValueError(f"logits_TE: expected at most {most} padded experts in one row, got {block_g * block_s}; "
                         "use the two-level gate")
    weights_TK = torch.empty(num_tokens, top_k, dtype=torch.float32, device=parts_STE.device)
    ids_TK = torch.empty(num_tokens, top_k, dtype=torch.int32, device=parts_STE.device)
    if num_tokens:
        kept_size = 1 if kept_Tg is None else num_experts // kept_Tg.shape[1]
        biased, noisy = options.bias_E is not None, options.noise_std > 0
        block_t = tile_rows(num_tokens, block_g * block_s * (2 if biased or noisy else 1))
        # A product fused with a sum would be rounded once where the reference rounds twice.
        fusion = {"enable_fp_fusion": False} if noisy else {}
        launch(_route_kernel, (triton.cdiv(num_tokens, block_t),), parts_STE, options.bias_E, weights_TK, ids_TK,
               options.counts_E, kept_Tg, num_tokens, num_experts, num_expert_groups, num_limited_groups, top_k,
               kept_size, options.seed, 1.0 / options.temperature, options.noise_std, ASCENDING=ascending,
               MAPPED=kept_Tg is not None, SIGMOID=score == "sigmoid", GROUPED=num_limited_groups < num_expert_groups,
               BIASED=biased, NOISY=noisy, COUNTED=options.counts_E is not None, PARTS=parts, BLOCK_T=block_t,
               BLOCK_G=block_g, BLOCK_S=block_s, BLOCK_K=triton.next_power_of_2(top_k),
               num_warps=route_warps(block_g * block_s), **fusion)
    return weights_TK, ids_TK


def route_reference(logits_TE: torch.Tensor, top_k: int, score: str = "softmax", num_expert_groups: int = 1,
                    num_limited_groups: int = 1, options: Options = PLAIN) -> tuple[torch.Tensor, torch.Tensor]:
    """`route` in torch: same rules, arguments, results and ValueErrors; any number of experts."""
    _check(logits_TE, top_k, score, num_expert_groups, num_limited_groups, options)
    num_tokens, num_experts = logits_TE.shape
    logits_TE = options.logits(logits_TE)
    logits_TE = torch.where(logits_TE.isnan(), -torch.inf, logits_TE)

    def scores(logits: torch.Tensor, row_max: torch.Tensor) -> torch.Tensor:
        if score == "sigmoid":
            return torch.sigmoid(logits)
        return torch.where(logits == row_max, 1.0, torch.exp(logits - row_max))

    scores_TE, by_TE = scores(logits_TE, logits_TE.amax(1, keepdim=True)), logits_TE
    if options.bias_E is not None:
        share_TE = scores_TE if score == "sigmoid" else scores_TE / scores_TE.sum(1, keepdim=True)
        scores_TE = torch.where(logits_TE == -torch.inf, logits_TE, share_TE + options.bias_E)
        by_TE = scores_TE
    eligible_TE = torch.ones_like(logits_TE, dtype=torch.bool)
    if num_limited_groups < num_expert_groups:
        scores_TGS = scores_TE.view(num_tokens, num_expert_groups, -1)
        group_score_TG = scores_TGS.topk(min(2, scores_TGS.shape[2]), dim=2).values.sum(2)
        kept_TG = group_score_TG.sort(dim=1, descending=True, stable=True).indices[:, :num_limited_groups]
        eligible_TG = torch.zeros_like(group_score_TG, dtype=torch.bool).scatter_(1, kept_TG, True)
        eligible_TE = eligible_TG.repeat_interleave(num_experts // num_expert_groups, dim=1)
    # Two stable sorts: by what chooses, then eligible before the rest, which -inf would otherwise tie with.
    by_logit_TE = by_TE.sort(dim=1, descending=True, stable=True).indices
    eligible_by_logit_TE = eligible_TE.gather(1, by_logit_TE).to(torch.int8)
    eligible_first_TE = eligible_by_logit_TE.sort(dim=1, descending=True, stable=True).indices
    ids_TK = by_logit_TE.gather(1, eligible_first_TE)[:, :top_k]
    chosen_TK = logits_TE.gather(1, ids_TK)
    score_TK = scores(chosen_TK, chosen_TK.amax(1, keepdim=True))
    total_T1 = score_TK.sum(1, keepdim=True)
    weights_TK = torch.where(total_T1 > 0, score_TK / total_T1, 1.0 / top_k)
    if options.counts_E is not None:
        options.counts_E.add_(torch.bincount(ids_TK.flatten(), minlength=num_experts).int())
    return weights_TK, ids_TK.to(torch.int32)
