"""Compare a simulation with a real MoE layer on this machine's CPU: the loop that can be closed on
any machine.

A candidate that was simulated on a measured profile of one CPU runs unchanged if it is small
enough. Any other candidate is scaled down until one core runs it in milliseconds: a profile of this
CPU is measured from stand-alone primitives, the small layer is simulated on it by the same code as
any other device, and the same layer with the same histogram of experts really runs. This checks how
the simulator composes a layer from primitives and routing, not its numbers for a GPU. Times are
given for the whole layer, for its gate, and for everything after the gate (``experts``).
"""

import sys
import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from moesim_kernels.sources.scaling import plain_gate, scaled_down

from moesim.costs.devices.serial import phase_intervals
from moesim.design.candidate import Candidate, Workload
from moesim.files.output import write_file
from moesim.hardware import Cluster, Profile, load_profile, single_device
from moesim.measured.environment import lacking
from moesim.measured.sources import CheckRow
from moesim.model import MoELayer
from moesim.model.widths import short_text
from moesim.routing import RoutingSpec, route
from moesim.simulation.run import simulate
from moesim.simulation.trust import ASSUMED_INTERVAL
from moesim.units import US

if TYPE_CHECKING:
    from moesim_kernels.cpu.protocol import LayerTiming, Sentinel

# Largest sizes of a scaled-down layer, and the divisor of its width.
_HIDDEN, _EXPERTS, _TOKENS, _WIDTH_SHARE = 512, 64, 256, 8
#: widths are multiples of this number of elements, which suits vector units
_MULTIPLE = 64
_FORMATS = ("float32", "bfloat16")
#: multiply-adds and bytes of weights of the largest layer that runs unchanged
_MOST_WORK, _MOST_BYTES = 1e11, 2e9


@cache
def local_profile(budget_s: float) -> tuple[Profile, "Sentinel"]:
    """Measure this CPU, once per process.

    Args:
        budget_s: About how many seconds to spend.

    Returns:
        The profile, and the sentinel in its state before the measurement.
    """
    from moesim_kernels.cpu.protocol import Sentinel, measuring
    from moesim_kernels.profile.cpu_profile import measure_profile

    with measuring():
        # Made before the profile, so that a later slowdown is seen against this state.
        sentinel = Sentinel()
    text = measure_profile(budget_s, sentinel=sentinel, training=False)
    with tempfile.TemporaryDirectory() as folder:
        # Written and loaded like any other profile, so that it passes the same checks.
        path = Path(folder) / "cpu-local.toml"
        write_file(path, text)
        return load_profile(str(path)), sentinel


def small_layer(layer: MoELayer, fmt: str) -> MoELayer:
    """Return the layer scaled down to one core: hidden size 512, an eighth of the width, up to 64
    experts; gate and top-k stay.

    Args:
        layer: Layer of the candidate.
        fmt: Number format of weights, tokens, and gate.
    """

    def scaled(size: int, most: int) -> int:
        return min(max(round(size / _MULTIPLE), 1) * _MULTIPLE, most)

    return scaled_down(
        layer,
        num_experts=_EXPERTS,
        hidden_size=scaled(layer.hidden_size, _HIDDEN),
        fmt=fmt,
        width=scaled(round(layer.mean_width) // _WIDTH_SHARE, _HIDDEN),
    )


def runs_as_it_is(layer: MoELayer, num_tokens: int) -> bool:
    """Return whether a CPU runs this very layer: one width, a format and kind of gate that the
    torch path has, and small.
    """
    fmt = layer.precision.activations
    plain = (
        isinstance(layer.expert_intermediate_size, int)
        and not layer.num_shared_experts
        and layer.capacity_factor is None
        and plain_gate(layer.gate) == layer.gate
    )
    one_format = fmt in _FORMATS and {layer.precision.weights, layer.gate.precision} == {fmt}
    # grouped_mm refuses rows that are not a multiple of 16 bytes.
    multiple = 16 // (4 if fmt == "float32" else 2)
    fits = layer.hidden_size % multiple == layer.shared_width % multiple == 0
    return (
        plain
        and one_format
        and fits
        and num_tokens * layer.top_k * layer.params_per_expert < _MOST_WORK
        and layer.num_experts * layer.bytes_per_expert < _MOST_BYTES
    )


class TorchCpu:
    """Simulate a layer on a profile of this CPU and really run it there, by one thread.

    Args:
        budget_s: Seconds to spend on the profile of scaled-down layers, which is measured once per
            process.
    """

    name = "torch-cpu"

    def __init__(self, budget_s: float = 5.0) -> None:
        self.budget_s = budget_s

    def unavailable_because(self) -> str | None:
        """Return why it cannot run: it needs torch, and a system that reports a thread's time."""
        if missing := lacking("torch"):
            return missing
        return "needs Linux or macOS" if sys.platform == "win32" else None

    def check(self, candidate: Candidate, cluster: Cluster, workload: Workload) -> list[CheckRow]:
        """Time the layer and compare it with its simulation; a disturbed machine is reported, not
        refused.
        """
        from moesim_kernels.cpu.layer import time_layer
        from moesim_kernels.cpu.primitives import DTYPES

        layer, tokens, sentinel = (
            candidate.layer,
            workload.num_tokens_per_device * cluster.num_devices,
            None,
        )
        # The profile must be of a CPU, and the layer must be one that torch runs unchanged.
        exact = (
            cluster.profile.execution == "serial"
            and cluster.num_devices == 1
            and runs_as_it_is(layer, tokens)
        )
        if exact:
            profile, fmt = cluster.profile, layer.precision.activations
        else:
            profile, sentinel = local_profile(self.budget_s)
            fmt = max(DTYPES, key=profile.peak)
            layer, tokens = small_layer(layer, fmt), min(_TOKENS, tokens)
        load = replace(workload, num_tokens_per_device=tokens, kv_tokens_per_device=None)
        # Simulated before it runs, on the profile of the CPU that runs it.
        result = simulate(Candidate(layer=layer), single_device(profile), load)
        # The same seed gives the same histogram of experts that was simulated.
        routing = route(
            RoutingSpec.parse(workload.routing),
            layer.gate,
            num_experts=layer.num_experts,
            top_k=layer.top_k,
            num_tokens_S=np.array([tokens]),
            seed=workload.seed,
        )
        timing = time_layer(
            layer, routing.expert_ids_TK, DTYPES[fmt], sentinel=sentinel, seed=workload.seed
        )
        intervals = phase_intervals(profile, fmt, fmt)
        simulated = {
            "layer": (result.layer_time_s, result.layer_time_low_s, result.layer_time_high_s)
        } | {
            phase: (
                seconds,
                *(factor * seconds for factor in intervals.get(phase, ASSUMED_INTERVAL)),
            )
            for phase, seconds in result.phase_time_s.items()
        }
        total, gate = timing.seconds["total"], timing.seconds["gate"]
        # Everything after the gate counts as one phase.
        measured = {"layer": total, "gate": gate, "experts": total - gate}
        detail = self._detail(candidate, layer, tokens, fmt, timing, exact)
        extra: dict[str, Any] = {
            "slowdown": timing.slowdown,
            "contended": timing.contended,
            "as_it_is": exact,
        }
        rows = []
        for phase, times in measured.items():
            value, low, high = (seconds / US for seconds in simulated[phase])
            # The P10 is the measured value, since a disturbance only adds time.
            p10, p90 = (float(part) / US for part in np.percentile(times, (10, 90)))
            rows.append(
                CheckRow(
                    candidate=candidate.label,
                    source=self.name,
                    quantity=f"{phase}_time_us",
                    status="checked",
                    simulated=value,
                    simulated_low=low,
                    simulated_high=high,
                    measured=p10,
                    measured_low=p10,
                    measured_high=p90,
                    in_fit_set=False,
                    calibration=result.calibration,
                    engine=result.engine,
                    seed=workload.seed,
                    profile_hash=result.profile_hash,
                    extra=extra,
                    detail=detail,
                )
            )
        return rows

    @staticmethod
    def _detail(
        candidate: Candidate,
        layer: MoELayer,
        tokens: int,
        fmt: str,
        timing: "LayerTiming",
        exact: bool,
    ) -> str:
        whole = candidate.layer
        parts = [
            f"{tokens} tokens, {fmt}, one thread of this CPU",
            (
                f"measured is the P10 of {timing.repeats} repeats (high: P90), caches flushed, "
                "repeated routing"
            ),
        ]
        if not exact:
            # Says what was run in place of the candidate.
            parts[0] = (
                f"scaled down from E{whole.num_experts} k{whole.top_k} H{whole.hidden_size} "
                f"I{short_text(whole.expert_intermediate_size)} to "
                f"E{layer.num_experts} k{layer.top_k} H{layer.hidden_size} "
                f"I{layer.expert_intermediate_size} {layer.gate}, {parts[0]}"
            )
            parts += left_out(whole)
        if timing.contended:
            parts.append(
                f"contended: the machine was {100 * timing.slowdown:.0f} % slower than before"
            )
        return "; ".join(parts)


def left_out(whole: MoELayer) -> list[str]:
    """List what `small_layer` leaves out of a layer."""
    parts = []
    if whole.uneven:
        parts.append("experts of equal width")
    if plain_gate(whole.gate) != whole.gate:
        parts.append(f"gate by top-k, each token for itself, instead of {whole.gate}")
    if whole.num_shared_experts or whole.capacity_factor is not None:
        parts.append("no shared experts, no capacity limit")
    return parts
