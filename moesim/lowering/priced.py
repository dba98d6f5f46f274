"""Price one exchange: the copies that move, their bytes, and what the kernel asks for them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from moesim.costs.comm.work import CommKernel, Direction, Price, Work
from moesim.hardware import Cluster
from moesim.hardware.exchanges import Exchange
from moesim.hardware.fabric import relative_rates
from moesim.lowering.movement import Movement, movement_of
from moesim.lowering.traffic import AnyTraffic
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
        traffic: AnyTraffic,
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
        return cls.of_batches(
            layer, [traffic], kernel, cluster, exchange=exchange, num_experts=num_experts
        )[0]

    @classmethod
    def of_batches(
        cls,
        layer: MoELayer,
        batches: Sequence[AnyTraffic],
        kernel: CommKernel,
        cluster: Cluster,
        *,
        exchange: Exchange,
        num_experts: int,
    ) -> "list[Priced]":
        """Price both directions of every micro-batch: their devices are rows of one table.

        Args:
            layer: See `of`, as all others but this.
            batches: The copies of every micro-batch.
            kernel: The communication kernel.
            cluster: The cluster.
            exchange: The exchange.
            num_experts: Number of expert slots on all devices.
        """
        moves = [movement_of(exchange, b, cluster.devices_per_domain) for b in batches]
        near_out, near_in, far_out, far_in = (
            np.concatenate(column)
            for column in zip(*(move.near_far_D for move in moves), strict=True)
        )
        # the busier direction of a port decides, since both run at once
        near, far = np.maximum(near_out, near_in), np.maximum(far_out, far_in)
        # prices are those of one kind of port: another moves what takes that kind as long
        near_D, far_D = (np.tile(rate_D, len(batches)) for rate_D in relative_rates(cluster))
        tokens = np.concatenate([b.num_tokens_S for b in batches]).astype(np.float64)
        copies = np.concatenate([move.copies_S for move in moves])
        sizes: dict[Direction, float] = {}
        prices: dict[Direction, list[Price]] = {}
        directions: tuple[Direction, Direction] = ("dispatch", "combine")
        for direction in directions:
            element = BYTES_PER_ELEMENT[getattr(layer.precision, direction)]
            # bytes of a copy differ by direction: each has its own number format
            size = kernel.copy_bytes(direction, layer.hidden_size, layer.top_k, element)
            sizes[direction] = size
            work = Work(
                tokens_D=tokens,
                copies_D=copies,
                near_bytes_D=near * size / near_D,
                far_bytes_D=far * size / far_D,
                hidden_size=layer.hidden_size,
                top_k=layer.top_k,
                num_experts=num_experts,
                copy_bytes=size,
            )
            prices[direction] = kernel.price(direction, work).split(len(batches))
        return [
            cls(
                movement=move,
                copy_bytes=sizes,
                prices={direction: prices[direction][m] for direction in directions},
            )
            for m, move in enumerate(moves)
        ]

    @property
    def num_sms(self) -> int:
        """The number of SMs that the kernel holds."""
        return max(price.num_sms for price in self.prices.values())
