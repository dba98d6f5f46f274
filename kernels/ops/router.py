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
"""

import math
from dataclasses import dataclass

import torch
from moesim_kernels.ops.launches import launch
from moesim_kernels.ops.router_kernel import (
    MAX_OPTIONS_ROW,
    MAX_ROW,
    _route_kernel,
    route_warps,
)
from moesim_kernels.ops.runtime import require_triton, tile_rows, triton


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Options of a router in addition to top-k.

    Attributes:
        bias_E: Bias added to the scores by which experts are chosen, float32 of shape (E,),
            contiguous; None for no bias.
        noise_std: Standard deviation of the noise added to logits, 0 for none.
        seed: Seed of the noise.
        temperature: Number by which logits are divided.
        counts_E: Histogram, int32 of shape (E,), contiguous: the number of tokens that chose each
            expert is added to it.
        checked: Whether NaN logits are refused; on a GPU this check waits for the device.

    Raises:
        ValueError: A number is outside its range.
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
        """Refuse tensors that do not fit the logits, and NaN among the logits.

        Raises:
            ValueError: A shape or format does not fit, or a logit is NaN.
        """
        for name, dtype in (("bias_E", torch.float32), ("counts_E", torch.int32)):
            tensor = getattr(self, name)
            if tensor is not None and (
                tensor.shape != logits_TE.shape[1:] or tensor.dtype != dtype
            ):
                raise ValueError(
                    f"{name}: expected {dtype} of shape ({logits_TE.shape[1]},), got "
                    f"{tensor.dtype} of shape {tuple(tensor.shape)}"
                )
        # The reductions below read a result from the device, which is the wait.
        if self.checked and bool(logits_TE.isnan().any()):
            raise ValueError("logits_TE: expected numbers, got NaN")
        if self.checked and self.bias_E is not None and not bool(self.bias_E.isfinite().all()):
            raise ValueError("bias_E: expected finite numbers, got NaN or infinity")

    def logits(self, logits_TE: torch.Tensor) -> torch.Tensor:
        """Return the logits over the temperature, with noise, computed in torch."""
        logits_TE = logits_TE * (torch.ones((), device=logits_TE.device) / self.temperature)
        return (
            logits_TE + noise(*logits_TE.shape, self.seed, logits_TE.device) * self.noise_std
            if self.noise_std
            else logits_TE
        )


PLAIN = Options()
#: for logits of a gate whose caller decides which checks it needs
UNCHECKED = Options(checked=False)


def noise(
    num_tokens: int, num_experts: int, seed: int, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """Return noise of deviation 1 for every logit, by the rules of this module: float32 of shape
    (T, E).
    """
    mask = 2**32 - 1

    def hashed(h: torch.Tensor) -> torch.Tensor:
        h = (h ^ (h >> 16)) * 0x85EBCA6B & mask
        h = (h ^ (h >> 13)) * 0xC2B2AE35 & mask
        return h ^ (h >> 16)

    t_T1 = torch.arange(num_tokens, device=device)[:, None]
    expert_E = torch.arange(num_experts, device=device) * 0x9E3779B9 & mask
    # The numbers are int64 here, so each product is masked to 32 bits.
    state_TE = hashed(hashed((t_T1 + hashed(torch.tensor(seed, device=device))) & mask) ^ expert_E)
    words = [hashed((state_TE + (i * 0x2545F491 + 1)) & mask) for i in range(6)]
    total_TE = sum((word & 0xFFFF) + (word >> 16) for word in words)
    return (total_TE - 6 * 65535).float() * (1.0 / 65536)


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
        parts_STE, top_k, score, num_expert_groups, num_limited_groups, options, ascending, kept_Tg
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
) -> tuple[torch.Tensor, torch.Tensor]:
    require_triton(
        *(x for x in (parts_STE, options.bias_E, options.counts_E, kept_Tg) if x is not None)
    )
    parts, num_tokens, num_experts = parts_STE.shape
    # Groups and their experts are padded separately, so that a group is an axis of the block.
    block_g = triton.next_power_of_2(num_expert_groups)
    block_s = triton.next_power_of_2(num_experts // num_expert_groups)
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
        # Bias and noise keep a second block alive and get half as many rows.
        block_t = tile_rows(num_tokens, block_g * block_s * (2 if biased or noisy else 1))
        # A product fused with a sum would be rounded once where the reference rounds twice.
        fusion = {"enable_fp_fusion": False} if noisy else {}
        launch(
            _route_kernel,
            (triton.cdiv(num_tokens, block_t),),
            parts_STE,
            options.bias_E,
            weights_TK,
            ids_TK,
            options.counts_E,
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
            NOISY=noisy,
            COUNTED=options.counts_E is not None,
            BLOCK_T=block_t,
            BLOCK_G=block_g,
            BLOCK_S=block_s,
            BLOCK_K=triton.next_power_of_2(top_k),
            PARTS=parts,
            num_warps=route_warps(block_g * block_s),
            **fusion,
        )
    return weights_TK, ids_TK


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
    logits_TE = torch.where(logits_TE.isnan(), -torch.inf, logits_TE)

    def scores(logits: torch.Tensor, row_max: torch.Tensor) -> torch.Tensor:
        if score == "sigmoid":
            return torch.sigmoid(logits)
        # Without the comparison, infinity minus infinity would be NaN.
        return torch.where(logits == row_max, 1.0, torch.exp(logits - row_max))

    # Without a bias, experts are chosen by logit, which still differs where scores saturate.
    scores_TE, by_TE = scores(logits_TE, logits_TE.amax(1, keepdim=True)), logits_TE
    if options.bias_E is not None:
        share_TE = scores_TE if score == "sigmoid" else scores_TE / scores_TE.sum(1, keepdim=True)
        scores_TE = torch.where(logits_TE == -torch.inf, logits_TE, share_TE + options.bias_E)
        by_TE = scores_TE
    eligible_TE = torch.ones_like(logits_TE, dtype=torch.bool)
    if num_limited_groups < num_expert_groups:
        scores_TGS = scores_TE.view(num_tokens, num_expert_groups, -1)
        group_score_TG = scores_TGS.topk(min(2, scores_TGS.shape[2]), dim=2).values.sum(2)
        # A stable sort breaks ties to the lowest group id, which topk does not promise.
        kept_TG = group_score_TG.sort(dim=1, descending=True, stable=True).indices[
            :, :num_limited_groups
        ]
        eligible_TG = torch.zeros_like(group_score_TG, dtype=torch.bool).scatter_(1, kept_TG, True)
        eligible_TE = eligible_TG.repeat_interleave(num_experts // num_expert_groups, dim=1)
    # Two stable sorts: first by the number that chooses, then eligible experts before the others,
    # which a logit of -inf would otherwise tie with.
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
