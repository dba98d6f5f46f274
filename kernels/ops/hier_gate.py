"""Score groups of experts first, then only the experts of the kept groups: the two-level gate.

    groups = top_g(x @ coarse_GH.T)                   # g of G groups for each token
    plan   = make_plan(groups)                        # a group acts as an expert
    fine   = grouped GEMM of x with the S keys of each kept group
    ids, weights = top_k(fine logits), softmax over the chosen ones

The coarse logits of a token pick its ``num_limited_groups`` groups; fine logits are computed for
the experts of those groups alone, and the top-k of them are its experts. The number of scored keys
per token falls from E to G + g x S (G groups of S experts, g kept), which is the hierarchy of
Shazeer et al. 2017 (arXiv 1701.06538).

The fine level is itself a mixture of experts: a group is an "expert" whose matrix is its S keys.
The plan and the grouped GEMM therefore do the scoring, and the keys of each group are read once for
all tokens that kept it.

Rules: logits accumulate in float32; NaN, infinities, and ties follow `moesim_kernels.ops.router` at
both levels (lowest group, then lowest expert). Weights are the softmax over the chosen experts'
fine logits; coarse logits choose groups and do not enter the weights.
"""

import torch
from moesim_kernels.ops.gate_logits import gate_parts
from moesim_kernels.ops.grouped_linear import grouped_linear
from moesim_kernels.ops.plan import make_plan
from moesim_kernels.ops.router import route_parts, route_reference
from moesim_kernels.ops.router_options import UNCHECKED, Options
from moesim_kernels.tiles.tiles import tile_config


def _check(
    x_TH: torch.Tensor,
    coarse_GH: torch.Tensor,
    fine_EH: torch.Tensor,
    top_k: int,
    num_limited_groups: int,
) -> None:
    shapes = tuple(x_TH.shape), tuple(coarse_GH.shape), tuple(fine_EH.shape)
    if any(len(shape) != 2 for shape in shapes) or len({shape[1] for shape in shapes}) != 1:
        raise ValueError(
            f"expected x_TH, coarse_GH and fine_EH of one hidden size, got shapes {shapes}"
        )
    num_groups, num_experts = shapes[1][0], shapes[2][0]
    if num_groups < 1 or num_experts < 1 or num_experts % num_groups:
        raise ValueError(
            f"coarse_GH: expected a number of groups that divides {num_experts} experts, got "
            f"{num_groups}"
        )
    if not 1 <= num_limited_groups <= num_groups:
        raise ValueError(
            f"num_limited_groups: expected 1 to {num_groups}, got {num_limited_groups}"
        )
    if not 1 <= top_k <= num_limited_groups * (num_experts // num_groups):
        raise ValueError(
            f"top_k: expected 1 to the experts of {num_limited_groups} groups, got {top_k}"
        )


def _expert_ids(slots_TK: torch.Tensor, groups_Tg: torch.Tensor, per_group: int) -> torch.Tensor:
    """Return the ids of the experts at these columns of a token's kept groups, laid side by
    side.
    """
    return (
        groups_Tg.gather(1, slots_TK.long() // per_group) * per_group + slots_TK % per_group
    ).int()


def two_level_gate(
    x_TH: torch.Tensor,
    coarse_GH: torch.Tensor,
    fine_EH: torch.Tensor,
    top_k: int,
    num_limited_groups: int,
    watch: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose groups of experts, then experts inside them.

    Args:
        x_TH: Tokens, bfloat16, float16 or float32 of shape (T, H), contiguous.
        coarse_GH: Keys of the groups in the same format, shape (G, H), contiguous.
        fine_EH: Keys of the experts in the same format, shape (E, H), contiguous; group g owns
            experts g x E/G onwards.
        top_k: Number of experts each token uses.
        num_limited_groups: Number of groups each token keeps.
        watch: Memory where the first token whose coarse logits are not finite is noted
            (`moesim_kernels.ops.watch`); None for no watch.

    Returns:
        Weights, float32 of shape (T, K), softmax over the chosen fine logits; expert ids, int32 of
        shape (T, K).

    Raises:
        ValueError: Shapes, formats, or numbers do not fit each other, or there are more than 16,384
            padded groups, or experts in the kept groups.
        RuntimeError: Triton cannot launch kernels here.
    """
    _check(x_TH, coarse_GH, fine_EH, top_k, num_limited_groups)
    (num_groups, hidden), per_group = coarse_GH.shape, fine_EH.shape[0] // coarse_GH.shape[0]
    # Ascending groups make the columns below ascend with the expert id, which settles ties.
    groups_Tg = route_parts(
        gate_parts(x_TH, coarse_GH),
        num_limited_groups,
        options=UNCHECKED if watch is None else Options(checked=False, watch=watch),
        ascending=True,
    )[1]
    tile = tile_config(groups_Tg.numel() / num_groups, per_group)
    # From here on a group is an "expert" whose matrix is its keys.
    plan = make_plan(groups_Tg, num_groups, tile.block_m)
    fine = grouped_linear(
        x_TH,
        fine_EH.view(num_groups, per_group, hidden),
        plan,
        gather=True,
        out_dtype=torch.float32,
    )
    # Rows come back by pair, so the kept groups of a token lie side by side in one router row.
    return route_parts(
        fine.view(1, x_TH.shape[0], num_limited_groups * per_group),
        top_k,
        options=UNCHECKED,
        kept_Tg=groups_Tg,
    )


def two_level_gate_reference(
    x_TH: torch.Tensor,
    coarse_GH: torch.Tensor,
    fine_EH: torch.Tensor,
    top_k: int,
    num_limited_groups: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute `two_level_gate` in torch: score all experts and use only those of the kept
    groups.
    """
    _check(x_TH, coarse_GH, fine_EH, top_k, num_limited_groups)
    num_groups, per_group = coarse_GH.shape[0], fine_EH.shape[0] // coarse_GH.shape[0]
    coarse_TG = x_TH.float() @ coarse_GH.float().T
    groups_Tg = (
        route_reference(coarse_TG, num_limited_groups, options=UNCHECKED)[1]
        .long()
        .sort(dim=1)
        .values
    )
    logits_TGS = (x_TH.float() @ fine_EH.float().T).view(x_TH.shape[0], num_groups, per_group)
    # Kept groups ascend, so columns ascend with the expert id here, too.
    kept_TgS = logits_TGS.gather(1, groups_Tg[:, :, None].expand(-1, -1, per_group))
    weights_TK, slots_TK = route_reference(kept_TgS.flatten(1), top_k, options=UNCHECKED)
    return weights_TK, _expert_ids(slots_TK, groups_Tg, per_group)
