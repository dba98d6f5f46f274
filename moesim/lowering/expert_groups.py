"""Price routed experts that are stored in several forms: each form is one more call of the kernels.

A fused MoE kernel has one format and one shape. Hot and cold experts are therefore two calls that
follow one another over the tokens present, each of which masks the choices of the other's experts,
as with experts of other devices.

Shape legend: D devices, L slots of a device.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from moesim.costs.phase import PhaseCost, joined, sequence
from moesim.costs.phases.experts import price_layer_experts, tiles_of
from moesim.lowering.devices import Groups
from moesim.lowering.traffic import AnyTraffic
from moesim.model import MoELayer
from moesim.model.compression import expert_bytes

Array = np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ExpertGroup:
    """Experts that are stored in one form.

    Attributes:
        layer: The layer with the formats of these experts.
        groups: The kernels that run them, for each kind of device.
        members_DL: ndarray of shape (D, L), bool: slots that hold them.
        rank_fraction: Rank of the factors of their matrices; None for whole matrices.
    """

    layer: MoELayer
    groups: Groups
    members_DL: Array
    rank_fraction: float | None = None

    def bytes_DL(self, widths_DL: Array) -> Array:
        """Return the bytes of the weights in each slot, scales included, 0 in those of others.

        Args:
            widths_DL: ndarray of shape (D, L): width of the expert in every slot on its device.
        """
        held_DL = expert_bytes(self.layer, widths_DL, self.rank_fraction)
        return np.asarray(self.members_DL * held_DL)

    def price(self, tp: int, traffic: AnyTraffic, widths_DL: Array | None) -> PhaseCost:
        """Price these experts on every device.

        Args:
            tp: Devices that share the width of an expert.
            traffic: What a micro-batch computes.
            widths_DL: Width of the expert in every slot; None if all have the same.
        """
        counts_DL = np.where(self.members_DL, traffic.counts_DL, 0)
        tokens_D = np.asarray(traffic.tokens_D)
        return joined(
            [
                price_layer_experts(
                    kernels,
                    self.layer,
                    tp,
                    counts_DL[which],
                    None if widths_DL is None else widths_DL[which],
                    tokens_D[which],
                    tiles=tiles_of(kernels, self.layer, tp, counts_DL),
                    rank_fraction=self.rank_fraction,
                )
                for kernels, which in self.groups
            ]
        )


def price_expert_groups(
    members: Sequence[ExpertGroup], tp: int, traffic: AnyTraffic, widths_DL: Array | None
) -> PhaseCost:
    """Price all groups of experts, one after the other; see `ExpertGroup.price`."""
    return sequence(*(one.price(tp, traffic, widths_DL) for one in members))
