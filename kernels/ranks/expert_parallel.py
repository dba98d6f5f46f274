"""One MoE layer over the ranks of a torch.distributed group, each with its own tokens and its own
experts.

A token travels once to each rank that holds any of its experts, as the exchanges that `moesim`
prices by ``host`` and ``nccl`` have it: gate and permute at home; counts, then rows with their
choices by an uneven all-to-all; the experts' weighted sums where they are; back by the reversed
all-to-all; added up at home. Partial sums travel in the format of the tokens, so the result is that
of `moesim_kernels.ops.layer.moe_layer` up to one more rounding.

Any number of tokens per rank, none included, and any number of experts per rank but none. Gradients
pass through all of it with the backends ``triton`` and ``torch``; every rank must then train, since
gradients travel as tokens do.

Shape suffixes: T tokens of this rank, C copies of them (a row for each rank a token goes to) or
copies received, K experts a token uses, P (copy, local expert) pairs, L expert slots of this rank,
W ranks, H hidden size, I expert width.
"""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from moesim_kernels.cpu.gate import align, gate_by_torch
from moesim_kernels.cpu.layer import activate, add_up
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
from torch.autograd.function import once_differentiable
from torch.nn.functional import grouped_mm

from moesim.errors import ConfigError
from moesim.model import MoELayer
from moesim.placement import Placement

Backend = Literal["triton", "torch", "grouped_mm"]
PHASES = ("gate", "permute", "dispatch", "experts", "combine", "reduce")


def contiguous_placement(num_experts: int, num_ranks: int) -> Placement:
    """Consecutive experts on each rank, the first ranks with one more where they do not divide."""
    parts = np.array_split(np.arange(num_experts), num_ranks)
    return Placement(
        rank_of_slot_P=np.repeat(np.arange(num_ranks), [len(part) for part in parts]),
        expert_of_slot_P=np.arange(num_experts),
        num_ranks=num_ranks,
        num_experts=num_experts,
    )


def local_weights(weights: LayerWeights, placement: Placement, rank: int) -> LayerWeights:
    """What one rank holds of a whole layer: the experts in its slots, all of the gate and of the
    shared experts.

    Raises:
        ConfigError: Block-scaled weights.
    """
    _require_plain(weights)
    mine = torch.from_numpy(placement.expert_of_slot_P[placement.rank_of_slot_P == rank])
    mine = mine.to(weights.w_gate_up.device)
    return replace(weights, w_gate_up=weights.w_gate_up[mine], w_down=weights.w_down[mine])


def random_local(
    layer: MoELayer, placement: Placement, rank: int, seed: int, dtype: torch.dtype
) -> LayerWeights:
    """`local_weights` of random ones, as `LayerWeights.random` scales them, without the other
    ranks' experts.
    """

    def normal(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype).normal_(0.0, shape[-1] ** -0.5, generator=generator)

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
    """One MoE layer, its experts spread over the ranks of a group; every rank calls it.

    Args:
        x_TH: This rank's tokens in the experts' format, shape (T, H), contiguous.
        weights: `local_weights`: this rank's experts, the whole gate.
        layer: The whole layer.
        group: Ranks; by default all of them.
        placement: Experts of each rank, the same on all; by default `contiguous_placement`.
            Replicas take turns.
        backend: ``triton``, ``torch`` for the same numbers without Triton, or ``grouped_mm``,
            torch's fast path on a CPU, without gradients; by default triton on a GPU, else torch.
        routing: See `moesim_kernels.ops.layer.moe_layer`; of this rank's tokens.
        checked: Refuse NaN, infinities and ids out of range; to know, it waits for the device.
        on_phase: Told each of `PHASES` as it ends (on a GPU: has been launched; record an event),
            shared experts within ``experts``: for measurement.

    Returns:
        Shape (T, H) in the format of ``x_TH``.

    Raises:
        ConfigError: A layer the kernels do not compute, block-scaled weights, or a placement of
            other ranks or experts, or of near replicas.
        ValueError: An unknown backend; shapes, formats or strides that do not fit; refused numbers.
            All before anything is sent, so that the other ranks wait until the group's timeout.
            And, on every rank and before any row is sent: ranks that call it with different layers
            or placements.
        RuntimeError: No Triton to launch with.
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

    weights_TK, ids_TK = routing or _gate(x_TH, layer, weights, backend)
    on_phase("gate")
    copies = _copies(weights_TK, ids_TK, placement)
    rows_CH = x_TH.index_select(0, copies.token_C)
    on_phase("permute")
    splits = _Splits.agreed(copies.counts_W, _signature(layer, placement, x_TH.dtype), group)
    came_CH, weights_CK, slots_CK = _Dispatch.apply(
        rows_CH, copies.weights_CK, copies.slots_CK, splits
    )
    on_phase("dispatch")
    sums_CH = _local_experts(came_CH, weights_CK, slots_CK, weights, backend)
    shared = shared_experts if backend == "triton" else shared_experts_reference
    extra_TH = shared(x_TH, weights) if layer.num_shared_experts else None
    on_phase("experts")
    back_CH = _Combine.apply(sums_CH, splits.reversed())
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
    """What ranks must agree on, as a number."""
    return zlib.crc32(
        repr((layer, dtype)).encode()
        + placement.expert_of_slot_P.astype(np.int64).tobytes()
        + placement.rank_of_slot_P.astype(np.int64).tobytes()
    )


def _gate(
    x_TH: torch.Tensor, layer: MoELayer, weights: LayerWeights, backend: Backend
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights and ids of this rank's tokens, the weights with gradients where keys or tokens want
    them.
    """
    if backend == "grouped_mm":
        return gate_by_torch(x_TH, layer, weights)
    gate = gate_tokens if backend == "triton" else gate_tokens_reference
    with torch.no_grad():
        weights_TK, ids_TK = gate(x_TH, layer.gate, weights, layer.top_k)
    keys = (x_TH, weights.fine_EH, weights.query_QH, weights.keys_2Sq)
    if torch.is_grad_enabled() and any(
        tensor is not None and tensor.requires_grad for tensor in keys
    ):
        weights_TK = gate_weights(x_TH, layer.gate, weights, ids_TK)
    return weights_TK, ids_TK


@dataclass(frozen=True, slots=True, kw_only=True)
class _Copies:
    """What this rank sends, in order of destination, then of token.

    Attributes:
        token_C: Token of each copy.
        counts_W: Copies to each rank.
        slots_CK: Each choice's slot on the destination, int32; -1 for choices of other ranks.
        weights_CK: Router weights, float32; of other ranks' choices too.
    """

    token_C: torch.Tensor
    counts_W: torch.Tensor
    slots_CK: torch.Tensor
    weights_CK: torch.Tensor


def _copies(weights_TK: torch.Tensor, ids_TK: torch.Tensor, placement: Placement) -> _Copies:
    device, ranks = ids_TK.device, placement.num_ranks
    if placement.num_slots == placement.num_experts:
        slot_E = torch.from_numpy(np.argsort(placement.expert_of_slot_P, kind="stable")).to(device)
        slot_TK = slot_E[ids_TK.long()]
    else:
        slot_TK = torch.from_numpy(
            placement.slot_of_choice(ids_TK.cpu().numpy().astype(np.int64))
        ).to(device)
    rank_P = torch.from_numpy(placement.rank_of_slot_P.astype(np.int64)).to(device)
    first_W = torch.from_numpy(np.searchsorted(placement.rank_of_slot_P, np.arange(ranks))).to(
        device
    )
    rank_TK = rank_P[slot_TK]
    goes_WT = torch.zeros(ranks, len(ids_TK), dtype=torch.bool, device=device)
    goes_WT[rank_TK.T, torch.arange(len(ids_TK), device=device)] = True
    to_C, token_C = goes_WT.nonzero(as_tuple=True)
    local_CK = slot_TK[token_C] - first_W[to_C, None]
    slots_CK = torch.where(rank_TK[token_C] == to_C[:, None], local_CK, -1)
    return _Copies(
        token_C=token_C,
        counts_W=goes_WT.sum(dim=1),
        slots_CK=slots_CK.int(),
        weights_CK=weights_TK[token_C],
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Splits:
    """Rows to and from each rank."""

    sent: list[int]
    received: list[int]
    group: dist.ProcessGroup | None

    @classmethod
    def agreed(
        cls, counts_W: torch.Tensor, signature: int, group: dist.ProcessGroup | None
    ) -> "_Splits":
        """Tell each rank how many rows come, and hear the same.

        Raises:
            ValueError: Another rank's layer or placement differs.
        """
        told_W2 = torch.stack([counts_W, torch.full_like(counts_W, signature)], dim=1)
        heard_W2 = torch.empty_like(told_W2)
        dist.all_to_all_single(heard_W2, told_W2, group=group)
        heard = heard_W2.tolist()
        if other := [rank for rank, (_, theirs) in enumerate(heard) if theirs != signature]:
            raise ValueError(
                "expert_parallel_layer: expected the same layer, format and placement on all "
                f"ranks, got others on rank {other[0]}"
            )
        return cls(sent=counts_W.tolist(), received=[rows for rows, _ in heard], group=group)

    def reversed(self) -> "_Splits":
        """The way back."""
        return _Splits(sent=self.received, received=self.sent, group=self.group)


def _moved(parts: Sequence[torch.Tensor], splits: _Splits) -> list[torch.Tensor]:
    """Tensors of as many rows each, row by row in one all-to-all, as bytes where they are several.
    """
    several = len(parts) > 1
    sent = torch.cat([_bytes(part) for part in parts], dim=1) if several else parts[0]
    came = sent.new_empty(sum(splits.received), sent.shape[1])
    dist.all_to_all_single(
        came, sent.contiguous(), splits.received, splits.sent, group=splits.group
    )
    if not several:
        return [came]
    pieces = came.split([part.shape[1] * part.element_size() for part in parts], dim=1)
    # the last, the tokens, stay where they are: whoever uses them gathers them anyway
    return [
        (piece if piece is pieces[-1] else piece.clone(memory_format=torch.contiguous_format)).view(
            part.dtype
        )
        for piece, part in zip(pieces, parts, strict=True)
    ]


def _bytes(part: torch.Tensor) -> torch.Tensor:
    """Rows as bytes; by way of one dimension, since tensors without elements may have any stride.
    """
    flat = part.contiguous().reshape(-1).view(torch.uint8)
    return flat.reshape(len(part), part.shape[1] * part.element_size())


class _Dispatch(torch.autograd.Function):
    """Rows with their choices to the experts' ranks; gradients of rows and router weights back."""

    @staticmethod
    def forward(
        ctx: Any,
        rows_CH: torch.Tensor,
        weights_CK: torch.Tensor,
        slots_CK: torch.Tensor,
        splits: _Splits,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        ctx.splits = splits
        weights, slots, rows = _moved([weights_CK, slots_CK, rows_CH], splits)
        ctx.mark_non_differentiable(slots)
        return rows, weights, slots

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        d_weights_CK, d_rows_CH = _moved([grads[1], grads[0]], ctx.splits.reversed())
        return d_rows_CH, d_weights_CK, None, None


class _Combine(torch.autograd.Function):
    """Rows back to their tokens' ranks; gradients there."""

    @staticmethod
    def forward(ctx: Any, rows_CH: torch.Tensor, splits: _Splits) -> torch.Tensor:
        ctx.splits = splits
        return _moved([rows_CH], splits)[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return _moved([grads[0]], ctx.splits.reversed())[0], None


def _local_experts(
    came_CH: torch.Tensor,
    weights_CK: torch.Tensor,
    slots_CK: torch.Tensor,
    weights: LayerWeights,
    backend: Backend,
) -> torch.Tensor:
    """Weighted sum over each copy's local choices, shape (C, H)."""
    copy_P, at_P = (slots_CK >= 0).nonzero(as_tuple=True)
    slots_P, weights_P = slots_CK[copy_P, at_P], weights_CK[copy_P, at_P]
    num_slots, width = weights.w_gate_up.shape[0], weights.w_down.shape[2]
    if backend == "grouped_mm":
        order_P, _, ends_L = align(slots_P.long(), num_slots, 1)
        sorted_copy_P = copy_P[order_P]
        up_PN = grouped_mm(
            came_CH.index_select(0, sorted_copy_P), weights.w_gate_up.transpose(1, 2), offs=ends_L
        )
        y_PH = grouped_mm(activate(up_PN, width), weights.w_down.transpose(1, 2), offs=ends_L)
        return add_up(y_PH, weights_P[order_P], sorted_copy_P, len(came_CH))
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
    return _segment_sums(y_PH, torch.bincount(copy_P, minlength=len(came_CH)))


def _segment_sums(rows_CH: torch.Tensor, lengths_S: torch.Tensor) -> torch.Tensor:
    """Sums of consecutive rows in float32, rounded once; without atomics, so that runs repeat:
    shape (S, H).
    """
    if not len(rows_CH):
        return rows_CH.new_zeros(len(lengths_S), rows_CH.shape[1]) + rows_CH.sum()
    return torch.segment_reduce(rows_CH.float(), "sum", lengths=lengths_S, axis=0).to(rows_CH.dtype)


def _add_copies(
    rows_CH: torch.Tensor, token_C: torch.Tensor, num_tokens: int, backend: Backend
) -> torch.Tensor:
    """Sum of each token's returned rows, shape (T, H)."""
    if backend == "grouped_mm":
        return torch.zeros(num_tokens, rows_CH.shape[1], dtype=rows_CH.dtype).index_add_(
            0, token_C, rows_CH
        )
    order_C = torch.argsort(token_C, stable=True)
    return _segment_sums(
        rows_CH.index_select(0, order_C), torch.bincount(token_C, minlength=num_tokens)
    )
