"""What a gate and its capacity do to one layer, beside its time: where tokens go, what is
re-routed, padded or stale.

Shape legend: S sources, D devices, W expert-parallel ranks, P slots, E experts.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from moesim.model.gate import Gate
from moesim.quality.gates import gate_delta
from moesim.routing import Routing

if TYPE_CHECKING:
    from moesim.lowering.traffic import Traffic

#: columns of `GateEffects.row`
COLUMNS = (
    "devices_per_token",
    "domains_per_token",
    "groups_per_token",
    "rerouted_token_fraction",
    "padded_row_fraction",
    "gate_staleness",
    "gate_loss_delta",
    "gate_loss_delta_low",
    "gate_loss_delta_high",
    "gate_loss_unknown",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class GateEffects:
    """Traffic and losses of a gate.

    Attributes:
        devices_per_token: Devices that hold an expert of a token, in the mean.
        domains_per_token: Domains likewise.
        groups_per_token: Groups of experts that a token uses, in the mean.
        rerouted_token_fraction: Choices that went to another expert than the one chosen, over all.
        padded_row_fraction: Rows of zeros over all rows that are computed.
        gate: Whose staleness and difference in loss.
    """

    devices_per_token: float
    domains_per_token: float
    groups_per_token: float
    rerouted_token_fraction: float
    padded_row_fraction: float
    gate: Gate

    @classmethod
    def of(cls, gate: Gate, routing: Routing, traffic: "Traffic", tp: int) -> "GateEffects":
        """Effects of a gate on one batch.

        Args:
            gate: The gate.
            routing: Its choices, those of full experts re-routed.
            traffic: What moves and is computed.
            tp: Devices that share an expert: each has a copy of its rows.
        """
        tokens, choices = routing.expert_ids_TK.shape[0], routing.expert_ids_TK.size
        rows = traffic.counts_DL.sum() / tp
        return cls(
            devices_per_token=float(traffic.copies_SD.sum() / tp / tokens),
            domains_per_token=float(traffic.domains_SG.sum() / tokens),
            groups_per_token=_groups_per_token(routing, gate.num_expert_groups),
            rerouted_token_fraction=routing.num_rerouted / choices,
            padded_row_fraction=float(
                max(1.0 - (1.0 - traffic.dropped_fraction) * choices / rows, 0.0)
            ),
            gate=gate,
        )

    def row(self) -> dict[str, object]:
        """Flat columns, losses in nats; ``gate_loss_unknown`` names what has no measured figure."""
        delta = gate_delta(self.gate)
        values = (
            self.devices_per_token,
            self.domains_per_token,
            self.groups_per_token,
            self.rerouted_token_fraction,
            self.padded_row_fraction,
            self.gate.staleness,
            delta.nats,
            delta.low,
            delta.high,
            delta.unknown,
        )
        return dict(zip(COLUMNS, values, strict=True))


@lru_cache(maxsize=64)
def _groups_per_token(routing: Routing, num_groups: int) -> float:
    if num_groups == 1:
        return 1.0
    groups = np.sort(routing.expert_ids_TK // (routing.num_experts // num_groups), axis=1)
    return 1.0 + float((np.diff(groups, axis=1) > 0).sum() / len(groups))
