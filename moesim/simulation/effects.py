"""Side effects of a gate and its capacity (traffic, rerouting, padding, staleness), and of experts
in the memory of the host.

Shape legend: S sources, D devices, W expert-parallel ranks, P slots, E experts.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from moesim.lowering.stored import StoredExperts
from moesim.lowering.traffic import AnyTraffic
from moesim.model.gate import Gate
from moesim.quality.gates import gate_delta
from moesim.routing import Routing
from moesim.units import MB

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


#: columns of `StorageEffects.row`
STORAGE_COLUMNS = (
    "expert_hit_fraction",
    "expected_recall",
    "host_mb_per_layer",
    "cold_kernels",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageEffects:
    """Effects of how experts are stored: of those in the memory of the host, and of cold ones.

    Attributes:
        hit_fraction: Share of the active experts that is there when the gate has chosen.
        copied_bytes: Bytes of weights that the busiest device's link carries in one layer, wrong
            guesses included.
        recall: Share of the missing experts that is guessed, as given or as the routing model
            predicts.
        cold_kernels: Name of the library that runs cold experts; empty if there are none.
    """

    hit_fraction: float = 1.0
    copied_bytes: float = 0.0
    recall: float = 0.0
    cold_kernels: str = ""

    @classmethod
    def of(cls, stored: StoredExperts | None) -> "StorageEffects":
        """Return the effects of how weights are stored; none where all stay on their device."""
        if stored is None:
            return cls()
        fetches = stored.fetches
        if fetches is None:
            return cls(cold_kernels=stored.cold_kernels)
        copied_D = fetches.ahead_bytes_D + sum(fetches.now_bytes)
        return cls(
            hit_fraction=fetches.hit_fraction,
            copied_bytes=float(copied_D.max()),
            recall=fetches.recall,
            cold_kernels=stored.cold_kernels,
        )

    def row(self) -> dict[str, object]:
        """Return flat columns for a CSV file."""
        values = (self.hit_fraction, self.recall, self.copied_bytes / MB, self.cold_kernels)
        return dict(zip(STORAGE_COLUMNS, values, strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class GateEffects:
    """Effects of a gate on traffic and loss.

    Attributes:
        devices_per_token: Mean number of devices that hold an expert of a token.
        domains_per_token: Mean number of domains that hold an expert of a token.
        groups_per_token: Mean number of expert groups that a token uses.
        rerouted_token_fraction: Share of all choices that went to another expert than the one
            chosen.
        padded_row_fraction: Share of all computed rows that are zeros.
        gate: The gate, for its staleness and its difference in loss.
    """

    devices_per_token: float
    domains_per_token: float
    groups_per_token: float
    rerouted_token_fraction: float
    padded_row_fraction: float
    gate: Gate

    @classmethod
    def of(cls, gate: Gate, routing: Routing, traffic: AnyTraffic, tp: int) -> "GateEffects":
        """Return the effects of a gate on one batch.

        Args:
            gate: The gate.
            routing: The gate's choices, with those of full experts rerouted.
            traffic: The copies that move and the rows that are computed.
            tp: Number of devices that share an expert; each has a copy of its rows.
        """
        # of many devices the routing is a sample of the traffic's tokens
        tokens = traffic.num_tokens
        choices = tokens * routing.expert_ids_TK.shape[1]
        rows = traffic.counts_DL.sum() / tp
        return cls(
            devices_per_token=traffic.num_copies / tp / tokens,
            domains_per_token=traffic.num_domain_copies / tokens,
            groups_per_token=_groups_per_token(routing, gate.num_expert_groups),
            rerouted_token_fraction=routing.num_rerouted / routing.expert_ids_TK.size,
            padded_row_fraction=float(
                max(1.0 - (1.0 - traffic.dropped_fraction) * choices / rows, 0.0)
            ),
            gate=gate,
        )

    def row(self) -> dict[str, object]:
        """Return flat columns, with losses in nats; ``gate_loss_unknown`` names what has no
        measured figure.
        """
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
