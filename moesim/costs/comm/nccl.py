"""Price NCCL's collectives: the all-to-all of expert parallelism, and those of a dispatch under TP.

The structure is per device with w bytes over its port and R ranks; S = w R / (R-1) are the bytes of
the buffer, v is the rate of one direction of the port, and every other letter is fitted. Small
exchanges use protocols with short starts.

*Bandwidth* (NCCL's Simple): (w + ramp w / (w + knee)) / (v efficiency) beyond its start. The ramp
is bytes that could have been sent while channels and pipeline slots filled; the efficiency counts
headers and falls with few peers, (R-1)/(R-1+few).

*All-to-all*: of two protocols the slower decides (8-norm). The short one takes start + bytes per
peer / protocol rate, up to a ceiling that is the start of the other. Both grow with each doubling
of the peers. NCCL up to 2.24 (``legacy``) left the short protocol at a lower ceiling, and its start
grew faster.

*Rings* (the other collectives): of three protocols the fastest is used (a minimum, 8-norm). All
start hop after hop, so that their starts grow with R-1. The shortest (LL) takes S / protocol rate,
the middle one (LL128) S / (v middle efficiency), for the SMs copy the whole buffer; Simple takes
the port's time. With NCCL up to 2.24 all starts are longer by a factor. Protocols and their use:
Hu et al. 2025, arXiv 2507.04786.

Nothing was measured across nodes: there the NIC is a stage that runs next to the port, with
DeepEP's NIC efficiency and step per doubling of nodes, and the interval is a factor of at least 1.5
either way (assumed). Behind PCIe switches the host's memory is one more stage, see
`moesim.costs.comm.bridge`; LL sends twice the bytes, and LL128 needs NVLink.

Data: aiconfigurator-core 0.12, nccl_perf tables of A100 and H100 (calibration ``nccl``).
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from moesim.costs.calibration import Calibration, weakest
from moesim.costs.comm.bridge import host_interval, host_seconds
from moesim.costs.comm.forms import PROTOCOL_NORM, priced, soft_maximum, soft_minimum
from moesim.costs.comm.work import Array, Direction, Ports, Price, Work
from moesim.units import GB, KB, US

Collective = Literal["alltoall", "all_gather", "reduce_scatter", "all_reduce"]
#: factor of the interval of what nobody measured (assumed)
_UNMEASURED = 1.5
COLLECTIVES: tuple[Collective, ...] = ("alltoall", "all_gather", "reduce_scatter", "all_reduce")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Nccl:
    """A NCCL collective on one cluster, a `CommKernel`.

    Attributes:
        ports: The device's side of the fabric.
        calibration: Fitted parameters.
        collective: Which collective it is.
        legacy: Whether NCCL is older than 2.25; a bool, or an ndarray with one per exchange.
    """

    ports: Ports
    calibration: Calibration
    collective: Collective = "alltoall"
    legacy: bool = False
    copies: Literal["per_rank", "per_choice"] = "per_rank"

    @property
    def level(self) -> str:
        """``calibrated``, ``few_shot`` or ``spec_sheet``; across nodes at most ``spec_sheet``, and
        ``none`` behind PCIe switches.
        """
        if self.ports.bridge_bytes_per_s:
            return "none"
        level = self.calibration.level
        return weakest([level, "spec_sheet"]) if self._is_across else level

    @property
    def _is_across(self) -> bool:
        return bool(np.max(num_domains(self.ports)) > 1.0)

    def _c(self, name: str) -> float:
        return self.calibration[f"{self.collective}_{name}"]

    def copy_bytes(
        self, direction: Direction, hidden_size: int, top_k: int, element_bytes: float
    ) -> float:
        """Return the bytes of one copy: the token's elements with their scales."""
        return hidden_size * payload_bytes(element_bytes)

    @property
    def _peers(self) -> Array:
        return np.maximum(self.ports.num_ranks - 1.0, 1.0)

    def port_factor(self, near_bytes: Array) -> Array:
        """Return the seconds of the port per byte, times its rate: >= 1, and less for
        more bytes.
        """
        efficiency = self._c("port_efficiency") * self._peers / (self._peers + self._c("few_peers"))
        return (
            1.0 + self._c("ramp_kb") * KB / (near_bytes + self._c("ramp_knee_kb") * KB)
        ) / efficiency

    def time_s(self, near_bytes: Array | float, far_bytes: Array | float = 0.0) -> Array:
        """Return the seconds of the closed form.

        Args:
            near_bytes: Bytes over the device's port in its busier direction, of any shape.
            far_bytes: Bytes over its NIC in the busier direction.
        """
        near, far = np.asarray(near_bytes, dtype=np.float64), np.asarray(far_bytes)
        return self._form_s(near, far, self._host_s(self._near_s(near)))

    def _form_s(self, near_bytes: Array, far_bytes: Array, host_s: Array) -> Array:
        form = self._alltoall_s if self.collective == "alltoall" else self._ring_s
        nodes_s = self._c("node_us") * US * np.log2(num_domains(self.ports))
        return form(near_bytes, far_bytes, host_s, nodes_s)

    def _near_s(self, near_bytes: Array) -> Array:
        return near_bytes * self.port_factor(near_bytes) / self.ports.near_bytes_per_s

    def _host_s(self, near_s: Array) -> Array:
        return host_seconds(near_s, self.ports, ring=self.collective != "alltoall")

    def _far_s(self, far_bytes: Array) -> Array:
        rate = self.ports.far_bytes_per_s * self._c("nic_efficiency")
        return far_bytes / rate if rate else np.zeros_like(far_bytes, dtype=np.float64)

    def _alltoall_s(
        self, near_bytes: Array, far_bytes: Array, host_s: Array, nodes_s: Array
    ) -> Array:
        hop_us = self._c("hop_us") + np.where(self.legacy, self._c("legacy_hop_us"), 0.0)
        steps = hop_us * US * np.log2(np.maximum(self.ports.num_ranks, 2.0) / 2.0) + nodes_s
        start = self._c("start_us") * US + steps
        ceiling_us: Array = np.where(
            self.legacy,
            np.minimum(self._c("ceiling_us"), self._c("legacy_ceiling_us")),
            self._c("ceiling_us"),
        )
        per_peer = (near_bytes + far_bytes) / self._peers
        # a small exchange uses the low-latency protocol until the other one's start is shorter
        protocol = np.minimum(
            start + per_peer / (self._c("protocol_gb_per_s") * GB),
            np.maximum(ceiling_us * US + steps, start),
        )
        moved = soft_maximum(self._near_s(near_bytes), host_s, self._far_s(far_bytes))
        return soft_maximum(start + moved, protocol, norm=PROTOCOL_NORM)

    def _ring_s(self, near_bytes: Array, far_bytes: Array, host_s: Array, nodes_s: Array) -> Array:
        buffer = (near_bytes + far_bytes) * self.ports.num_ranks / self._peers
        slower = np.where(self.legacy, self._c("legacy_factor"), 1.0) * US

        def start(protocol: str) -> Array:
            hops = self._c(f"{protocol}hop_us") * self._peers
            return slower * (self._c(f"{protocol}start_us") + hops) + nodes_s

        near = self._near_s(near_bytes)
        short = soft_maximum(buffer / (self._c("protocol_gb_per_s") * GB), 2.0 * host_s)
        protocols = [start("") + short, start("bulk_") + soft_maximum(near, host_s)]
        if not self.ports.bridge_bytes_per_s:
            middle = self.ports.near_bytes_per_s * self._c("middle_efficiency")
            protocols.append(start("middle_") + buffer / middle)
        fastest = soft_minimum(*protocols, norm=PROTOCOL_NORM)
        first = np.minimum(start(""), fastest)
        return first + soft_maximum(fastest - first, self._far_s(far_bytes))

    def price(self, direction: Direction, work: Work) -> Price:
        """Price one exchange; both directions cost the same.

        The links to the host are resources of the fabric, which engines fill by themselves. Here
        they only hold the port up, and no less where they take longer than it: otherwise faster
        links to the host could cost time.
        """
        near = self._near_s(work.near_bytes_D)
        host = np.minimum(self._host_s(near), near)
        return priced(
            self._form_s(np.asarray(work.near_bytes_D), np.asarray(work.far_bytes_D), host),
            work,
            sm_s=0.0,
            near_s=near,
            far_s=self._far_s(work.far_bytes_D),
            near_factor=self.port_factor(work.near_bytes_D),
            far_factor=1.0 / self._c("nic_efficiency"),
            num_sms=int(self._c("channels")),
        )

    def interval(self, direction: Direction) -> tuple[float, float]:
        """Return the P10 and P90 of measured / predicted."""
        low, high = self.calibration.interval(self.collective)
        if self._is_across:
            low, high = min(low, 1.0 / _UNMEASURED), max(high, _UNMEASURED)
        least, most = host_interval(self.ports, ring=self.collective != "alltoall")
        return low * float(least.min()), high * float(most.max())


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
