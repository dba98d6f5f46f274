"""Price NCCL's collectives: the all-to-all of expert parallelism, and those of a dispatch under TP.

The structure is per device with w bytes over its port and R ranks; v is the rate of one direction
of the port, and every other letter is fitted. There are two protocols, of which the slower decides
(8-norm).

*Bandwidth*: start + (w + ramp w / (w + knee)) / (v efficiency). The ramp is bytes that could have
been sent while channels and pipeline slots filled; the efficiency counts headers and falls with few
peers, (R-1)/(R-1+few).

*Low latency*: start + bytes per peer / protocol rate, up to a ceiling that is the start of the
other protocol.

Ring collectives start hop after hop, so their starts and ceilings grow with R-1. The all-to-all of
NCCL up to 2.24 left the low-latency protocol at a lower ceiling (``legacy``). Nothing was measured
across nodes: there the NIC is a stage that runs next to the port, with DeepEP's NIC efficiency and
step per doubling of nodes.

Data: aiconfigurator-core 0.12, nccl_perf tables of A100 and H100 (calibration ``nccl``).
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from moesim.costs.calibration import Calibration
from moesim.costs.comm.forms import PROTOCOL_NORM, priced, soft_maximum
from moesim.costs.comm.work import Array, Direction, Ports, Price, Work
from moesim.units import GB, KB, US

Collective = Literal["alltoall", "all_gather", "reduce_scatter", "all_reduce"]
COLLECTIVES: tuple[Collective, ...] = ("alltoall", "all_gather", "reduce_scatter", "all_reduce")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Nccl:
    """A NCCL collective on one cluster, a `CommKernel`.

    Attributes:
        ports: The device's side of the fabric.
        calibration: Fitted parameters.
        collective: Which collective it is.
        legacy: Whether NCCL is older than 2.25.
    """

    ports: Ports
    calibration: Calibration
    collective: Collective = "alltoall"
    legacy: bool = False
    copies: Literal["per_rank", "per_choice"] = "per_rank"

    @property
    def level(self) -> str:
        """``calibrated``, ``few_shot`` or ``spec_sheet``."""
        return self.calibration.level

    def _c(self, name: str) -> float:
        return self.calibration[f"{self.collective}_{name}"]

    def copy_bytes(
        self, direction: Direction, hidden_size: int, top_k: int, element_bytes: float
    ) -> float:
        """Return the bytes of one copy: the token's elements with their scales."""
        return hidden_size * payload_bytes(element_bytes)

    def port_factor(self, near_bytes: Array) -> Array:
        """Return the seconds of the port per byte, times its rate: >= 1, and less for
        more bytes.
        """
        peers = np.maximum(self.ports.num_ranks - 1.0, 1.0)
        efficiency = self._c("port_efficiency") * peers / (peers + self._c("few_peers"))
        return (
            1.0 + self._c("ramp_kb") * KB / (near_bytes + self._c("ramp_knee_kb") * KB)
        ) / efficiency

    def time_s(self, near_bytes: Array | float, far_bytes: Array | float = 0.0) -> Array:
        """Return the seconds of the closed form.

        Args:
            near_bytes: Bytes over the device's port in its busier direction, of any shape.
            far_bytes: Bytes over its NIC in the busier direction.
        """
        ports = self.ports
        peers = np.maximum(ports.num_ranks - 1.0, 1.0)
        steps = self._c("hop_us") * US * peers + self._c("node_us") * US * np.log2(
            num_domains(ports)
        )
        start = self._c("start_us") * US + steps
        near = (
            np.asarray(near_bytes)
            * self.port_factor(np.asarray(near_bytes))
            / ports.near_bytes_per_s
        )
        far = self._far_s(far_bytes)
        # a small exchange uses the low-latency protocol until the other one's start is shorter
        ceiling: Array = self._c("ceiling_us") * US + steps
        if self.collective == "alltoall":
            ceiling = np.where(
                self.legacy, np.minimum(ceiling, self._c("legacy_ceiling_us") * US + steps), ceiling
            )
        per_peer = (near_bytes + np.asarray(far_bytes)) / peers
        protocol = np.minimum(
            start + per_peer / (self._c("protocol_gb_per_s") * GB), np.maximum(ceiling, start)
        )
        return soft_maximum(start + soft_maximum(near, far), protocol, norm=PROTOCOL_NORM)

    def _far_s(self, far_bytes: Array | float) -> Array:
        rate = self.ports.far_bytes_per_s * self._c("nic_efficiency")
        return (
            np.asarray(far_bytes) / rate
            if rate
            else np.zeros_like(np.asarray(far_bytes, dtype=np.float64))
        )

    def price(self, direction: Direction, work: Work) -> Price:
        """Price one exchange; both directions cost the same."""
        factor = self.port_factor(work.near_bytes_D)
        return priced(
            self.time_s(work.near_bytes_D, work.far_bytes_D),
            work,
            sm_s=0.0,
            near_s=work.near_bytes_D * factor / self.ports.near_bytes_per_s,
            far_s=self._far_s(work.far_bytes_D),
            near_factor=factor,
            far_factor=1.0 / self._c("nic_efficiency"),
            num_sms=int(self._c("channels")),
        )

    def interval(self, direction: Direction) -> tuple[float, float]:
        """Return the P10 and P90 of measured / predicted."""
        return self.calibration.interval(self.collective)


def payload_bytes(element_bytes: float) -> float:
    """Return the bytes of an element with its share of the scales: fp8 has a float32 per 128
    elements, four-bit formats one byte per 16, wider formats none.
    """
    if element_bytes >= 2.0:
        return element_bytes
    return element_bytes + (4.0 / 128.0 if element_bytes >= 1.0 else 1.0 / 16.0)


def num_domains(ports: Ports) -> Array:
    """Return the number of domains that the ranks spread over, >= 1."""
    return np.maximum(np.asarray(ports.num_ranks) / ports.ranks_per_domain, 1.0)
