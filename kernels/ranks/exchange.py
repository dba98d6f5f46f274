"""Move rows between the ranks of an expert-parallel layer: who gets what, and the all-to-alls.

    copies: for each (token, rank) with one of the token's experts there, one row
    counts: all-to-all of the number of rows, with a signature that all ranks must share
    dispatch: uneven all-to-all of (weights, slots, rows) as bytes;  combine: rows back

`Dispatch` and `Combine` are differentiable: the backward pass of each is the reversed exchange.

Shape suffixes are those of `moesim_kernels.ranks.expert_parallel`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.autograd.function import once_differentiable

from moesim.placement import Placement


@dataclass(frozen=True, slots=True, kw_only=True)
class Copies:
    """The rows this rank sends, ordered by destination, then by token.

    Attributes:
        token_C: Token of each copy.
        counts_W: Number of copies sent to each rank.
        slots_CK: Slot of each choice on the destination, int32; -1 for choices on other ranks.
        weights_CK: Router weights, float32, including those of choices on other ranks.
    """

    token_C: torch.Tensor
    counts_W: torch.Tensor
    slots_CK: torch.Tensor
    weights_CK: torch.Tensor


def copies_of(weights_TK: torch.Tensor, ids_TK: torch.Tensor, placement: Placement) -> Copies:
    """Return the copies of this rank's tokens under a placement."""
    device, ranks = ids_TK.device, placement.num_ranks
    if placement.num_slots == placement.num_experts:
        slot_E = torch.from_numpy(np.argsort(placement.expert_of_slot_P, kind="stable")).to(device)
        # Without replicas the slot of an expert is a table; with them, replicas take turns.
        slot_TK = slot_E[ids_TK.long()]
    else:
        slot_TK = torch.from_numpy(
            placement.slot_of_choice(ids_TK.cpu().numpy().astype(np.int64))
        ).to(device)
    rank_P = torch.from_numpy(placement.rank_of_slot_P.astype(np.int64)).to(device)
    # The first slot of each rank, since slots are ordered by rank.
    first_W = torch.from_numpy(np.searchsorted(placement.rank_of_slot_P, np.arange(ranks))).to(
        device
    )
    rank_TK = rank_P[slot_TK]
    # A token goes to a rank once, however many of its experts are there.
    goes_WT = torch.zeros(ranks, len(ids_TK), dtype=torch.bool, device=device)
    goes_WT[rank_TK.T, torch.arange(len(ids_TK), device=device)] = True
    to_C, token_C = goes_WT.nonzero(as_tuple=True)
    # Slots of a rank are consecutive, so subtracting its first gives the local index.
    local_CK = slot_TK[token_C] - first_W[to_C, None]
    slots_CK = torch.where(rank_TK[token_C] == to_C[:, None], local_CK, -1)
    return Copies(
        token_C=token_C,
        counts_W=goes_WT.sum(dim=1),
        slots_CK=slots_CK.int(),
        weights_CK=weights_TK[token_C],
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Splits:
    """Numbers of rows sent to and received from each rank."""

    sent: list[int]
    received: list[int]
    group: dist.ProcessGroup | None

    @classmethod
    def agreed(
        cls, counts_W: torch.Tensor, signature: int, group: dist.ProcessGroup | None
    ) -> "Splits":
        """Tell each rank how many rows come, and receive the same from each.

        Raises:
            ValueError: The layer or placement of another rank differs.
        """
        # The signature travels with the counts, so that the check costs no exchange of its own.
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

    def reversed(self) -> "Splits":
        """Return the splits of the return trip."""
        return Splits(sent=self.received, received=self.sent, group=self.group)


def _moved(parts: Sequence[torch.Tensor], splits: Splits) -> list[torch.Tensor]:
    """Move tensors with equal numbers of rows in one all-to-all, row by row; several tensors travel
    as bytes.
    """
    several = len(parts) > 1
    # One exchange instead of several: its start is what small messages pay for.
    sent = torch.cat([_bytes(part) for part in parts], dim=1) if several else parts[0]
    came = sent.new_empty(sum(splits.received), sent.shape[1])
    dist.all_to_all_single(
        came, sent.contiguous(), splits.received, splits.sent, group=splits.group
    )
    if not several:
        return [came]
    pieces = came.split([part.shape[1] * part.element_size() for part in parts], dim=1)
    # The last piece, the tokens, is not copied: the experts gather its rows anyway.
    return [
        (piece if piece is pieces[-1] else piece.clone(memory_format=torch.contiguous_format)).view(
            part.dtype
        )
        for piece, part in zip(pieces, parts, strict=True)
    ]


def _bytes(part: torch.Tensor) -> torch.Tensor:
    """Return rows as bytes, via one dimension, since tensors without elements may have any
    stride.
    """
    flat = part.contiguous().reshape(-1).view(torch.uint8)
    return flat.reshape(len(part), part.shape[1] * part.element_size())


class Dispatch(torch.autograd.Function):
    """Send rows with their choices to the experts' ranks; gradients of rows and router weights
    return.
    """

    @staticmethod
    def forward(
        ctx: Any,
        rows_CH: torch.Tensor,
        weights_CK: torch.Tensor,
        slots_CK: torch.Tensor,
        splits: Splits,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Send rows, router weights, and slots; return those received."""
        ctx.splits = splits
        weights, slots, rows = _moved([weights_CK, slots_CK, rows_CH], splits)
        ctx.mark_non_differentiable(slots)
        return rows, weights, slots

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradients to the ranks the rows came from."""
        # Slots are integers and have no gradient.
        d_weights_CK, d_rows_CH = _moved([grads[1], grads[0]], ctx.splits.reversed())
        return d_rows_CH, d_weights_CK, None, None


class Combine(torch.autograd.Function):
    """Send rows back to the ranks of their tokens; gradients go the other way."""

    @staticmethod
    def forward(ctx: Any, rows_CH: torch.Tensor, splits: Splits) -> torch.Tensor:
        """Send rows back; return those received."""
        ctx.splits = splits
        return _moved([rows_CH], splits)[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Send the gradients to the ranks that computed the rows."""
        return _moved([grads[0]], ctx.splits.reversed())[0], None


def segment_sums(rows_CH: torch.Tensor, lengths_S: torch.Tensor) -> torch.Tensor:
    """Sum consecutive rows in float32, rounded once, without atomics, so that runs repeat: shape
    (S, H).
    """
    if not len(rows_CH):
        # The empty sum keeps the result in the graph of gradients.
        return rows_CH.new_zeros(len(lengths_S), rows_CH.shape[1]) + rows_CH.sum()
    return torch.segment_reduce(rows_CH.float(), "sum", lengths=lengths_S, axis=0).to(rows_CH.dtype)
