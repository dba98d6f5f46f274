"""Compute the gate of a layer in torch on the CPU; `moesim_kernels.cpu.layer` times it as its first
phase, and alone.

Each kind of gate does the work that `moesim.costs.phases.gate` prices, in torch's own operations:
flat, group-limited, two-level with a grouped GEMM over the kept groups, and product key without a
score for every expert.

Shape suffixes: T tokens, K experts a token uses, P = T x K pairs, E experts, G groups, g groups
kept, S experts of one group, H hidden size.
"""

import math
from typing import Protocol

import torch
from torch.nn.functional import grouped_mm

from moesim.errors import require
from moesim.model import MoELayer

#: kinds of gates that are computed
GATES = ("flat", "group_limited", "two_level", "product_key")


def align(
    ids_P: torch.Tensor, num_experts: int, top_k: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sort pairs by expert.

    Args:
        ids_P: Expert of each pair, token by token, shape (P,), int64.
        num_experts: Number of experts E.
        top_k: Number of experts K each token uses.

    Returns:
        Pair indices ordered by their expert, shape (P,), int64; the tokens of these pairs; the
        index after the last pair of each expert, int32 of shape (E,).
    """
    # A stable sort keeps the tokens of an expert in order, as the kernels' plan does.
    order_P = torch.argsort(ids_P, stable=True)
    ends_E = torch.bincount(ids_P, minlength=num_experts).cumsum(0).int()
    return order_P, order_P // top_k, ends_E


def choose(
    logits_TE: torch.Tensor, top_k: int, score: str = "softmax"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose the best experts: weights, float32 of shape (T, K), each row summing to 1, and ids,
    int64 of shape (T, K).
    """
    return _best(_scores(logits_TE, score), top_k)


def _scores(logits_TE: torch.Tensor, score: str) -> torch.Tensor:
    return torch.softmax(logits_TE, dim=1) if score == "softmax" else torch.sigmoid(logits_TE)


def _best(scores_TE: torch.Tensor, top_k: int) -> tuple[torch.Tensor, torch.Tensor]:
    weights_TK, ids_TK = scores_TE.topk(top_k, dim=1)
    return weights_TK.div_(weights_TK.sum(dim=1, keepdim=True)), ids_TK


def product_key(
    x_TH: torch.Tensor, query_QH: torch.Tensor, keys_2Sq: torch.Tensor, heads: int, top_k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Find the best experts of each head of a product-key gate, without a score for every expert.

    Args:
        x_TH: Tokens, shape (T, H).
        query_QH: Projection to the queries of all heads, shape (heads x query_size, H).
        keys_2Sq: Keys of both halves, shape (2, S, query_size / 2); expert i x S + j has row key i
            and column key j.
        heads: Number of queries of each token.
        top_k: Number of experts each head finds.

    Returns:
        Weights, float32 of shape (T, heads x top_k), summing to 1 for each head; expert ids, int64.
    """
    keys = keys_2Sq.shape[1]
    halves_2Rq = (x_TH @ query_QH.T).view(len(x_TH) * heads, 2, keys_2Sq.shape[2]).transpose(0, 1)
    best_2Rk, at_2Rk = (
        torch.bmm(halves_2Rq, keys_2Sq.transpose(1, 2)).float().topk(min(top_k, keys), dim=2)
    )
    if top_k == 1:  # the best pair joins the best row and the best column
        return torch.ones(len(x_TH), heads), (at_2Rk[0] * keys + at_2Rk[1]).view(len(x_TH), heads)
    # The best pairs lie in the best rows and columns, so k x k sums are enough.
    sums_RP = (best_2Rk[0][:, :, None] + best_2Rk[1][:, None, :]).flatten(1)
    ids_RP = (at_2Rk[0][:, :, None] * keys + at_2Rk[1][:, None, :]).flatten(1)
    scores_RK, place_RK = sums_RP.topk(top_k, dim=1)
    weights_RK = torch.softmax(scores_RK, dim=1)
    return weights_RK.view(len(x_TH), -1), ids_RP.gather(1, place_RK).view(len(x_TH), -1)


class Keys(Protocol):
    """Keys that score experts; `moesim_kernels.ops.weights.LayerWeights` fits this protocol."""

    fine_EH: torch.Tensor
    coarse_GH: torch.Tensor | None
    query_QH: torch.Tensor | None
    keys_2Sq: torch.Tensor | None


def gate_by_torch(
    x_TH: torch.Tensor, layer: MoELayer, keys: Keys
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return weights and ids in the form of `choose`, for the layer's kind of gate.

    Args:
        x_TH: Tokens in the keys' format, shape (T, H).
        layer: Layer that gives sizes and gate.
        keys: Keys of the gate; logits are float32.

    Raises:
        ConfigError: The kind of gate is none of those that are computed.
    """
    gate, top_k = layer.gate, layer.top_k
    require(gate.kind in GATES, "gate.kind", f"{', '.join(GATES)} to compute", gate.kind)
    if gate.kind == "two_level":
        return _two_level(x_TH, layer, keys)
    if gate.kind == "product_key":
        assert keys.query_QH is not None
        assert keys.keys_2Sq is not None
        weights_TF, ids_TF = product_key(
            x_TH, keys.query_QH, keys.keys_2Sq, gate.query_heads, -(-top_k // gate.query_heads)
        )
        # Heads that do not divide top-k find a few too many; the best of them stay.
        if ids_TF.shape[1] == top_k:
            return weights_TF.div_(gate.query_heads), ids_TF
        weights_TK, place_TK = _best(weights_TF, top_k)
        return weights_TK, ids_TF.gather(1, place_TK)
    logits_TE = (x_TH @ keys.fine_EH.T).float()
    if gate.kind == "flat":
        return choose(logits_TE, top_k, gate.score)
    scores_TGS = _scores(logits_TE, gate.score).view(len(logits_TE), gate.num_expert_groups, -1)
    # A group's score is the sum of its two best experts' scores, as in DeepSeek-V3.
    best_TG = scores_TGS.topk(min(2, scores_TGS.shape[2]), dim=2).values.sum(dim=2)
    kept_Tg = best_TG.topk(gate.num_limited_groups, dim=1).indices
    # Scores are never negative, so -1 ranks closed groups behind all open ones.
    closed_TG = torch.ones_like(best_TG, dtype=torch.bool).scatter_(1, kept_Tg, False)
    return _best(scores_TGS.masked_fill(closed_TG[:, :, None], -1.0).flatten(1), top_k)


def _two_level(
    x_TH: torch.Tensor, layer: MoELayer, keys: Keys
) -> tuple[torch.Tensor, torch.Tensor]:
    gate, top_k = layer.gate, layer.top_k
    groups, kept = gate.num_expert_groups, gate.num_limited_groups
    per_group = layer.num_experts // groups
    assert keys.coarse_GH is not None
    kept_Tg = choose((x_TH @ keys.coarse_GH.T).float(), kept)[1]
    # A group acts as an expert whose matrix is its keys, so a grouped GEMM scores it.
    order_P, token_P, ends_G = align(kept_Tg.flatten(), groups, kept)
    keys_GHS = keys.fine_EH.view(groups, per_group, -1).transpose(1, 2)
    rows_PH = x_TH.index_select(0, token_P)
    fine_PS = torch.empty(len(order_P), per_group, dtype=x_TH.dtype)
    # Rows go back to their pair, so a token's kept groups lie side by side.
    fine_PS[order_P] = grouped_mm(rows_PH, keys_GHS, offs=ends_G)
    weights_TK, slots_TK = choose(fine_PS.float().view(-1, kept * per_group), top_k, gate.score)
    return weights_TK, kept_Tg.gather(1, slots_TK // per_group) * per_group + slots_TK % per_group


class CpuGate:
    """A gate with random keys, which fits `Keys`.

    Args:
        layer: Layer that gives sizes and gate; its number formats are not used.
        dtype: Number format of tokens and keys; logits are float32.
        generator: Random generator of the keys.
    """

    def __init__(self, layer: MoELayer, dtype: torch.dtype, generator: torch.Generator) -> None:
        self.layer, self.dtype, self.generator = layer, dtype, generator
        gate, hidden = layer.gate, layer.hidden_size
        product = gate.kind == "product_key"
        self.query_QH = self.normal(gate.query_heads * gate.query_size, hidden) if product else None
        self.keys_2Sq = (
            self.normal(2, math.isqrt(layer.num_experts), gate.query_size // 2) if product else None
        )
        self.coarse_GH = (
            self.normal(gate.num_expert_groups, hidden) if gate.kind == "two_level" else None
        )
        # A product-key gate has no key for each expert.
        self.fine_EH = self.normal(0 if product else layer.num_experts, hidden)
        self.x_TH = torch.empty(0, hidden, dtype=dtype)

    def normal(self, *shape: int) -> torch.Tensor:
        """Return random weights that give outputs of about unit scale."""
        return torch.empty(shape, dtype=self.dtype).normal_(
            0.0, shape[-1] ** -0.5, generator=self.generator
        )

    def gate(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Run `gate_by_torch` on this gate's tokens."""
        return gate_by_torch(self.x_TH, self.layer, self)
