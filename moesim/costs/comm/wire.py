"""Price exchanges on fabrics without a measured kernel: a start, then bytes over an achieved share
of the link rate.

``ideal`` uses the data sheet's rate and no start: what the topology alone would do. ``ici`` is a
TPU's torus, with the share of the link rate that the JAX scaling book uses (45 of 50 GB/s and 90 of
100, part 2) and an assumed start. Its parameters are in the calibration file ``ici-assumed``, which
is fitted to nothing.

Shape legend: D devices.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from moesim.costs.comm.work import Direction, Ports, Price, Work


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Wire:
    """A kernel that takes a start, then moves bytes at a share of the link rate.

    Attributes:
        ports: The device's side of the fabric.
        efficiency: Share of the link rate that is reached.
        start_s: Seconds that elapse before the first byte.
        level: ``none`` if it rests on no measurement.
        spread: Factors of its interval; the default is assumed.
    """

    ports: Ports
    efficiency: float = 1.0
    start_s: float = 0.0
    level: str = "none"
    spread: tuple[float, float] = (1 / 1.5, 1.5)
    copies: Literal["per_rank", "per_choice"] = "per_rank"

    def copy_bytes(
        self, direction: Direction, hidden_size: int, top_k: int, element_bytes: float
    ) -> float:
        """Return the bytes of one copy: the token's own bytes."""
        return hidden_size * element_bytes

    def price(self, direction: Direction, work: Work) -> Price:
        """Price one exchange; the start elapses even with nothing to send."""
        devices = len(np.asarray(work.tokens_D))
        factor = np.full(devices, 1.0 / self.efficiency)
        near_s, far_s = (
            np.asarray(moved) / rate if rate > 0 else np.zeros(devices)
            for moved, rate in (
                (work.near_bytes_D, self.ports.near_bytes_per_s),
                (work.far_bytes_D, self.ports.far_bytes_per_s),
            )
        )
        return Price(
            latency_s_D=np.full(devices, self.start_s),
            sm_s_D=np.zeros(devices),
            near_factor_D=factor,
            far_factor_D=factor,
            near_s_D=near_s / self.efficiency,
            far_s_D=far_s / self.efficiency,
            num_sms=0,
        )

    def interval(self, direction: Direction) -> tuple[float, float]:
        """Return the factors of the interval."""
        return self.spread
