"""Simulate gates over many numbers of experts, and score how well measured ones were predicted.

The gate is part of a layer whose experts have the same total width for every number of experts,
which gives the gate's share of the layer's time.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, groupby
from typing import Any

import numpy as np

from moesim.costs.devices.primitives import kernels_for
from moesim.costs.phases.gate import price_gate
from moesim.design.candidate import Candidate, Workload
from moesim.hardware import Profile, single_device
from moesim.measured.scores import error_scores
from moesim.model import MoELayer, Precision
from moesim.model.gate import Gate
from moesim.quality.gates import gate_delta
from moesim.simulation.run import simulate
from moesim.units import US

Row = dict[str, Any]
#: relative difference of measured times below which gates tie
TIE = 0.05
#: columns of `gate_scores` that the terminal shows, with their headings
SHOWN = {
    "gate": "gate",
    "points": "points",
    "median": "median %",
    "mape": "MAPE %",
    "p90": "P90 %",
    "bias": "bias %",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class GateCase:
    """Sizes of a layer whose number of experts and gate vary.

    Attributes:
        hidden_size: Hidden size of the layer.
        num_tokens: Tokens of the device.
        top_k: Number of experts that a token uses, if there are at least four times as many.
        width: Width of all experts together.
    """

    hidden_size: int
    num_tokens: int
    top_k: int
    width: int


def cases(sizes: Sequence[tuple[int, int, int, int]]) -> list[GateCase]:
    """Return the cases of a table.

    Args:
        sizes: Hidden size, tokens, top_k and width of each case.
    """
    return [
        GateCase(hidden_size=hidden, num_tokens=tokens, top_k=top_k, width=width)
        for hidden, tokens, top_k, width in sizes
    ]


def gates_for(num_experts: int, top_k: int) -> Iterator[Gate]:
    """Yield one gate of every kind that can choose among a number of experts.

    Args:
        num_experts: The number of experts.
        top_k: Number of experts that a token uses.
    """
    side = 1 << (num_experts.bit_length() // 2)
    limited = "group_limited:8:4" if num_experts >= 64 else "group_limited:2:1"
    level = f"two_level:{side}:{min(4, side // 2)}"
    for text in ("flat", limited, level, "product_key:1:256", "product_key:4:128"):
        gate = Gate.parse(text)
        square = math.isqrt(num_experts) ** 2 == num_experts
        kept = gate.num_limited_groups * (num_experts // gate.num_expert_groups)
        if kept >= top_k and (square or gate.kind != "product_key"):
            yield gate


def gate_layers(
    cases: Sequence[GateCase], experts: Sequence[int]
) -> Iterator[tuple[MoELayer, int]]:
    """Yield the layer and the tokens of every gate of every case and number of experts.

    Args:
        cases: Sizes of the layers.
        experts: Numbers of experts.
    """
    for num_experts in experts:
        for case in cases:
            top_k = min(case.top_k, max(num_experts // 4, 1))
            for gate in gates_for(num_experts, top_k):
                layer = MoELayer(
                    hidden_size=case.hidden_size,
                    expert_intermediate_size=max(case.width // num_experts, 16),
                    top_k=top_k,
                    num_experts=num_experts,
                    gate=gate,
                    precision=Precision.named("bf16"),
                )
                yield layer, case.num_tokens


def simulated_gate(profile: Profile, layer: MoELayer, num_tokens: int) -> Row:
    """Simulate the gate and the layer on one device.

    Args:
        profile: The device.
        layer: The layer with its gate.
        num_tokens: Tokens of the device.

    Raises:
        MoesimError: The device cannot run this layer.
    """
    price = price_gate(kernels_for(profile), layer, np.array([num_tokens]))
    gate_us = float(price.solo_s_D()[0]) / US
    work = Workload(num_tokens_per_device=num_tokens)
    result = simulate(Candidate(layer=layer), single_device(profile), work)
    delta = gate_delta(layer.gate)
    return {
        "device": profile.name,
        "num_experts": layer.num_experts,
        "hidden_size": layer.hidden_size,
        "tokens": num_tokens,
        "top_k": layer.top_k,
        "gate": str(layer.gate),
        "kind": layer.gate.kind,
        "gate_us": gate_us,
        "layer_us": result.layer_time_s / US,
        "gate_share": gate_us * US / result.layer_time_s,
        "gate_params": layer.gate_params,
        "gate_loss_delta": delta.nats,
        "gate_loss_delta_low": delta.low,
        "gate_loss_delta_high": delta.high,
        "gate_loss_unknown": delta.unknown,
        "calibration": result.calibration,
        "profile_hash": result.profile_hash,
    }


def gate_scores(rows: Sequence[Row]) -> list[Row]:
    """Return the errors of all gates together and of each kind.

    Args:
        rows: Rows with ``kind``, ``gate_us`` and ``measured_us``.
    """
    kinds = sorted({row["kind"] for row in rows})
    parts = {"all": rows} | {kind: [row for row in rows if row["kind"] == kind] for kind in kinds}
    table = []
    for name, part in parts.items():
        simulated, measured = (np.array([r[c] for r in part]) for c in ("gate_us", "measured_us"))
        table.append({"gate": name, "points": len(part), **error_scores(simulated, measured)})
    return table


def named_right(rows: Sequence[Row]) -> Row:
    """Count the pairs of gates, for the same layer and tokens, whose simulated order is the
    measured one.

    Args:
        rows: Rows with ``gate_us`` and ``measured_us``.

    Returns:
        ``pairs``, ``right``, ``right_percent``, and ``ties``, which do not count as pairs.
    """

    def size(row: Mapping[str, Any]) -> tuple:
        return row["num_experts"], row["hidden_size"], row["tokens"], row["top_k"]

    right = pairs = ties = 0
    for _, group in groupby(sorted(rows, key=size), key=size):
        for one, two in combinations(list(group), 2):
            if abs(math.log(one["measured_us"] / two["measured_us"])) < TIE:
                ties += 1
                continue
            pairs += 1
            as_simulated = one["gate_us"] < two["gate_us"]
            right += as_simulated == (one["measured_us"] < two["measured_us"])
    percent = 100.0 * right / max(pairs, 1)
    return {"pairs": pairs, "right": right, "right_percent": percent, "ties": ties}


def right_text(order: Mapping[str, Any]) -> str:
    """Say how often the faster of two gates was predicted right.

    Args:
        order: The counts that `named_right` returned.
    """
    return (
        f"the faster gate named right in {order['right']} of {order['pairs']} pairs "
        f"({order['right_percent']:.1f} %), {order['ties']} ties within {100 * TIE:.0f} %"
    )
