"""Price TensorRT-LLM's all-to-all inside an NVL72 domain, one-sided (puts) and two-sided (send and
receive).

The structure is per device with N tokens of b bytes per copy: a start that grows with log2 of the
ranks, then port and local work side by side (4-norm). The port moves bytes at a share of its rate;
the local work has a fixed cost and a byte cost per token (packing, reading, reducing). ``prepare``
exchanges counts and indices and has only local work; the low-precision combine quantizes and
restores on the way. It was measured within one domain; between domains the NIC is one more stage,
at its full rate (assumed).

Data: aiconfigurator-core 0.12, trtllm_alltoall_perf of GB200 at EP 4, 8 and 16 (calibration
``nvl72``).
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from moesim.costs.calibration import Calibration
from moesim.costs.comm.forms import priced, soft_maximum
from moesim.costs.comm.nccl import payload_bytes
from moesim.costs.comm.work import Array, Direction, Ports, Price, Work
from moesim.units import KB, US

Phase = Literal[
    "dispatch_one_sided",
    "combine_one_sided",
    "dispatch_two_sided",
    "combine_two_sided",
    "combine_low_precision",
    "prepare",
]
PHASES: tuple[Phase, ...] = (
    "dispatch_one_sided",
    "combine_one_sided",
    "dispatch_two_sided",
    "combine_two_sided",
    "combine_low_precision",
    "prepare",
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Nvl72:
    """TensorRT-LLM's all-to-all, a `CommKernel`.

    Attributes:
        ports: The device's side of the fabric.
        calibration: Fitted parameters.
        variant: ``one_sided`` or ``two_sided``.
    """

    ports: Ports
    calibration: Calibration
    variant: Literal["one_sided", "two_sided"] = "one_sided"
    copies: Literal["per_rank", "per_choice"] = "per_rank"

    @property
    def level(self) -> str:
        """``calibrated``, ``few_shot`` or ``spec_sheet``."""
        return self.calibration.level

    def copy_bytes(
        self, direction: Direction, hidden_size: int, top_k: int, element_bytes: float
    ) -> float:
        """Return the bytes of one copy: the token's elements with their scales."""
        return hidden_size * payload_bytes(element_bytes)

    def _stages(self, phase: Phase, work: Work) -> tuple[Array, Array, Array, Array]:
        """Return the seconds of start, local work, port and NIC."""
        c, ports = self.calibration, self.ports
        near = work.near_bytes_D / (c[f"{phase}_port_efficiency"] * ports.near_bytes_per_s)
        far = (
            work.far_bytes_D / ports.far_bytes_per_s
            if ports.far_bytes_per_s
            else np.zeros_like(near)
        )
        local = (
            work.tokens_D
            * (c[f"{phase}_token_us"] + work.copy_bytes / KB * c[f"{phase}_local_us_per_kb"])
            * US
        )
        start = (c[f"{phase}_start_us"] + c[f"{phase}_rank_us"] * np.log2(ports.num_ranks)) * US
        return start, local, near, far

    def time_s(self, phase: Phase, work: Work) -> Array:
        """Return the seconds of the closed form of one phase: ndarray of shape (D,)."""
        start, *stages = self._stages(phase, work)
        return start + soft_maximum(*stages)

    def price(self, direction: Direction, work: Work) -> Price:
        """Price one exchange of a direction."""
        phase: Phase = f"{direction}_{self.variant}"  # type: ignore[assignment]
        _, local, near, far = self._stages(phase, work)
        return priced(
            self.time_s(phase, work),
            work,
            sm_s=local,
            near_s=near,
            far_s=far,
            near_factor=1.0 / self.calibration[f"{phase}_port_efficiency"],
            far_factor=1.0,
            num_sms=0,
        )

    def interval(self, direction: Direction) -> tuple[float, float]:
        """Return the P10 and P90 of measured / predicted."""
        return self.calibration.interval(f"{direction}_{self.variant}")
