"""Compute one MoE layer over the ranks of a torch.distributed group, each with its own tokens and
experts.

    gate and permute on this rank                     # one copy for each rank a token needs
    all-to-all of counts;  all-to-all of rows with their choices
    weighted sums of the local experts
    reversed all-to-all;  sum of each token's returned rows on this rank

A token travels once to each rank that holds any of its experts, which is what the exchanges that
`moesim` prices as ``host`` and ``nccl`` assume (`moesim_kernels.ranks.exchange`). Partial sums
travel in the format of the tokens, so the result equals that of
`moesim_kernels.ops.layer.moe_layer` up to one more rounding.

A rank may have any number of tokens, including none, and any number of experts except none.
Gradients pass through all of it; every rank must then train, since gradients travel the same way as
tokens.

Shape suffixes: T tokens of this rank, C copies of them (a row for each rank a token goes to) or
copies received, K experts a token uses, P (copy, local expert) pairs, L expert slots of this rank,
W ranks, H hidden size, I expert width.
"""

import zlib
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
import torch.distributed as dist
from moesim_kernels.cpu.expert_grad import GroupedExperts, forward_pass
from moesim_kernels.cpu.gate import align, gate_by_torch
from moesim_kernels.cpu.layer import add_up
from moesim_kernels.ops.checks import check_numbers, check_routing, check_shapes
from moesim_kernels.ops.expert_grad import experts_reference, gate_weights
from moesim_kernels.ops.layer import (
    expert_phase,
    gate_tokens,
    gate_tokens_reference,
    shared_experts,
    shared_experts_reference,
)
from moesim_kernels.ops.plan import make_plan_reference
from moesim_kernels.ops.weights import EXPERTS, LayerWeights, check_layer, shapes
from moesim_kernels.ranks.exchange import Combine, Dispatch, Splits, copies_of, segment_sums

from moesim.errors import ConfigError
from moesim.model import MoELayer
from moesim.placement import Placement

# Ways to compute the local experts, and the phases in the order they end.
Backend = Literal["triton", "torch", "grouped_mm"]
PHASES = ("gate", "permute", "dispatch", "experts", "combine", "reduce")


def contiguous_placement(num_experts: int, num_ranks: int) -> Placement:
    """Place consecutive experts on each rank; the first ranks get one more if they do not divide
    evenly.
    """
    parts = np.array_split(np.arange(num_experts), num_ranks)
    return Placement(
        rank_of_slot_P=np.repeat(np.arange(num_ranks), [len(part) for part in parts]),
        expert_of_slot_P=np.arange(num_experts),
        num_ranks=num_ranks,
        num_experts=num_experts,
    )


def local_weights(weights: LayerWeights, placement: Placement, rank: int) -> LayerWeights:
    """Return what one rank holds of a whole layer: the experts in its slots, and all of the gate
    and the shared experts.

    Raises:
        ConfigError: The weights are block-scaled.
    """
    _require_plain(weights)
    mine = torch.from_numpy(placement.expert_of_slot_P[placement.rank_of_slot_P == rank])
    mine = mine.to(weights.w_gate_up.device)
    return replace(weights, w_gate_up=weights.w_gate_up[mine], w_down=weights.w_down[mine])


def random_local(
    layer: MoELayer, placement: Placement, rank: int, seed: int, dtype: torch.dtype
) -> LayerWeights:
    """Draw the `local_weights` of random weights, scaled as in `LayerWeights.random`, without the
    other ranks' experts.
    """

    def normal(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype).normal_(0.0, shape[-1] ** -0.5, generator=generator)

    # The gate is equal on all ranks, the experts differ.
    whole, own = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed + 1 + rank)
    slots = int(placement.slots_of_rank()[rank])
    made = {}
    for name, shape in shapes(layer).items():
        experts = name in ("w_gate_up", "w_down")
        made[name] = (
            None
            if shape is None
            else normal((slots, *shape[1:]) if experts else shape, own if experts else whole)
        )
    return LayerWeights(**made)


def expert_parallel_layer(
    x_TH: torch.Tensor,
    weights: LayerWeights,
    layer: MoELayer,
    group: dist.ProcessGroup | None = None,
    *,
    placement: Placement | None = None,
    backend: Backend | None = None,
    routing: tuple[torch.Tensor, torch.Tensor] | None = None,
    checked: bool = True,
    on_phase: Callable[[str], None] = lambda _: None,
) -> torch.Tensor:
    """Compute one MoE layer whose experts are spread over the ranks of a group; every rank calls
    this.

    Args:
        x_TH: Tokens of this rank in the experts' format, shape (T, H), contiguous.
        weights: Result of `local_weights`: this rank's experts, the whole gate.
        layer: Whole layer, over all ranks.
        group: Process group of the ranks; by default all of them.
        placement: Experts of each rank, the same on all ranks; by default `contiguous_placement`.
            Replicas take turns.
        backend: ``triton``, ``torch`` for the same numbers without Triton, or ``grouped_mm``,
            torch's fast path on a CPU; by default ``triton`` on a GPU, otherwise
            ``torch``.
        routing: Router weights and expert ids of this rank's tokens that replace the gate's
            choices, as in `moesim_kernels.ops.layer.moe_layer`.
        checked: Whether NaN, infinities, and ids out of range are refused; the check waits for the
            device.
        on_phase: Function that is told each of `PHASES` as it ends (on a GPU: when it has been
            launched, so that an event can be recorded), for measurements; shared experts count as
            ``experts``.

    Returns:
        A tensor of shape (T, H) in the format of ``x_TH``.

    Raises:
        ConfigError: The kernels do not compute this layer, weights are block-scaled, or the
            placement has other ranks or experts, or near replicas.
        ValueError: The backend is unknown; shapes, formats, or strides do not fit; or numbers are
            refused. All of this is raised before anything is sent, so the other ranks wait until
            the group's timeout. Ranks that call it with different layers or placements all raise
            it, before any row is sent.
        RuntimeError: Triton cannot launch kernels here.
    """
    rank, ranks = dist.get_rank(group), dist.get_world_size(group)
    placement = placement or contiguous_placement(layer.num_experts, ranks)
    backend = backend or ("torch" if x_TH.device.type == "cpu" else "triton")
    if backend not in ("triton", "torch", "grouped_mm"):
        raise ValueError(f"backend: expected 'triton', 'torch' or 'grouped_mm', got {backend!r}")
    _check_placement(placement, layer, ranks)
    check_layer(layer)
    _require_plain(weights)
    check_shapes(x_TH, weights, layer, int(placement.slots_of_rank()[rank]))
    if checked:
        check_numbers(x_TH, weights)
    if routing is not None:
        check_routing(routing, len(x_TH), layer, checked)

    # Everything up to the permute is local to this rank.
    weights_TK, ids_TK = routing or _gate(x_TH, layer, weights, backend)
    on_phase("gate")
    copies = copies_of(weights_TK, ids_TK, placement)
    rows_CH = x_TH.index_select(0, copies.token_C)
    on_phase("permute")
    splits = Splits.agreed(copies.counts_W, _signature(layer, placement, x_TH.dtype), group)
    came_CH, weights_CK, slots_CK = Dispatch.apply(
        rows_CH, copies.weights_CK, copies.slots_CK, splits
    )
    on_phase("dispatch")
    sums_CH = _local_experts(came_CH, weights_CK, slots_CK, weights, backend)
    shared = shared_experts if backend == "triton" else shared_experts_reference
    extra_TH = shared(x_TH, weights) if layer.num_shared_experts else None
    on_phase("experts")
    # Combine runs over the same rows in the other direction.
    back_CH = Combine.apply(sums_CH, splits.reversed())
    on_phase("combine")
    out_TH = _add_copies(back_CH, copies.token_C, len(x_TH), backend)
    out_TH = out_TH if extra_TH is None else out_TH + extra_TH
    on_phase("reduce")
    return out_TH


def _require_plain(weights: LayerWeights) -> None:
    if any(
        getattr(weights, name) is not None and not isinstance(getattr(weights, name), torch.Tensor)
        for name in EXPERTS
    ):
        raise ConfigError(
            "weights: expected bfloat16, float16 or float32 for a layer over ranks, got "
            "block-scaled 8-bit floats"
        )


def _check_placement(placement: Placement, layer: MoELayer, ranks: int) -> None:
    if (placement.num_ranks, placement.num_experts) != (ranks, layer.num_experts):
        raise ConfigError(
            f"placement: expected {layer.num_experts} experts on {ranks} ranks, got "
            f"{placement.num_experts} on {placement.num_ranks}"
        )
    if placement.nearest_within:
        raise ConfigError("placement: expected replicas that take turns, got nearest replicas")
    if not placement.slots_of_rank().all():
        raise ConfigError(
            f"placement: expected an expert on each of {ranks} ranks, got "
            f"{placement.slots_of_rank().tolist()}"
        )


def _signature(layer: MoELayer, placement: Placement, dtype: torch.dtype) -> int:
    """Return a number that stands for everything the ranks must agree on."""
    return zlib.crc32(
        placement.expert_of_slot_P.astype(np.int64).tobytes()
        + placement.rank_of_slot_P.astype(np.int64).tobytes(),
        _code(layer, dtype),
    )


# the text of a layer takes as long as several calls of torch
@lru_cache(maxsize=64)
def _code(layer: MoELayer, dtype: torch.dtype) -> int:
    return zlib.crc32(repr((layer, dtype)).encode())


def _gate(
    x_TH: torch.Tensor, layer: MoELayer, weights: LayerWeights, backend: Backend
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return weights and ids of this rank's tokens; the weights have gradients if keys or tokens
    want them.
    """
    if backend == "grouped_mm":
        return gate_by_torch(x_TH, layer, weights)
    gate = gate_tokens if backend == "triton" else gate_tokens_reference
    # The choice has no gradient; weights that need one are computed from the choice below.
    with torch.no_grad():
        weights_TK, ids_TK = gate(x_TH, layer.gate, weights, layer.top_k)
    keys = (x_TH, weights.fine_EH, weights.query_QH, weights.keys_2Sq)
    if torch.is_grad_enabled() and any(
        tensor is not None and tensor.requires_grad for tensor in keys
    ):
        weights_TK = gate_weights(x_TH, layer.gate, weights, ids_TK)
    return weights_TK, ids_TK


def _local_experts(
    came_CH: torch.Tensor,
    weights_CK: torch.Tensor,
    slots_CK: torch.Tensor,
    weights: LayerWeights,
    backend: Backend,
) -> torch.Tensor:
    """Return the weighted sum over the local choices of each copy, shape (C, H)."""
    # Choices on other ranks are marked -1 and are summed there.
    copy_P, at_P = (slots_CK >= 0).nonzero(as_tuple=True)
    slots_P, weights_P = slots_CK[copy_P, at_P], weights_CK[copy_P, at_P]
    num_slots = weights.w_gate_up.shape[0]
    if backend == "grouped_mm":
        # grouped_mm wants the rows of an expert side by side.
        order_P, _, ends_L = align(slots_P.long(), num_slots, 1)
        sorted_copy_P = copy_P[order_P]
        rows_PH = came_CH.index_select(0, sorted_copy_P)
        if torch.is_grad_enabled() and weights.w_down.requires_grad:
            y_PH = GroupedExperts.apply(rows_PH, weights.w_gate_up, weights.w_down, ends_L)
            weighted_PH = y_PH * weights_P[order_P].to(y_PH.dtype)[:, None]
            return torch.zeros_like(came_CH).index_add(0, sorted_copy_P, weighted_PH)
        y_PH, _ = forward_pass(rows_PH, weights.w_gate_up, weights.w_down, ends_L)
        return add_up(y_PH, weights_P[order_P], sorted_copy_P, len(came_CH))
    # A pair acts as a token with one expert, so the layer's own expert phase fits.
    rows_PH, slots_P1, weights_P1 = (
        came_CH.index_select(0, copy_P),
        slots_P[:, None],
        weights_P[:, None],
    )
    if backend == "triton":
        y_PH = expert_phase(rows_PH, slots_P1, weights_P1, weights)
    else:
        y_PH = experts_reference(
            rows_PH,
            weights_P1,
            weights.w_gate_up,
            weights.w_down,
            make_plan_reference(slots_P1, num_slots, block_m=16),
        )
    return segment_sums(y_PH, torch.bincount(copy_P, minlength=len(came_CH)))


def _add_copies(
    rows_CH: torch.Tensor, token_C: torch.Tensor, num_tokens: int, backend: Backend
) -> torch.Tensor:
    """Return the sum of each token's returned rows, shape (T, H)."""
    if backend == "grouped_mm":
        return torch.zeros(num_tokens, rows_CH.shape[1], dtype=rows_CH.dtype).index_add_(
            0, token_C, rows_CH
        )
    # A stable order makes the sum repeatable, which index_add_ on a GPU is not.
    order_C = torch.argsort(token_C, stable=True)
    return segment_sums(
        rows_CH.index_select(0, order_C), torch.bincount(token_C, minlength=num_tokens)
    )
