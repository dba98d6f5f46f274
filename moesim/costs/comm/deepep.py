"""Price DeepEP's two modes: normal (training, prefill) and low latency (decoding).

The structure below is per device with N tokens, of which b bytes travel per copy.

*Normal*: one copy travels to each rank that holds any of a token's experts, handled by ``num_sms``
SMs. In dispatch every sender warp scans all tokens, then copies; in combine an SM reads a token's
copies and writes their sum. SMs, port and NIC are stages that run side by side (4-norm), and the
fill of the pipeline comes on top. Across domains a token crosses the NIC once per domain and is
forwarded there, so the SMs handle copies twice (``hop_factor``).

*Low latency*: one copy per choice travels into the expert's slot. The SMs follow from the experts,
which have one group of warps each (g = ceil(E / SMs of the device), ceil(E / g) SMs); in dispatch
an SM takes one token after the other. In combine the device reads its tokens' copies from its
memory and sums them when all have come through the port, so that memory and port add up instead of
running side by side; the port is as efficient as in the normal mode's combine, and on a slower port
only its share grows. Across domains every copy crosses the NIC separately, which is slower than
both and hides them.

Each doubling of domains costs a step. Low-latency combine takes one step however many there are:
all copies leave at once, and each is awaited by the one token that it belongs to.

Data: aiconfigurator-core 0.12, wideep_deepep_{normal,ll}_perf of H100, kernel time without the
notify kernel and the wait of the host for its counts, which nobody measured (calibrations
``deepep-normal``, ``deepep-ll``). The code is deepseek-ai/DeepEP; its docs/legacy.md has the
published figures, of H800.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from moesim.costs.calibration import Calibration
from moesim.costs.comm.forms import fill, per_unit, priced, soft_maximum
from moesim.costs.comm.nccl import num_domains, payload_bytes
from moesim.costs.comm.work import Array, Direction, Ports, Price, Work
from moesim.units import GB, KB, US

#: class of residuals of exchanges across domains, after the direction
ACROSS = "_across"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Stages:
    """Seconds of one exchange: its start, its stages, and the depth of its pipeline.

    With ``in_turn`` SMs and port work one after the other; the NIC always runs next to them.
    """

    start: Array
    sm: Array
    near: Array
    far: Array
    depth: Array | float
    in_turn: bool = False

    @property
    def time_s(self) -> Array:
        inside = (self.sm + self.near,) if self.in_turn else (self.sm, self.near)
        steady = soft_maximum(*inside, self.far)
        return self.start + steady + fill(steady, self.depth)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _DeepEp:
    """The parts that both modes share."""

    ports: Ports
    calibration: Calibration

    @property
    def level(self) -> str:
        """``calibrated``, ``few_shot`` or ``spec_sheet``."""
        return self.calibration.level

    def interval(self, direction: Direction) -> tuple[float, float]:
        """Return the P10 and P90 of measured / predicted."""
        return interval_of(self.calibration, direction, float(np.max(num_domains(self.ports))))

    def _links(self, direction: Direction, work: Work) -> tuple[Array, Array]:
        c, ports = self.calibration, self.ports
        near = work.near_bytes_D / (c[f"{direction}_port_efficiency"] * ports.near_bytes_per_s)
        rate = c[f"{direction}_nic_efficiency"] * ports.far_bytes_per_s
        return near, work.far_bytes_D / rate if rate else np.zeros_like(near)

    def _price(self, direction: Direction, work: Work, stages: _Stages, num_sms: int) -> Price:
        c = self.calibration
        return priced(
            stages.time_s,
            work,
            sm_s=stages.sm,
            near_s=stages.near,
            far_s=stages.far,
            near_factor=1.0 / c[f"{direction}_port_efficiency"],
            far_factor=1.0 / c[f"{direction}_nic_efficiency"],
            num_sms=num_sms,
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DeepEpNormal(_DeepEp):
    """DeepEP's normal mode, a `CommKernel`.

    Attributes:
        num_sms: SMs it runs on; by default DeepEP's own default.
    """

    num_sms: int = 20
    copies: Literal["per_rank", "per_choice"] = "per_rank"

    def copy_bytes(
        self, direction: Direction, hidden_size: int, top_k: int, element_bytes: float
    ) -> float:
        """Return the bytes of a copy: its elements with scales; in dispatch 4 B plus 12 B of index
        and weight per choice, in combine 4 B of weight per choice.
        """
        payload = hidden_size * payload_bytes(element_bytes)
        return payload + (12.0 * top_k + 4.0 if direction == "dispatch" else 4.0 * top_k)

    def stages(self, direction: Direction, work: Work) -> _Stages:
        """Return the start, stages and depth of one exchange, each of shape (D,)."""
        c, sms, b = (
            self.calibration,
            np.asarray(self.num_sms, dtype=np.float64),
            work.copy_bytes / KB,
        )
        domains = num_domains(self.ports)
        hop = np.where(domains > 1.0, c[f"{direction}_hop_factor"], 1.0)
        node_s = c[f"{direction}_node_us"] * US * np.log2(domains)
        near, far = self._links(direction, work)
        per_token = per_unit(work.copies_D, work.tokens_D)
        if direction == "dispatch":
            copy_us = c["dispatch_copy_us"] + b / _kb_per_us(c["dispatch_copy_gb_per_s"])
            sm = (work.tokens_D * c["dispatch_scan_us"] + work.copies_D * copy_us) / sms * hop * US
            return _Stages(
                start=(c["dispatch_start_us"] + c["dispatch_start_us_per_kb"] * b) * US + node_s,
                sm=sm,
                near=near,
                far=far,
                depth=(c["dispatch_fill_us"] + c["dispatch_fill_us_per_kb"] * per_token * b / sms)
                * US,
            )
        # reading costs once per token and once per copy of it
        read_us = b * (
            1.0 / _kb_per_us(c["combine_token_gb_per_s"])
            + per_token / _kb_per_us(c["combine_copy_gb_per_s"])
        )
        send_us = work.copies_D * b / _kb_per_us(c["combine_send_gb_per_s"])
        sm = soft_maximum(work.tokens_D * read_us, send_us) / sms * hop * US
        # the first tokens must be read before anything can be sent
        start_us = c["combine_start_us"] + c["combine_start_tokens"] * np.where(
            per_token > 0.0, read_us, 0.0
        )
        return _Stages(
            start=start_us * US + node_s, sm=sm, near=near, far=far, depth=c["combine_fill_us"] * US
        )

    def price(self, direction: Direction, work: Work) -> Price:
        """Price one exchange of a direction."""
        return self._price(direction, work, self.stages(direction, work), self.num_sms)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DeepEpLowLatency(_DeepEp):
    """DeepEP's low-latency mode, a `CommKernel`.

    It takes no SMs from compute: where the two overlap, a hook receives, which occupies no SM
    (DeepEP README).
    """

    copies: Literal["per_rank", "per_choice"] = "per_choice"

    def copy_bytes(
        self, direction: Direction, hidden_size: int, top_k: int, element_bytes: float
    ) -> float:
        """Return the bytes of a copy: its elements and scales, and in dispatch 16 B that name its
        source.
        """
        return hidden_size * payload_bytes(element_bytes) + (
            16.0 if direction == "dispatch" else 0.0
        )

    def stages(self, direction: Direction, work: Work) -> _Stages:
        """Return the start and stages of one exchange, each of shape (D,)."""
        c = self.calibration
        groups = np.ceil(np.asarray(work.num_experts) / self.ports.num_sms)
        sms = np.ceil(work.num_experts / groups)
        near, far = self._links(direction, work)
        domains = num_domains(self.ports)
        steps = np.log2(domains) if direction == "dispatch" else domains > 1.0
        start_us = (
            c[f"{direction}_start_us"]
            + c[f"{direction}_expert_us"] * (work.num_experts / 256.0)
            + c[f"{direction}_node_us"] * steps
        )
        if direction == "dispatch":
            sm_us = work.tokens_D / sms * c["dispatch_token_us"]
        else:
            # as fast with few experts, on few SMs: it waits for memory, not for them
            rate = self.ports.memory_bytes_per_s * c["combine_memory_efficiency"]
            sm_us = work.copies_D * work.copy_bytes / rate / US
        return _Stages(
            start=np.broadcast_to(start_us * US, np.shape(near)),
            sm=sm_us * US,
            near=near,
            far=far,
            depth=0.0,
            in_turn=direction == "combine",
        )

    def price(self, direction: Direction, work: Work) -> Price:
        """Price one exchange of a direction."""
        return self._price(direction, work, self.stages(direction, work), 0)


def _kb_per_us(gb_per_s: float) -> float:
    return gb_per_s * GB / KB * US


def interval_of(
    calibration: Calibration, direction: str, num_domains: float
) -> tuple[float, float]:
    """Return the P10 and P90 of measured / predicted of exchanges across some domains.

    Two domains were measured. Each further doubling is taken to add an error as large as the first
    one's and independent of it (assumed), so that log widths grow with its square root.
    """
    if num_domains <= 1.0:
        return calibration.interval(direction)
    low, high = calibration.interval(f"{direction}{ACROSS}")
    power = float(np.sqrt(np.log2(max(num_domains, 2.0))))
    return low**power, high**power
