"""Simulate gates on this CPU and then measure them, with the torch code that a layer there uses.

One thread is used, with caches flushed (`moesim_kernels.cpu.protocol`). The profile of the CPU
comes from stand-alone primitives and never from a gate.
"""

import math
from collections.abc import Sequence
from typing import Any

from moesim_kernels.cpu.layer import time_gate
from moesim_kernels.cpu.primitives import DTYPES
from moesim_kernels.cpu.protocol import Sentinel, measuring

from moesim.costs.devices.serial import phase_intervals
from moesim.hardware import Profile
from moesim.measured.gate_rows import GateCase, gate_layers, simulated_gate
from moesim.model import MoELayer
from moesim.units import US

#: most bytes of keys and of logits that one gate may hold
_KEY_BYTES, _LOGIT_BYTES = 640e6, 160e6


def is_measurable(layer: MoELayer, num_tokens: int) -> bool:
    """Tell whether keys and logits of a gate fit in what is spent on one measurement.

    Args:
        layer: The layer with its gate.
        num_tokens: Number of tokens of the layer.
    """
    gate, experts = layer.gate, layer.num_experts
    # Product keys and two levels score about the square root of the experts.
    logits = experts if gate.kind in ("flat", "group_limited") else math.isqrt(experts)
    keys = gate.params(layer.hidden_size, experts) * 2.0
    most = _LOGIT_BYTES if logits == experts else _KEY_BYTES
    return keys <= most and 4.0 * num_tokens * logits <= _LOGIT_BYTES


def gate_rows(
    profile: Profile, cases: Sequence[GateCase], experts: Sequence[int], seconds: float
) -> list[dict[str, Any]]:
    """Simulate gates on a profile of this CPU and measure them.

    Args:
        profile: The measured profile.
        cases: Sizes of the layers.
        experts: Numbers of experts.
        seconds: Time to spend on repeats of each gate.

    Raises:
        MeasurementError: This CPU cannot be measured.
    """
    # The faster format of this CPU.
    fmt = max(DTYPES, key=profile.peak)
    low, high = phase_intervals(profile, fmt, fmt).get("gate", (1.0, 1.0))
    # One sentinel for all gates, so that all are compared with the same state of the machine.
    with measuring():
        sentinel = Sentinel()
    rows = []
    for layer, num_tokens in gate_layers(cases, experts):
        if not is_measurable(layer, num_tokens):
            continue
        row = simulated_gate(profile, layer, num_tokens)
        timing = time_gate(layer, num_tokens, DTYPES[fmt], seconds=seconds, sentinel=sentinel)
        spread = timing.phases["total"]
        row |= {
            "gate_low_us": row["gate_us"] * low,
            "gate_high_us": row["gate_us"] * high,
            "measured_us": spread.p10_s / US,
            "measured_median_us": spread.median_s / US,
            "error_percent": 100.0 * (row["gate_us"] * US / spread.p10_s - 1.0),
            "repeats": timing.repeats,
            "contended": timing.contended,
        }
        rows.append(row)
    return rows
