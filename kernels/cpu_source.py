"""Check simulation against a real MoE layer on this machine's CPU: the loop that closes on any machine.

The candidate's layer is scaled down until one core runs it in milliseconds. A profile of this CPU is measured from
stand-alone primitives, the small layer is simulated on it by the same code as any other device, and the same layer with
the same histogram of experts really runs. What is checked is the simulator's way of composing a layer out of
primitives and routing, not its numbers for a GPU.
"""

import sys
import tempfile
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from moesim_kernels.scaling import plain_gate, scaled_down

from moesim.candidate import Candidate, Workload
from moesim.hardware import Profile, load_profile
from moesim.measured.sources import CheckRow
from moesim.model import MoELayer
from moesim.routing import RoutingSpec, route
from moesim.simulate import simulate
from moesim.topology import Cluster, single_device
from moesim.units import US
from moesim.widths import short_text

if TYPE_CHECKING:
    from moesim_kernels.cpu_layer import Sentinel

_HIDDEN, _EXPERTS, _TOKENS, _WIDTH_SHARE = 512, 64, 256, 8
#: widths are multiples of what a vector unit likes
_MULTIPLE = 64


@cache
def local_profile(budget_s: float) -> tuple[Profile, "Sentinel"]:
    """Measure this CPU, once per process.

    Args:
        budget_s: Seconds to spend, about.

    Returns:
        The profile, and the sentinel as it was before.
    """
    from moesim_kernels.cpu_layer import Sentinel, measuring
    from moesim_kernels.cpu_profile import measure_profile

    with measuring():
        sentinel = Sentinel()
    text = measure_profile(budget_s, sentinel=sentinel)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cpu-local.toml"
        path.write_text(text, encoding="utf-8")
        return load_profile(str(path)), sentinel


def small_layer(layer: MoELayer, fmt: str) -> MoELayer:
    """The layer scaled down to one core: hidden 512, width an eighth, up to 64 experts; gate and top-k as they are.

    Args:
        layer: The candidate's.
        fmt: Format of weights, tokens and gate.
    """
    def scaled(size: int, most: int) -> int:
        return min(max(round(size / _MULTIPLE), 1) * _MULTIPLE, most)

    return scaled_down(layer, num_experts=_EXPERTS, hidden_size=scaled(layer.hidden_size, _HIDDEN), fmt=fmt,
                       width=scaled(round(layer.mean_width) // _WIDTH_SHARE, _HIDDEN))


class TorchCpu:
    """A scaled-down layer, simulated on a profile of this CPU and really run on it.

    Args:
        budget_s: Seconds for the profile, which is measured once per process.
    """

    name = "torch_cpu"

    def __init__(self, budget_s: float = 8.0) -> None:
        self.budget_s = budget_s

    def unavailable_because(self) -> str | None:
        """It needs torch, and a system that tells how much time a thread got."""
        if find_spec("torch") is None:
            return "torch not installed"
        return "needs Linux or macOS" if sys.platform == "win32" else None

    def check(self, candidate: Candidate, cluster: Cluster, workload: Workload) -> CheckRow:
        """Time the small layer and compare it with its simulation; a disturbed machine is reported, not refused."""
        from moesim_kernels.cpu_layer import time_layer
        from moesim_kernels.cpu_primitives import DTYPES

        profile, sentinel = local_profile(self.budget_s)
        fmt = max(DTYPES, key=profile.peak)
        layer = small_layer(candidate.layer, fmt)
        tokens = min(_TOKENS, workload.num_tokens_per_device * cluster.num_devices)
        small_load = replace(workload, num_tokens_per_device=tokens, kv_tokens_per_device=None)
        result = simulate(Candidate(layer=layer), single_device(profile), small_load)
        routing = route(RoutingSpec.parse(workload.routing), layer.gate, num_experts=layer.num_experts,
                        top_k=layer.top_k, num_tokens_S=np.array([tokens]), seed=workload.seed)
        timing = time_layer(layer, routing.expert_ids_TK, DTYPES[fmt], sentinel=sentinel, seed=workload.seed)
        total = timing.phases["total"]
        extra: dict[str, Any] = {
            "simulated_phases_us": {name: seconds / US for name, seconds in result.phase_time_s.items()},
            "measured_phases_us": {name: spread.p10_s / US for name, spread in timing.phases.items()},
            "measured_median_us": total.median_s / US, "slowdown": timing.slowdown, "contended": timing.contended}
        return CheckRow(
            candidate=candidate.label, source=self.name, quantity="layer_time_us", status="checked",
            simulated=result.layer_time_s / US, simulated_low=result.layer_time_low_s / US,
            simulated_high=result.layer_time_high_s / US,
            measured=total.p10_s / US, measured_low=total.p10_s / US, measured_high=total.p90_s / US,
            in_fit_set=False, calibration=result.calibration, engine=result.engine, seed=workload.seed,
            profile_hash=result.profile_hash, extra=extra, detail=self._detail(candidate, layer, tokens, fmt, timing))

    @staticmethod
    def _detail(candidate: Candidate, layer: MoELayer, tokens: int, fmt: str, timing: Any) -> str:
        whole = candidate.layer
        parts = [f"scaled down from E{whole.num_experts} k{whole.top_k} H{whole.hidden_size} "
                 f"I{short_text(whole.expert_intermediate_size)} to "
                 f"E{layer.num_experts} k{layer.top_k} H{layer.hidden_size} "
                 f"I{layer.expert_intermediate_size} {layer.gate}, {tokens} tokens, {fmt}, one thread of this CPU",
                 f"measured is the P10 of {timing.repeats} repeats (high: P90), caches flushed, repeated routing"]
        if whole.uneven:
            parts.append("experts of equal width")
        if plain_gate(whole.gate) != whole.gate:
            parts.append(f"gate by top-k, each token for itself, instead of {whole.gate}")
        if whole.num_shared_experts or whole.capacity_factor is not None:
            parts.append("no shared experts, no capacity limit")
        if timing.contended:
            parts.append(f"contended: the machine was {100 * timing.slowdown:.0f} % slower than before the profile")
        return "; ".join(parts)
