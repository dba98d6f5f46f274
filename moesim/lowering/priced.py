"""Price one exchange: the copies that move, their bytes, and what the kernel asks for them."""

from dataclasses import dataclass

import numpy as np

from moesim.costs.comm.work import CommKernel, Direction, Price, Work
from moesim.hardware import Cluster
from moesim.hardware.exchanges import Exchange
from moesim.lowering.movement import Movement, movement_of
from moesim.lowering.traffic import Traffic
from moesim.model import MoELayer
from moesim.model.precision import BYTES_PER_ELEMENT


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Priced:
    """The exchange of one batch or micro-batch: what moves, and what it costs.

    Attributes:
        movement: The legs, in copies of tokens.
        copy_bytes: Bytes of a copy for each direction.
        prices: The kernel's price for each direction.
    """

    movement: Movement
    copy_bytes: dict[Direction, float]
    prices: dict[Direction, Price]

    @classmethod
    def of(
        cls,
        layer: MoELayer,
        traffic: Traffic,
        kernel: CommKernel,
        cluster: Cluster,
        *,
        exchange: Exchange,
        num_experts: int,
    ) -> "Priced":
        """Price both directions.

        Args:
            layer: The layer, for the sizes and formats of tokens.
            traffic: The copies that have to move.
            kernel: The communication kernel that prices them.
            cluster: The cluster, for the size of its domains.
            exchange: The exchange, which says how copies move.
            num_experts: Number of expert slots on all devices.
        """
        movement = movement_of(exchange, traffic, cluster.devices_per_domain)
        near_out, near_in, far_out, far_in = movement.near_far_D
        sizes: dict[Direction, float] = {}
        prices: dict[Direction, Price] = {}
        directions: tuple[Direction, Direction] = ("dispatch", "combine")
        for direction in directions:
            element = BYTES_PER_ELEMENT[getattr(layer.precision, direction)]
            size = kernel.copy_bytes(direction, layer.hidden_size, layer.top_k, element)
            # bytes of a copy differ by direction: each has its own number format
            sizes[direction] = size
            # the busier direction of a port decides, since both run at once
            prices[direction] = kernel.price(
                direction,
                Work(
                    tokens_D=np.asarray(traffic.num_tokens_S, dtype=np.float64),
                    copies_D=movement.copies_S,
                    near_bytes_D=np.maximum(near_out, near_in) * size,
                    far_bytes_D=np.maximum(far_out, far_in) * size,
                    hidden_size=layer.hidden_size,
                    top_k=layer.top_k,
                    num_experts=num_experts,
                    copy_bytes=size,
                ),
            )
        return cls(movement=movement, copy_bytes=sizes, prices=prices)

    @property
    def num_sms(self) -> int:
        """The number of SMs that the kernel holds."""
        return max(price.num_sms for price in self.prices.values())
